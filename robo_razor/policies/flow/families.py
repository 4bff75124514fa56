"""Adapters from LeRobot's flow-matching policies to two functions: encode, and velocity.

One adapter per family, outside LeRobot's code: it calls public parts of the policy in the order in
which LeRobot's own sampler does, so Euler's rule on `velocity` is that sampler. The observation is
encoded once, into the keys and values that all denoising steps attend to.

Not supported, and so without a density: action spaces that a policy changes by itself
(`OWN_ACTIONS`). Compiled models are loaded without their compilation.

Axis letters: B decisions, L prefix tokens, H actions in the predicted chunk, D padded action
dimensions, A real ones, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

STATE = "observation.state"
TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"
PREFIX = "prefix."


@dataclass(frozen=True)
class Prefix:
    """What denoising reads of the observations.

    Attributes:
        pad_masks: bool [B, L], True where there is a token.
        keys: Per layer, [B, heads, L, head size].
        values: Per layer, the same.
        features: float32 [B, F], mean of the last layer's tokens and the normalised state.
        state: [B, S], padded, for families whose action expert reads it; else None.
    """

    pad_masks: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    features: Tensor
    state: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pad_masks)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts by name, all of first axis B, as `from_tensors` takes them."""
        parts = {"pad_masks": self.pad_masks, "features": self.features}
        if self.state is not None:
            parts["state"] = self.state
        for i, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            parts |= {f"keys.{i}": key, f"values.{i}": value}
        return {PREFIX + name: tensor for name, tensor in parts.items()}

    @staticmethod
    def from_tensors(parts: dict[str, Tensor]) -> Prefix | None:
        """Return the prefix that `tensors` took apart; None if these are no parts of one."""
        if f"{PREFIX}pad_masks" not in parts:
            return None
        layers = range(sum(name.startswith(f"{PREFIX}keys.") for name in parts))
        return Prefix(
            parts[f"{PREFIX}pad_masks"],
            tuple(parts[f"{PREFIX}keys.{i}"] for i in layers),
            tuple(parts[f"{PREFIX}values.{i}"] for i in layers),
            parts[f"{PREFIX}features"],
            parts.get(f"{PREFIX}state"),
        )

    def repeat(self, times: int) -> Prefix:
        """Return the prefix with every row `times` times in a row; features are left out."""
        return Prefix(
            self.pad_masks.repeat_interleave(times, 0),
            tuple(key.repeat_interleave(times, 0) for key in self.keys),
            tuple(value.repeat_interleave(times, 0) for value in self.values),
            self.features[:0],
            None if self.state is None else self.state.repeat_interleave(times, 0),
        )

    def cache(self) -> Any:
        """Return the keys and values in a new cache, which its consumer may change."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache()
        for key, value in zip(self.keys, self.values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value  # `update` would copy them
            cache.layers.append(layer)
        return cache


class FlowAdapter(Protocol):
    """One flow-matching policy, as the sampler sees it."""

    horizon: int
    """H."""
    action_dim: int
    """A."""
    padded_dim: int
    """D >= A."""
    num_steps: int
    """Denoising steps of the policy's own sampler."""
    feature_dim: int
    """F."""

    def encode(self, batch: dict[str, Tensor]) -> Prefix:
        """Encode prepared observations, images float [B, 3, W, W] in [0, 1]."""

    def velocity(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """Return v(x, t) float32 [B, H, D] at x float32 [B, H, D] and t float32 [B]."""

    def vision(self) -> nn.Module:
        """Return the image encoder."""

    def prefix_modules(self) -> list[nn.Module]:
        """Return everything that `encode` depends on."""

    def expert_modules(self) -> list[nn.Module]:
        """Return everything else: what `velocity` depends on."""

    def to_float32(self, parameters: Iterable[nn.Parameter]) -> None:
        """Compute in float32 in every part of the policy that holds one of some parameters."""


class _Adapter:
    """What the families share: sizes from the configuration, and pooling."""

    def __init__(self, policy: Any, num_steps: int, width: int) -> None:
        self.policy, self.model, config = policy, policy.model, policy.config
        self.horizon: int = config.chunk_size
        self.action_dim: int = config.action_feature.shape[0]
        self.padded_dim: int = config.max_action_dim
        self.num_steps = num_steps
        state = config.robot_state_feature
        self.feature_dim = width + (state.shape[0] if state is not None else 0)

    def _prefix(
        self, batch: dict[str, Tensor], mask: Tensor, cache: Any, output: Tensor, **extra: Any
    ) -> Prefix:
        weight = mask[..., None].float()
        pooled = (output.float() * weight).sum(1) / weight.sum(1)
        parts = [pooled, batch[STATE].float()] if STATE in batch else [pooled]
        keys = tuple(layer.keys for layer in cache.layers)
        values = tuple(layer.values for layer in cache.layers)
        return Prefix(mask, keys, values, torch.cat(parts, -1), **extra)


class SmolVLAAdapter(_Adapter):
    """SmolVLA (Shukor et al. 2025): the state is the prefix' last token."""

    def __init__(self, policy: Any) -> None:
        text = policy.model.vlm_with_expert.config.text_config
        super().__init__(policy, policy.config.num_steps, text.hidden_size)

    def encode(self, batch: dict[str, Tensor]) -> Prefix:
        """Encode prepared observations; see `FlowAdapter`."""
        from lerobot.policies.common.vla_utils import make_att_2d_masks

        images, masks = self.policy.prepare_images(batch)
        embedded, pad, attention = self.model.embed_prefix(
            images, masks, batch[TOKENS], batch[TOKEN_MASK], state=self.policy.prepare_state(batch)
        )
        (output, _), cache = self.model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad, attention),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        return self._prefix(batch, pad, cache, output)

    def velocity(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity; see `FlowAdapter`."""
        found: Tensor = self.model.denoise_step(
            prefix_pad_masks=prefix.pad_masks, past_key_values=prefix.cache(), x_t=x, timestep=t
        )
        return found.float()

    def vision(self) -> nn.Module:
        """Return the image encoder."""
        encoder: nn.Module = self.model.vlm_with_expert.get_vlm_model().vision_model
        return encoder

    def prefix_modules(self) -> list[nn.Module]:
        """Return everything that `encode` depends on."""
        return [self.model.vlm_with_expert.vlm, self.model.state_proj]

    def expert_modules(self) -> list[nn.Module]:
        """Return everything else."""
        names = ("action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")
        return [self.model.vlm_with_expert.lm_expert, *(getattr(self.model, n) for n in names)]

    def to_float32(self, parameters: Iterable[nn.Parameter]) -> None:
        """Compute in float32 where parameters are; LeRobot casts between the parts."""
        given = {id(p) for p in parameters}
        for part in (*self.prefix_modules(), *self.expert_modules()):
            if _holds(part, given):
                part.float()


class Pi0Adapter(_Adapter):
    """pi0 (Black et al. 2024): the action expert reads the state at every step."""

    reads_state = True
    projections: tuple[str, ...] = (
        *("action_in_proj", "action_out_proj", "state_proj"),
        *("action_time_mlp_in", "action_time_mlp_out"),
    )

    def __init__(self, policy: Any) -> None:
        text = policy.model.paligemma_with_expert.paligemma.config.text_config
        super().__init__(policy, policy.config.num_inference_steps, text.hidden_size)

    def encode(self, batch: dict[str, Tensor]) -> Prefix:
        """Encode prepared observations; see `FlowAdapter`."""
        from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

        network = self.model.paligemma_with_expert
        images, masks = self.policy._preprocess_images(batch)
        embedded, pad, attention = self.model.embed_prefix(
            images, masks, batch[TOKENS], batch[TOKEN_MASK]
        )
        # As LeRobot's sampler does: other attention code has no room for these masks.
        network.paligemma.model.language_model.config._attn_implementation = "eager"
        (output, _), cache = network.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad, attention)),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        state = self.policy.prepare_state(batch) if self.reads_state else None
        return self._prefix(batch, pad, cache, output, state=state)

    def velocity(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity; see `FlowAdapter`."""
        state = {"state": prefix.state} if self.reads_state else {}
        found: Tensor = self.model.denoise_step(
            prefix_pad_masks=prefix.pad_masks,
            past_key_values=prefix.cache(),
            x_t=x,
            timestep=t,
            **state,
        )
        return found.float()

    def vision(self) -> nn.Module:
        """Return the image encoder."""
        encoder: nn.Module = self.model.paligemma_with_expert.paligemma.model.vision_tower
        return encoder

    def prefix_modules(self) -> list[nn.Module]:
        """Return everything that `encode` depends on."""
        return [self.model.paligemma_with_expert.paligemma]

    def expert_modules(self) -> list[nn.Module]:
        """Return everything else."""
        projections = [getattr(self.model, name) for name in self.projections]
        return [self.model.paligemma_with_expert.gemma_expert, *projections]

    def to_float32(self, parameters: Iterable[nn.Parameter]) -> None:
        """Compute in float32 where parameters are; with the language model goes the expert."""
        given = {id(p) for p in parameters}
        network = self.model.paligemma_with_expert
        if _holds(network.paligemma, given):  # LeRobot feeds both in the precision of the first
            network.float()
        elif _holds(network.gemma_expert, given) and has_low_precision(network.gemma_expert):
            network.gemma_expert.float()
            first = network.gemma_expert.model.layers[0].input_layernorm
            first.register_forward_pre_hook(_float_input)


class Pi05Adapter(Pi0Adapter):
    """pi0.5 (Physical Intelligence 2025): the state stands in the text of the instruction."""

    reads_state = False
    projections = ("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out")


ADAPTERS: dict[str, type[SmolVLAAdapter] | type[Pi0Adapter]] = {
    "smolvla": SmolVLAAdapter,
    "pi0": Pi0Adapter,
    "pi05": Pi05Adapter,
}
"""LeRobot's policy type -> adapter."""


def make_adapter(policy: Any) -> FlowAdapter:
    """Return the adapter of a policy whose type is in `ADAPTERS`."""
    return ADAPTERS[policy.config.type](policy)


OWN_ACTIONS = {
    "use_relative_actions": "it predicts actions relative to the state, and its processors would "
    "have to turn demonstrations and densities into those",
    "adapt_to_pi_aloha": "its own code turns joints and grippers of ALOHA into others, inside "
    "the policy",
}
"""Settings of LeRobot's policies under which they change actions by themselves, and how."""


def is_flow_policy(policy: Any) -> bool:
    """Say whether there is an adapter for a LeRobot policy as it is set."""
    config = policy.config
    return config.type in ADAPTERS and not any(getattr(config, name, False) for name in OWN_ACTIONS)


def masks_cameras(config: Any) -> bool:
    """Say whether LeRobot masks whatever camera is missing, as its flow policies do."""
    return config.type in ADAPTERS


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of several modules, each once."""
    return list({id(p): p for module in modules for p in module.parameters()}.values())


def has_low_precision(module: nn.Module) -> bool:
    """Say whether any weight of a module has less than float32."""
    return any(p.is_floating_point() and p.element_size() < 4 for p in module.parameters())


def _holds(module: nn.Module, given: set[int]) -> bool:
    return any(id(p) in given for p in module.parameters())


def _float_input(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Raise what goes into a module to float32: LeRobot's cloning loss has rounded it."""
    return arguments[0].float(), *arguments[1:]
