"""The checkpoints of a run as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.metrics import checkpoint_row, rollout_steps
from robo_razor.core.run.directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


def run_rows(run: RunDirectory, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per measured checkpoint, in the order of steps.

    Args:
        run: The run.
        head: Columns that come first and are the same for all rows.

    Raises:
        CheckpointError: An evaluation or the metrics are damaged.
    """
    rollouts = rollout_steps(run.metrics)
    rows = []
    for summary in run.summaries():
        env_steps = round(sum(n for step, n in rollouts.items() if step <= summary.step))
        rows.append({**head, **checkpoint_row(summary, env_steps)})
    return rows


def run_table(path: str | Path) -> pd.DataFrame:
    """Return a run's checkpoints, a row each; `core.metrics.checkpoint_row` has the columns.

    Args:
        path: The run's directory.

    Raises:
        RunDirectoryError: It is not one.
        CheckpointError: An evaluation or the metrics are damaged.
    """
    import pandas as pd

    run = RunDirectory.open(path)
    config = run.config_data()
    head = {"run": run.path.resolve().name, **{key: config.get(key) for key in ("method", "seed")}}
    return pd.DataFrame(run_rows(run, head))
