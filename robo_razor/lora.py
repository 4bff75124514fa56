"""Low-rank updates of linear layers, written as weight parametrisations.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models": W' = W + scale * B A with A [r, in]
and B [out, r], B zero at the start. Unlike there, no dropout. A parametrisation leaves the model's
code as it is and merges exactly, so a saved policy needs no adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robo_razor.errors import PolicyError


class LowRankUpdate(nn.Module):
    """Add a trainable matrix of low rank to a weight.

    Args:
        weight: The weight [out, in] to update.
        rank: r, the rank of the update.
        scale: Factor on the update.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.down = nn.Parameter(torch.empty(rank, in_features, device=weight.device))
        self.up = nn.Parameter(torch.zeros(out_features, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight."""
        return weight + self.scale * (self.up @ self.down)


def add_lora(layers: Iterable[nn.Linear], rank: int, scale: float = 1.0) -> list[nn.Parameter]:
    """Give every layer a low-rank update and freeze its weight.

    Args:
        layers: The layers to update.
        rank: Rank of the updates, at least 1.
        scale: Factor on the updates.

    Returns:
        The new parameters.

    Raises:
        PolicyError: If the rank is below 1, or a layer has an update already.
    """
    if rank < 1:
        raise PolicyError(f"A LoRA rank of {rank} was given.", allowed="integers from 1 on")
    added: list[nn.Parameter] = []
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            raise PolicyError(
                "The policy has LoRA updates already.", remedy="Call merge_lora() first."
            )
        layer.weight.requires_grad_(False)
        update = LowRankUpdate(layer.weight, rank, scale)
        parametrize.register_parametrization(layer, "weight", update)
        added += [update.down, update.up]
    return added


def merge_lora(module: nn.Module) -> None:
    """Write every low-rank update of `module` into its weight and remove it."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def has_lora(module: nn.Module) -> bool:
    """Say whether any layer of `module` has a low-rank update."""
    return any(parametrize.is_parametrized(layer, "weight") for layer in module.modules())
