"""A table of all checkpoints of all runs of a sweep, as Parquet.

A row is one measured checkpoint: `arm`, `run`, `path` (relative to the sweep's directory), `state`,
`method`, `seed`, `learning_rate` of the method, `setting/<key>` for every setting that some arm
sets, then the columns of `core.metrics.checkpoint_row`. A value that a run does not have is null.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ReportError
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.run.table import run_rows
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.settings.conversion import flatten, to_dict
from robo_razor.sweep.plan import PlannedRun

TABLE = "checkpoints.parquet"


def checkpoint_rows(
    runs: Iterable[tuple[PlannedRun, str]], out: Path, changed: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per measured checkpoint.

    Args:
        runs: Runs with their states.
        out: The sweep's directory.
        changed: Keys of the settings that get a column.
    """
    rows: list[dict[str, Any]] = []
    for run, state in runs:
        path = os.path.relpath(run.path, out)
        head = {"arm": run.arm, "run": run.name, "path": path, "state": state}
        rows += run_rows(RunDirectory(run.path), head | _setting_columns(run.config, changed))
    return rows


def write_table(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write rows as Parquet, atomically."""
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
        raise ReportError(f"{file} is not a Parquet file ({error})") from error


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
