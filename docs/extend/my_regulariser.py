"""A regulariser of your own: the policy may not become surer of itself than its base was."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robo_razor.core.errors import PolicyError
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.settings.conversion import setting
from robo_razor.policies.policy import Policy
from robo_razor.training.regularisers import REGULARISERS, Regulariser
from robo_razor.training.step import Step


@REGULARISERS.register("my_regulariser")
@dataclass(frozen=True, kw_only=True)
class MyRegulariser(Regulariser):
    """Squared loss of entropy: what the tuned policy has less than the base, 0 if it has more."""

    weight: float = setting(0.1, low=0.0)
    """Weight of the penalty in the loss (>= 0)."""

    @property
    def is_of_batch(self) -> bool:
        """Say that the penalty is a mean over the decisions of the step."""
        return True

    def validate(self, config: FinetuneConfig, base: Policy, prior: Mapping[str, str]) -> None:
        """Refuse what cannot work, before anything is written."""
        if not base.has_density:
            raise PolicyError(
                f"The policy {base.name!r} has no entropy, because its actions have no density",
                remedy="Use `regularise.l2`, or a policy with action tokens.",
            )

    def penalty(self, step: Step, kept: dict[str, Tensor]) -> Tensor:
        """Return the penalty, a scalar with a gradient (squared nats)."""
        lost = step.base_distribution.entropy() - step.distribution.entropy()  # [B]
        return lost.clamp(min=0.0).square().mean()
