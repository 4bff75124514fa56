"""A policy family of your own: LeRobot policies of the type `linear`, with a density around them.

The type is made up. Its module has an image encoder `eye`, and predicts one chunk of actions.
"""

from typing import Any

import torch
from torch import Tensor, nn

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.distributions import GaussianChunkDistribution
from robo_razor.policies.families import MeanOver, PolicyFamily
from robo_razor.policies.policy import LeRobotModule, Loaded, Policy

STANDARD_DEVIATION = 0.1
"""Of the noise around the predicted actions, which are normalised."""


class NoisyPolicy(Policy):
    """Acts as LeRobot's policy does; sampled actions have Gaussian noise around these."""

    has_density = True

    def distribution(self, batch: dict[str, Tensor]) -> GaussianChunkDistribution:
        """Return the distribution of the executed chunk, [B, H, A]."""
        mean = self.module.predict_action_chunk(batch)[:, : self.chunk_size]
        return GaussianChunkDistribution(mean, torch.tensor(STANDARD_DEVIATION).log())

    def distribution_and_value(
        self, batch: dict[str, Tensor], value_detach: bool = True
    ) -> tuple[GaussianChunkDistribution, Tensor]:
        """Return the distribution and a value, [B]: 0, because the module has no value head."""
        distribution = self.distribution(batch)
        return distribution, torch.zeros(len(distribution.mean))


@FAMILIES.register("linear")  # LeRobot's name of the type
class LinearFamily(PolicyFamily):
    """What is particular to policies of the type `linear`."""

    def wrap(self, loaded: Loaded) -> Policy:
        """Return the policy, with a density."""
        return NoisyPolicy(loaded)

    def image_encoder(self, module: LeRobotModule) -> nn.Module:
        """Return the part that `freeze_vision` stops training."""
        return module.get_submodule("eye")

    def loss_mean_over(self, config: Any) -> MeanOver:
        """Return what the cloning loss is a mean of: here padded actions count, too."""
        return "decisions"
