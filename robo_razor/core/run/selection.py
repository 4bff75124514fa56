"""Which steps a run was to measure, and which of them is its best.

`best` is the step with the highest lower end of the new task's 95 % interval, the earliest of
several. It is computed from the evaluations on disk each time, so a crash cannot make it outdated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

from robo_razor.core.metrics import GREEDY, EpisodeEntry
from robo_razor.core.records import MAX_COUNT, number, whole
from robo_razor.core.settings.config import TrackingConfig

MAX_EARLY, MAX_PLANNED = 100, 100_000
"""Checkpoints before the first regular one, and all of a run."""


def planned_steps(tracking: object, updates: int | None) -> frozenset[int] | None:
    """Return the steps that were to be measured, 0 included; None where the plan is unknown.

    Args:
        tracking: The run's `tracking` settings as plain values.
        updates: Updates that the whole run has.

    Raises:
        ValueError: No run can have had these settings.
    """
    if not isinstance(tracking, Mapping) or updates is None or "every" not in tracking:
        return None
    every, early = tracking["every"], tracking.get("early", TrackingConfig.early)
    number(1e-6, MAX_COUNT)(every, "tracking.every")
    whole(0, MAX_EARLY)(early, "tracking.early")
    if every >= 1 and updates / every > MAX_PLANNED:
        raise ValueError(f"{updates} updates with a checkpoint every {every:g}")
    plan = TrackingConfig(every=float(every), early=early)
    return frozenset({0, *plan.checkpoints(updates)})


def score(rows: Iterable[EpisodeEntry], task: str, episodes: int) -> float:
    """Return what `best` maximises: the lower end of the new task's interval, in [0, 1].

    Args:
        rows: An evaluation's episodes.
        task: The new task.
        episodes: Start states that every checkpoint runs (`tracking.episodes_new`). The last
            checkpoint runs more, which must not be an advantage.
    """
    outcomes = [row.success for row in rows if row.task == task and row.mode == GREEDY][:episodes]
    return wilson_low(sum(outcomes), len(outcomes)) if outcomes else 0.0


def wilson_low(successes: int, n: int) -> float:
    """Return the lower end of Wilson's 95 % interval, as `statistics.intervals` computes it.

    Args:
        successes: Number of successes, 0 <= successes <= n.
        n: Number of episodes (>= 1).
    """
    if successes == 0:
        return 0.0
    z, rate = NormalDist().inv_cdf(0.975), successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half)


def best_step(scores: Mapping[int, float]) -> int | None:
    """Return the step with the highest score, the earliest of several; None of nothing."""
    return max(sorted(scores), key=lambda step: scores[step], default=None)


def kept_steps(
    steps: Sequence[int], keep: int, best: int | None, planned: frozenset[int] | None
) -> set[int]:
    """Return the checkpoints that stay: the newest, the best, and the last `keep` of the plan.

    Checkpoints outside the plan (after an interruption, or by time) serve to resume. They stay only
    while nothing is newer, so that they never displace a measured one.

    Args:
        steps: Steps of all checkpoints, ascending.
        keep: Number that stay besides `best`.
        best: The best step.
        planned: Steps of the plan; None: all are.
    """
    counted = [step for step in steps if planned is None or step in planned]
    return {*steps[-1:], *counted[-max(1, keep) :], *([] if best is None else [best])}
