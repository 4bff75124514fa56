"""KL divergence between base and tuned policy, per decision (nats).

- `on: batch`: on the decisions that the step learns from;
- `on: new`: on states that the base visits on the new task;
- `on: prior`: on states that it visits when it performs its prior skills. With
  `direction: forward`, KL(base || tuned), that is Learning without Forgetting (Li and Hoiem 2016,
  arXiv 1606.09282) with states of the old tasks.

States are visited once, greedily, before the first update, from start states of training: those
that skills are evaluated on are never among them. A gradient step takes `batch_size` of them at
random. Where a method samples with a temperature, the divergence is between what is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from robo_razor.core.errors import ConfigError, PolicyError
from robo_razor.core.settings.conversion import setting
from robo_razor.training.regularisers import REGULARISERS, Regulariser

if TYPE_CHECKING:
    from torch import Tensor

    from robo_razor.core.settings.config import FinetuneConfig
    from robo_razor.policies.policy import Policy
    from robo_razor.training.learner import Context
    from robo_razor.training.step import Step


@REGULARISERS.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL(Regulariser):
    """KL divergence between the action distributions of base and tuned policy."""

    weight: float = setting(0.02, low=0.0)
    """Weight of the divergence per decision in the loss (>= 0)."""
    direction: Literal["forward", "reverse"] = "forward"
    """`forward` = KL(base || tuned), `reverse` = KL(tuned || base)."""
    on: Literal["batch", "new", "prior"] = "batch"
    """On the `batch` that is learnt from, or on what the base sees on `new` or `prior` tasks."""
    states: int = setting(256, low=1, high=100_000)
    """States to keep with `on: new` or `on: prior`, of all tasks together (>= 1)."""
    episodes: int = setting(8, low=1, high=10_000)
    """Episodes of the base on each task from which these states are taken (>= 1)."""
    batch_size: int = setting(64, low=1)
    """States of a gradient step with `on: new` or `on: prior` (>= 1)."""

    @property
    def is_of_batch(self) -> bool:
        """Say whether the divergence is taken on the rows of the step."""
        return self.on == "batch"

    def validate(self, config: FinetuneConfig, base: Policy, prior: Mapping[str, str]) -> None:
        """Refuse a policy without a density, and prior states without prior skills."""
        if not base.has_density:
            raise PolicyError(
                f"The policy {base.name!r} has no action density, so `regularise.kl` cannot "
                "compute its KL divergence to the base",
                remedy="Use `regularise.l2`, or a policy with action tokens or of flow matching.",
            )
        if self.on == "prior" and not prior:
            raise ConfigError(
                "`regularise.kl.on` is `prior`, but there are no prior skills",
                remedy="Set `prior_tasks`, or `regularise.kl.on` to `batch` or `new`.",
            )

    def prepare(self, context: Context) -> dict[str, Tensor]:
        """Return the policy's inputs in the states to keep, first axis at most `states`."""
        if self.on == "batch":
            return {}
        tasks = [context.config.task] if self.on == "new" else list(context.prior.values())
        return visited_states(context, tasks, self.episodes, self.states, "kl")

    def penalty(self, step: Step, kept: dict[str, Tensor]) -> Tensor:
        """Return the divergence per decision (nats), averaged."""
        if kept:
            count = len(next(iter(kept.values())))
            rows = step.place.random("kl states").permutation(count)[: self.batch_size]
            step = step.on({key: tensor[rows] for key, tensor in kept.items()})
        base, tuned = step.base_distribution, step.distribution
        divergence = base.kl(tuned) if self.direction == "forward" else tuned.kl(base)
        return divergence.mean()


def visited_states(
    context: Context, tasks: Sequence[str], episodes: int, states: int, purpose: str
) -> dict[str, Tensor]:
    """Return the policy's inputs in states that it visits, spread evenly over all episodes.

    Args:
        context: The run.
        tasks: Tasks to perform.
        episodes: Episodes of each, from start states of training.
        states: States to return, of all tasks together.
        purpose: Name of the stream of random numbers.
    """
    from robo_razor.core.seeding import derive, training_seeds
    from robo_razor.core.types import make_rows
    from robo_razor.training.step import record_of

    seed = context.config.seed
    rows = [
        row
        for task in tasks
        for row in make_rows(
            task, training_seeds(episodes, seed, f"{purpose} starts", task).tolist()
        )
    ]
    batch = context.rollout(
        [replace(row, row_id=i) for i, row in enumerate(rows)],
        mode="greedy",
        record="inputs",
        sampling_seed=derive(seed, f"{purpose} actions"),
        whole=True,
    )
    record = record_of(batch)
    count = min(states, len(record))
    index = np.linspace(0, len(record) - 1, count).round().astype(np.int64)
    return {key: tensor.cpu() for key, tensor in record.select(index).items()}
