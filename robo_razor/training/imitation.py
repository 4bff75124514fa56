"""Learning from demonstrations: epochs over their windows, in a fixed random order.

Several ranks divide each batch. They weigh their parts by the actions or decisions over which the
policy's loss is a mean (see `Policy.loss_weight`), so the gradients add up to that of one process.
Random numbers of a step (a flow's noise and times, dropout, augmentation) are seeded per rank, so
with these the sum is equal only on average.
"""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from robo_razor.core.errors import ConfigError, DemonstrationError
from robo_razor.core.seeding import derive, generator
from robo_razor.core.types import DemonstrationSet
from robo_razor.policies.normalisation import Statistics, demonstration_statistics
from robo_razor.training.learner import Context, Learner, LearnerState, mean_metrics
from robo_razor.training.schedules import Shape, decay, warm_up
from robo_razor.training.step import Loss, Place, Step
from robo_razor.training.update import (
    Metrics,
    Part,
    Update,
    autocast,
    how_to_calm,
    trained_parameters,
)
from robo_razor.training.windows import WindowSampler, inputs_of

logger = logging.getLogger(__name__)

STEPS_PER_UPDATE = 10
"""Gradient steps between two lines of the log."""


class Imitating(Protocol):
    """The properties of a method that the learner reads."""

    @property
    def name(self) -> str:
        """Return the method's name."""

    @property
    def demonstrations(self) -> str:
        """Return where the demonstrations come from."""

    @property
    def epochs(self) -> int:
        """Return the passes over them."""

    @property
    def batch_size(self) -> int:
        """Return the windows of a gradient step."""

    @property
    def learning_rate(self) -> float:
        """Return the peak learning rate."""

    @property
    def schedule(self) -> Shape:
        """Return how the rate falls after the warm-up."""

    @property
    def warmup_steps(self) -> int:
        """Return the gradient steps over which the rate rises."""

    @property
    def weight_decay(self) -> float:
        """Return AdamW's weight decay."""

    @property
    def max_grad_norm(self) -> float:
        """Return the norm that gradients are scaled down to."""

    @property
    def bf16(self) -> bool:
        """Return whether matrix products are computed in bfloat16."""

    @property
    def replaces_statistics(self) -> bool:
        """Return whether the policy takes over the demonstrations' statistics."""

    def loss(self, step: Step) -> Loss:
        """Return what a gradient step minimises."""


def rate_factor(method: Imitating, step: int, total: int) -> float:
    """Return the factor on the peak learning rate at gradient step `step` (from 0)."""
    if step < method.warmup_steps:
        return warm_up(step + 1, method.warmup_steps)
    return decay(method.schedule, step - method.warmup_steps, total - method.warmup_steps)


