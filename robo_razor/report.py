"""Compare runs: new-task success against forgetting, at equal new-task success.

Reads what runs left in `eval/<step>/` only, so it needs no torch and no environment. Runs learn at
different speeds, so comparing them at equal steps says little: the table that counts asks how much
of the prior skills is left when the new task is first solved equally often (linear interpolation
between checkpoints).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robo_razor.checkpoint import EPISODES, RunDirectory, step_name
from robo_razor.config import CompareConfig
from robo_razor.errors import ReportError, RunDirectoryError
from robo_razor.files import read_json, write_json, write_text
from robo_razor.statistics import (
    detectable_difference,
    interpolate_at,
    mcnemar_exact,
    paired_bootstrap,
    wilson_interval,
)

MARKDOWN = "report.md"
JSON = "report.json"
KIND = "robo-razor comparison"
KL_STATES = ("new_base_visited", "new_tuned_visited", "prior")
KL_DIRECTIONS = ("kl_base_tuned", "kl_tuned_base")
LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""New-task success rates at which runs are compared where all of them reach it."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint's summary says; rates are means over skills, in [0, 1]."""

    step: int
    new: float
    new_interval: tuple[float, float]
    new_n: int
    prior: float
    """Mean success over prior skills; NaN without prior skills."""
    retention: float
    """Mean over prior skills of success / the base's success; NaN where unknown."""
    kl: dict[str, float]
    """`kl_base_tuned/new_base_visited`, ... in nats per decision; absent where unknown."""
    skills: dict[str, dict[str, Any]]
    """Prior skill -> its entry of the summary."""


@dataclass(frozen=True)
class RunSeries:
    """One run's checkpoints in order, and what it was."""

    name: str
    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    checkpoints: tuple[Checkpoint, ...]
    best_step: int | None = None

    @property
    def last(self) -> Checkpoint:
        """The newest checkpoint."""
        return self.checkpoints[-1]

    @property
    def label(self) -> str:
        """Name for tables and figures."""
        return f"{self.name} ({self.config.get('method', '?')})"

    def series(self, key: str) -> list[float]:
        """Return one quantity along training: `new`, `prior`, `retention`, or a key of `kl`."""
        if "/" in key:
            return [checkpoint.kl.get(key, math.nan) for checkpoint in self.checkpoints]
        return [float(getattr(checkpoint, key)) for checkpoint in self.checkpoints]


@dataclass(frozen=True)
class Matched:
    """One run at a level of new-task success; None where the run never reaches it."""

    run: str
    level: float
    interpolated: bool
    step: float | None
    prior: float | None
    retention: float | None
    kl: dict[str, float] = field(default_factory=dict)


