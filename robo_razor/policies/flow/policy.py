"""A flow-matching policy of LeRobot with a density, a critic and a divergence from its base.

Beside LeRobot's files a saved policy has `value_head.safetensors` (the critic), `flow.json` (how it
is sampled), with learnt noise `noise_network.safetensors`, and in `vlm/` a copy of its
vision-language model's settings and tokenizer, from the folder that the policy names or from the
hub's cache. LeRobot reads none of them.

Whatever is trained is float32, and so is all that is computed beside it (`share_frozen`): small
steps of bfloat16 weights would be rounded away. Such weights are float32 in the file too, and are
read back as such; LeRobot rounds them to what it builds the policy in.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from robo_razor.core.errors import CheckpointError, ConfigError, shown
from robo_razor.core.files import read_json, write_bytes, write_json
from robo_razor.core.settings.config import FlowConfig, from_dict, to_dict
from robo_razor.policies.flow.adapter import (
    TOKEN_MASK,
    TOKENS,
    FlowAdapter,
    Prefix,
    parameters_of,
)
from robo_razor.policies.flow.backbone_files import VLM_FOLDER, cached_vlm, named_vlm, read_vlm
from robo_razor.policies.flow.distribution import FlowChunkDistribution
from robo_razor.policies.flow.encoding import KEY, Observations, policy_batch
from robo_razor.policies.flow.kernels import Schedule, make_schedule
from robo_razor.policies.flow.noise_network import NoiseNetwork
from robo_razor.policies.flow.precision import (
    held_bytes,
    restore_float32,
    trains_low_encoder,
    warn_of_float32,
)
from robo_razor.policies.flow.value_head import ValueHead
from robo_razor.policies.inputs import prepare_bytes
from robo_razor.policies.lora import LowRankLinear
from robo_razor.policies.policy import LeRobotModule, Loaded, Policy

VALUE_HEAD = "value_head"
NOISE_NETWORK = "noise_network"
VALUE_FILE = "value_head.safetensors"
NOISE_FILE = "noise_network.safetensors"
FLOW_FILE = "flow.json"
OUR_FILES = {VALUE_HEAD: VALUE_FILE, NOISE_NETWORK: NOISE_FILE}
"""What LeRobot's policy knows nothing of, by its name in the module."""