class DemonstrationLearner(Learner):
    """Makes gradient steps on demonstrations with AdamW, warm-up, and a cosine or constant rate.

    Args:
        method: The settings, and the loss of a step.
        context: The run that the learner is part of.
    """

    sampler: WindowSampler
    """The windows; made by `prepare`."""
    demonstrations: DemonstrationSet

    def __init__(self, method: Imitating, context: Context) -> None:
        super().__init__(context)
        self.method = method
        # Without the value head: the loss does not depend on it, but weight decay would shrink it.
        self.parameters = trained_parameters(self.policy)
        self.updater = Update(
            torch.optim.AdamW(
                self.parameters, lr=method.learning_rate, weight_decay=method.weight_decay
            ),
            [self.parameters],
            max_grad_norm=method.max_grad_norm,
            name="cloning",
            remedy=how_to_calm(method.name, method.bf16),
            ranks=self.ranks,
        )
        self.statistics: Statistics = {}
        self.has_adopted = False

    def prepare(self) -> None:
        """Load or make the demonstrations.

        Raises:
            DemonstrationError: They hold no frames.
        """
        method = self.method
        demonstrations = self.context.demonstrations()
        if len(demonstrations) == 0:
            raise DemonstrationError(
                f"`{method.name}.demonstrations` = {method.demonstrations!r} holds no frames",
                remedy="Make some: `robo-razor collect --task TASK --out DIR`.",
            )
        self.sampler = WindowSampler(demonstrations, self.policy)
        if method.replaces_statistics:
            self.demonstrations = demonstrations  # to prepare the inputs again
            self.statistics = demonstration_statistics(demonstrations, self.policy)
            self._warn()
        rows = min(method.batch_size, len(self.sampler))
        if rows < self.ranks.size:
            raise ConfigError(
                f"`{method.name}.batch_size` = {method.batch_size} gives {rows} decisions per "
                f"gradient step, which {self.ranks.size} ranks cannot divide",
                remedy="Raise it, give more demonstrations, or start fewer ranks.",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of gradient steps in one pass over the windows."""
        return max(1, len(self.sampler) // self.method.batch_size)

    @property
    def num_steps(self) -> int:
        """Return the number of gradient steps in the run."""
        return self.steps_per_epoch * self.method.epochs

    @property
    def num_updates(self) -> int:
        """Return the number of updates, each of `STEPS_PER_UPDATE` gradient steps."""
        return math.ceil(self.num_steps / STEPS_PER_UPDATE)

    def update(self, number: int) -> Metrics:
        """Make the next few gradient steps and return their mean metrics."""
        start = time.perf_counter()
        if self.statistics and not self.has_adopted:
            self._adopt()
        first = (number - 1) * STEPS_PER_UPDATE
        steps = range(first, min(first + STEPS_PER_UPDATE, self.num_steps))
        history = [self._gradient_step(step) for step in steps]
        elapsed = time.perf_counter() - start
        metrics = mean_metrics(history)
        metrics["train/epoch"] = (steps[-1] + 1) / self.steps_per_epoch
        metrics["time/update_s"] = elapsed
        metrics["time/samples_per_s"] = len(steps) * self.method.batch_size / elapsed
        return metrics

    def state(self) -> LearnerState:
        """Return the optimizer's state, and statistics that replace the base's."""
        tensors = {
            f"{key}/{name}": tensor
            for key, numbers in self.statistics.items()
            for name, tensor in numbers.items()
        }
        optimizers = super().state().optimizers
        return LearnerState(optimizers, tensors, {"has_adopted": self.has_adopted})

    def load_state(self, state: LearnerState) -> None:
        """Restore a state; its statistics count, even if those of the data have changed."""
        super().load_state(state)
        if not state.tensors:
            return
        self.statistics = {}
        for full, tensor in state.tensors.items():
            key, _, name = full.rpartition("/")
            self.statistics.setdefault(key, {})[name] = tensor
        if state.extra["has_adopted"] and not self.has_adopted:
            self._adopt()

    def _adopt(self) -> None:
        """Normalise with the statistics of the demonstrations from now on."""
        self.policy.use_statistics(self.statistics)
        self.sampler = WindowSampler(self.demonstrations, self.policy)
        self.has_adopted = True

    def _warn(self) -> None:
        """Warn of the effect of other statistics on comparisons with the base."""
        if self.ranks.is_main:
            logger.warning(
                "`bc.statistics: demonstrations` replaces the statistics with which %s normalises "
                "%s. With other statistics the same weights are another policy. Step 0 measures "
                "the base with its old statistics; from the first update on, success, retention "
                "and forgetting also contain the effect of the new statistics. KL divergences and "
                "surrogates feed both networks the same normalised numbers, so they leave out that "
                "effect and do not measure how differently the two policies act.",
                self.config.policy,
                " and ".join(self.statistics),
            )

    def _rows(self, step: int) -> NDArray[np.int64]:
        epoch, position = divmod(step, self.steps_per_epoch)
        purpose = f"{self.method.name} order"
        order = generator(self.config.seed, purpose, epoch).permutation(len(self.sampler))
        rows: NDArray[np.int64] = order[position :: self.steps_per_epoch]
        return rows

    def _gradient_step(self, number: int) -> Metrics:
        method, policy, terms = self.method, self.policy, self.context.penalties
        # Noise, augmentation and dropout draw from torch's global stream.
        rank = (self.ranks.rank,) if self.ranks.size > 1 else ()
        torch.manual_seed(derive(self.config.seed, f"{method.name} step", number, *rank))
        rate = method.learning_rate * rate_factor(method, number, self.num_steps)
        self.updater.set_rates(rate)
        policy.module.train()
        rows = self._rows(number)
        here = rows[self.ranks.share]
        # The parts of a mean, so that their sum over the ranks is the mean over all rows.
        share = self.sampler.weight(here) / self.sampler.weight(rows)
        batch = self.sampler.batch(here)
        step = Step(
            policy,
            self.base,
            partial(inputs_of, batch),
            place=Place(self.config.seed, number // STEPS_PER_UPDATE + 1, number),
            rows=here,
            batch=batch,
            bf16=method.bf16,
        )

        def cloning_loss() -> Loss:
            with autocast(policy.device, method.bf16):
                return method.loss(step)

        penalties = terms.parts(step, self.ranks, len(here) / len(rows))
        parts = [Part(share, cloning_loss), *penalties]
        metrics = self.updater.step(parts)
        policy.module.eval()
        return metrics | {"learning_rate": rate}
