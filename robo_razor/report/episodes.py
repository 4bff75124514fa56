"""Read a run's episodes from `eval/<step>/episodes.jsonl`, and pair those of two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robo_razor.core import metrics
from robo_razor.core.errors import CheckpointError, ReportError
from robo_razor.core.metrics import GREEDY, NEW, PRIOR, EpisodeEntry
from robo_razor.core.run.directory import EPISODES, step_name
from robo_razor.statistics.bootstrap import mean_retention_interval, nbt_interval
from robo_razor.statistics.intervals import Estimate

State = tuple[str, int]
"""(task, seed) of a start state."""
UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one greedy episode, and its start."""

    success: bool
    role: str | None = None
    """`new` or `prior`; None where the file does not say."""
    instruction: str | None = None
    start_state: str | None = None
    """Hash of the start state; None in files without it."""

    def same_start(self, other: Outcome) -> bool:
        """Return whether both began the same, as far as both files know."""
        return all(
            value is None or other_value is None or value == other_value
            for value, other_value in (
                (self.instruction, other.instruction),
                (self.start_state, other.start_state),
            )
        )


def read_rows(path: Path, step: int) -> dict[State, Outcome]:
    """Return the greedy episodes of one step; empty: not on disk.

    Args:
        path: The run's directory.
        step: Its checkpoint.

    Raises:
        ReportError: The file is damaged, e.g. a copy of it is incomplete.
    """
    try:
        rows = metrics.read_episodes(path / "eval" / step_name(step) / EPISODES)
    except CheckpointError as error:
        raise ReportError(str(error)) from error
    return {(row.task, row.seed): _outcome(row) for row in rows if row.mode == GREEDY}


def _outcome(row: EpisodeEntry) -> Outcome:
    return Outcome(row.success, row.role, row.instruction, row.start_state)


def read_episodes(path: Path, step: int) -> dict[State, bool]:
    """Return (task, seed) -> success of the greedy episodes of one step; empty: not on disk."""
    return {state: outcome.success for state, outcome in read_rows(path, step).items()}


@dataclass(frozen=True)
class PriorOutcomes:
    """Outcomes before and after on the same start states, by prior skill, as lists of 0 and 1."""

    before: dict[str, list[bool]]
    after: dict[str, list[bool]]

    def retention(self) -> Estimate:
        """Return the mean over skills of success after / before, episodes resampled."""
        return mean_retention_interval(self.before, self.after) if self.before else UNKNOWN

    def nbt(self) -> Estimate:
        """Return the mean over skills of success before - after, episodes resampled."""
        return nbt_interval(self.before, self.after) if self.before else UNKNOWN


def prior_outcomes(
    base: Mapping[State, Outcome], tuned: Mapping[State, Outcome], new_task: str
) -> PriorOutcomes:
    """Pair the episodes of prior skills that both ran from the same start.

    Args:
        base: Episodes of the base.
        tuned: Episodes of a checkpoint.
        new_task: The new task, whose episodes are left out.
    """
    before: dict[str, list[bool]] = {}
    after: dict[str, list[bool]] = {}
    for state, outcome in tuned.items():
        role = outcome.role or (NEW if state[0] == new_task else PRIOR)
        if role == PRIOR and state in base and outcome.same_start(base[state]):
            before.setdefault(state[0], []).append(base[state].success)
            after.setdefault(state[0], []).append(outcome.success)
    return PriorOutcomes(before, after)


def unlike_starts(
    first: Mapping[State, Outcome], second: Mapping[State, Outcome]
) -> tuple[int, int]:
    """Return how many episodes of equal task and seed began differently, and of how many."""
    shared = first.keys() & second.keys()
    return sum(not first[state].same_start(second[state]) for state in shared), len(shared)