class FlowPolicy(Policy):
    """A flow-matching policy whose sampler is stochastic: paths with densities.

    Greedy actions are those of the policy's own sampler from zero noise. `temperature` is not read:
    how far samples spread is `FlowConfig.noise`.

    Args:
        loaded: The LeRobot policy and what came with it.
        make_adapter: Makes of the module what the sampler sees.
    """

    has_density = True
    reads_temperature = False

    def __init__(
        self, loaded: Loaded, make_adapter: Callable[[LeRobotModule], FlowAdapter]
    ) -> None:
        super().__init__(loaded)
        self._make_adapter = make_adapter
        self.flow = FlowConfig()
        module = self.module
        self._own_training = {n: p.requires_grad for n, p in module.named_parameters()}
        head = ValueHead(self.adapter.feature_dim).to(self.device)
        module.add_module(VALUE_HEAD, head)
        module.value_parameters = head.parameters  # as token policies have it
        visual = module.config.normalization_mapping.get("VISUAL")
        backbone = self.family.backbone(module.config)
        vlm = named_vlm(backbone) or cached_vlm(backbone)
        self._vlm_files = {} if vlm is None else read_vlm(vlm)
        self._keep_bytes = getattr(visual, "value", "IDENTITY") == "IDENTITY"

    @property
    def adapter(self) -> FlowAdapter:
        """Return the policy as the sampler sees it."""
        return self._make_adapter(self.module)

    @property
    def value_head(self) -> ValueHead:
        """Return the critic."""
        head: ValueHead = getattr(self.module, VALUE_HEAD)
        return head

    @property
    def noise_network(self) -> NoiseNetwork | None:
        """Return what gives the noise level with the `learnt` kernel; None with others."""
        return getattr(self.module, NOISE_NETWORK, None)

    @property
    def schedule(self) -> Schedule:
        """Return the stochastic sampler that the settings ask for."""
        num_steps = self.flow.num_steps or self.adapter.num_steps
        return make_schedule(self.flow.kernel, num_steps, self.flow.noise)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape (K + 1, H, D) of the uniform numbers of one decision."""
        adapter = self.adapter
        return len(self.schedule) + 1, adapter.horizon, adapter.padded_dim

    def configure(self, flow: FlowConfig) -> None:
        """Take over how the policy is sampled, and which of its parts are trained.

        Raises:
            ConfigError: If that is not a sampler, or none of its steps has noise.
        """
        num_steps = flow.num_steps or self.adapter.num_steps
        if not make_schedule(flow.kernel, num_steps, flow.noise).live:
            raise ConfigError(
                f"`flow.kernel: {flow.kernel}` has no noise in its last step, and with "
                f"`flow.num_steps` = {num_steps} there is no other",
                allowed=f"`flow.num_steps` >= 2 with {flow.kernel}, >= 1 with sde, inject, learnt",
                remedy="Set `flow.num_steps` (the policy's own is taken where it is not set), or "
                "another `flow.kernel`.",
            )
        self.flow = flow
        self._set_noise(flow)
        network: Any = self.module.model
        if flow.checkpointing and hasattr(network, "gradient_checkpointing_enable"):
            network.gradient_checkpointing_enable()  # of LeRobot's own loss: pi0, pi0.5
        for name, parameter in self.module.named_parameters():
            if name in self._own_training:
                parameter.requires_grad_(self._own_training[name] or flow.train == "all")
        if flow.train == "expert":
            for parameter in parameters_of(self.adapter.prefix_modules()):
                parameter.requires_grad_(False)

    def _set_noise(self, flow: FlowConfig) -> None:
        """Add the network of learnt noise where it is asked for, or take it off."""
        network = self.noise_network
        if flow.kernel != "learnt":
            if network is not None:
                delattr(self.module, NOISE_NETWORK)
            return
        if network is None:
            adapter = self.adapter
            network = NoiseNetwork(adapter.feature_dim, adapter.action_dim).to(self.device)
            self.module.add_module(NOISE_NETWORK, network)
        network.bound(flow.noise, flow.noise_low, flow.noise_high)

    # Observations and actions ---------------------------------------------------------------

    def prepare(
        self, observation: dict[str, Any], instructions: Sequence[str]
    ) -> dict[str, Tensor]:
        """Turn host observations into the policy's inputs.

        Images stay uint8 [N, W, W, 3] where the policy does not normalise them. Instructions are
        padded to the policy's longest, so that inputs of different times fit together.
        """
        self.warn_of_unread_words(instructions)
        if self._keep_bytes:
            batch = prepare_bytes(self, observation, instructions)
        else:
            batch = super().prepare(observation, instructions)
        for key in (TOKENS, TOKEN_MASK):
            missing = int(self.config.tokenizer_max_length) - batch[key].shape[1]
            batch[key] = F.pad(batch[key], (0, max(0, missing)))
        batch[TOKEN_MASK] = batch[TOKEN_MASK].bool()
        return batch

    def to_actions(self, sample: Tensor) -> NDArray[np.float32]:
        """Return the chunks to execute, float32 [B, H, A], of paths or of greedy actions."""
        if sample.ndim == 4:
            sample = self._chunk_to_actions(sample[:, -1, :, : self.adapter.action_dim])
        return np.asarray(sample.float().cpu().numpy(), dtype=np.float32)

    def _chunk_to_actions(self, chunk: Tensor) -> Tensor:
        actions: Tensor = self.postprocessor(chunk[:, : self.chunk_size])
        self.check_finite("actions", chunk, actions)
        return actions

    # Densities ------------------------------------------------------------------------------

    def distribution(self, batch: dict[str, Tensor]) -> FlowChunkDistribution:
        """Return the distribution of the paths to the chunk; nothing is computed yet."""
        return self._distribution(self._views(batch))

    def distribution_and_value(
        self, batch: dict[str, Tensor], value_detach: bool = True
    ) -> tuple[FlowChunkDistribution, Tensor]:
        """Return the distribution of the paths to the chunk and the value [B].

        Args:
            batch: Prepared observations.
            value_detach: Let no gradient of the value reach what the actions depend on.
        """
        observations = self._views(batch)
        observations.keep()

        def evaluate(prefix: Any) -> tuple[Tensor]:
            features = prefix.features.detach() if value_detach else prefix.features
            return (self.value_head(features),)

        (value,) = observations.run(evaluate)
        if not torch.is_grad_enabled():
            self.check_finite("values", value, inputs=batch)
        return self._distribution(observations), value

    def _distribution(self, observations: Observations) -> FlowChunkDistribution:
        return FlowChunkDistribution(
            observations,
            self.schedule,
            to_actions=self._chunk_to_actions,
            kl_paths=self.flow.kl_paths,
            noise=self.noise_network,
        )

    def _views(self, batch: dict[str, Tensor]) -> Observations:
        return Observations(self.adapter, batch, self.inference_batch, self.flow.checkpointing)

    @property
    def prefix_bytes(self) -> int:
        """Return how much memory encoded observations may take; 0 where training changes them."""
        trained = any(p.requires_grad for p in parameters_of(self.adapter.prefix_modules()))
        return 0 if trained else int(self.flow.prefix_gib * 2**30)

    @torch.no_grad()
    def encode_prefix(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what can be used in place of prepared observations while no encoder changes.

        By every policy with the same frozen parts, such as a base and what is tuned from it.
        """
        names: list[str] = []

        def take(prefix: Prefix) -> tuple[Tensor, ...]:
            parts = prefix.tensors()
            names[:] = parts
            return tuple(parts.values())

        observations = self._views(batch)
        tensors = observations.run(take)
        key = torch.tensor(observations.keys, dtype=torch.int64, device=tensors[0].device)
        return dict(zip(names, tensors, strict=True)) | {KEY: key}

    # Training -------------------------------------------------------------------------------

    def bc_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the policy's own flow-matching loss and its parts; see `Policy.bc_loss`."""
        return super().bc_loss(policy_batch(batch))

    def add_lora(self, rank: int, scale: float = 1.0) -> list[nn.Parameter]:
        """Train low-rank updates instead of the weights, and the noise; see `Policy`."""
        added = super().add_lora(rank, scale)
        network = self.noise_network
        if network is not None:
            added += network.requires_grad_(True).parameters()
        return added

    def lora_layers(self) -> list[nn.Linear]:
        """Return the action expert's linear layers: the prefix stays that of the base."""
        modules = [m for part in self.adapter.expert_modules() for m in part.modules()]
        return [layer for layer in modules if isinstance(layer, nn.Linear)]

    # Copies and files -----------------------------------------------------------------------

    def frozen_copy(self) -> FlowPolicy:
        """Return a copy in evaluation mode that takes no gradient; what is frozen is shared."""
        low_rank = {
            id(layer.weight) for layer in self.module.modules() if isinstance(layer, LowRankLinear)
        }
        shared = {
            id(p): p
            for p in self.module.parameters()
            if not p.requires_grad and id(p) not in low_rank
        }
        frozen = copy.copy(self)
        frozen.module = copy.deepcopy(self.module, shared)
        frozen.merge_lora()
        frozen.module.eval().requires_grad_(False)
        return frozen

    def share_frozen(self, base: Policy) -> None:
        """Let parameters that are not trained use the memory of the base's equal ones.

        And compute in float32 where something is trained, low-rank updates too: steps of 1e-5 are
        lost in bfloat16 weights. The base does the same, so that equal weights stay equal policies.
        """
        assert isinstance(base, FlowPolicy)
        self._share(base)
        is_raised = trains_low_encoder(self.adapter, self.policy_parameters())
        before = held_bytes(self.module, base.module)
        self.adapter.to_float32(self.policy_parameters())
        own = dict(self.module.named_parameters())
        base.adapter.to_float32(
            p for name, p in base.module.named_parameters() if own[name].dtype != p.dtype
        )
        self._share(base)  # what was frozen beside it
        if is_raised:
            warn_of_float32(self.config.type, before, held_bytes(self.module, base.module))

    def _share(self, base: Policy) -> None:
        others = dict(base.module.named_parameters())
        for name, own in self.module.named_parameters():
            if own.requires_grad:
                continue
            other = others[name]
            if own.dtype != other.dtype or own.data_ptr() == other.data_ptr():
                continue
            if torch.equal(own, other):
                own.data = other.data

    def save(self, directory: str | Path) -> None:
        """Write the policy in LeRobot's layout and our files beside it."""
        from safetensors.torch import save_file

        with self._without_ours() as ours:
            super().save(directory)
        folder = Path(directory)
        for name, part in ours.items():
            state = {key: t.detach().cpu().contiguous() for key, t in part.state_dict().items()}
            save_file(state, folder / OUR_FILES[name])
        write_json(folder / FLOW_FILE, to_dict(self.flow))
        for name, data in self._vlm_files.items():
            write_bytes(folder / VLM_FOLDER / name, data)

    def load_extras(self, directory: Path) -> None:
        """Read what `save` wrote beside LeRobot's files, where it is there."""
        restore_float32(
            self.module, self.adapter, directory, ours=(directory / FLOW_FILE).is_file()
        )
        if (directory / VALUE_FILE).is_file():
            self.value_head.load_state_dict(_weights(directory / VALUE_FILE))
        if (directory / FLOW_FILE).is_file():
            path = directory / FLOW_FILE
            self.configure(from_dict(FlowConfig, read_json(path), source=str(path)))
        network = self.noise_network
        if network is not None and (directory / NOISE_FILE).is_file():
            network.load_state_dict(_weights(directory / NOISE_FILE))
        if (directory / VLM_FOLDER).is_dir():
            self._vlm_files = read_vlm(directory / VLM_FOLDER)

    @contextlib.contextmanager
    def _without_ours(self) -> Iterator[dict[str, nn.Module]]:
        """Take our parts off the policy: LeRobot refuses or ignores weights it does not know."""
        ours = {
            name: getattr(self.module, name) for name in OUR_FILES if hasattr(self.module, name)
        }
        for name in ours:
            delattr(self.module, name)
        try:
            yield ours
        finally:
            for name, part in ours.items():
                self.module.add_module(name, part)


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of one of our files.

    Raises:
        CheckpointError: They are truncated, or no floating-point numbers.
    """
    from robo_razor.core.run.training_state import load_tensors

    tensors = load_tensors(path)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{path} has {shown(name)} as {tensor.dtype}, but weights are floating-point "
                "numbers",
                remedy="Take another checkpoint of the run.",
            )
    return tensors
