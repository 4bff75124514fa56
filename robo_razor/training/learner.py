"""Who makes a run's updates, and all the state that they have: optimizer, counters, statistics.

`OnPolicyLearner` collects episodes with the policy as it is and learns from them as its method
says; `imitation.DemonstrationLearner` learns from demonstrations. Random numbers are derived from
(seed, update, ...), see `seeding`, so nothing of them is kept.

Axis letters as in `types`: M decisions of one update, E episodes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.errors import TrainingError
from robo_razor.core.ranks import ALONE, Ranks
from robo_razor.core.run.training_state import restore_optimizer
from robo_razor.core.seeding import derive, generator, training_seeds
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import (
    DecisionRecord,
    DemonstrationSet,
    EpisodeBatch,
    EpisodeRow,
    make_rows,
)
from robo_razor.policies.policy import Policy
from robo_razor.training.on_policy import OnPolicy
from robo_razor.training.regularisers import Penalties
from robo_razor.training.step import Loss, Place, Step, Targets
from robo_razor.training.update import (
    STOPPED,
    Metrics,
    Part,
    Update,
    autocast,
    how_to_calm,
    trained_parameters,
)

logger = logging.getLogger(__name__)

KL_PROBE_STATES = 256


class Rollout(Protocol):
    """Runs episodes with the policy that is being tuned."""

    def __call__(
        self,
        rows: Sequence[EpisodeRow],
        *,
        mode: Literal["greedy", "sample"],
        record: bool | Literal["inputs"],
        sampling_seed: int,
        whole: bool = False,
    ) -> EpisodeBatch:
        """Run every row once; see `rollout.shared.run_shared`."""
        ...


@dataclass(frozen=True)
class Context:
    """What a run offers to its learner and its regularisers.

    Attributes:
        config: The run's settings.
        policy: The policy that is tuned in place.
        base: Its frozen copy from before the run.
        rollout: Runs episodes of the policy.
        demonstrations: Loads or makes the demonstrations that the settings name.
        prior: Skill -> task of the skills that may be forgotten.
        ranks: This process among those of the run.
        penalties: The regularisers' terms of the loss.
        on_gradient_steps: Is told how many of an update's steps are done.
    """

    config: FinetuneConfig
    policy: Policy
    base: Policy
    rollout: Rollout
    demonstrations: Callable[[], DemonstrationSet]
    prior: dict[str, str] = field(default_factory=dict)
    ranks: Ranks = ALONE
    penalties: Penalties = field(default_factory=Penalties)
    on_gradient_steps: Callable[[int, int], None] = lambda done, total: None


@dataclass
class LearnerState:
    """What a learner needs to go on beyond the policy's weights."""

    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


class Learner(ABC):
    """Makes the updates of a run.

    Args:
        context: What the run offers.
    """

    updater: Update

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config, self.ranks = context.config, context.ranks
        self.policy, self.base = context.policy, context.base

    def prepare(self) -> None:  # noqa: B027  # optional
        """Get what all updates need, such as demonstrations."""

    @property
    @abstractmethod
    def num_updates(self) -> int:
        """Return the number of updates in the run (known after `prepare`)."""

    @abstractmethod
    def update(self, number: int) -> Metrics:
        """Make an update, numbered from 1, and return what to log."""

    def check_start(self, sampled_success: Sequence[bool]) -> None:  # noqa: B027  # optional
        """Refuse to start where the base's sampled episodes on the new task give no hope."""

    def state(self) -> LearnerState:
        """Return what must be saved to go on."""
        name = self.config.method.name
        return LearnerState(optimizers={name: self.updater.optimizer.state_dict()})

    def load_state(self, state: LearnerState) -> None:
        """Take over what `state` returned."""
        restore_optimizer(self.updater.optimizer, state.optimizers[self.config.method.name])


