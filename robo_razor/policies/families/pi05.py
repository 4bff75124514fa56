"""pi0.5 (Physical Intelligence 2025): pi0 that reads the state as text of the instruction."""

from __future__ import annotations

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.families.pi0 import Pi0, Pi0Adapter
from robo_razor.policies.flow.adapter import FlowAdapter
from robo_razor.policies.policy import LeRobotModule


@FAMILIES.register("pi05")
class Pi05(Pi0):
    """LeRobot's `pi05`."""

    def adapter(self, module: LeRobotModule) -> FlowAdapter:
        """Return the sampler's view of the policy."""
        return Pi05Adapter(module)


class Pi05Adapter(Pi0Adapter):
    """pi0.5: the action expert does not read the state."""

    reads_state = False
    projections = ("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out")