def run_compare(config: CompareConfig) -> None:
    """Write `report.md`, `report.json` and figures, and print the tables.

    Raises:
        ReportError: No run is given, one cannot be read, or they cannot be compared.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from robo_razor.figures import draw_figures
    from robo_razor.markdown import to_markdown

    runs = load_runs(config.runs)
    out = _output_directory(config.out)
    levels = config.match or matching_levels(runs)
    report = build_report(runs, levels)
    figures = draw_figures(runs, out)
    text = to_markdown(runs, report, figures)
    write_json(out / JSON, report)
    write_text(out / MARKDOWN, text)
    console = Console()
    console.print(Markdown(to_markdown(runs, report, [])))
    console.print(f"Written to {out}: {MARKDOWN}, {JSON}, {', '.join(figures)}", markup=False)


def load_runs(paths: Sequence[str]) -> list[RunSeries]:
    """Read runs and check that they can be compared.

    Raises:
        ReportError: There is none, one has no evaluation, or they differ in task, prior skills or
            start states.
    """
    if not paths:
        raise ReportError(
            "No run to compare", remedy="Name run directories: `robo-razor compare RUN RUN`."
        )
    names = _short_names(paths)
    runs = [load_run(path, name) for path, name in zip(paths, names, strict=True)]
    first = runs[0]
    for run in runs[1:]:
        for what, one, two in (
            ("new task", first.config.get("task"), run.config.get("task")),
            ("prior skills", sorted(first.last.skills), sorted(run.last.skills)),
        ):
            if one != two:
                raise ReportError(
                    f"{first.path} and {run.path} differ in their {what}: {one} against {two}",
                    remedy="Compare runs that were measured on the same tasks.",
                )
    return runs


def load_run(path: str | Path, name: str) -> RunSeries:
    """Read one run's evaluations.

    Raises:
        ReportError: `path` is no run directory or holds no evaluation.
    """
    try:
        run = RunDirectory.open(path)
    except RunDirectoryError as error:
        raise ReportError(str(error)) from error
    summaries = run.summaries()
    if not summaries:
        raise ReportError(
            f"The run {str(path)!r} holds no evaluation yet",
            remedy="Wait for its first checkpoint (step 0 is measured before training starts).",
        )
    try:
        checkpoints = tuple(_read_checkpoint(summary) for summary in summaries)
    except (KeyError, TypeError, ValueError) as error:
        raise ReportError(f"A summary in {path}/eval cannot be read ({error!r})") from error
    environment = run.path / "environment.json"
    return RunSeries(
        name=name,
        path=run.path,
        config=run.config_data(),
        environment=read_json(environment) if environment.is_file() else {},
        checkpoints=checkpoints,
        best_step=run.best_step(),
    )


def _read_checkpoint(summary: dict[str, Any]) -> Checkpoint:
    new, prior = list(summary["new"].values()), summary.get("prior", {})
    successes = round(sum(entry["success_rate"] * entry["n"] for entry in new))
    n = sum(entry["n"] for entry in new)
    retentions = [e["retention"] for e in prior.values() if e.get("retention") is not None]
    kl = {
        f"{direction}/{states}": float(value)
        for direction in KL_DIRECTIONS
        for states, value in (summary.get(direction) or {}).items()
        if value is not None
    }
    return Checkpoint(
        step=int(summary["step"]),
        new=_mean([entry["success_rate"] for entry in new]),
        new_interval=wilson_interval(successes, n),
        new_n=n,
        prior=_mean([entry["success_rate"] for entry in prior.values()]),
        retention=_mean(retentions),
        kl=kl,
        skills=dict(prior),
    )


def matching_levels(runs: Sequence[RunSeries]) -> tuple[float, ...]:
    """Return levels of new-task success that every run rises to, the highest common one last."""
    start = max(run.checkpoints[0].new for run in runs)
    common = min(max(run.series("new")) for run in runs)
    highest = math.floor(common * 20 + 1e-9) / 20  # people compare at round numbers
    levels = [level for level in LEVELS if start < level < highest]
    return (*levels, highest) if highest > start else tuple(levels)


def match(run: RunSeries, level: float) -> Matched:
    """Return what is left of the prior skills when a run first reaches a new-task success rate."""
    new = run.series("new")
    found = {
        key: interpolate_at(level, new, values)
        for key, values in {
            "step": [float(checkpoint.step) for checkpoint in run.checkpoints],
            "prior": run.series("prior"),
            "retention": run.series("retention"),
            **{key: run.series(key) for key in sorted(run.last.kl)},
        }.items()
    }
    step = found["step"]
    if step is None:
        return Matched(run.name, level, False, None, None, None)
    values = {key: value[0] for key, value in found.items() if value is not None}
    return Matched(
        run=run.name,
        level=level,
        interpolated=step[1],
        step=values["step"],
        prior=_finite(values["prior"]),
        retention=_finite(values["retention"]),
        kl={k: v for k, v in values.items() if "/" in k and math.isfinite(v)},
    )


def build_report(runs: Sequence[RunSeries], levels: Sequence[float]) -> dict[str, Any]:
    """Return everything the report says as plain values."""
    return {
        "kind": KIND,
        "task": runs[0].config.get("task"),
        "runs": [_run_entry(run) for run in runs],
        "matched": [
            {
                "level": level,
                "runs": [vars(match(run, level)) for run in runs],
            }
            for level in levels
        ],
        "paired": [
            paired_entry(first, second) for i, first in enumerate(runs) for second in runs[i + 1 :]
        ],
        "notes": _notes(runs),
    }


def _run_entry(run: RunSeries) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "method": run.config.get("method"),
        "seed": run.config.get("seed"),
        "policy": run.config.get("policy"),
        "best_step": run.best_step,
        "checkpoints": [
            {
                "step": checkpoint.step,
                "new_success_rate": checkpoint.new,
                "new_interval": list(checkpoint.new_interval),
                "new_n": checkpoint.new_n,
                "prior_success_rate": _finite(checkpoint.prior),
                "retention": _finite(checkpoint.retention),
                **checkpoint.kl,
            }
            for checkpoint in run.checkpoints
        ],
        "skills": {
            skill: {
                "success_rate": entry["success_rate"],
                "interval": entry["interval"],
                "n": entry["n"],
                "retention": entry.get("retention"),
            }
            for skill, entry in run.last.skills.items()
        },
    }


def paired_entry(first: RunSeries, second: RunSeries) -> dict[str, Any]:
    """Compare two runs' last checkpoints on the start states that both ran, greedily."""
    one, two = _outcomes(first), _outcomes(second)
    task = first.config.get("task")
    entry: dict[str, Any] = {"first": first.name, "second": second.name}
    shared = sorted(one.keys() & two.keys())
    for role in ("new", "prior"):
        keys = [key for key in shared if (key[0] == task) == (role == "new")]
        if not keys:
            continue
        a, b = [one[key] for key in keys], [two[key] for key in keys]
        test = mcnemar_exact(a, b)
        difference = paired_bootstrap(a, b, resamples=2000)
        entry[role] = {
            "n": len(keys),
            "difference": difference.value,
            "interval": list(difference.interval),
            "only_first": test.only_first,
            "only_second": test.only_second,
            "p_value": test.p_value,
        }
    return entry


