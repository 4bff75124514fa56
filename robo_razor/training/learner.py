"""The classes that make a run's updates, with all their state: optimizer, counters, statistics.

`OnPolicyLearner` collects episodes with the current policy and learns from them as its method
says; `imitation.DemonstrationLearner` learns from demonstrations. Random numbers are derived from
(seed, update, ...), see `seeding`, so a checkpoint need not hold them.

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

from robo_razor.core.errors import ConfigError, TrainingError
from robo_razor.core.metrics import (
    ROLLOUT_CONTROL_STEPS,
    ROLLOUT_EPISODES,
    ROLLOUT_SUCCESS,
    TRAIN_KL,
)
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
from robo_razor.training.advantages import preference_pairs
from robo_razor.training.on_policy import OnPolicy
from robo_razor.training.regularisers import Penalties
from robo_razor.training.step import (
    Loss,
    Minibatch,
    Place,
    Step,
    Targets,
    record_of,
    required,
)
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
    """The parts of a run that its learner and its regularisers use.

    Attributes:
        config: The run's settings.
        policy: The policy that is tuned in place.
        base: Its frozen copy from before the run.
        rollout: Runs episodes of the policy.
        demonstrations: Loads or makes the demonstrations that the settings name.
        prior: Skill -> task of the skills that may be forgotten.
        ranks: This process among the processes of the run.
        penalties: The regularisers' terms of the loss.
        on_gradient_steps: Called after each gradient step with the number of an update's steps that
            are done, and of all its steps.
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
    """What a learner needs, besides the policy's weights, to go on with a run."""

    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


class Learner(ABC):
    """Makes the updates of a run.

    Args:
        context: The run that the learner is part of.
    """

    updater: Update

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config, self.ranks = context.config, context.ranks
        self.policy, self.base = context.policy, context.base

    def prepare(self) -> None:  # noqa: B027  # optional
        """Load what all updates need, such as demonstrations."""

    @property
    @abstractmethod
    def num_updates(self) -> int:
        """Return the number of updates in the run (known after `prepare`)."""

    @abstractmethod
    def update(self, number: int) -> Metrics:
        """Make an update, numbered from 1, and return what to log."""

    def check_start(self, sampled_success: Sequence[bool]) -> None:  # noqa: B027  # optional
        """Refuse to start where the base's sampled episodes on the new task all failed."""

    def state(self) -> LearnerState:
        """Return the state to save."""
        name = self.config.method.name
        return LearnerState(optimizers={name: self.updater.optimizer.state_dict()})

    def load_state(self, state: LearnerState) -> None:
        """Restore the state that `state` returned."""
        restore_optimizer(self.updater.optimizer, state.optimizers[self.config.method.name])


