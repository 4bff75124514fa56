"""The common parts of the families of LeRobot's flow-matching policies."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from robo_razor.policies.families import PolicyFamily
from robo_razor.policies.flow.adapter import FlowAdapter
from robo_razor.policies.flow.policy import FlowPolicy
from robo_razor.policies.policy import LeRobotModule, Loaded, Policy


class FlowFamily(PolicyFamily, ABC):
    """Flow-matching policies that get a stochastic sampler, and so a density, by an adapter.

    They have no density where they transform actions themselves (`refuses`). Compiled models are
    loaded without compilation: LeRobot would compile its sampler, which is replaced here.
    """

    masks_cameras = True
    samples_itself = False
    builds_without_memory = False

    @abstractmethod
    def adapter(self, module: LeRobotModule) -> FlowAdapter:
        """Return the sampler's view of the policy."""

    def wrap(self, loaded: Loaded) -> Policy:
        """Return the policy, with a density unless it transforms actions itself."""
        if self.refused(loaded.module.config) is not None:
            return super().wrap(loaded)
        return FlowPolicy(loaded, self.adapter)

    def image_encoder(self, module: LeRobotModule) -> nn.Module:
        """Return the image encoder."""
        return self.adapter(module).vision()
