"""The contract of a policy: prepare inputs, act, give densities, train, copy and save.

`Policy` is the contract and its default for any LeRobot policy, which can act and be cloned, but
has no density. A module with `action_logits`, `predict` and `bin_centers` (categorical action
tokens) becomes a `tokens.TokenPolicy` with exact densities. A flow-matching module becomes a
`flow.policy.FlowPolicy` with the densities of its denoising paths.

Axis letters: N environments, B batch, H actions in the executed chunk, A action dimensions,
S state, W width of an image, K action tokens.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from robo_razor.core.errors import PolicyError, shown
from robo_razor.core.settings.config import FlowConfig
from robo_razor.core.settings.conversion import parse_mapping
from robo_razor.policies.distributions import ActionDistribution
from robo_razor.policies.inputs import (
    InputSources,
    check_fit,
    full_rename_map,
    prepare,
    real_cameras,
    rename_step,
    resizes_images,
    with_time,
)
from robo_razor.policies.lora import add_lora, has_lora, merge_lora
from robo_razor.policies.normalisation import Statistics, with_statistics
from robo_razor.policies.reproducible import fixed_noise, in_blocks

if TYPE_CHECKING:
    from robo_razor.policies.families import PolicyFamily

logger = logging.getLogger(__name__)

ACTION = "action"
MAX_WARNINGS = 20
"""Warnings about instructions per policy; a data set may have thousands of instructions."""
WORD = re.compile(r"\S+")


class LeRobotModule(nn.Module):
    """The part of LeRobot's `PreTrainedPolicy` that is used here; for the type checker only."""

    config: Any
    """LeRobot's `PreTrainedConfig`."""
    model: Any
    """The network, of policies that call it so."""
    value_parameters: Callable[[], Iterator[nn.Parameter]]
    """Of policies with a critic: the parameters that only the value depends on."""

    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        """Return normalised chunks of at least H actions."""
        raise NotImplementedError

    def save_pretrained(self, directory: Path) -> None:
        """Write configuration and weights."""
        raise NotImplementedError


@dataclass(frozen=True)
class Loaded:
    """A LeRobot policy with its processors, as it was loaded or made.

    Attributes:
        module: The LeRobot policy, in evaluation mode.
        preprocessor: Pipeline from host batches to policy batches.
        postprocessor: Pipeline from policy actions to environment actions.
        name: The name or path under which the user loaded the policy.
        device: Torch device.
        family: What is particular to its type.
    """

    module: LeRobotModule
    preprocessor: Any
    postprocessor: Any
    name: str
    device: str
    family: PolicyFamily


