"""The gradient step of every method and of pretraining.

It adds up the gradients of its parts: of micro-batches that fit into memory one after another, and
of the ranks' shares. A loss or gradient that is not finite never reaches the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robo_razor.core.errors import PolicyError, TrainingError
from robo_razor.core.ranks import ALONE, Ranks
from robo_razor.policies.policy import Policy
from robo_razor.training.step import LARGEST, Loss

Metrics = dict[str, float]
STOPPED = "stopped"
"""Key of the metrics of a step that was not made."""


@dataclass(frozen=True)
class Part:
    """Some rows of a gradient step, as many as are in memory at once.

    Attributes:
        share: Their weight in the step's loss, which is a mean, in (0, 1].
        loss: Computes the mean over these rows.
    """

    share: float
    loss: Callable[[], Loss]


class Update:
    """An optimizer and its gradient step.

    Args:
        optimizer: Holds all parameters that are trained.
        clipped: Sets of parameters whose gradients are scaled down together; the norm of the first
            set is logged.
        max_grad_norm: Largest norm of a set's gradients.
        name: Name of the loss in errors.
        remedy: What to do where numbers overflow.
        ranks: This process among the processes of the run; all make the same steps.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clipped: Sequence[Sequence[nn.Parameter]],
        *,
        max_grad_norm: float,
        name: str,
        remedy: str,
        ranks: Ranks = ALONE,
    ) -> None:
        self.optimizer = optimizer
        self.clipped = clipped
        self.max_grad_norm = max_grad_norm
        self.name, self.remedy = name, remedy
        self.ranks = ranks

    def step(
        self, parts: Iterable[Part], stops: Callable[[Metrics], bool] = lambda metrics: False
    ) -> Metrics:
        """Make one gradient step; all ranks must call it, also ranks without rows.

        Args:
            parts: Parts of the loss, which is their sum, each times its share.
            stops: Returns from the step's diagnostics whether to stop before the step.

        Returns:
            Means of the diagnostics over all rows, the gradients' norm before it was clipped, and
            `STOPPED` where no step was made.

        Raises:
            TrainingError: A loss or a gradient is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums: Metrics = {}
        for part in parts:
            loss = part.loss()
            self._check(loss.value, f"The {self.name} loss")
            (loss.value * part.share).backward()  # type: ignore[no-untyped-call]
            sums = _added(sums, loss, part.share)
        sums = self.ranks.totals(sums, maxima=(LARGEST,))
        if stops(sums):
            self.optimizer.zero_grad(set_to_none=True)
            return sums | {STOPPED: 1.0}
        self.ranks.sum_gradients(p for parameters in self.clipped for p in parameters)
        norms = [self._clip(parameters) for parameters in self.clipped]
        self.optimizer.step()
        return sums | {"grad_norm": norms[0]}

    def set_rates(self, *rates: float) -> None:
        """Set the learning rate of every group of parameters, or one for all of them."""
        groups = self.optimizer.param_groups
        each = rates * len(groups) if len(rates) == 1 else rates
        for group, rate in zip(groups, each, strict=True):
            group["lr"] = rate

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _clip(self, parameters: Sequence[nn.Parameter]) -> float:
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self._check(norm, "The norm of the gradients")
        return float(norm)

    def _check(self, number: Tensor, what: str) -> None:
        if not torch.isfinite(number):
            raise TrainingError(
                f"{what} became {float(number.detach())}",
                remedy=f"{self.remedy} The last checkpoint is intact.",
            )


def _added(sums: Metrics, loss: Loss, share: float) -> Metrics:
    """Return the sums of diagnostics with those of one more part."""
    result = dict(sums)
    for key, number in loss.metrics.items():
        value = float(number)
        if key.endswith(LARGEST):
            result[key] = max(sums.get(key, 0.0), value)
        else:
            result[key] = sums.get(key, 0.0) + share * value
    return result


def trained_parameters(policy: Policy) -> list[nn.Parameter]:
    """Return the parameters that a policy's loss trains.

    Raises:
        PolicyError: A parameter is less precise than float32, which would round small steps away.
    """
    parameters = [p for p in policy.policy_parameters() if p.requires_grad]
    low = {str(p.dtype).removeprefix("torch.") for p in parameters if p.element_size() < 4}
    if low:
        raise PolicyError(
            f"The policy {policy.name!r} has parameters to train in {', '.join(sorted(low))}, "
            "which rounds small steps away",
            allowed="trained parameters in float32",
            remedy="Load the policy in float32. A flow policy's `share_frozen(base)` makes trained "
            "parameters float32.",
        )
    return parameters


def how_to_calm(name: str, bf16: bool) -> str:
    """Return what to do where a method's numbers overflow."""
    return f"Lower `{name}.learning_rate`" + (f", or set `{name}.bf16: false`." if bf16 else ".")


def bf16_is_fast() -> bool:
    """Return whether this machine's processor multiplies bfloat16 matrices natively."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())


def autocast(device: torch.device | str, enabled: bool) -> torch.autocast:
    """Return the context in which matrix products are computed in bfloat16, if enabled."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)