class OnPolicyLearner(Learner):
    """Collects whole episodes with the policy as it is, then learns from them.

    Args:
        method: Says what the episodes teach and what a step minimises.
        context: What the run offers.
    """

    def __init__(self, method: OnPolicy, context: Context) -> None:
        super().__init__(context)
        self.method = method
        self.base_outcomes: tuple[bool, ...] = ()
        self.rate_factor = 1.0
        self.policy_parameters = trained_parameters(self.policy)
        groups = [self.policy_parameters]
        if method.trains_value:
            groups.append([p for p in self.policy.value_parameters() if p.requires_grad])
        self.updater = Update(
            torch.optim.AdamW([{"params": g} for g in groups], weight_decay=0.0, eps=1e-5),
            groups,
            max_grad_norm=method.max_grad_norm,
            name=method.name,
            remedy=how_to_calm(method.name, method.bf16),
            ranks=self.ranks,
        )
        self._warn_of_temperature()

    def _warn_of_temperature(self) -> None:
        """Say so where a temperature was set that the policy does not read."""
        given = self.method.temperature
        if given != type(self.method)().temperature and not getattr(
            self.policy, "reads_temperature", True
        ):
            logger.warning(
                "`%s.temperature` = %g does nothing: how far samples of %s spread is `flow.noise`.",
                self.method.name,
                given,
                self.policy.name,
            )

    @property
    def num_updates(self) -> int:
        """Return the number of updates in the run."""
        return self.method.num_updates

    def state(self) -> LearnerState:
        """Return the optimizer's state and the adapted rate."""
        return dataclasses.replace(super().state(), extra={"rate_factor": self.rate_factor})

    def load_state(self, state: LearnerState) -> None:
        """Take over the optimizer's state and the adapted rate."""
        super().load_state(state)
        factor = float(state.extra["rate_factor"])
        if not 0.0 < factor < math.inf:
            raise ValueError(f"`rate_factor` is {factor}")
        self.rate_factor = factor

    def check_start(self, sampled_success: Sequence[bool]) -> None:
        """Remember the base's sampled outcomes; warn when there is no success among them."""
        self.base_outcomes = tuple(sampled_success)
        if sampled_success and not any(sampled_success):
            logger.warning(
                "%s succeeded in 0 of %d sampled episodes on %s: the first update's episodes "
                "decide whether there is anything to learn from",
                self.policy.name,
                len(sampled_success),
                self.config.task,
            )

    # An update --------------------------------------------------------------------------------

    def update(self, number: int) -> Metrics:
        """Collect episodes, learn from them, and return what to log."""
        start = time.perf_counter()
        with self._sampling_temperature():
            batch = self._collect(number)
            collected = time.perf_counter()
            if number == 1:
                self._refuse_hopeless(batch)
            learnt = self._learn(batch, number)
        record = _record(batch)
        metrics = rollout_metrics(batch) | learnt
        metrics["train/kl_base_tuned"] = self._kl_to_base(record, number)
        now = time.perf_counter()
        return metrics | {
            "time/rollout_s": collected - start,
            "time/update_s": now - collected,
            "time/episodes_per_s": len(batch) / (collected - start),
            "time/env_steps_per_s": float(batch.control_steps.sum()) / (collected - start),
        }

    def _collect(self, update: int) -> EpisodeBatch:
        seed, group, name = self.config.seed, self.method.group_size, self.method.name
        episodes = self.method.episodes_per_update
        starts = training_seeds(episodes // group, seed, f"{name} starts", update)
        rows = make_rows(
            self.config.task,
            np.repeat(starts, group).tolist(),
            samples=np.tile(np.arange(group), len(starts)).tolist(),
        )
        with autocast(self.policy.device, self.method.bf16):
            return self.context.rollout(
                rows,
                mode="sample",
                record=True,
                sampling_seed=derive(seed, f"{name} actions", update),
            )

    def _learn(self, batch: EpisodeBatch, update: int) -> Metrics:
        """Make the gradient steps of an update; return their diagnostics."""
        method = self.method
        self.updater.set_rates(*method.rates(update, self.rate_factor))
        targets = method.targets(batch)
        self.policy.module.eval()  # dropout would make log-probabilities noise
        if method.replays(self.policy):
            targets = dataclasses.replace(targets, log_prob=self._log_probs(batch, targets))
        history: list[Metrics] = []
        minibatches = self._minibatches(batch, targets, update)
        for rows in minibatches:
            place = Place(self.config.seed, update, len(history))
            history.append(self._gradient_step(batch, targets, rows, place))
            self.context.on_gradient_steps(len(history), len(minibatches))
            if STOPPED in history[-1]:
                break
        if history:
            self.rate_factor = method.adapted(self.rate_factor, history[-1], update)
        made = [step for step in history if STOPPED not in step]
        return (
            mean_metrics(made)
            | method.summary(history, batch, targets)
            | {
                "train/gradient_steps": float(len(made)),
                "train/learning_rate": self.updater.learning_rate,
            }
        )

    def _minibatches(self, batch: EpisodeBatch, targets: Targets, update: int) -> list[Tensor]:
        """Return the decisions of every gradient step."""
        draw = partial(generator, self.config.seed, f"{self.method.name} order", update)
        useful = targets.learnt_from
        if self.method.rows == "decisions":
            return self.method.minibatches(useful, draw)
        owner = torch.from_numpy(_record(batch).episode)[useful]
        return [
            useful[torch.isin(owner, episodes)]
            for episodes in self.method.minibatches(torch.unique(owner), draw)
        ]

    def _gradient_step(
        self, batch: EpisodeBatch, targets: Targets, rows: Tensor, place: Place
    ) -> Metrics:
        """Make one gradient step on some decisions, unless the method stops before it."""
        record, method = _record(batch), self.method
        terms = self.context.penalties if method.is_regularised(place.update) else Penalties()
        here = torch.from_numpy(record.held(rows.numpy()))  # others are held by other ranks
        size = method.micro_batch_size or len(rows)

        def compute(part: Tensor) -> Loss:
            step = self._step(batch, targets, part, place)
            # Weights are rounded once for all that is computed within one outermost context.
            with autocast(self.policy.device, enabled=False):
                return terms.added(method.loss(step), step)

        parts = [
            Part(len(part) / len(rows), partial(compute, part))
            for part in torch.split(here, size)
            if len(part)
        ]
        parts += terms.parts(self._step(batch, targets, here, place), self.ranks)
        return self.updater.step(parts, lambda metrics: method.stops(metrics, place.update))

    def _step(self, batch: EpisodeBatch, targets: Targets, rows: Tensor, place: Place) -> Step:
        record, device = _record(batch), self.policy.device
        return Step(
            self.policy,
            self.base,
            lambda: self._inputs(record, rows.numpy()),
            place=place,
            rows=rows,
            batch=batch,
            sample=lambda: record.select_actions(rows.numpy()).to(device),
            targets=lambda: targets.rows(rows, device),
            bf16=self.method.bf16,
        )

    def _log_probs(self, batch: EpisodeBatch, targets: Targets) -> Tensor:
        """Return the targets' log-probabilities, computed as a gradient step computes them.

        Its forward pass is not cut into the small batches of a policy that acts, so it needs no
        more memory than a step does.
        """
        record, size = _record(batch), self.method.replay_size
        assert targets.log_prob is not None
        replayed = torch.zeros_like(targets.log_prob)
        held = record.held(np.arange(len(record)))
        for start in range(0, len(held), size):
            rows = torch.from_numpy(held[start : start + size])
            replayed[rows] = self._log_probs_of(batch, targets, rows).to(replayed.dtype)
        return self.ranks.sum_(replayed)

    def _log_probs_of(self, batch: EpisodeBatch, targets: Targets, rows: Tensor) -> Tensor:
        """Return those of a few decisions; the graph of the forward pass ends with the call."""
        step = self._step(batch, targets, rows, Place())
        log_prob = step.log_prob_steps.detach().cpu()
        assert targets.log_prob is not None
        return log_prob.sum(-1) if log_prob.ndim > targets.log_prob.ndim else log_prob

    def _refuse_hopeless(self, batch: EpisodeBatch) -> None:
        """Stop at the first update when no sampled episode of the base ever succeeded.

        Raises:
            TrainingError: A sparse reward teaches nothing where all episodes fail.
        """
        outcomes = [*self.base_outcomes, *batch.success]
        if any(outcomes) or batch.episode_return.any():
            return
        n = len(outcomes)
        raise TrainingError(
            f"The base {self.policy.name!r} succeeded in 0 of {n} sampled episodes on "
            f"{self.config.task!r} (with 95 % confidence below {1.0 - 0.05 ** (1.0 / n):.1%}): "
            f"{self.method.name} learns nothing from failures alone",
            remedy="Start with demonstrations (`--method bc`) and go on from that run "
            "(`--policy RUN`), choose a task closer to the base's skills, or try "
            "`--env.reward-type shaped`.",
        )

    @contextlib.contextmanager
    def _sampling_temperature(self) -> Iterator[None]:
        """Let policy and base be what is sampled; outside they are the policies themselves."""
        policies = (self.policy, self.base)
        before = [policy.temperature for policy in policies]
        for policy in policies:
            policy.temperature = self.method.temperature
        try:
            yield
        finally:
            for policy, temperature in zip(policies, before, strict=True):
                policy.temperature = temperature

    @torch.no_grad()
    def _kl_to_base(self, record: DecisionRecord, update: int) -> float:
        """Return KL(base || tuned) on a random sample of the states just visited."""
        order = generator(self.config.seed, f"{self.method.name} probe", update)
        chosen = np.sort(order.permutation(len(record))[:KL_PROBE_STATES])
        held = record.held(chosen)
        total = torch.zeros((), dtype=torch.float64)
        if len(held):
            inputs = self._inputs(record, held)
            base, tuned = self.base.distribution(inputs), self.policy.distribution(inputs)
            total += base.kl(tuned).sum().cpu()
        return float(self.ranks.sum_(total)) / len(chosen)

    def _inputs(self, record: DecisionRecord, index: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the inputs of some decisions that are held here, on the policy's device."""
        return {key: t.to(self.policy.device) for key, t in record.select(index).items()}


def _record(batch: EpisodeBatch) -> DecisionRecord:
    """Return what every episode of training has."""
    if batch.record is None:
        raise TrainingError("Episodes to learn from were collected without their decisions")
    return batch.record


def mean_metrics(history: Sequence[Metrics]) -> Metrics:
    """Return the means of the diagnostics of gradient steps, named as they are logged."""
    keys = history[0] if history else ()
    return {
        key if "/" in key else f"train/{key}": float(np.mean([step[key] for step in history]))
        for key in keys
    }


def rollout_metrics(batch: EpisodeBatch) -> Metrics:
    """Return what to log of an update's episodes."""
    return {
        "rollout/success_rate": batch.success_rate,
        "rollout/mean_return": float(batch.episode_return.mean()),
        "rollout/mean_control_steps": float(batch.control_steps.mean()),
        "rollout/episodes": float(len(batch)),
        "rollout/decisions": float(batch.decisions.sum()),
    }
