"""The text of a comparison, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robo_razor.report import RunSeries


def to_markdown(runs: Sequence[RunSeries], report: dict[str, Any], figures: Sequence[str]) -> str:
    """Return the report as Markdown."""
    parts = [
        f"# Comparison on {report['task']}",
        "## At equal new-task success",
        _matched_table(report),
        "## Last checkpoints",
        _last_table(runs),
        "## Prior skills at the last checkpoint",
        _skill_table(runs),
    ]
    if report["paired"]:
        parts += ["## Same start states, last checkpoints (exact McNemar)", _paired_table(report)]
    if report["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report["notes"])]
    parts += [f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in figures]
    return "\n\n".join(part for part in parts if part) + "\n"


def _matched_table(report: dict[str, Any]) -> str:
    rows = []
    for block in report["matched"]:
        for entry in block["runs"]:
            kl = entry["kl"].get("kl_base_tuned/new_base_visited")
            rows.append(
                [
                    f"{block['level']:.0%}",
                    entry["run"],
                    "never" if entry["step"] is None else f"{entry['step']:.3g}",
                    _percent(entry["prior"]),
                    _number(entry["retention"]),
                    _number(kl),
                ]
            )
    if not rows:
        return "No run rises above the base's success on the new task."
    head = ["new task", "run", "at step", "prior success", "retention", "KL(base to tuned)"]
    return _table(head, rows)


def _last_table(runs: Sequence[RunSeries]) -> str:
    head = ["run", "step", "new task", "95 %", "n", "prior success", "retention"]
    head += ["KL(base to tuned)", "KL(tuned to base)"]
    rows = []
    for run in runs:
        last, base = run.last, run.checkpoints[0]
        low, high = last.new_interval
        rows.append(
            [
                run.label,
                str(last.step),
                f"{base.new:.1%} -> {last.new:.1%}",
                f"{low:.1%} - {high:.1%}",
                str(last.new_n),
                f"{_percent(base.prior)} -> {_percent(last.prior)}",
                _number(last.retention),
                _number(last.kl.get("kl_base_tuned/new_base_visited")),
                _number(last.kl.get("kl_tuned_base/new_base_visited")),
            ]
        )
    return _table(head, rows)


def _skill_table(runs: Sequence[RunSeries]) -> str:
    skills = sorted(runs[0].last.skills)
    if not skills:
        return "No prior skills were measured."
    rows = []
    for skill in skills:
        row = [skill]
        for run in runs:
            entry = run.last.skills[skill]
            low, high = entry["interval"]
            kept = _number(entry.get("retention"))
            row.append(f"{entry['success_rate']:.0%} ({low:.0%} - {high:.0%}), keeps {kept}")
        rows.append(row)
    return _table(["skill", *(run.name for run in runs)], rows)


def _paired_table(report: dict[str, Any]) -> str:
    rows = []
    for pair in report["paired"]:
        for role in ("new", "prior"):
            if role not in pair:
                continue
            entry = pair[role]
            rows.append(
                [
                    f"{pair['first']} - {pair['second']}",
                    role,
                    f"{entry['difference']:+.1%}",
                    f"{entry['only_first']} / {entry['only_second']}",
                    str(entry["n"]),
                    f"{entry['p_value']:.3g}",
                ]
            )
    if not rows:
        return "The runs share no start states."
    return _table(["runs", "skills", "difference", "only first / second", "n", "p"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"
