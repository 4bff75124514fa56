"""The gradient step of every method and of pretraining.

It adds up the gradients of its parts: of micro-batches that fit into memory one after another, and
of the ranks' shares. A loss or gradient that is not finite never reaches the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
        side_by_side: Compute the parts of a step at the same time, each on one CPU thread. Then the
            result does not depend on the number of threads.
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
        side_by_side: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.clipped = clipped
        self.max_grad_norm = max_grad_norm
        self.name, self.remedy = name, remedy
        self.ranks = ranks
        self.pool = PartPool() if side_by_side else None

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
        for part, loss in self._losses(list(parts)):
            sums = _added(sums, loss, part.share)
        sums = self.ranks.totals(sums, maxima=(LARGEST,))
        if stops(sums):
            self.optimizer.zero_grad(set_to_none=True)
            return sums | {STOPPED: 1.0}
        self.ranks.sum_gradients(p for parameters in self.clipped for p in parameters)
        norms = [self._clip(parameters) for parameters in self.clipped]
        self.optimizer.step()
        return sums | {"grad_norm": norms[0]}

    def _losses(self, parts: Sequence[Part]) -> Iterator[tuple[Part, Loss]]:
        """Add each part's gradients to those of the parts before it; yield its loss."""
        threads = torch.get_num_threads()
        if self.pool is None or threads == 1:
            for part in parts:
                loss = part.loss()
                self._check(loss.value, f"The {self.name} loss")
                (loss.value * part.share).backward()  # type: ignore[no-untyped-call]
                yield part, loss
            return
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        for part, loss, gradients in self.pool.gradients(parts, parameters, threads):
            self._check(loss.value, f"The {self.name} loss")
            _accumulate(parameters, gradients)
            yield part, loss

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


Gradients = Sequence[Tensor | None]


class PartPool:
    """Computes the gradients of several parts at the same time, each on one CPU thread.

    A part that fits into a core's cache is faster on one thread than a whole minibatch on all of
    them: the threads do not wait for one another after every operator.
    """

    def __init__(self) -> None:
        self._threads = 0
        self._executor: ThreadPoolExecutor | None = None

    def gradients(
        self, parts: Sequence[Part], parameters: Sequence[Tensor], threads: int
    ) -> Iterator[tuple[Part, Loss, Gradients]]:
        """Yield the parts in order, with their losses and the gradients of the parameters.

        Args:
            parts: Parts of a gradient step.
            parameters: What to differentiate with respect to.
            threads: How many parts are computed at the same time.
        """
        executor = self._of(threads)
        waiting: deque[tuple[Part, Future[tuple[Loss, Gradients]]]] = deque()
        torch.set_num_threads(1)  # also for threads that begin now
        try:
            for part in parts:
                waiting.append((part, executor.submit(_gradients, part, parameters)))
                if len(waiting) > 2 * threads:  # more would only need memory
                    first, future = waiting.popleft()
                    yield first, *future.result()
            for first, future in waiting:
                yield first, *future.result()
        finally:
            for _, future in waiting:
                future.cancel()
            wait(future for _, future in waiting)
            torch.set_num_threads(threads)

    def _of(self, threads: int) -> ThreadPoolExecutor:
        """Return threads that were made for this number of them."""
        if self._executor is None or self._threads != threads:
            if self._executor is not None:
                self._executor.shutdown()
            self._executor, self._threads = ThreadPoolExecutor(threads, "part"), threads
        return self._executor


def _accumulate(parameters: Sequence[Tensor], gradients: Gradients) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient.clone()  # two parameters may have one gradient
        else:
            parameter.grad += gradient


def _gradients(part: Part, parameters: Sequence[Tensor]) -> tuple[Loss, Gradients]:
    loss = part.loss()
    return loss, torch.autograd.grad(loss.value * part.share, parameters, allow_unused=True)


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
