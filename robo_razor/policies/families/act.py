"""ACT (Zhao et al. 2023): chunks of actions from a transformer, without a density."""

from __future__ import annotations

from typing import Any

from torch import nn

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.families import MeanOver, PolicyFamily
from robo_razor.policies.policy import LeRobotModule


@FAMILIES.register("act")
class ACT(PolicyFamily):
    """LeRobot's `act`.

    The latent's divergence is a mean over decisions within a loss over actions, and gets the same
    weight as the rest of the loss.
    """

    normalises_as_configured = True

    def image_encoder(self, module: LeRobotModule) -> nn.Module:
        """Return the image encoder."""
        return module.get_submodule("model.backbone")

    def loss_mean_over(self, config: Any) -> MeanOver:
        """Return "actions": padding is left out of the loss."""
        return "actions"
