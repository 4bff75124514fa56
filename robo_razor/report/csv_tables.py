"""The report's tables as CSV: one row per checkpoint, matched run or predictor."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from robo_razor.core.files import finite
from robo_razor.core.metrics import FORWARD_KL
from robo_razor.core.settings.conversion import flatten
from robo_razor.report.arms import RunSet, setting_differences
from robo_razor.report.load import Checkpoint

Cell = str | float | int | bool | None
FORMULAS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""Beginnings of formulas, wide characters included."""


def checkpoint_rows(runs: RunSet) -> list[dict[str, Cell]]:
    """Return one row per checkpoint, with the column names of a sweep's table."""
    rows: list[dict[str, Cell]] = []
    differing = [key for key, _ in setting_differences(list(runs.runs))]
    for arm in runs.arms:
        for run in arm.runs:
            flat = flatten(run.config)
            head: dict[str, Cell] = {
                "arm": arm.name,
                "run": run.name,
                "method": run.method,
                "seed": run.seed,
                **{f"setting/{key}": _cell(flat.get(key)) for key in differing},
            }
            rows += [{**head, **point.row, **_intervals(point)} for point in run.checkpoints]
    return rows


def _intervals(checkpoint: Checkpoint) -> dict[str, Cell]:
    """Return the columns that the report computes from a checkpoint's episodes."""
    return {
        "prior_low": finite(checkpoint.prior_interval[0]),
        "prior_high": finite(checkpoint.prior_interval[1]),
        "retention_low": finite(checkpoint.retention_interval[0]),
        "retention_high": finite(checkpoint.retention_interval[1]),
    }


def _cell(value: Any) -> Cell:
    return value if isinstance(value, str | float | int | bool) or value is None else str(value)


def matched_rows(report: dict[str, Any]) -> list[dict[str, Cell]]:
    """Return one row per level and run of the matched comparison."""
    return [
        {
            "level": block["level"],
            "arm": entry["arm"],
            "run": run["run"],
            "step": run["step"],
            "prior_success_rate": run["prior"],
            "prior_retention": run["retention"],
            "retention_low": _end(run["retention_interval"], 0),
            "retention_high": _end(run["retention_interval"], 1),
            "new_success_rate": run["new"],
            "new_n": run["new_n"],
            FORWARD_KL: run["kl"].get(FORWARD_KL),
            "setting": entry["setting"],
            "choice": entry["choice"],
        }
        for block in report["matched"]
        for entry in block["arms"]
        for run in entry["runs"]
    ]


def _end(ends: Sequence[float] | None, index: int) -> float | None:
    return None if ends is None else ends[index]


def predictor_csv_rows(report: dict[str, Any]) -> list[dict[str, Cell]]:
    """Return one row per predictor."""
    return [
        {
            "predictor": entry["predictor"],
            "r2": entry["r2"],
            "r2_low": _end(entry["r2_interval"], 0),
            "r2_high": _end(entry["r2_interval"], 1),
            "leave_one_run_out_rmse": entry["leave_one_run_out_rmse"],
            "within_r2": entry["within_r2"],
            "leave_one_arm_out_rmse": entry["leave_one_arm_out_rmse"],
            "gap_low": _end(entry["gap"], 0),
            "gap_high": _end(entry["gap"], 1),
            "n_points": entry["n_points"],
            "n_runs": entry["n_runs"],
            "reason": entry["reason"],
        }
        for entry in report["predictors"]
    ]


def to_csv(rows: Sequence[dict[str, Cell]]) -> str:
    """Return rows as CSV; a column that a row lacks is empty."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_harmless, names))
    writer.writerows([_harmless(row.get(name, "")) for name in names] for row in rows)
    return buffer.getvalue()


def _harmless(cell: Cell) -> Cell:
    """Return a cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell
