"""Compute (not measure) memory and time of fine-tuning the real SmolVLA, pi0 and pi0.5.

Example: `python benchmarks/vla_memory.py --json memory.json`

The policies have their true shapes, from LeRobot's default settings. They are on torch's meta
device, which has shapes but no numbers, so no weights, network or accelerator are needed. Only
SmolVLA's backbone has its shape on the hub; `SMOLVLM2_500M` repeats it here.

Memory from the parameters that robo-razor trains (`trainer`, `flow`):

- Weights of the policy and of the base. They share the frozen ones. Trained ones are float32 (with
  LoRA the action expert, which has the updates).
- Gradients and AdamW's two moments, also float32. The language models' output layers get none,
  because no action depends on them.
- Copies of weights and moments that undo an interrupted update, up to 100 M trained parameters.
- `loading`: the complete policy and base, before they share weights. A run needs the larger of
  `loading` and `training`.

Memory from shapes that pass through the model: one decision's encoded observation, and the tensors
that autograd saves of one decision for the backward pass (each once, without parameters). In BC
they are of the policy's loss, in PPO of the replay of all denoising steps with observations that
were encoded before. Not counted: memory of cuDNN, cuBLAS and the allocator, temporary tensors, and
the simulator.

Operations are counted by torch's `FlopCounterMode`: those of matrix products and convolutions, with
backward passes and padded tokens. In BC autograd goes back through the language model even if only
the expert is trained, because LeRobot's loss puts the tokens of both through one attention.

Times follow from the operations at an assumed share of a device's peak, and are lower bounds at
that share. Not counted: all other arithmetic, memory traffic (small batches wait for the weights),
the optimiser, the critic, values of final observations, KL, evaluation, rows that fill up an
inference (32 on a GPU), and the simulator. The default peak is that of an H100 or H200 in dense
bfloat16, so it holds for `--bc.bf16` and `--ppo.bf16`. In float32 the peak is 67 TFLOPS, because
robo-razor does not switch TF32 on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as fx_config
from torch.utils.flop_counter import FlopCounterMode

from robo_razor.policies.families import family_of
from robo_razor.policies.flow.adapter import FlowAdapter, Prefix, parameters_of
from robo_razor.policies.flow.distribution import FlowChunkDistribution
from robo_razor.policies.flow.encoding import Observations
from robo_razor.policies.flow.kernels import make_schedule
from robo_razor.policies.flow.value_head import ValueHead
from robo_razor.training.trainer import SNAPSHOT_PARAMETERS

GIB = 2**30
CAMERAS, STATE, ACTION, IMAGE = 2, 7, 5, 64
"""The observations and actions of the table suite."""
SMOLVLM2_500M: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "vocab_size": 49280,
    },
    "scale_factor": 4,
    "tie_word_embeddings": False,
}
"""Shape of HuggingFaceTB/SmolVLM2-500M-Video-Instruct; with it SmolVLA has its published 450 M."""


def features() -> dict[str, Any]:
    """Return the input and output features of a policy for the table suite."""
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        f"observation.images.{i}": PolicyFeature(FeatureType.VISUAL, (3, IMAGE, IMAGE))
        for i in range(CAMERAS)
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE,))
    return {
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
    }


def build(kind: str, dtype: str) -> Any:
    """Return a policy in its true shape on the meta device.

    Args:
        kind: "smolvla", "pi0" or "pi05".
        dtype: "float32" or "bfloat16"; SmolVLA's backbone is always bfloat16.
    """
    from lerobot.policies.factory import get_policy_class, make_policy_config

    settings = {} if kind == "smolvla" else {"dtype": dtype}
    config = make_policy_config(kind, push_to_hub=False, **features(), **settings)
    config.device = "meta"
    with torch.device("meta"), _local_backbone():
        policy = get_policy_class(kind)(config)
    if kind == "smolvla":  # as LeRobot loads the published weights
        policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    return policy.eval()


@contextlib.contextmanager
def _local_backbone() -> Iterator[None]:
    """Let LeRobot's SmolVLA take its backbone's shape from this module."""
    from lerobot.policies.smolvla import smolvlm_with_expert
    from transformers import SmolVLMConfig

    tokens = SimpleNamespace(fake_image_token_id=0, global_image_token_id=1)
    shape = mock.Mock(from_pretrained=lambda *_: SmolVLMConfig(**SMOLVLM2_500M))
    processor = mock.Mock(from_pretrained=lambda *_: SimpleNamespace(tokenizer=tokens))
    with (
        mock.patch.object(smolvlm_with_expert, "AutoConfig", shape),
        mock.patch.object(smolvlm_with_expert, "AutoProcessor", processor),
    ):
        yield


def size(parameters: Iterable[Tensor]) -> int:
    """Return bytes."""
    return sum(p.numel() * p.element_size() for p in parameters)


def make_adapter(policy: Any) -> FlowAdapter:
    """Return the sampler's adapter of a LeRobot policy."""
    return family_of(policy.config.type).adapter(policy)


