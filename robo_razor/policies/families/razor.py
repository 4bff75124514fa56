"""razor: the small policy of this project, with categorical action tokens."""

from __future__ import annotations

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.families import PolicyFamily
from robo_razor.policies.policy import Loaded
from robo_razor.policies.tokens import TokenPolicy


@FAMILIES.register("razor")
class Razor(PolicyFamily):
    """`razor` of `lerobot_policy_razor`. Its loss averages each decision's actions first."""

    def wrap(self, loaded: Loaded) -> TokenPolicy:
        """Return a policy with exact densities."""
        return TokenPolicy(loaded)
