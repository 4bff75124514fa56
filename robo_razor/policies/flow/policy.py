"""A flow-matching policy of LeRobot with a density, a critic and a divergence from its base.

Besides LeRobot's files a saved policy has `value_head.safetensors` (the critic), `flow.json` (how
it is sampled), with learnt noise `noise_network.safetensors`, and in `vlm/` a copy of its
vision-language model's settings and tokenizer, from the folder that the policy names or from the
hub's cache. LeRobot does not read them.

Trained weights are float32, and so are the modules that compute with them (`share_frozen`): small
steps of bfloat16 weights would be rounded away. These weights are float32 in the file too, and
loading restores them; LeRobot alone would round them to its precision.
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

from robo_razor.core.errors import CheckpointError, ConfigError, PolicyError, shown
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
ADDED_FILES = {VALUE_HEAD: VALUE_FILE, NOISE_NETWORK: NOISE_FILE}
"""Name of a module that is added to LeRobot's policy -> its file."""


class FlowPolicy(Policy):
    """A flow-matching policy whose sampler is stochastic: paths with densities.

    Greedy actions are those of LeRobot's sampler from zero noise. `temperature` is not read:
    `FlowConfig.noise` sets how far samples spread.

    Args:
        loaded: The LeRobot policy with its processors.
        make_adapter: Returns the sampler's view of the module.
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
        self._trained_by_lerobot = {n: p.requires_grad for n, p in module.named_parameters()}
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
        """Return the sampler's view of the policy."""
        return self._make_adapter(self.module)

    @property
    def value_head(self) -> ValueHead:
        """Return the critic."""
        head: ValueHead = getattr(self.module, VALUE_HEAD)
        return head

    @property
    def noise_network(self) -> NoiseNetwork | None:
        """Return the network of the noise level with the `learnt` kernel; None with others."""
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
        """Set how the policy is sampled, and which of its parts are trained.

        Raises:
            ConfigError: The settings are not those of a sampler, or no step has noise.
        """
        num_steps = flow.num_steps or self.adapter.num_steps
        if not make_schedule(flow.kernel, num_steps, flow.noise).live:
            raise ConfigError(
                f"`flow.kernel: {flow.kernel}` has no noise in its last step, and with "
                f"`flow.num_steps` = {num_steps} it has no other step",
                allowed=f"`flow.num_steps` >= 2 with {flow.kernel}, >= 1 with sde, inject, learnt",
                remedy="Set `flow.num_steps` (by default the policy's number of steps), or another "
                "`flow.kernel`.",
            )
        self.flow = flow
        self._set_noise(flow)
        network: Any = self.module.model
        if flow.checkpointing and hasattr(network, "gradient_checkpointing_enable"):
            network.gradient_checkpointing_enable()  # in LeRobot's loss of pi0 and pi0.5
        for name, parameter in self.module.named_parameters():
            if name in self._trained_by_lerobot:
                parameter.requires_grad_(self._trained_by_lerobot[name] or flow.train == "all")
        if flow.train == "expert":
            for parameter in parameters_of(self.adapter.prefix_modules()):
                parameter.requires_grad_(False)

    def _set_noise(self, flow: FlowConfig) -> None:
        """Add or remove the network of learnt noise, as the settings say."""
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
        padded to one length, so that inputs of different calls can be joined.
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
        """Return the chunks to execute, float32 [B, H, A], from paths or greedy actions."""
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
        """Return how many bytes encoded observations may take; 0 where training changes them."""
        trained = any(p.requires_grad for p in parameters_of(self.adapter.prefix_modules()))
        return 0 if trained else int(self.flow.prefix_gib * 2**30)

    @torch.no_grad()
    def encode_prefix(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that can be used in place of observations while no encoder changes.

        Every policy with the same frozen parts can use them, such as a base and its tuned copy.
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
        """Return LeRobot's flow-matching loss of the policy, and its parts; see `Policy`."""
        return super().bc_loss(policy_batch(batch))

    def add_lora(self, rank: int, scale: float = 1.0) -> list[nn.Parameter]:
        """Train low-rank updates instead of the weights, and the noise; see `Policy`."""
        added = super().add_lora(rank, scale)
        network = self.noise_network
        if network is not None:
            added += network.requires_grad_(True).parameters()
        return added

    def lora_layers(self) -> list[nn.Linear]:
        """Return the action expert's linear layers: the prefix stays equal to the base's."""
        modules = [m for part in self.adapter.expert_modules() for m in part.modules()]
        return [layer for layer in modules if isinstance(layer, nn.Linear)]

    # Copies and files -----------------------------------------------------------------------

    def frozen_copy(self) -> FlowPolicy:
        """Return a copy in evaluation mode without gradients; it shares frozen parameters."""
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
        """Let frozen parameters share memory with the base's, and make trained parts float32.

        Parts with low-rank updates become float32 too: steps of 1e-5 are lost in bfloat16 weights.
        So do the same parts of the base, so that equal weights stay equal policies.

        Raises:
            PolicyError: The base is not a flow-matching policy.
        """
        if not isinstance(base, FlowPolicy):
            raise PolicyError(
                f"The policy {base.name!r} cannot be the base of {self.name!r}: it is not a "
                "flow-matching policy",
            )
        self._share(base)
        is_raised = trains_low_encoder(self.adapter, self.policy_parameters())
        before = held_bytes(self.module, base.module)
        self.adapter.to_float32(self.policy_parameters())
        tuned = dict(self.module.named_parameters())
        base.adapter.to_float32(
            p for name, p in base.module.named_parameters() if tuned[name].dtype != p.dtype
        )
        self._share(base)  # frozen parameters that became float32 with trained ones
        if is_raised:
            warn_of_float32(self.config.type, before, held_bytes(self.module, base.module))

    def _share(self, base: Policy) -> None:
        others = dict(base.module.named_parameters())
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                continue
            other = others[name]
            if parameter.dtype != other.dtype or parameter.data_ptr() == other.data_ptr():
                continue
            if torch.equal(parameter, other):
                parameter.data = other.data

    def save(self, directory: str | Path) -> None:
        """Write the policy in LeRobot's layout, and the files that this class adds."""
        from safetensors.torch import save_file

        with self._without_added_modules() as added:
            super().save(directory)
        folder = Path(directory)
        for name, part in added.items():
            state = {key: t.detach().cpu().contiguous() for key, t in part.state_dict().items()}
            save_file(state, folder / ADDED_FILES[name])
        write_json(folder / FLOW_FILE, to_dict(self.flow))
        for name, data in self._vlm_files.items():
            write_bytes(folder / VLM_FOLDER / name, data)

    def load_extras(self, directory: Path) -> None:
        """Read the files that `save` adds to LeRobot's, where they exist."""
        restore_float32(
            self.module, self.adapter, directory, saved_here=(directory / FLOW_FILE).is_file()
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
    def _without_added_modules(self) -> Iterator[dict[str, nn.Module]]:
        """Remove the added modules for a while: LeRobot refuses or ignores unknown weights."""
        children = dict(self.module.named_children())
        added = {name: children[name] for name in ADDED_FILES if name in children}
        for name in added:
            delattr(self.module, name)
        try:
            yield added
        finally:
            for name, part in added.items():
                self.module.add_module(name, part)


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file that `save` adds.

    Raises:
        CheckpointError: They are truncated, or not floating-point numbers.
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