def parts(policy: Any, adapter: FlowAdapter) -> dict[str, int]:
    """Return parameters by part; the language model is the prefix without the vision part.

    Language model and expert contain `lm_heads`, the output layers.
    """
    vision = parameters_of([adapter.vision()])
    prefix = parameters_of(adapter.prefix_modules())
    expert = parameters_of(adapter.expert_modules())
    heads = [p for name, p in policy.named_parameters() if "lm_head" in name]
    return {
        "lm_heads": sum(p.numel() for p in heads),
        "vision": sum(p.numel() for p in vision),
        "language": sum(p.numel() for p in prefix) - sum(p.numel() for p in vision),
        "expert": sum(p.numel() for p in expert),
        "all": sum(p.numel() for p in policy.parameters()),
    }


def low_rank(adapter: FlowAdapter, rank: int) -> list[Tensor]:
    """Return LoRA's parameters for the action expert, float32 on the meta device."""
    layers = [
        layer
        for part in adapter.expert_modules()
        for layer in part.modules()
        if isinstance(layer, nn.Linear)
    ]
    count = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    return [torch.empty(count, device="meta")]


def trained(policy: Any, adapter: FlowAdapter, part: str, rank: int) -> list[Tensor]:
    """Return the parameters that a run trains by default: no critic, no image encoder."""
    if part == "lora":
        return low_rank(adapter, rank)
    if part == "expert":
        return [p for p in parameters_of(adapter.expert_modules()) if p.requires_grad]
    frozen = {id(p) for p in adapter.vision().parameters()}
    wanted = [p for p in policy.parameters() if p.requires_grad or part == "all"]
    return [p for p in wanted if id(p) not in frozen]


def fixed_memory(policy: Any, adapter: FlowAdapter, part: str, rank: int) -> dict[str, float]:
    """Return the memory that does not depend on the batch, bytes.

    Afterwards the trained weights of the policy are float32, as in a run.
    """
    loaded = size(policy.parameters())
    tuned = trained(policy, adapter, part, rank)
    adapter.to_float32(parameters_of(adapter.expert_modules()) if part == "lora" else tuned)
    critic = list(ValueHead(adapter.feature_dim).parameters())
    weights, tuned_bytes = size(policy.parameters()), size(tuned)
    idle = {id(p) for name, p in policy.named_parameters() if "lm_head" in name}
    reached = size([p for p in tuned if id(p) not in idle]) + size(critic)
    small = sum(p.numel() for p in tuned) <= SNAPSHOT_PARAMETERS
    sizes = {
        "weights": weights + size(critic) + (tuned_bytes if part == "lora" else 0),
        "base": 0 if part == "lora" else tuned_bytes,
        "gradients": reached,
        "moments": 2 * reached,
        "undo": tuned_bytes + size(critic) + 2 * reached if small else 0,
    }
    training = sum(sizes.values())
    return sizes | {"training": training, "loading": 2.0 * loaded}


