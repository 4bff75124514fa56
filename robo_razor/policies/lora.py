"""Low-rank updates of linear layers.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models": W' = W + scale * B A with A [r, in]
and B [out, r], B zero at the start. Unlike the paper, no dropout. A layer becomes a `LowRankLinear`
in place and keeps its name and its weight, so the model's code needs no change, and merging gives
exactly the same numbers: a saved policy needs no adapter.

The updates are float32. With a bfloat16 weight W' would be rounded, so B A x is computed separately
in float32 and added to the layer's output, which is rounded once. Merging rounds every weight: a
change below half of its last digit (about 1/512 of it) is lost. Flow policies lose nothing, as
their layers with updates are float32 (`FlowPolicy.share_frozen`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robo_razor.core.errors import PolicyError


class LowRankLinear(nn.Linear):
    """A linear layer with a trainable update of low rank; made by `add_lora`."""

    lora_down: nn.Parameter
    lora_up: nn.Parameter
    lora_scale: float

    def updated_weight(self) -> Tensor:
        """Return the weight with its update, in the precision of the weight."""
        update = self.lora_scale * (self.lora_up @ self.lora_down)
        return (self.weight + update).to(self.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer with its updated weight."""
        if self.weight.dtype == self.lora_up.dtype:
            return F.linear(input, self.updated_weight(), self.bias)
        output = F.linear(input, self.weight, self.bias)
        update = F.linear(F.linear(input.to(self.lora_up.dtype), self.lora_down), self.lora_up)
        return (output + self.lora_scale * update).to(output.dtype)


def add_lora(layers: Iterable[nn.Linear], rank: int, scale: float = 1.0) -> list[nn.Parameter]:
    """Give every layer a low-rank update and freeze its weight and bias.

    Args:
        layers: The layers to update.
        rank: Rank of the updates, at least 1.
        scale: Factor on the updates.

    Returns:
        The new parameters.

    Raises:
        PolicyError: The rank is below 1, or a layer has an update already.
    """
    if rank < 1:
        raise PolicyError(f"The LoRA rank is {rank}", allowed="integers from 1 on")
    added: list[nn.Parameter] = []
    for layer in layers:
        if isinstance(layer, LowRankLinear):
            raise PolicyError(
                "The policy has LoRA updates already.", remedy="Call merge_lora() first."
            )
        layer.requires_grad_(False)
        down = torch.empty(rank, layer.in_features, device=layer.weight.device)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        layer.__class__ = LowRankLinear
        layer.lora_down = nn.Parameter(down)
        layer.lora_up = nn.Parameter(down.new_zeros(layer.out_features, rank))
        layer.lora_scale = scale  # type: ignore[assignment]
        added += [layer.lora_down, layer.lora_up]
    return added


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """Write every low-rank update of `module` into its weight and remove it.

    Weights keep their precision: a bfloat16 weight rounds its update.
    """
    for layer in module.modules():
        if isinstance(layer, LowRankLinear):
            layer.weight.data = layer.updated_weight()  # not in place: the memory may be shared
            del layer.lora_down, layer.lora_up, layer.lora_scale
            layer.__class__ = nn.Linear  # type: ignore[assignment]


def has_lora(module: nn.Module) -> bool:
    """Say whether any layer of `module` has a low-rank update."""
    return any(isinstance(layer, LowRankLinear) for layer in module.modules())
