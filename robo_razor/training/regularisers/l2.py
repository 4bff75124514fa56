"""Squared distance of the trained weights to the base's.

L2-SP (Li et al. 2018, arXiv 1802.01483): sum of (w - w_base)^2 over all trained weights that
actions depend on, so the value head is left out. With low-rank updates it is the distance of the
merged weights, that is the squared norm of the updates' product. Unlike the paper, without the
factor 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robo_razor.core.settings.conversion import setting
from robo_razor.training.regularisers import REGULARISERS, Regulariser

if TYPE_CHECKING:
    from torch import Tensor

    from robo_razor.policies.policy import Policy
    from robo_razor.training.step import Step


@REGULARISERS.register("l2")
@dataclass(frozen=True, kw_only=True)
class L2(Regulariser):
    """Squared distance of the trained weights to the base's (L2-SP)."""

    weight: float = setting(0.1, low=0.0)
    """Weight of the sum of squared differences in the loss (>= 0)."""

    def penalty(self, step: Step, kept: dict[str, Tensor]) -> Tensor:
        """Return the squared distance, summed over all weights."""
        from robo_razor.training.update import autocast

        with autocast(step.policy.device, enabled=False):
            return squared_distance(step.policy, step.base)


def squared_distance(policy: Policy, base: Policy) -> Tensor:
    """Return the sum of squared differences of the trained weights, with a gradient (scalar)."""
    import torch

    from robo_razor.policies.lora import LowRankLinear

    trained = {id(p) for p in policy.policy_parameters() if p.requires_grad}
    before = dict(base.module.named_parameters())
    total = torch.zeros((), device=policy.device)
    for layer in policy.module.modules():
        if isinstance(layer, LowRankLinear):
            trained -= {id(layer.lora_up), id(layer.lora_down)}
            update = layer.lora_scale * (layer.lora_up @ layer.lora_down)
            total = total + update.square().sum()
    for name, parameter in policy.module.named_parameters():
        if id(parameter) in trained:
            total = total + (parameter - before[name].to(parameter.dtype)).square().sum()
    return total
