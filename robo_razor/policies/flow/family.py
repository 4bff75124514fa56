"""What LeRobot's flow-matching policies have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from robo_razor.policies.families import PolicyFamily
from robo_razor.policies.flow.adapter import FlowAdapter
from robo_razor.policies.flow.policy import FlowPolicy
from robo_razor.policies.policy import LeRobotModule, Loaded, Policy


class FlowFamily(PolicyFamily, ABC):
    """Flow-matching policies that get a stochastic sampler, and so a density, by an adapter.

    They have none where they change actions by themselves (`refuses`). Compiled models are loaded
    without their compilation: what would be compiled is LeRobot's own sampler.
    """

    masks_cameras = True
    samples_itself = False
    builds_without_memory = False

    @abstractmethod
    def adapter(self, module: LeRobotModule) -> FlowAdapter:
        """Return the policy as the sampler sees it."""

    def wrap(self, loaded: Loaded) -> Policy:
        """Return the policy, with a density unless it changes actions by itself."""
        if self.refused(loaded.module.config) is not None:
            return super().wrap(loaded)
        return FlowPolicy(loaded, self.adapter)

    def image_encoder(self, module: LeRobotModule) -> nn.Module:
        """Return the image encoder."""
        return self.adapter(module).vision()
