"""What a loss sees: some rows of a batch, and what policy and base say of them.

A `Step` computes what it is asked for, once: a method that never looks at the base's distribution
does not pay for it, and a regulariser reads the distribution that the method has computed already.

Axis letters as in `types`: M decisions of one update, B rows of a step, K random steps of one
decision.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from robo_razor.core.seeding import generator

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robo_razor.policies.distributions import ActionDistribution
    from robo_razor.policies.policy import Policy

LARGEST = "_max"
"""Diagnostics whose names end so are the largest over a step's parts; all others are means."""


@dataclass(frozen=True)
class Loss:
    """What a gradient step minimises.

    Attributes:
        value: Scalar, a mean over the rows.
        metrics: Detached diagnostics, means over the rows or, see `LARGEST`, maxima.
    """

    value: Tensor
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """What an update learns from, one value for each decision.

    Attributes:
        advantages: float [M].
        log_prob: float [M] or, of each random step, [M, K]: that of the policy that acted.
        returns: float [M], targets of a value head.
        useful: int64, the decisions to learn from; None: all of them.
    """

    advantages: Tensor
    log_prob: Tensor | None = None
    returns: Tensor | None = None
    useful: Tensor | None = None

    def rows(self, index: Tensor, device: torch.device) -> Targets:
        """Return those of some decisions, int64 [B], on a device."""
        picked = {
            name: None if values is None else values[index].to(device)
            for name in ("advantages", "log_prob", "returns")
            for values in [getattr(self, name)]
        }
        return dataclasses.replace(self, useful=None, **picked)  # type: ignore[arg-type]

    @property
    def learnt_from(self) -> Tensor:
        """Return the decisions to learn from, int64."""
        import torch

        return torch.arange(len(self.advantages)) if self.useful is None else self.useful


@dataclass(frozen=True)
class Place:
    """Where in the run a gradient step is.

    Attributes:
        seed: The run's.
        update: Number of the update, from 1.
        gradient_step: Number of the step within the update, from 0.
    """

    seed: int = 0
    update: int = 1
    gradient_step: int = 0

    def random(self, purpose: str) -> np.random.Generator:
        """Return a generator that is equal wherever this step is made: in parts, ranks, resumed."""
        return generator(self.seed, purpose, self.update, self.gradient_step)


class Step:
    """Some rows of a gradient step.

    Attributes:
        policy: The policy that is tuned.
        base: Its frozen copy from before the run.
        place: Where in the run the step is.
        rows: int64 [B], numbers of the decisions in the batch (or of windows, when cloning).
        batch: What the rows come from: the update's episodes, or the tensors that are cloned.
        bf16: Whether matrix products are computed in bfloat16.

    Args:
        inputs: Returns the policy's inputs of the rows.
        sample: Returns what the policy drew in them.
        targets: Returns what is learnt from them.
    """

    def __init__(
        self,
        policy: Policy,
        base: Policy,
        inputs: Callable[[], dict[str, Tensor]],
        *,
        place: Place | None = None,
        rows: Any = None,
        batch: Any = None,
        sample: Callable[[], Tensor] | None = None,
        targets: Callable[[], Targets] | None = None,
        bf16: bool = False,
    ) -> None:
        self.policy, self.base = policy, base
        self.place = place or Place()
        self.rows, self.batch, self.bf16 = rows, batch, bf16
        self._inputs, self._sample, self._targets = inputs, sample, targets
        self._value: tuple[bool, Tensor] | None = None

    def on(self, inputs: dict[str, Tensor]) -> Step:
        """Return the same step on other observations."""
        other = copy.copy(self)
        for name in ("inputs", "distribution", "base_distribution", "log_prob", "log_prob_steps"):
            other.__dict__.pop(name, None)
        other._value, device = None, self.policy.device
        other._inputs = lambda: {key: tensor.to(device) for key, tensor in inputs.items()}
        return other

    @property
    def update(self) -> int:
        """Return the number of the update, from 1."""
        return self.place.update

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The policy's inputs, tensors of first axis B on its device."""
        return self._inputs()

    @cached_property
    def sample(self) -> Tensor:
        """What the acting policy drew: chunks float32 [B, H, A], or the paths to them."""
        if self._sample is None:
            raise AttributeError("nothing was sampled in this step: it learns from demonstrations")
        return self._sample()

    @cached_property
    def targets(self) -> Targets:
        """What the method's `targets` said of these rows."""
        if self._targets is None:
            raise AttributeError("this step has no targets but the demonstrated actions")
        return self._targets()

    @cached_property
    def distribution(self) -> ActionDistribution:
        """The tuned policy's distribution of the executed chunk, with a gradient."""
        with self.precision(), evaluating(self.policy.module):
            return self.policy.distribution(self.inputs)

    @cached_property
    def base_distribution(self) -> ActionDistribution:
        """The base's distribution of the executed chunk."""
        import torch

        with self.precision(), torch.no_grad():
            return self.base.distribution(self.inputs)

    @cached_property
    def log_prob(self) -> Tensor:
        """Log-probability of what was drawn, under the tuned policy (nats), float [B]."""
        with self.precision():
            return self.distribution.log_prob(self.sample)

    @cached_property
    def log_prob_steps(self) -> Tensor:
        """The same of every random step, float [B, K], where a decision has several."""
        from robo_razor.policies.distributions import log_prob_steps

        with self.precision():
            return log_prob_steps(self.distribution, self.sample)

    def value(self, *, detach: bool = True) -> Tensor:
        """Return the tuned policy's value, float [B]; before `distribution`, both cost one pass.

        Args:
            detach: Let no gradient of the value reach what the actions depend on.
        """
        if self._value is None or self._value[0] != detach:
            with self.precision(), evaluating(self.policy.module):
                both = self.policy.distribution_and_value(self.inputs, value_detach=detach)
            self.__dict__.setdefault("distribution", both[0])
            self._value = detach, both[1]
        return self._value[1]

    def precision(self) -> torch.autocast:
        """Return the context in which this step's networks run."""
        from robo_razor.training.update import autocast

        return autocast(self.policy.device, self.bf16)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout and augmentation off for a while: they would make a distribution noise."""
    before = module.training
    if before:
        module.eval()
    try:
        yield
    finally:
        if before:
            module.train()
