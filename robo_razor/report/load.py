"""Read the files of runs: `config.yaml`, `environment.json`, `metrics.jsonl`, `eval/`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robo_razor.core.errors import (
    CheckpointError,
    ConfigError,
    ReportError,
    RunDirectoryError,
    shown,
)
from robo_razor.core.files import finite
from robo_razor.core.metrics import FORWARD_KL as FORWARD_KL
from robo_razor.core.metrics import (
    NEW,
    PRIOR,
    SampledSuccess,
    SkillSummary,
    Summary,
    checkpoint_row,
    rollout_steps,
)
from robo_razor.core.metrics import REVERSE_KL as REVERSE_KL
from robo_razor.core.plain_text import printable, printable_values
from robo_razor.core.plugins import METHODS
from robo_razor.core.run.directory import CONFIG, RunDirectory
from robo_razor.core.run.provenance import check_settings
from robo_razor.core.settings.config import DEFAULT_METHOD, FinetuneConfig, to_dict
from robo_razor.core.settings.conversion import merged
from robo_razor.report.episodes import (
    PriorOutcomes,
    State,
    prior_outcomes,
    read_episodes,
    read_rows,
)
from robo_razor.statistics.bootstrap import mean_rate_interval
from robo_razor.statistics.intervals import wilson_interval

UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class Checkpoint:
    """The numbers of one checkpoint; rates are means over skills, in [0, 1]."""

    step: int
    new: float
    new_interval: tuple[float, float]
    new_n: int
    prior: float
    """Mean success over prior skills; NaN without prior skills."""
    retention: float
    """Mean over prior skills of success / the base's success; NaN where unknown."""
    kl: dict[str, float]
    """`DIRECTION/STATES` -> nats per decision; absent where unknown."""
    skills: dict[str, SkillSummary]
    """Prior skill -> its entry of the summary."""
    distances: dict[str, float] = field(default_factory=dict)
    """Further distances to the base by name; absent where not measured."""
    prior_interval: tuple[float, float] = UNKNOWN
    """95 % interval of `prior` over episodes; NaN without prior skills."""
    retention_interval: tuple[float, float] = UNKNOWN
    """95 % interval of `retention` over episodes; NaN where they are not on disk."""
    sampled: float = math.nan
    """Success on the new task with sampled actions; NaN where not measured."""
    sampled_interval: tuple[float, float] = UNKNOWN
    sampled_n: int = 0
    """Episodes with sampled actions."""
    entropy: float = math.nan
    """Entropy of the actions on the new task's probe states, nats per decision; NaN: unknown."""
    env_steps: float = math.nan
    """Environment steps of all rollouts so far; NaN for methods without rollouts."""
    wall_s: float = math.nan
    """Seconds since the run began, tracking included; NaN: unknown."""
    row: dict[str, Any] = field(default_factory=dict)
    """The checkpoint as a row of a table, see `core.metrics.checkpoint_row`."""

    @property
    def predictors(self) -> dict[str, float]:
        """Quantities that may explain forgetting: KLs and distances by name."""
        return self.kl | self.distances


@dataclass(frozen=True)
class RunSeries:
    """One run's checkpoints in order, and its settings."""

    name: str
    """Its key in `report.json` and in the CSV files: its folder, with its arm in a sweep."""
    title: str
    """Its name in sentences, tables and figures: `ppo: seed 0`."""
    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    checkpoints: tuple[Checkpoint, ...]
    best_step: int | None = None
    arm: str | None = None
    """The sweep's arm that the run belongs to; None outside a sweep."""
    unplanned: tuple[int, ...] = ()
    """Steps that were measured only because the run was interrupted there; they are left out."""
    updates: int | None = None
    """Updates that the whole run has; None: unknown."""
    kl_kind: str | None = None
    """How its KL divergences were computed, see `distributions.KLKind`; None: unknown or none."""

    @property
    def first(self) -> Checkpoint:
        """The base."""
        return self.checkpoints[0]

    @property
    def last(self) -> Checkpoint:
        """The newest checkpoint."""
        return self.checkpoints[-1]

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.config.get("method", "?"))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed", 0))

    @property
    def is_cut(self) -> bool:
        """Whether the run has not reached its last update."""
        return self.updates is not None and self.last.step < self.updates

    def last_pairs(self) -> PriorOutcomes:
        """Return the last checkpoint's episodes of prior skills, paired with the base's."""
        rows = read_rows(self.path, self.last.step)
        return prior_outcomes(read_rows(self.path, 0), rows, str(self.config.get("task")))

    def series(self, key: str) -> list[float]:
        """Return one quantity along training: a field of `Checkpoint`, or a predictor's name."""
        if key in Checkpoint.__dataclass_fields__:
            return [float(getattr(checkpoint, key)) for checkpoint in self.checkpoints]
        return [checkpoint.predictors.get(key, math.nan) for checkpoint in self.checkpoints]