class Policy:
    """A LeRobot policy with its processors; base class for policies without a density.

    Observations are those of the host: `{"pixels": {camera: uint8 [N, W, W, 3]}, "agent_pos":
    float [N, S]}`. `prepare` turns them into a *batch*, the policy's inputs: tensors of first axis
    N or B. Without gradients every result is a pure function of weights and observation: it does
    not depend on the other rows of its batch.

    A policy of another kind is a subclass that overrides what differs. The attributes have
    defaults, so a small subclass need not call `Policy.__init__`.

    Args:
        loaded: The LeRobot policy with its processors.
    """

    family: PolicyFamily
    """What is particular to its type."""
    module: LeRobotModule
    """The LeRobot policy; `nn.Module`."""
    preprocessor: Any
    """LeRobot's pipeline from host batches to policy batches."""
    postprocessor: Any
    """LeRobot's pipeline from policy actions to environment actions."""
    sources: InputSources
    """Where the cameras and the state are read from."""
    name: str = "policy"
    """The name or path under which the user loaded the policy."""
    device: torch.device = torch.device("cpu")
    """The module's device; batches and uniform numbers must be on it too."""
    has_density: bool = False
    """Whether there are `distribution` and `distribution_and_value`, which PPO and KL need."""
    temperature: float = 1.0
    """Divides the logits of action tokens, in (0, inf); read if `reads_temperature`."""
    reads_temperature: bool = True
    """False where something else sets how far samples spread."""
    vision_frozen: bool = False
    """True once `freeze_vision` was called: then `encode` may replace the images."""
    chunk_size: int = 1
    """H, the number of actions that are executed per decision, at least 1."""
    action_dim: int = 1
    """A."""
    state_dim: int = 0
    """S; 0 for a policy that reads no state."""
    inference_batch: int = 16
    """Rows of one inference; a smaller batch is filled up."""
    gradient_batch: int | None = None
    """Rows of a gradient step that one CPU thread computes at once, beside other threads with other
    rows; None: all threads compute all rows together."""

    def __init__(self, loaded: Loaded) -> None:
        self.family = loaded.family
        self.module = loaded.module.to(loaded.device)
        self.preprocessor = loaded.preprocessor
        self.postprocessor = loaded.postprocessor
        self.name = loaded.name
        self.device = torch.device(loaded.device)
        # An accelerator is faster with many rows.
        self.inference_batch = 16 if self.device.type == "cpu" else 32
        config = self.module.config
        cameras = real_cameras(config)
        if config.image_features and not cameras:
            raise PolicyError(
                f"The policy {self.name!r} has only the empty cameras of `empty_cameras`.",
                allowed="policies with at least one real camera",
            )
        step = rename_step(self.preprocessor)
        self.sources = InputSources(cameras, step.rename_map if step else {})
        self.renamed: dict[str, str] = {}
        """The part of the rename map whose names an environment or data set must have."""
        self.encoder_frozen = False
        self._warnings_given = 0
        self._known_instructions: set[str] = set()
        """Instructions whose words were checked already."""
        self.chunk_size = getattr(config, "n_action_steps", 1)
        self.action_dim = config.action_feature.shape[0]
        state = config.robot_state_feature
        self.state_dim = state.shape[0] if state is not None else 0

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        return f"{type(self).__name__}({self.name!r}, {parameters:,} parameters)"

    @property
    def config(self) -> Any:
        """Return the policy's LeRobot configuration."""
        return self.module.config

    @property
    def image_shape(self) -> tuple[int, int]:
        """Return height and width of the images, pixels."""
        shape = self.config.image_features[self.sources.image_keys[0]].shape
        return shape[1], shape[2]

    @property
    def image_size(self) -> int:
        """Return the height of the images, pixels."""
        return self.image_shape[0]

    @property
    def wanted_image_shape(self) -> tuple[int, int] | None:
        """Return the height and width that images must have; None: any."""
        takes_any = not self.sources.image_keys or resizes_images(self.config)
        return None if takes_any else self.image_shape

    @property
    def camera_names(self) -> list[str]:
        """Return the cameras of a host observation that the policy reads."""
        return [self.sources.camera(key) for key in self.sources.image_keys]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape of the uniform numbers of one sampled decision."""
        return self.chunk_size, self.action_dim

    @property
    def action_bins(self) -> Tensor | None:
        """Return the actions [K] of the tokens, ascending; None without action tokens."""
        return None

    @property
    def predicted_actions(self) -> int:
        """Return how many actions are predicted, and cloned, at once (>= `chunk_size`)."""
        times = getattr(self.config, "action_delta_indices", None)  # as LeRobot's own training does
        return len(times) if times else int(getattr(self.config, "chunk_size", self.chunk_size))

    @property
    def prefix_bytes(self) -> int:
        """Return how many bytes the results of `encode_prefix` may take; 0: do not use it."""
        return 0

    def rename(self, text: str, strict: bool = True) -> None:
        """Read inputs under other names, and store the map in the policy's preprocessor.

        Args:
            text: `{name in the environment or data: name in the policy}`, in LeRobot's names;
                `{none: CAMERA}` leaves out a camera that the policy does not need.
            strict: Let `check_env` refuse names that the environment does not have.

        Raises:
            RoboRazorError: It is not such a map, or names an input that the policy does not have.
        """
        names = full_rename_map(parse_mapping("rename", text), self)
        if not names:
            return
        self.renamed = names if strict else {}
        step = rename_step(self.preprocessor)
        if step is None:
            logger.warning(
                "The preprocessor of %s cannot store `rename`: set it again at the next command",
                self.name,
            )
            self.sources = InputSources(self.sources.cameras, names)
            return
        known = {old: new for old, new in step.rename_map.items() if new not in names.values()}
        step.rename_map = known | names
        self.sources = InputSources(self.sources.cameras, step.rename_map)

    def configure(self, flow: FlowConfig) -> None:
        """Set how a flow policy is sampled and trained; other policies ignore it."""

    # Observations ---------------------------------------------------------------------------

    def prepare(
        self, observation: dict[str, Any], instructions: Sequence[str]
    ) -> dict[str, Tensor]:
        """Turn host observations into the policy's inputs.

        Args:
            observation: `{"pixels": {camera: uint8 [N, W, W, 3]}, "agent_pos": float [N, S]}`.
            instructions: One instruction per environment.

        Returns:
            Tensors that share no memory with `observation`, first axis N.
        """
        self.warn_of_unread_words(instructions)
        return prepare(self, observation, instructions)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace images by the outputs of a frozen image encoder, where that saves work.

        Called only if `vision_frozen`. The result can be used in place of `batch`.
        """
        return batch

    def encode_prefix(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that can be used in place of `batch` while no encoder changes.

        Called only if `prefix_bytes` > 0.
        """
        return batch

    def check_instruction(self, instruction: str) -> None:
        """Check that the policy knows some word of a user's instruction.

        Raises:
            PolicyError: It knows none of the words that it reads.
        """
        readers = [tokenizer.read_words for tokenizer in self.word_tokenizers()]
        if not instruction.strip() or any(not read(instruction) for read in readers):
            raise PolicyError(
                f"The policy {self.name!r} knows no word of the instruction {instruction!r}.",
                allowed="words as in the tasks' own instructions (robo-razor list)",
                remedy='Use other words, such as "pick up the red can".',
            )

    def word_tokenizers(self) -> list[Any]:
        """Return the preprocessor's tokenizers that know which words they can read."""
        tokenizers = [getattr(step, "tokenizer", None) for step in self.preprocessor.steps]
        return [tokenizer for tokenizer in tokenizers if hasattr(tokenizer, "read_words")]

    def warn_of_unread_words(self, instructions: Sequence[str]) -> None:
        """Warn, once for each instruction, of words that the policy does not read.

        Its tokenizer does not know them, or they lie beyond the longest instruction.
        """
        for step in self.preprocessor.steps:
            tokenizer: Any = getattr(step, "tokenizer", None)
            if hasattr(tokenizer, "owner"):
                tokenizer.owner = self.name  # it warns itself
        known = self._known_instructions
        for text in dict.fromkeys(instructions):
            if text in known or len(known) >= 100 * MAX_WARNINGS:
                continue
            known.add(text)
            unknown, cut = self.unread_words(text)
            if not unknown and not cut:
                continue
            self._warnings_given += 1
            if self._warnings_given > MAX_WARNINGS:
                continue
            parts = [f"it never learnt: {', '.join(unknown)}"] * bool(unknown)
            parts += [f"it cuts off, as they are too many: {', '.join(cut)}"] * bool(cut)
            logger.warning(
                "The policy %s does not read all words of the instruction %s. Words that %s.%s",
                self.name,
                shown(text),
                "; words that ".join(parts),
                " There are no warnings of further instructions."
                * (self._warnings_given == MAX_WARNINGS),
            )

    def unread_words(self, instruction: str) -> tuple[list[str], list[str]]:
        """Return the words of an instruction that the policy does not know, and those it cuts off.

        Only with a tokenizer of transformers; razor's tokenizer of words warns itself.
        """
        unknown: list[str] = []
        cut: list[str] = []
        for step in self.preprocessor.steps:
            if getattr(step, "input_tokenizer", None) is not None:
                length = int(getattr(step, "max_length", 0) or 0)
                more_unknown, more_cut = _unread_pieces(step.input_tokenizer, instruction, length)
                unknown, cut = unknown + more_unknown, cut + more_cut
        return [word for word in unknown if word not in cut], cut

    # Acting ---------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self,
        observation: dict[str, Any],
        instructions: Sequence[str],
        mode: Literal["greedy", "sample"] = "greedy",
        uniforms: Tensor | NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return the action chunks to execute.

        Args:
            observation: Host observations of N environments.
            instructions: One instruction per environment.
            mode: "greedy": the most likely actions; "sample": drawn ones. A policy without a
                density acts as in LeRobot with either.
            uniforms: Numbers in (0, 1) [N, *noise_shape] that "sample" turns into actions.

        Returns:
            Actions float32 [N, H, A] in the environment's units.

        Raises:
            PolicyError: A policy with a density needs `uniforms` to "sample", and has none.
        """
        batch = self.prepare(observation, instructions)
        if self.has_density:
            distribution = self.distribution(batch)
            if mode == "greedy":
                return self.to_actions(distribution.mode())
            if uniforms is None:
                raise PolicyError('`act` with mode="sample" needs `uniforms`')
            numbers = torch.as_tensor(uniforms, device=self.device)
            return self.to_actions(distribution.sample(numbers))
        chunk = self.postprocessor(self.chunks(batch))
        self.check_finite("actions", chunk)
        return np.asarray(chunk.float().cpu().numpy(), dtype=np.float32)

    @torch.no_grad()
    def chunks(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the chunks of a policy without a density, [B, H, A], in its normalised actions.

        A pure function of weights and observation: blocks have one size, and a policy that draws
        noise gets equal noise at every call and in every row.
        """

        def predict(rows: dict[str, Tensor]) -> tuple[Tensor]:
            with fixed_noise():
                return (self.module.predict_action_chunk(rows)[:, : self.chunk_size],)

        (actions,) = in_blocks(predict, with_time(self.module, batch), self.inference_batch)
        self.check_finite("actions", actions, inputs=batch)
        return actions

    def to_actions(self, sample: Tensor) -> NDArray[np.float32]:
        """Return the chunks to execute, float32 [B, H, A] in the environment's units.

        Args:
            sample: A sample, or the mode, of the policy's distribution.
        """
        return np.asarray(sample.float().cpu().numpy(), dtype=np.float32)

    def distribution(self, batch: dict[str, Tensor]) -> ActionDistribution:
        """Return the distribution of the executed chunk.

        Args:
            batch: Prepared observations of B rows.

        Raises:
            PolicyError: If the policy has no density.
        """
        raise self._no_density()

    def distribution_and_value(
        self, batch: dict[str, Tensor], value_detach: bool = True
    ) -> tuple[ActionDistribution, Tensor]:
        """Return the distribution of the executed chunk and the value [B].

        The value is the expected return, in the units of the reward.

        Args:
            batch: Prepared observations of B rows.
            value_detach: Let no gradient of the value reach what the actions depend on.

        Raises:
            PolicyError: If the policy has no density.
        """
        raise self._no_density()

    def _no_density(self) -> PolicyError:
        return PolicyError(
            f"The policy {self.name!r} (type {self.config.type!r}) has no action density, so it "
            "has no log-probability, no KL divergence and no PPO.",
            allowed="policies with categorical action tokens, such as razor-base, and "
            "flow-matching ones (smolvla, pi0, pi05)",
            remedy="Fine-tune it with --method bc, or choose another --policy.",
        )

    def check_finite(
        self, what: str, *outputs: Tensor, inputs: Mapping[str, Tensor] | None = None
    ) -> None:
        """Check that the policy's outputs are finite: `argmax` of NaN would be the first action.

        Args:
            what: Name of the outputs, in the plural.
            *outputs: The outputs.
            inputs: The prepared observations, to check them too.

        Raises:
            PolicyError: A number is NaN or infinite.
        """
        if all(bool(torch.isfinite(output).all()) for output in outputs):
            return
        for key, value in (inputs or {}).items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise PolicyError(
                    f"The policy {self.name!r} was given NaN or infinity as {key!r}, so its {what} "
                    "are not finite either.",
                    remedy="The observation is not finite, or far outside the policy's statistics: "
                    "check the environment or the data set.",
                )
        count = sum(int((~torch.isfinite(output)).sum()) for output in outputs)
        raise PolicyError(
            f"The policy {self.name!r} computed {what} of which {count:,} of "
            f"{sum(output.numel() for output in outputs):,} are NaN or infinite: its weights "
            "or its statistics are far too large.",
            remedy="Training diverged, or its file is damaged: take an earlier checkpoint of the "
            "run.",
        )

    # Training -------------------------------------------------------------------------------

    def check_finetuning(self, flow: FlowConfig) -> None:
        """Refuse a policy that would be trained wrongly; warn of settings without effect.

        Args:
            flow: How a flow policy is to be sampled and trained.

        Raises:
            PolicyError: The policy transforms actions itself, in a way that training here lacks.
        """
        self._check_transformed_actions()
        if flow != FlowConfig() and type(self).configure is Policy.configure:
            logger.warning(
                "The settings `flow.*` have no effect: %s (type %s) is not a flow-matching policy.",
                self.name,
                self.config.type,
            )

    def _check_transformed_actions(self) -> None:
        """Check that the policy does not transform actions in a way that training here lacks."""
        refused = self.family.refused(self.config)
        if refused is None:
            return
        setting, reason = refused
        raise PolicyError(
            f"The policy {self.name!r} (type {self.config.type!r}) cannot be fine-tuned here with "
            f"its `{setting}: true`: {reason}",
            allowed=f"`{setting}: false`; evaluation takes both",
            remedy="Fine-tune a checkpoint that was trained without it, or this one with "
            "`lerobot-train`; `robo-razor evaluate` measures the result.",
        )

    def freeze_vision(self) -> None:
        """Stop training the image encoder; warn where the policy's family does not know it."""
        if not self.sources.image_keys:
            return
        encoder = self.family.image_encoder(self.module)
        if encoder is None:
            logger.warning(
                "`freeze_vision` has no effect: the image encoder of policies of type %s is not "
                "known, so the encoder of %s is trained too.",
                self.config.type,
                self.name,
            )
            return
        _freeze_encoder(encoder)
        self.encoder_frozen = True

    def bc_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the policy's imitation loss, as LeRobot has it, and its parts.

        Args:
            batch: Prepared observations with `action` float [B, H, A] in the environment's units,
                and optionally `action_is_pad` bool [B, H] and landmarks.
        """
        inputs = with_time(self.module, batch)
        loss, info = self.module.forward({**inputs, ACTION: self._normalize_action(batch[ACTION])})
        return loss, dict(info or {})

    def loss_weight(self, is_pad: NDArray[np.bool_]) -> int:
        """Return the weight of a batch in a mean over several: its actions or its decisions.

        Args:
            is_pad: bool [B, H], True where an action of the batch is padding.
        """
        over_actions = self.family.loss_mean_over(self.config) == "actions"
        return int((~is_pad).sum()) if over_actions else len(is_pad)

    def _normalize_action(self, actions: Tensor) -> Tensor:
        from lerobot.processor import NormalizerProcessorStep
        from lerobot.processor.converters import create_transition

        for step in self.preprocessor.steps:
            if isinstance(step, NormalizerProcessorStep):
                normalized: Tensor = step(create_transition(action=actions))[ACTION]
                return normalized
        return actions

    def use_statistics(self, statistics: Statistics) -> None:
        """Normalise with other statistics; copies of this policy do not change."""
        self.preprocessor = with_statistics(self.preprocessor, statistics)
        self.postprocessor = with_statistics(self.postprocessor, statistics)

    def all_value_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the value depends on, frozen ones too."""
        of_critic = getattr(self.module, "value_parameters", None)
        return [] if of_critic is None else list(of_critic())

    def value_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters that only the value depends on."""
        return [p for p in self.all_value_parameters() if p.requires_grad]

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return all other trainable parameters."""
        value = {id(p) for p in self.value_parameters()}
        return [p for p in self.module.parameters() if p.requires_grad and id(p) not in value]

    def add_lora(self, rank: int, scale: float = 1.0) -> list[nn.Parameter]:
        """Train low-rank updates instead of the weights; the value head stays trainable.

        Args:
            rank: Rank of the updates.
            scale: Factor on the updates.

        Returns:
            The parameters of the updates. `policy_parameters()` returns no others then.
        """
        value = self.value_parameters()
        self.module.requires_grad_(False)
        for parameter in value:
            parameter.requires_grad_(True)
        return add_lora(self.lora_layers(), rank, scale)

    def lora_layers(self) -> list[nn.Linear]:
        """Return the layers that get low-rank updates: the module's `lora_targets`, or all."""
        targets = getattr(self.module, "lora_targets", None)
        if targets is not None:
            return list(targets())
        encoder = self.family.image_encoder(self.module) if self.encoder_frozen else None
        frozen = set() if encoder is None else set(encoder.modules())
        layers = [m for m in self.module.modules() if isinstance(m, nn.Linear)]
        return [layer for layer in layers if layer not in frozen]

    def merge_lora(self) -> None:
        """Write the low-rank updates into the weights."""
        merge_lora(self.module)

    # Copies ---------------------------------------------------------------------------------

    def frozen_copy(self) -> Policy:
        """Return an independent copy in evaluation mode whose parameters take no gradient."""
        frozen = copy.copy(self)
        frozen.module = copy.deepcopy(self.module)
        merge_lora(frozen.module)
        frozen.module.eval().requires_grad_(False)
        return frozen

    def save(self, directory: str | Path) -> None:
        """Write the policy in LeRobot's layout; low-rank updates are merged in the file."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        module = self.frozen_copy().module if has_lora(self.module) else self.module
        module.config.pretrained_path = None  # it may be a path of this machine
        module.save_pretrained(folder)
        self.preprocessor.save_pretrained(folder)
        self.postprocessor.save_pretrained(folder)

    def load_extras(self, directory: Path) -> None:
        """Read the files that `save` adds to LeRobot's."""

    def try_out(self) -> None:
        """Run the policy once on an observation of zeros, where that is fast, to find errors."""

    def share_frozen(self, base: Policy) -> None:
        """Let frozen parameters share memory with the base's."""

    # Environments ---------------------------------------------------------------------------

    def check_env(
        self,
        single_observation_space: spaces.Space[Any],
        single_action_space: spaces.Space[Any],
        also: Collection[str] = (),
    ) -> None:
        """Check that the policy's cameras, state and actions fit an environment.

        Args:
            single_observation_space: Space of one environment's observations.
            single_action_space: Space of its actions.
            also: LeRobot's names that only a data set offers, which `rename` may name too.

        Raises:
            PolicyEnvMismatchError: They do not fit; the message shows both sides.
        """
        check_fit(self, single_observation_space, single_action_space, also)


def _freeze_encoder(encoder: nn.Module) -> None:
    """Stop training an encoder, and freeze the statistics of its batch normalisation."""
    encoder.requires_grad_(False)
    for layer in encoder.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(_keep_statistics)


def _keep_statistics(layer: nn.Module, _: Any) -> None:
    """Let a frozen layer normalise by its stored statistics, also while the policy trains."""
    layer.training = False


def _unread_pieces(tokenizer: Any, text: str, length: int) -> tuple[list[str], list[str]]:
    """Return unknown and cut words of a tokenizer of transformers that reads `length` pieces."""
    if not getattr(tokenizer, "is_fast", False):  # others do not return positions of pieces
        return [], []
    encoded = tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
    pieces = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
    pieces = [(piece, span) for piece, span in pieces if span[0] < span[1]]
    special = len(encoded["input_ids"]) - len(pieces)
    read = max(0, length - special)
    end = pieces[read - 1][1][1] if 0 < read < len(pieces) else (0 if read == 0 else len(text))
    words = list(WORD.finditer(text))
    cut = [word.group() for word in words if word.end() > end]
    lost = [s for piece, s in pieces if piece == tokenizer.unk_token_id]
    unknown = [w.group() for w in words if any(a < w.end() and b > w.start() for a, b in lost)]
    return list(dict.fromkeys(unknown)), cut