class OnPolicyLearner(Learner):
    """Collects whole episodes with the current policy, then learns from them.

    Args:
        method: The settings, the targets of episodes, and the loss of a step.
        context: The run that the learner is part of.
    """

    def __init__(self, method: OnPolicy, context: Context) -> None:
        super().__init__(context)
        self._check_pairs(method)
        self.method = method
        self.base_outcomes: tuple[bool, ...] = ()
        self.rate_factor = 1.0
        self.policy_parameters = trained_parameters(self.policy)
        groups = [self.policy_parameters]
        if method.trains_value:
            groups.append([p for p in self.policy.value_parameters() if p.requires_grad])
        self.updater = Update(
            torch.optim.AdamW(
                [{"params": g} for g in groups],
                betas=(method.momentum, 0.999),
                weight_decay=0.0,
                eps=1e-5,
            ),
            groups,
            max_grad_norm=method.max_grad_norm,
            name=method.name,
            remedy=how_to_calm(method.name, method.bf16),
            ranks=self.ranks,
            side_by_side=method.micro_batch_size is None and self._part_size is not None,
        )
        self._warn_of_temperature()

    def _check_pairs(self, method: OnPolicy) -> None:
        """Check that a method that learns from pairs of episodes can get some.

        Raises:
            ConfigError: Every episode has a start state of its own, or ranks share the episodes.
        """
        if method.rows != "pairs":
            return
        if method.group_size < 2:
            raise ConfigError(
                f"The method {method.name!r} learns from pairs of episodes from the same start "
                f"state, but its `group_size` is {method.group_size}",
                allowed="group_size >= 2",
                remedy="Give the method a field `group_size`, as `grpo` has it.",
            )
        if self.ranks.size > 1:
            raise ConfigError(
                f"The method {method.name!r} learns from pairs of episodes, and the two episodes "
                f"of a pair may be on different ones of the {self.ranks.size} ranks",
                remedy="Start one process, without `torchrun`.",
            )

    def _warn_of_temperature(self) -> None:
        """Warn where a temperature was set that the policy does not read."""
        temperature = self.method.temperature
        if temperature != type(self.method)().temperature and not self.policy.reads_temperature:
            logger.warning(
                "`%s.temperature` = %g has no effect: `flow.noise` sets how far samples of %s "
                "spread.",
                self.method.name,
                temperature,
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
        """Restore the optimizer's state and the adapted rate."""
        super().load_state(state)
        factor = float(state.extra["rate_factor"])
        if not 0.0 < factor < math.inf:
            raise ValueError(f"`rate_factor` is {factor}")
        self.rate_factor = factor

    def check_start(self, sampled_success: Sequence[bool]) -> None:
        """Remember the base's sampled outcomes; warn when none of them is a success."""
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
        metrics = rollout_metrics(batch) | learnt
        metrics[TRAIN_KL] = self._kl_to_base(record_of(batch), number)
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
        self.policy.module.eval()  # dropout would make log-probabilities random
        if method.replays(self.policy):
            targets = dataclasses.replace(targets, log_prob=self._log_probs(batch, targets))
        history: list[Metrics] = []
        minibatches = self._minibatches(batch, targets, update)
        for minibatch in minibatches:
            place = Place(self.config.seed, update, len(history))
            history.append(self._gradient_step(batch, targets, minibatch, place))
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

    def _minibatches(self, batch: EpisodeBatch, targets: Targets, update: int) -> list[Minibatch]:
        """Return the decisions, and pairs of episodes, of every gradient step."""
        method = self.method
        draw = partial(generator, self.config.seed, f"{method.name} order", update)
        useful = targets.learnt_from
        if method.rows == "decisions":
            return [Minibatch(rows) for rows in method.minibatches(useful, draw)]
        owner = torch.from_numpy(record_of(batch).episode)[useful]
        if method.rows == "episodes":
            return [
                Minibatch(useful[torch.isin(owner, episodes)])
                for episodes in method.minibatches(torch.unique(owner), draw)
            ]
        pairs = preference_pairs(batch.episode_return, [(row.task, row.seed) for row in batch.rows])
        pairs = pairs[torch.isin(pairs, owner).all(1)]
        return [
            Minibatch(useful[torch.isin(owner, pairs[index])], pairs[index])
            for index in method.minibatches(torch.arange(len(pairs)), draw)
        ]

    def _gradient_step(
        self, batch: EpisodeBatch, targets: Targets, minibatch: Minibatch, place: Place
    ) -> Metrics:
        """Make one gradient step on a minibatch, unless the method stops before it."""
        record, method = record_of(batch), self.method
        terms = self.context.penalties if method.is_regularised(place.update) else Penalties()
        held = torch.from_numpy(record.held(minibatch.rows.numpy()))  # other ranks hold the others
        here = Minibatch(held, minibatch.pairs)
        size = self._part_size or len(minibatch.rows)

        def compute(part: Minibatch, penalty_share: float) -> Loss:
            step = self._step(batch, targets, part, place)
            # Weights are rounded once for all that is computed within one outermost context.
            with autocast(self.policy.device, enabled=False):
                return terms.added(method.loss(step), step, penalty_share)

        parts: list[Part] = []
        for part in here.split(size, torch.from_numpy(record.episode)):
            if len(part.rows):
                of_rows = len(part.rows) / len(minibatch.rows)
                share, penalty_share = of_rows, 1.0
                if part.pairs is not None and minibatch.pairs is not None:
                    share = len(part.pairs) / len(minibatch.pairs)
                    penalty_share = of_rows / share
                parts.append(Part(share, partial(compute, part, penalty_share)))
        parts += terms.parts(self._step(batch, targets, here, place), self.ranks)
        return self.updater.step(parts, lambda metrics: method.stops(metrics, place.update))

    @property
    def _part_size(self) -> int | None:
        """Return how many decisions of a gradient step are computed at once; None: all of them."""
        if self.method.rows != "decisions":  # episodes and pairs must stay whole
            return self.method.micro_batch_size
        return self.method.micro_batch_size or self.policy.gradient_batch

    def _step(
        self, batch: EpisodeBatch, targets: Targets, minibatch: Minibatch, place: Place
    ) -> Step:
        record, device, rows = record_of(batch), self.policy.device, minibatch.rows
        return Step(
            self.policy,
            self.base,
            lambda: self._inputs(record, rows.numpy()),
            place=place,
            rows=rows,
            batch=batch,
            sample=lambda: record.select_actions(rows.numpy()).to(device),
            targets=lambda: targets.rows(rows, device),
            episode=torch.from_numpy(record.episode)[rows],
            pairs=minibatch.pairs,
            bf16=self.method.bf16,
        )

    def _log_probs(self, batch: EpisodeBatch, targets: Targets) -> Tensor:
        """Return the targets' log-probabilities, computed as a gradient step computes them.

        The batches are those of a gradient step, not the small ones of a policy that acts, and need
        no more memory than a gradient step.
        """
        record, size = record_of(batch), self.method.replay_size
        acted = required(targets.log_prob, "targets.log_prob")
        replayed = torch.zeros_like(acted)
        held = record.held(np.arange(len(record)))
        for start in range(0, len(held), size):
            rows = torch.from_numpy(held[start : start + size])
            log_prob = self._log_probs_of(batch, targets, rows)
            if log_prob.ndim > acted.ndim:
                log_prob = log_prob.sum(-1)
            replayed[rows] = log_prob.to(replayed.dtype)
        return self.ranks.sum_(replayed)

    def _log_probs_of(self, batch: EpisodeBatch, targets: Targets, rows: Tensor) -> Tensor:
        """Return the log-probabilities of a few decisions; frees the graph of the forward pass."""
        step = self._step(batch, targets, Minibatch(rows), Place())
        return step.log_prob_steps.detach().cpu()

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
        """Give policy and base the temperature of the samples for a while."""
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


def mean_metrics(history: Sequence[Metrics]) -> Metrics:
    """Return the means of the gradient steps' diagnostics, under their names in the log."""
    keys = history[0] if history else ()
    return {
        key if "/" in key else f"train/{key}": float(np.mean([step[key] for step in history]))
        for key in keys
    }


def rollout_metrics(batch: EpisodeBatch) -> Metrics:
    """Return what to log of an update's episodes."""
    return {
        ROLLOUT_SUCCESS: batch.success_rate,
        "rollout/mean_return": float(batch.episode_return.mean()),
        ROLLOUT_CONTROL_STEPS: float(batch.control_steps.mean()),
        ROLLOUT_EPISODES: float(len(batch)),
        "rollout/decisions": float(batch.decisions.sum()),
    }