def load_run(path: str | Path, name: str, arm: str | None = None) -> RunSeries:
    """Read one run's evaluations.

    Raises:
        ReportError: `path` is not a run directory or holds no evaluation.
    """
    try:
        run = RunDirectory.open(path)
        summaries, given = run.summaries(), run.config_data()
        check_settings(given, run.path / CONFIG)
        environment, steps = run.environment(), rollout_steps(run.metrics)
        planned, best_step = run.planned_steps(), run.best_step()
    except (RunDirectoryError, CheckpointError, ConfigError) as error:
        raise ReportError(str(error)) from error
    if not summaries:
        raise ReportError(
            f"The run {shown(str(path))} holds no evaluation yet",
            remedy="Wait for its first checkpoint (step 0 is measured before training starts).",
        )
    _refuse_other_skills(summaries, run.path)
    config = _with_defaults(printable_values(given))
    base = read_rows(run.path, 0)
    checkpoints, unplanned = [], []
    for summary in summaries:
        step = summary.step
        if planned is not None and step not in planned:
            unplanned.append(step)
            continue
        pairs = prior_outcomes(base, read_rows(run.path, step), config["task"])
        checkpoints.append(_read_checkpoint(summary, steps, pairs))
    if not checkpoints:
        raise ReportError(
            f"The run {shown(str(path))} holds no evaluation of a planned step",
            remedy="Copy the run again, with all of its `eval/`, or leave it out.",
        )
    return RunSeries(
        name=printable(name),
        title=title_of(printable(name), arm, config),
        path=run.path,
        config=config,
        environment=printable_values(environment),
        checkpoints=tuple(checkpoints),
        best_step=best_step,
        arm=None if arm is None else printable(arm),
        unplanned=tuple(unplanned),
        updates=_updates(summaries),
        kl_kind=next((s.kl_kind for s in reversed(summaries) if s.kl_kind), None),
    )


def title_of(name: str, arm: str | None, config: Mapping[str, Any]) -> str:
    """Return a run's name as people read it: `ppo: seed 0`, `ppo: learning rate 6e-05, seed 0`.

    Args:
        name: The run's key.
        arm: The sweep's arm that it belongs to; None outside a sweep.
        config: The run's settings.
    """
    folder = name.rpartition("/")[2]
    if arm is not None:
        return f"{arm}: {re.sub(r'-(?=[A-Za-z])', ', ', folder).replace('_', ' ')}"
    seed = config.get("seed", 0)
    without_seed = re.sub(rf"(^|[^A-Za-z])seed[ _=:-]?0*{seed}$", "", name)
    return f"{without_seed or config.get('method', '?')}: seed {seed}"


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in settings that are newer than a run: it did what their defaults do."""
    method = str(config.get("method"))
    known = METHODS.get(method if method in METHODS else DEFAULT_METHOD)
    defaults = to_dict(FinetuneConfig(method=known()))
    if method != known.NAME:  # the method of a plugin that is not loaded
        del defaults[known.NAME]
    return merged(defaults, config)


def _refuse_other_skills(summaries: Sequence[Summary], path: Path) -> None:
    """Refuse a run whose steps have different skills: their means cannot be compared."""
    first = summaries[0]
    for summary in summaries:
        for part, skills, later_skills in (
            (NEW, first.new, summary.new),
            (PRIOR, first.prior, summary.prior),
        ):
            if later_skills.keys() != skills.keys():
                raise ReportError(
                    f"The summaries of steps {first.step} and {summary.step} in "
                    f"{path} have different {part} skills",
                    remedy="Copy the run again, or leave it out.",
                )


def _updates(summaries: Sequence[Summary]) -> int | None:
    return max((s.updates for s in summaries if s.updates), default=None)


def _read_checkpoint(
    summary: Summary, steps: Mapping[int, float], pairs: PriorOutcomes
) -> Checkpoint:
    new, prior = list(summary.new.values()), list(summary.prior.values())
    sampled = [entry.sampled for entry in new if entry.sampled]
    return Checkpoint(
        step=summary.step,
        new=mean([entry.success_rate for entry in new]),
        new_interval=wilson_interval(*_pooled(new)),
        new_n=sum(entry.n for entry in new),
        prior=mean([entry.success_rate for entry in prior]),
        retention=mean([entry.retention for entry in prior if entry.retention is not None]),
        kl=summary.kl(),
        skills=dict(summary.prior),
        distances=summary.known_distances(),
        prior_interval=mean_rate_interval(
            [_successes(entry) for entry in prior], [entry.n for entry in prior]
        ).interval
        if prior
        else UNKNOWN,
        retention_interval=pairs.retention().interval,
        sampled=mean([entry.success_rate for entry in sampled]),
        sampled_interval=wilson_interval(*_pooled(sampled)) if sampled else UNKNOWN,
        sampled_n=sum(entry.n for entry in sampled),
        entropy=_number(summary.entropy),
        env_steps=_env_steps(summary, steps),
        wall_s=_number(summary.elapsed_s),
        row=checkpoint_row(summary, finite(_env_steps(summary, steps))),
    )


def _successes(entry: SkillSummary | SampledSuccess) -> int:
    return round(entry.success_rate * entry.n)


def _pooled(entries: Sequence[SkillSummary | SampledSuccess]) -> tuple[int, int]:
    """Return successes and episodes of some entries together."""
    rates = sum(entry.success_rate * entry.n for entry in entries)
    return round(rates), sum(entry.n for entry in entries)


def _env_steps(summary: Summary, steps: Mapping[int, float]) -> float:
    """Return the control steps of all rollouts up to a checkpoint; NaN without rollouts."""
    return sum(n for step, n in steps.items() if step <= summary.step) if steps else math.nan


def retentions_of(runs: Sequence[RunSeries], skill: str) -> list[float]:
    """Return the retention of one skill at the last checkpoints of the runs that know it."""
    retentions = [run.last.skills[skill].retention for run in runs]
    return [value for value in retentions if value is not None]


def read_outcomes(run: RunSeries) -> dict[State, bool]:
    """Return (task, seed) -> success of the last checkpoint's greedy episodes."""
    return read_episodes(run.path, run.last.step)


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the directories' names, with enough of their paths to make them unique."""
    parts = [Path(path).resolve().parts for path in paths]
    for length in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{Path(path).name}#{i + 1}" for i, path in enumerate(paths)]  # a path is given twice


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def known_interval(ends: tuple[float, float]) -> list[float] | None:
    """Return an interval's ends; None where it is unknown."""
    return list(ends) if all(math.isfinite(end) for end in ends) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
