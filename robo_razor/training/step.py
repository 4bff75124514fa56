"""What a loss reads: some rows of a batch, and the distributions of policy and base there.

A `Step` computes each value when it is first read, and once: a method that never reads the base's
distribution does not pay for it, and a regulariser reads the distribution that the method has
computed already.

Axis letters as in `types`: M decisions of one update, B rows of a step, K random steps of one
decision, E episodes that a step's rows come from, P pairs of episodes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from robo_razor.core.errors import TrainingError
from robo_razor.core.seeding import generator

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robo_razor.core.types import DecisionRecord, EpisodeBatch
    from robo_razor.policies.distributions import ActionDistribution
    from robo_razor.policies.policy import Policy

LARGEST = "_max"
"""A diagnostic whose name ends so is the maximum over a step's parts; all others are means."""


def required[T](value: T | None, name: str) -> T:
    """Return a value that a method cannot do without.

    Args:
        value: What was recorded or computed.
        name: Its name, for the error.

    Raises:
        TrainingError: There is no value.
    """
    if value is None:
        raise TrainingError(
            f"This method needs `{name}`, which was not recorded or computed",
            remedy="Record it when episodes are collected (`DecisionRecord`), or return it from "
            "the method's `targets`.",
        )
    return value


def record_of(batch: EpisodeBatch) -> DecisionRecord:
    """Return the decisions of an update's episodes.

    Raises:
        TrainingError: The episodes were run without recording them.
    """
    return required(batch.record, "batch.record")


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
        log_prob: float [M] or, of each random step, [M, K], under the policy that acted.
        returns: float [M], targets of a value head.
        useful: int64, the decisions to learn from; None: all of them.
    """

    advantages: Tensor
    log_prob: Tensor | None = None
    returns: Tensor | None = None
    useful: Tensor | None = None

    def rows(self, index: Tensor, device: torch.device) -> Targets:
        """Return the targets of some decisions, int64 [B], on a device."""

        def select(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index].to(device)

        return dataclasses.replace(
            self,
            advantages=self.advantages[index].to(device),
            log_prob=select(self.log_prob),
            returns=select(self.returns),
            useful=None,
        )

    @property
    def learnt_from(self) -> Tensor:
        """Return the decisions to learn from, int64."""
        import torch

        return torch.arange(len(self.advantages)) if self.useful is None else self.useful


@dataclass(frozen=True)
class Minibatch:
    """What one gradient step learns from, or a part of it that fits into memory.

    Attributes:
        rows: int64, numbers of decisions in the batch.
        pairs: int64 [P, 2], numbers of episodes in the batch, the better one of each pair first;
            None for a method that does not learn from pairs.
    """

    rows: Tensor
    pairs: Tensor | None = None

    def split(self, size: int, episode: Tensor) -> list[Minibatch]:
        """Return parts of at most `size` decisions, and of about as many each.

        A pair stays in one part, however long it is.

        Args:
            size: Decisions of a part.
            episode: int64 [M], number of the episode of every decision.
        """
        import torch

        if self.pairs is None:
            parts = max(1, math.ceil(len(self.rows) / size))
            return [Minibatch(rows) for rows in torch.tensor_split(self.rows, parts)]
        owner = episode[self.rows]
        lengths = torch.bincount(owner, minlength=len(episode))[self.pairs].sum(1).tolist()
        ends, decisions = [0], 0
        for index, length in enumerate(lengths):
            if decisions and decisions + length > size:
                ends.append(index)
                decisions = 0
            decisions += length
        ends.append(len(lengths))
        cut = [self.pairs[start:end] for start, end in itertools.pairwise(ends)]
        return [Minibatch(self.rows[torch.isin(owner, pairs)], pairs) for pairs in cut]


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
        """Return a generator that is equal in all parts and ranks of a step, and after a resume."""
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
        episode: int64 [B], number of the episode of each row in the batch.
        pairs: int64 [P, 2], pairs of these episodes, the better one first.
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
        episode: Tensor | None = None,
        pairs: Tensor | None = None,
        bf16: bool = False,
    ) -> None:
        self.policy, self.base = policy, base
        self.place = place or Place()
        self.rows, self.batch, self.bf16 = rows, batch, bf16
        self._inputs, self._sample, self._targets = inputs, sample, targets
        self._episode, self._pairs = episode, pairs
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
            raise AttributeError("this step learns from demonstrations: nothing was sampled")
        return self._sample()

    @cached_property
    def targets(self) -> Targets:
        """The rows of what the method's `targets` returned."""
        if self._targets is None:
            raise AttributeError("this step learns from demonstrations: it has no other targets")
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

    # Episodes and pairs of them, for methods with these `rows` ---------------------------------

    @cached_property
    def _episodes(self) -> tuple[Tensor, Tensor]:
        """Return the step's episodes, ascending, and the index among them of every row."""
        import torch

        if self._episode is None:
            raise AttributeError("this step learns from demonstrations: it has no episodes")
        episodes, owner = torch.unique(self._episode, return_inverse=True)
        return episodes, owner.to(self.policy.device)

    def episode_sums(self, values: Tensor) -> Tensor:
        """Return the sum over the rows of each of the step's episodes, float [E].

        Args:
            values: float [B], one for each row, such as `log_prob`.
        """
        episodes, owner = self._episodes
        return values.new_zeros(len(episodes)).index_add(0, owner, values)

    def episode_means(self, values: Tensor) -> Tensor:
        """Return the mean over the rows of each of the step's episodes, float [E]."""
        return self.episode_sums(values) / self.episode_sums(values.new_ones(len(values)))

    @property
    def winners(self) -> Tensor:
        """Return the better episode of every pair, int64 [P], an index of `episode_sums`."""
        return self._members(0)

    @property
    def losers(self) -> Tensor:
        """Return the worse episode of every pair, int64 [P], an index of `episode_sums`."""
        return self._members(1)

    def _members(self, column: int) -> Tensor:
        import torch

        if self._pairs is None:
            raise AttributeError('this step has no pairs: set the method\'s `rows` to "pairs"')
        index = torch.searchsorted(self._episodes[0], self._pairs[:, column].contiguous())
        return index.to(self.policy.device)

    def value(self, *, detach: bool = True) -> Tensor:
        """Return the tuned policy's value, float [B]; call it before `distribution`.

        Then one pass through the network computes both.

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
    """Switch dropout and augmentation off for a while: they would make a distribution random."""
    before = module.training
    if before:
        module.eval()
    try:
        yield
    finally:
        if before:
            module.train()
