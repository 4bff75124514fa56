"""One table of all checkpoints of all runs of a sweep, as Parquet.

A row is one measured checkpoint. Rates are in [0, 1], KL in nats per decision. Columns:

- `arm`, `run`, `path` (relative to the sweep's directory), `state`, `method`, `seed`
- `learning_rate` of the method; `setting/<key>` for every setting that some arm sets
- `step`, `updates`, `final` (the run's last checkpoint)
- `new_success_rate`, `new_n`, `new_low`, `new_high` (greedy, Wilson 95 %),
  `new_sampled_success_rate`, `new_sampled_n`
- `prior_success_rate`, `prior_base_success_rate`, `prior_retention`, `prior_forgetting`: means over
  prior skills; `prior_n`: their episodes; `prior/<Skill>/success_rate`, `prior/<Skill>/retention`
- `kl_base_tuned/<states>`, `kl_tuned_base/<states>`, each with `..._standard_error/<states>`, and
  `kl_kind`; every further distance under its own name, e.g. `total_variation/<states>`
- `entropy`, nats per decision
- `env_steps`: control steps taken to train so far, without those of tracking and of experts
- `wall_s`, `tracking_s`: seconds since the run began, and of this checkpoint's measuring

A value that a run does not have is null.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ReportError
from robo_razor.core.metrics import rollout_steps
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.settings.conversion import flatten, to_dict
from robo_razor.sweep.plan import PlannedRun

TABLE = "checkpoints.parquet"
KL_KEYS = (
    "kl_base_tuned",
    "kl_base_tuned_standard_error",
    "kl_tuned_base",
    "kl_tuned_base_standard_error",
)
PRIOR_MEANS = ("success_rate", "base_success_rate", "retention", "forgetting")


def checkpoint_rows(
    runs: Iterable[tuple[PlannedRun, str]], out: Path, changed: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per measured checkpoint.

    Args:
        runs: Runs with their states.
        out: The sweep's directory.
        changed: Keys of the settings that get a column.
    """
    rows = []
    for run, state in runs:
        directory = RunDirectory(run.path)
        summaries = directory.summaries()
        if not summaries:
            continue
        env_steps = rollout_steps(directory.metrics)
        head = {
            "arm": run.arm,
            "run": run.name,
            "path": os.path.relpath(run.path, out),
            "state": state,
            **_setting_columns(run.config, changed),
        }
        for summary in summaries:
            steps = sum(n for step, n in env_steps.items() if step <= summary["step"])
            rows.append({**head, **_summary_columns(summary), "env_steps": round(steps)})
    return rows


def write_table(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write rows as Parquet, the old file or the new one, never a part of it."""
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    table = pyarrow.table(columns)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        pyarrow.parquet.write_table(table, temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: str | Path) -> Any:
    """Read the table of all checkpoints as a `pyarrow.Table`.

    `.to_pylist()` gives rows as dictionaries, `.to_pandas()` a data frame.

    Args:
        path: The Parquet file, or the sweep's directory.

    Raises:
        ReportError: There is no such table.
    """
    import pyarrow
    import pyarrow.parquet

    file = Path(path)
    if file.is_dir():
        file = file / TABLE
    if not file.is_file():
        raise ReportError(
            f"There is no table {str(file)!r}",
            remedy="Name a directory that `robo-razor sweep` made.",
        )
    try:  # a ParquetFile, because read_table would take `a=b` in the path for a column
        with pyarrow.parquet.ParquetFile(file) as parquet:
            return parquet.read()
    except pyarrow.ArrowException as error:
        raise ReportError(f"{file} is no Parquet file ({error})") from error


def _setting_columns(config: FinetuneConfig, changed: Sequence[str]) -> dict[str, Any]:
    values = flatten(to_dict(config))
    columns = {
        "method": config.method.name,
        "seed": config.seed,
        "learning_rate": getattr(config.method, "learning_rate", None),
    }
    return columns | {
        f"setting/{key}": values.get(key) for key in changed if key not in ("method", "seed")
    }


def _summary_columns(summary: dict[str, Any]) -> dict[str, Any]:
    prior, means = summary.get("prior", {}), summary.get("prior_mean", {})
    columns: dict[str, Any] = {
        "step": int(summary["step"]),
        "updates": summary.get("updates"),
        "final": summary["step"] == summary.get("updates"),
        **_new_columns(list(summary["new"].values())),
        **{f"prior_{key}": means.get(key) for key in PRIOR_MEANS},
        "prior_n": sum(entry["n"] for entry in prior.values()),
    }
    for skill, entry in prior.items():
        columns[f"prior/{skill}/success_rate"] = entry["success_rate"]
        columns[f"prior/{skill}/retention"] = entry.get("retention")
    for key in KL_KEYS:
        columns |= {f"{key}/{states}": v for states, v in (summary.get(key) or {}).items()}
    columns |= {"kl_kind": summary.get("kl_kind")}
    columns |= flatten(summary.get("distances") or {})
    columns |= {
        "entropy": summary.get("entropy"),
        "wall_s": summary.get("elapsed_s"),
        "tracking_s": summary.get("tracking_s"),
    }
    return columns


def _new_columns(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the new task's columns; a run has one new task."""
    entry = entries[0]
    sampled = entry.get("sampled") or {}
    low, high = entry["interval"]
    return {
        "new_success_rate": entry["success_rate"],
        "new_n": entry["n"],
        "new_low": low,
        "new_high": high,
        "new_sampled_success_rate": sampled.get("success_rate"),
        "new_sampled_n": sampled.get("n"),
    }


def _column(values: list[Any]) -> Any:
    """Return a column of one type, which Parquet needs: mixed values and lists become texts."""
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    if kinds in ({bool}, {int}, {str}):
        return pyarrow.array(values)
    if kinds <= {int, float}:
        return pyarrow.array(values, pyarrow.float64())
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pyarrow.array(texts, pyarrow.string())