def saved_bytes(work: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Return the bytes that autograd saves for the backward pass of `work`, without parameters."""
    saved: dict[int, Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in parameters}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            saved.setdefault(key, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def observations(policy: Any) -> dict[str, Tensor]:
    """Return one decision's inputs on the meta device."""
    length = policy.config.tokenizer_max_length
    batch = {
        f"observation.images.{i}": torch.empty(1, 3, IMAGE, IMAGE, device="meta")
        for i in range(CAMERAS)
    }
    return batch | {
        "observation.state": torch.empty(1, STATE, device="meta"),
        "observation.language.tokens": torch.empty(1, length, dtype=torch.long, device="meta"),
        "observation.language.attention_mask": torch.empty(
            1, length, dtype=torch.bool, device="meta"
        ),
    }


@contextlib.contextmanager
def _meta() -> Iterator[None]:
    """Let policies run on the meta device."""
    from transformers import masking_utils

    # SmolVLA's vision tower looks for missing patches. The meta device cannot tell; none is.
    all_patches = mock.patch.object(
        masking_utils, "_ignore_bidirectional_mask_sdpa", return_value=True
    )
    fx_config.meta_nonzero_assume_all_nonzero = True
    with torch.device("meta"), all_patches:
        yield


class Decision:
    """One decision of a policy on the meta device, and a run's computations with it.

    Args:
        policy: Result of `build`; its trained parameters require gradients.
        adapter: The policy's adapter.
    """

    def __init__(self, policy: Any, adapter: FlowAdapter) -> None:
        self.policy, self.adapter = policy, adapter
        self.batch = observations(policy)
        self.schedule = make_schedule("sde", adapter.num_steps, 0.5)
        self.encoded = self.encode().tensors()

    @_meta()
    @torch.no_grad()
    def encode(self) -> Prefix:
        """Encode the observation."""
        return self.adapter.encode(self.batch)

    @_meta()
    def act(self) -> Tensor:
        """Encode the observation and sample a path to the chunk."""
        distribution = self._distribution(self.batch)
        return distribution.sample(torch.empty(1, *distribution.path_shape))

    @_meta()
    def clone(self) -> Tensor:
        """Return BC's loss, which is the policy's."""
        target = {**self.batch, "action": torch.empty(1, self.adapter.horizon, ACTION)}
        # A draw from a Beta distribution needs numbers.
        self.policy.model.sample_time = lambda *_: torch.empty(1)
        zeros = torch.zeros(self.adapter.padded_dim, device="cpu")
        with (  # the loss also reports numbers
            mock.patch.object(Tensor, "item", return_value=0.0),
            mock.patch.object(Tensor, "cpu", return_value=zeros),
        ):
            loss: Tensor = self.policy.forward(target)[0]
            return loss

    @_meta()
    def replay(self, checkpointing: bool = False) -> Tensor:
        """Return a path's log-density as in PPO's update, with the observation encoded before."""
        distribution = self._distribution(self.encoded, checkpointing)
        return distribution.log_prob(torch.empty(1, *distribution.path_shape))

    def _distribution(
        self, inputs: dict[str, Tensor], checkpointing: bool = False
    ) -> FlowChunkDistribution:
        observation = Observations(self.adapter, inputs, 1, checkpointing)
        return FlowChunkDistribution(observation, self.schedule, to_actions=lambda chunk: chunk)


def memory_per_decision(decision: Decision) -> dict[str, int]:
    """Return the bytes of one decision: encoded, in BC, and in PPO with the expert trained."""
    parameters = list(decision.policy.parameters())
    replayed = saved_bytes(decision.replay, parameters)
    # Checkpointing saves less between the passes, and then replays one step at a time.
    between = saved_bytes(lambda: decision.replay(checkpointing=True), parameters)
    return {
        "encoded": sum(t.nbytes for t in decision.encoded.values()),
        "bc": saved_bytes(decision.clone, parameters),
        "ppo": replayed,
        "ppo_checkpointing": between + replayed // len(decision.schedule.live),
    }


def operations(work: Callable[[], object]) -> int:
    """Return the floating-point operations of all matrix products and convolutions in `work`.

    On the meta device attention counts as its two products; a fused kernel's forward pass does the
    same. A multiplication and its addition are two operations.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def train(policy: Any, trained_parameters: Iterable[Tensor]) -> None:
    """Let only some parameters require gradients."""
    ids = {id(p) for p in trained_parameters}
    for parameter in policy.parameters():
        parameter.requires_grad_(id(parameter) in ids)


def operations_per_decision(policy: Any, adapter: FlowAdapter) -> dict[str, int]:
    """Return the floating-point operations of one decision.

    Returns:
        `encode`: the observation. `act`: `encode` and all denoising steps. `replay`: PPO's forward
        pass through all steps of a recorded path, with the observation encoded before. `ppo`:
        `replay` forward and backward with the expert trained (checkpointing adds one `replay`).
        `bc_expert`, `bc_own` and `bc_all`: the policy's loss forward and backward, by the trained
        part.
    """
    trains = {part: trained(policy, adapter, part, rank=0) for part in ("own", "all", "expert")}
    decision = Decision(policy, adapter)
    counts = {}
    for part, wanted in trains.items():  # the expert last
        train(policy, wanted)
        counts[f"bc_{part}"] = operations(lambda: torch.autograd.backward(decision.clone()))
    with torch.no_grad():
        replay = operations(decision.replay)
    return counts | {
        "encode": operations(decision.encode),
        "act": operations(decision.act),
        "replay": replay,
        "ppo": operations(lambda: torch.autograd.backward(decision.replay().sum())),
    }


def compute(kind: str, dtype: str, rank: int) -> dict[str, Any]:
    """Return all computed numbers of one policy."""
    fixed = {}
    for part in ("lora", "own", "all", "expert"):  # each changes its policy; the last is used below
        policy = build(kind, dtype)
        adapter = make_adapter(policy)
        fixed[part] = fixed_memory(policy, adapter, part, rank)
    result: dict[str, Any] = {"policy": kind, "dtype": dtype, "parameters": parts(policy, adapter)}
    result["fixed_bytes"] = {part: fixed[part] for part in ("lora", "expert", "own", "all")}
    train(policy, parameters_of(adapter.expert_modules()))  # as with `flow.train: expert` in PPO
    result["bytes_per_decision"] = memory_per_decision(Decision(policy, adapter))
    return result


def times(operations: dict[str, int], setting: argparse.Namespace) -> dict[str, float]:
    """Return the time of operations at a share of a device's peak, s.

    Args:
        operations: Result of `operations_per_decision`.
        setting: Peak (`tflops`, 1e12 operations/s), its share (`utilisation`), `bc_batch` samples
            per gradient step, `decisions` and `epochs` per PPO update.

    Returns:
        `bc_step_...` by the trained part. `ppo_update...`: PPO's update with the expert trained:
        acting, log-densities again (as with `ppo.bf16`, or weights below float32) and all epochs.
        `ppo_update` reuses encoded observations, `..._encoding_anew` does not, and
        `..._checkpointing` reuses them with checkpointing.
    """
    speed = setting.tflops * 1e12 * setting.utilisation
    epochs = setting.epochs
    encode, replay, ppo = (operations[name] for name in ("encode", "replay", "ppo"))
    once = operations["act"] + replay
    updates = {
        "ppo_update": once + epochs * ppo,
        "ppo_update_encoding_anew": once + epochs * ppo + (1 + epochs) * encode,
        "ppo_update_checkpointing": once + epochs * (ppo + replay),
    }
    steps = {f"bc_step_{part}": operations[f"bc_{part}"] for part in ("expert", "own", "all")}
    return {name: setting.bc_batch * count / speed for name, count in steps.items()} | {
        name: setting.decisions * count / speed for name, count in updates.items()
    }


def memory_table(results: list[dict[str, Any]], rank: int) -> str:
    """Return the memory as a table in Markdown."""
    lines = [
        f"Computed, not measured. GiB; LoRA of rank {rank} on the action expert.",
        "",
        "| policy | weights | M parameters: vision, language, expert | LoRA | expert | own | all "
        "| loading | encoded, MiB per decision | BC, GiB per decision | PPO, GiB per decision | "
        "with checkpointing |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        counts, fixed = result["parameters"], result["fixed_bytes"]
        per_decision = result["bytes_per_decision"]
        names = ("vision", "language", "expert")
        millions = ", ".join(f"{counts[name] / 1e6:.0f}" for name in names)
        totals = [f"{fixed[part]['training'] / GIB:.1f}" for part in fixed]
        lines.append(
            f"| `{result['policy']}` | {result['dtype']} | {counts['all'] / 1e6:.0f}: {millions} | "
            f"{' | '.join(totals)} | {fixed['own']['loading'] / GIB:.1f} | "
            f"{per_decision['encoded'] / 2**20:.1f} | {per_decision['bc'] / GIB:.2f} | "
            f"{per_decision['ppo'] / GIB:.2f} | {per_decision['ppo_checkpointing'] / GIB:.2f} |"
        )
    return "\n".join(lines)


def time_table(results: list[dict[str, Any]], setting: argparse.Namespace) -> str:
    """Return operations and times as a table in Markdown."""
    lines = [
        "Computed, not measured: TFLOP per decision, and seconds as lower bounds at "
        f"{setting.utilisation:g} of {setting.tflops:g} TFLOPS.",
        "(An H100 or H200 has 989 in bfloat16, `--bc.bf16` and `--ppo.bf16`, and 67 in float32.)",
        f"BC: {setting.bc_batch} samples per step. PPO: {setting.decisions} decisions and "
        f"{setting.epochs} epochs per update, the expert trained, acting included.",
        "",
        "| policy | encode | act | BC: expert | own | all | PPO: replay | replay and backward "
        "| BC step, s: expert | own | all | PPO update, s: kept encoded | encoded anew "
        "| kept, checkpointing |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("encode", "act", "bc_expert", "bc_own", "bc_all", "replay", "ppo")
    for result in results:
        counts = [f"{result['operations'][name] / 1e12:.3g}" for name in names]
        seconds = [f"{value:.3g}" for value in result["computed_s"].values()]
        lines.append(f"| `{result['policy']}` | {' | '.join(counts + seconds)} |")
    return "\n".join(lines)


def positive(text: str) -> float:
    """Return a number above 0."""
    value = float(text)
    if value <= 0.0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where all numbers are written: bytes, FLOP, s")
    parser.add_argument("--rank", type=int, default=16, help="rank of LoRA")
    parser.add_argument("--tflops", type=positive, default=989.0, help="peak, 1e12 operations/s")
    parser.add_argument("--utilisation", type=positive, default=0.4, help="its share, (0, 1]")
    parser.add_argument("--bc-batch", type=int, default=64, help="samples per gradient step of BC")
    parser.add_argument("--decisions", type=int, default=1024, help="decisions per PPO update")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a PPO update")
    arguments = parser.parse_args()
    if arguments.utilisation > 1.0:
        parser.error(f"--utilisation {arguments.utilisation:g} is not in (0, 1]")
    wanted = [("smolvla", "bfloat16"), ("pi0", "float32"), ("pi0", "bfloat16")]
    wanted += [("pi05", "float32"), ("pi05", "bfloat16")]
    results = [compute(kind, dtype, arguments.rank) for kind, dtype in wanted]
    print(memory_table(results, arguments.rank))
    timed = []
    for kind in ("smolvla", "pi0", "pi05"):
        policy = build(kind, "float32")  # the same operations in either type
        counts = operations_per_decision(policy, make_adapter(policy))
        seconds = times(counts, arguments)
        timed.append({"policy": kind, "operations": counts, "computed_s": seconds})
    print("\n" + time_table(timed, arguments))
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k != "json"}
        numbers = {**settings, "policies": results, "times": timed}
        arguments.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
