"""The sampler's view of a flow-matching policy: encode observations, and compute a velocity.

An adapter leaves LeRobot's code as it is: it calls parts of the policy in the order of LeRobot's
sampler, so Euler's rule on `velocity` equals that sampler. The observation is encoded once, into
the keys and values that all denoising steps attend to.

Axis letters: B decisions, L prefix tokens, H actions in the predicted chunk, D padded action
dimensions, A real ones, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robo_razor.policies.policy import LeRobotModule

STATE = "observation.state"
TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"
PREFIX = "prefix."


@dataclass(frozen=True)
class Prefix:
    """The encoded observations, as denoising reads them.

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
        """Return the parts by name, all of first axis B; `from_tensors` reads them."""
        parts = {"pad_masks": self.pad_masks, "features": self.features}
        if self.state is not None:
            parts["state"] = self.state
        for i, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            parts |= {f"keys.{i}": key, f"values.{i}": value}
        return {PREFIX + name: tensor for name, tensor in parts.items()}

    @staticmethod
    def from_tensors(parts: dict[str, Tensor]) -> Prefix | None:
        """Return the prefix of the parts that `tensors` returned; None if they are missing."""
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
        """Return the prefix with every row repeated `times` times; features are left out."""
        return Prefix(
            self.pad_masks.repeat_interleave(times, 0),
            tuple(key.repeat_interleave(times, 0) for key in self.keys),
            tuple(value.repeat_interleave(times, 0) for value in self.values),
            self.features[:0],
            None if self.state is None else self.state.repeat_interleave(times, 0),
        )

    def cache(self) -> Any:
        """Return the keys and values in a new cache, which the caller may change."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache()
        for key, value in zip(self.keys, self.values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value  # `update` would copy them
            cache.layers.append(layer)
        return cache


class FlowAdapter(Protocol):
    """The sampler's view of one flow-matching policy."""

    horizon: int
    """H."""
    action_dim: int
    """A."""
    padded_dim: int
    """D >= A."""
    num_steps: int
    """Denoising steps of LeRobot's sampler for the policy."""
    feature_dim: int
    """F."""
    float32_expert: bool
    """Whether the action expert always computes in float32 here, whatever LeRobot's precision."""

    def encode(self, batch: dict[str, Tensor]) -> Prefix:
        """Encode prepared observations, images float [B, 3, W, W] in [0, 1]."""

    def velocity(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """Return v(x, t) float32 [B, H, D] at x float32 [B, H, D] and t float32 [B]."""

    def vision(self) -> nn.Module:
        """Return the image encoder."""

    def prefix_modules(self) -> list[nn.Module]:
        """Return the modules of `encode`."""

    def expert_modules(self) -> list[nn.Module]:
        """Return all other modules: those of `velocity`."""

    def to_float32(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every part of the policy float32 that holds one of these parameters."""


class PrefixAdapter:
    """Common parts of the families' adapters: sizes from the configuration, and pooling.

    Args:
        module: The LeRobot policy.
        num_steps: Denoising steps of LeRobot's sampler for it.
        width: Width of the prefix' tokens.
    """

    float32_expert = False

    def __init__(self, module: LeRobotModule, num_steps: int, width: int) -> None:
        self.module: Any = module
        self.model: Any = module.model
        config = module.config
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


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of several modules, each once."""
    return list({id(p): p for module in modules for p in module.parameters()}.values())


def holds(module: nn.Module, ids: set[int]) -> bool:
    """Return whether a module has any of the parameters with these `id`s."""
    return any(id(p) in ids for p in module.parameters())