def _outcomes(run: RunSeries) -> dict[tuple[str, int], bool]:
    """Return (task, seed) -> success of the last checkpoint's greedy episodes."""
    file = run.path / "eval" / step_name(run.last.step) / EPISODES
    if not file.is_file():
        return {}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        (row["task"], row["seed"]): bool(row["success"])
        for row in rows
        if row.get("mode", "greedy") == "greedy"
    }


def _notes(runs: Sequence[RunSeries]) -> list[str]:
    """Return what a reader must know before believing the tables."""
    notes = []
    policies = {str(run.config.get("policy")) for run in runs}
    if len(policies) > 1:
        notes.append(f"The runs start from different bases: {', '.join(sorted(policies))}.")
    packages = [run.environment.get("packages", {}) for run in runs]
    names = sorted({name for versions in packages for name in versions})
    unlike = [n for n in names if len({versions.get(n) for versions in packages}) > 1]
    if unlike:
        notes.append(f"The runs used different versions of {', '.join(unlike)}.")
    last = runs[0].last
    least = detectable_difference(last.new, min(run.last.new_n for run in runs))
    if math.isfinite(least):
        notes.append(
            f"With {min(run.last.new_n for run in runs)} episodes per checkpoint, differences in "
            f"new-task success below {least:.0%} are seen less than four times out of five "
            "(independent arms)."
        )
    smallest = min((e["n"] for run in runs for e in run.last.skills.values()), default=0)
    if smallest:
        rate = last.prior if math.isfinite(last.prior) else 0.5
        least = detectable_difference(min(1.0, max(0.0, rate)), smallest)
        if math.isfinite(least):
            notes.append(
                f"A single prior skill has {smallest} episodes per checkpoint: only differences "
                f"above {least:.0%} are visible in it."
            )
    return notes


def _output_directory(path: str) -> Path:
    """Return the directory to write to: absent, empty, or one that holds an earlier report.

    Raises:
        ReportError: It holds something else.
    """
    out = Path(path)
    if out.exists() and not out.is_dir():
        raise ReportError(f"The output directory {path!r} is a file", remedy="Choose another one.")
    if out.is_dir() and any(out.iterdir()) and not _is_report(out):
        raise ReportError(
            f"The output directory {path!r} is in use: it holds files that are no report",
            remedy="Choose another one with `--out`.",
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def _is_report(directory: Path) -> bool:
    file = directory / JSON
    return file.is_file() and f'"{KIND}"' in file.read_text(encoding="utf-8")


def _short_names(paths: Sequence[str]) -> list[str]:
    """Return the directories' names, with as much of the path as makes them unique."""
    parts = [Path(path).resolve().parts for path in paths]
    for length in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{Path(path).name}#{i + 1}" for i, path in enumerate(paths)]  # one given twice


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
