"""What on-policy methods share: collecting episodes, refusing hopeless starts, measuring.

Axis letters as in `types`: M decisions of one update, E episodes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.errors import TrainingError
from robo_razor.core.seeding import derive, generator, training_seeds
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DecisionRecord, EpisodeBatch, make_rows
from robo_razor.training.methods import Method, Metrics, Services, trained_parameters

logger = logging.getLogger(__name__)

KL_PROBE_STATES = 256


class OnPolicyConfig(Protocol):
    """The settings that every on-policy method has."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the policy."""

    @property
    def episodes_per_update(self) -> int:
        """Complete episodes collected before each update."""

    @property
    def num_updates(self) -> int:
        """Updates in the run."""

    @property
    def temperature(self) -> float:
        """Softmax temperature of sampled actions."""


class OnPolicyMethod(Method):
    """Collects whole episodes with the policy as it is, then learns from them.

    Whole episodes with a quota per update, not fixed steps per environment: fast, successful
    episodes are not over-represented, and nothing depends on the number of environments. With a
    `temperature` the sampled distribution is the one that is trained; `kl_base_tuned` is always
    that of the policies themselves.

    Args:
        config: The run's settings.
        policy: `Policy` that is tuned in place.
        base: Its frozen copy.
        services: Rollouts.
        settings: The method's own section of `config`.
    """

    group_size = 1
    """Episodes from each start state."""

    def __init__(
        self,
        config: FinetuneConfig,
        policy: Any,
        base: Any,
        services: Services,
        settings: OnPolicyConfig,
    ) -> None:
        super().__init__(config, policy, base, services)
        self.settings = settings
        self.base_outcomes: tuple[bool, ...] = ()
        self.policy_parameters = trained_parameters(policy)
        self._warn_of_temperature()

    def _warn_of_temperature(self) -> None:
        """Say so where a temperature was set that the policy does not read."""
        given = self.settings.temperature
        if given != type(self.settings)().temperature and not getattr(
            self.policy, "reads_temperature", True
        ):
            logger.warning(
                "`%s.temperature` = %g does nothing: how far samples of %s spread is `flow.noise`.",
                self.config.method,
                given,
                self.policy.name,
            )

    @property
    def num_updates(self) -> int:
        """Return the number of updates in the run."""
        return self.settings.num_updates

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

    def update(self, update: int) -> Metrics:
        """Collect episodes, learn from them, and return what to log."""
        start = time.perf_counter()
        with self._sampling_temperature():
            batch = self._collect(update)
            collected = time.perf_counter()
            if update == 1:
                self._refuse_hopeless(batch)
            found = self._learn(batch, update)
        record = batch.record
        assert record is not None
        metrics = rollout_metrics(batch) | found
        metrics["train/kl_base_tuned"] = self._kl_to_base(record, update)
        now = time.perf_counter()
        return metrics | {
            "time/rollout_s": collected - start,
            "time/update_s": now - collected,
            "time/episodes_per_s": len(batch) / (collected - start),
            "time/env_steps_per_s": float(batch.control_steps.sum()) / (collected - start),
        }

    @abstractmethod
    def _learn(self, batch: EpisodeBatch, update: int) -> Metrics:
        """Make the gradient steps of an update; return their diagnostics."""

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
            f"{self.config.method} learns nothing from failures alone",
            remedy="Start with demonstrations (`--method bc`) and go on from that run "
            "(`--policy RUN`), choose a task closer to the base's skills, or try "
            "`--env.reward-type shaped`.",
        )

    @contextlib.contextmanager
    def _sampling_temperature(self) -> Iterator[None]:
        """Let policy and base be what is sampled; outside they are the policies themselves."""
        handles = (self.policy, self.base)
        before = [handle.temperature for handle in handles]
        for handle in handles:
            handle.temperature = self.settings.temperature
        try:
            yield
        finally:
            for handle, temperature in zip(handles, before, strict=True):
                handle.temperature = temperature

    def _collect(self, update: int) -> EpisodeBatch:
        seed, group, name = self.config.seed, self.group_size, self.config.method
        episodes = self.settings.episodes_per_update
        starts = training_seeds(episodes // group, seed, f"{name} starts", update)
        rows = make_rows(
            self.config.task,
            np.repeat(starts, group).tolist(),
            samples=np.tile(np.arange(group), len(starts)).tolist(),
        )
        return self.services.rollout(
            rows, mode="sample", record=True, sampling_seed=derive(seed, f"{name} actions", update)
        )

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The {self.config.method} loss became {float(loss)}",
                remedy=f"Lower `{self.config.method}.learning_rate`. The last checkpoint is "
                "intact.",
            )

    @torch.no_grad()
    def _kl_to_base(self, record: DecisionRecord, update: int) -> float:
        """Return KL(base || tuned) on a random sample of the states just visited."""
        order = generator(self.config.seed, f"{self.config.method} probe", update)
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


def rollout_metrics(batch: EpisodeBatch) -> Metrics:
    """Return what to log of an update's episodes."""
    return {
        "rollout/success_rate": batch.success_rate,
        "rollout/mean_return": float(batch.episode_return.mean()),
        "rollout/mean_control_steps": float(batch.control_steps.mean()),
        "rollout/episodes": float(len(batch)),
        "rollout/decisions": float(batch.decisions.sum()),
    }
