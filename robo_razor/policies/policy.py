"""What the toolkit needs of a policy: to prepare, act, give densities, train, copy and save.

A LeRobot module that has `action_logits`, `predict` and `bin_centers` (categorical action tokens)
gets a `token_handle` with exact densities, a flow-matching one a `flow.handle` with those of its
denoising paths; every other LeRobot policy gets a `Policy`, which can act and be cloned but
has no density. Of concrete policies nothing is known here.

Axis letters: N environments, B batch, H actions in the executed chunk, A action dimensions,
S state.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from robo_razor.core.errors import PolicyError
from robo_razor.core.settings.config import FlowConfig
from robo_razor.core.settings.conversion import parse_mapping
from robo_razor.policies.blocks import in_blocks
from robo_razor.policies.checks import (
    check_finite_output,
    check_instruction,
    check_own_actions,
    no_density,
    warn_of_unread_words,
)
from robo_razor.policies.distributions import ActionDistribution
from robo_razor.policies.flow.families import masks_cameras
from robo_razor.policies.image_encoder import freeze_encoder, image_encoder
from robo_razor.policies.inputs import (
    InputSources,
    check_fit,
    full_rename_map,
    real_cameras,
    rename_step,
    resizes_images,
)
from robo_razor.policies.lora import add_lora, has_lora, merge_lora
from robo_razor.policies.loss_weight import loss_weight
from robo_razor.policies.normalisation import Statistics, with_statistics
from robo_razor.policies.own_noise import fixed_noise
from robo_razor.policies.preparation import prepare, with_time

logger = logging.getLogger(__name__)

ACTION = "action"


class Policy:
    """A LeRobot policy with its processors; base class for policies without a density.

    Args:
        module: The LeRobot policy.
        preprocessor: Pipeline from host batches to policy batches.
        postprocessor: Pipeline from policy actions to environment actions.
        name: What the user called the policy.
        device: Torch device.
    """

    has_density = False
    vision_frozen = False
    """True once `freeze_vision` was called: then `encode` may stand for the images."""

    def __init__(
        self, module: Any, preprocessor: Any, postprocessor: Any, name: str, device: str = "cpu"
    ) -> None:
        self.module = module.to(device)
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor
        self.name = name
        self.device = torch.device(device)
        # Rows of one inference, filled up where there are fewer: an accelerator wants many.
        self.inference_batch = 16 if self.device.type == "cpu" else 32
        self.temperature = 1.0
        config = module.config
        cameras = real_cameras(config)
        if config.image_features and not cameras:
            raise PolicyError(
                f"The policy {name!r} has no camera but the empty ones of `empty_cameras`.",
                allowed="policies with at least one camera of their own",
            )
        step = rename_step(preprocessor)
        self.sources = InputSources(cameras, step.rename_map if step else {})
        self.renamed: dict[str, str] = {}
        """The part of the rename map that an environment or data set must have names of."""
        self.masks_cameras = masks_cameras(config)
        self.encoder_frozen = False
        self.warnings_given = 0
        self._instructions: set[str] = set()  # that were looked at for words that it does not read
        self.chunk_size: int = getattr(config, "n_action_steps", 1)
        self.action_dim: int = config.action_feature.shape[0]
        state = config.robot_state_feature
        self.state_dim: int = state.shape[0] if state is not None else 0

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
        """Return height and width that images must have, None where any will do."""
        takes_any = not self.sources.image_keys or resizes_images(self.config)
        return None if takes_any else self.image_shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape of the uniform numbers that one sampled decision takes."""
        return self.chunk_size, self.action_dim

    @property
    def camera_names(self) -> list[str]:
        """Return the cameras of a host observation that the policy looks through."""
        return [self.sources.camera(key) for key in self.sources.image_keys]

    @property
    def prefix_bytes(self) -> int:
        """Return how much memory what `encode_prefix` makes may take; 0 where it saves no work."""
        return 0

    def rename(self, text: str, strict: bool = True) -> None:
        """Read inputs from where a map says, and keep that with the policy's processors.

        Args:
            text: `{name in the environment or data: name in the policy}`, in LeRobot's names;
                `{none: CAMERA}` leaves out a camera that the policy can go without.
            strict: Let `check_env` refuse names that the environment does not have.

        Raises:
            RoboRazorError: It is no such map, or names an input that the policy does not have.
        """
        given = full_rename_map(parse_mapping("rename", text), self)
        if not given:
            return
        self.renamed = given if strict else {}
        step = rename_step(self.preprocessor)
        if step is None:
            logger.warning("The preprocessor of %s keeps no names: give `rename` again", self.name)
            self.sources = InputSources(self.sources.cameras, given)
            return
        known = {old: new for old, new in step.rename_map.items() if new not in given.values()}
        step.rename_map = known | given
        self.sources = InputSources(self.sources.cameras, step.rename_map)

    def configure(self, flow: FlowConfig) -> None:
        """Take over how a flow policy is sampled and trained; others have nothing to take."""

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

    def warn_of_unread_words(self, instructions: Sequence[str]) -> None:
        """Warn of the words of instructions that the policy does not read, once for each."""
        warn_of_unread_words(self, instructions, self._instructions)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace images by what a frozen image encoder makes of them, where that saves work.

        Only asked for when `vision_frozen`. The result can be used in place of `batch`.
        """
        return batch

    def encode_prefix(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what can be used in place of `batch` while no encoder changes.

        Only asked for when `prefix_bytes` > 0.
        """
        return batch

    def check_instruction(self, instruction: str) -> None:
        """Check that an instruction of the user's own says anything to the policy.

        Raises:
            PolicyError: If it has no word that the policy knows.
        """
        check_instruction(self, instruction)

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
            mode: "greedy" for the mode; a policy without density acts as it does in LeRobot.
            uniforms: Numbers in (0, 1) [N, *noise_shape] that "sample" turns into actions.

        Returns:
            Actions float32 [N, H, A] in the environment's units.

        Raises:
            PolicyError: If a policy with a density is to "sample" and there are no `uniforms`.
        """
        batch = self.prepare(observation, instructions)
        if self.has_density:
            distribution = self.distribution(batch)
            if mode == "greedy":
                return self.to_actions(distribution.mode())
            if uniforms is None:
                raise PolicyError("Sampled actions were asked for without uniform numbers to use.")
            numbers = torch.as_tensor(uniforms, device=self.device)
            return self.to_actions(distribution.sample(numbers))
        chunk = self.postprocessor(self.chunks(batch))
        check_finite_output(self, "actions", chunk)
        return np.asarray(chunk.float().cpu().numpy(), dtype=np.float32)

    @torch.no_grad()
    def chunks(self, batch: dict[str, Tensor]) -> Tensor:
        """Return what a policy without a density does, [B, H, A] in its normalised action space.

        A pure function of weights and observation: blocks have one size, and a policy that draws
        noise gets the same at every call and in every row.
        """

        def predict(rows: dict[str, Tensor]) -> tuple[Tensor]:
            with fixed_noise():
                return (self.module.predict_action_chunk(rows)[:, : self.chunk_size],)

        (found,) = in_blocks(predict, with_time(self.module, batch), self.inference_batch)
        check_finite_output(self, "actions", found, inputs=batch)
        return found

    def to_actions(self, sample: Tensor) -> NDArray[np.float32]:
        """Return the chunks to execute, float32 [B, H, A] in the environment's units.

        Args:
            sample: What the policy's distribution returned as a sample or as its mode.
        """
        return np.asarray(sample.float().cpu().numpy(), dtype=np.float32)

    def distribution(self, batch: dict[str, Tensor]) -> ActionDistribution:
        """Return the distribution of the executed chunk.

        Raises:
            PolicyError: If the policy has no density.
        """
        raise no_density(self)

    def distribution_and_value(
        self, batch: dict[str, Tensor], value_detach: bool = True
    ) -> tuple[ActionDistribution, Tensor]:
        """Return the distribution of the executed chunk and the value [B].

        Raises:
            PolicyError: If the policy has no density.
        """
        raise no_density(self)

    # Training -------------------------------------------------------------------------------

    def check_finetuning(self, flow: FlowConfig) -> None:
        """Refuse a policy that would be trained wrongly; warn of settings that it does not read.

        Args:
            flow: How a flow policy is to be sampled and trained.

        Raises:
            PolicyError: The policy changes actions by itself, unknown to training here.
        """
        check_own_actions(self)
        if flow != FlowConfig() and type(self).configure is Policy.configure:
            logger.warning(
                "The settings `flow.*` do nothing: %s (type %s) is no flow-matching policy.",
                self.name,
                self.config.type,
            )

    def freeze_vision(self) -> None:
        """Stop training the image encoder; warn where the policy has one that is not known."""
        if not self.sources.image_keys:
            return
        encoder = image_encoder(self.module)
        if encoder is None:
            logger.warning(
                "`freeze_vision` does nothing: where a policy of type %s has its image encoder is "
                "not known, so the encoder of %s is trained too.",
                self.config.type,
                self.name,
            )
            return
        freeze_encoder(encoder)
        self.encoder_frozen = True

    def bc_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the policy's own imitation loss and its parts.

        Args:
            batch: Prepared observations with `action` float [B, H, A] in the environment's units,
                and optionally `action_is_pad` bool [B, H] and landmarks.
        """
        inputs = with_time(self.module, batch)
        loss, info = self.module.forward({**inputs, ACTION: self._normalize_action(batch[ACTION])})
        return loss, dict(info or {})

    def loss_weight(self, is_pad: NDArray[np.bool_]) -> int:
        """Return the weight of a batch in a mean of `bc_loss` over several.

        Args:
            is_pad: bool [B, H], True where an action of the batch is padding.
        """
        return loss_weight(self.config, is_pad)

    def _normalize_action(self, actions: Tensor) -> Tensor:
        from lerobot.processor import NormalizerProcessorStep
        from lerobot.processor.converters import create_transition

        for step in self.preprocessor.steps:
            if isinstance(step, NormalizerProcessorStep):
                normalized: Tensor = step(create_transition(action=actions))[ACTION]
                return normalized
        return actions

    def use_statistics(self, statistics: Statistics) -> None:
        """Normalise with other statistics; copies of this handle keep theirs."""
        self.preprocessor = with_statistics(self.preprocessor, statistics)
        self.postprocessor = with_statistics(self.postprocessor, statistics)

    def value_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters that only the value depends on."""
        owner = getattr(self.module, "value_parameters", None)
        return [p for p in owner() if p.requires_grad] if owner is not None else []

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
            The updates' parameters, which are then all of `policy_parameters()`.
        """
        value = self.value_parameters()
        self.module.requires_grad_(False)
        for parameter in value:
            parameter.requires_grad_(True)
        return add_lora(self.lora_layers(), rank, scale)

    def lora_layers(self) -> list[nn.Linear]:
        """Return the linear layers that get low-rank updates: all, unless the policy says which."""
        targets = getattr(self.module, "lora_targets", None)
        if targets is not None:
            return list(targets())
        encoder = image_encoder(self.module) if self.encoder_frozen else None
        kept = set() if encoder is None else set(encoder.modules())
        layers = [m for m in self.module.modules() if isinstance(m, nn.Linear)]
        return [layer for layer in layers if layer not in kept]

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
        module.config.pretrained_path = None  # The place it was loaded from is nobody's business.
        module.save_pretrained(folder)
        self.preprocessor.save_pretrained(folder)
        self.postprocessor.save_pretrained(folder)

    def load_extras(self, directory: Path) -> None:
        """Read what `save` wrote beside LeRobot's files."""

    def try_out(self) -> None:
        """Look once at an observation of zeros, where that takes no time, to see that all works."""

    def share_frozen(self, base: Policy) -> None:
        """Let parameters that are not trained use the memory of the base's."""

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
            PolicyEnvMismatchError: If not; the message shows both sides.
        """
        check_fit(self, single_observation_space, single_action_space, also)
