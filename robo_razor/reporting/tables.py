"""The report's tables, once: Markdown, the page and CSV render the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robo_razor.files import finite
from robo_razor.reporting.arms import (
    RunSet,
    comparable_settings,
    setting_differences,
    show_value,
)
from robo_razor.reporting.runs import FORWARD_KL, REVERSE_KL, RunSeries
from robo_razor.reporting.words import (
    UNKNOWN,
    interval,
    listing,
    number,
    percent,
    points,
    predictor_name,
    predictor_parts,
    with_interval,
)
from robo_razor.settings import flatten

MINUS = "\u2212"
LINE = "\n"
"""Within a cell: what follows is less important and stands below."""
Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `numeric` columns are set flush right on the page."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        """Tell whether there is any row."""
        return bool(self.rows)


def matched_table(report: dict[str, Any], level: float | None = None) -> Table:
    """Return arms at levels of new-task success (one level, or all)."""
    rows = []
    for block in report["matched"]:
        if level is not None and block["level"] != level:
            continue
        for entry in block["arms"]:
            rows.append(
                (
                    percent(block["level"]),
                    entry["arm"],
                    str(len(entry["runs"])) if entry["runs"] else UNKNOWN,
                    show_estimate(entry["prior"]),
                    show_estimate(entry["retention"]),
                    number(entry["kl"]["value"]),
                    entry["reason"] or _choice(entry),
                )
            )
    head = ("new task", "arm", "seeds", "prior success", "retention", "KL(base ‖ tuned)", "setting")
    return Table(head, tuple(rows), frozenset({0, 2, 3, 4, 5}))


def _choice(entry: dict[str, Any]) -> str:
    if not entry["setting"]:
        return ""
    return f"{entry['setting']}{LINE}{entry['choice']}"


def show_estimate(entry: dict[str, Any]) -> str:
    """Return a value with its interval, in percent."""
    return with_interval(entry["value"], entry["interval"])


def pair_table(report: dict[str, Any]) -> Table:
    """Return the difference of each pair of arms at the highest level that both reach."""
    rows: list[tuple[str, ...]] = []
    for pair in report["comparisons"]:
        names = [pair["first"], pair["second"]]
        if not pair["levels"]:
            rows.append(
                (f"{names[0]} {MINUS} {names[1]}", UNKNOWN, UNKNOWN, UNKNOWN, "", pair["refused"])
            )
            continue
        block = pair["levels"][-1]
        seeds = [str(block["first"]["n"]), str(block["second"]["n"])]
        turned = (block["difference"]["prior"]["value"] or 0.0) < 0  # the better one first
        cells = [_difference(block["difference"][key], turned) for key in ("prior", "retention")]
        if turned:
            names, seeds = names[::-1], seeds[::-1]
        name = f"{names[0]} {MINUS} {names[1]}"
        rows.append((name, percent(block["level"]), *cells, " and ".join(seeds), ""))
    head = ("arms", "new task", "prior success, points", "retention, points", "seeds", "refused")
    width = 6 if any(row[-1] for row in rows) else 5
    return Table(head[:width], tuple(row[:width] for row in rows), frozenset({1, 2, 3}))


def _difference(entry: dict[str, Any], turned: bool) -> str:
    sign = -1.0 if turned else 1.0
    value, ends = entry["value"], entry["interval"]
    if value is None:
        return UNKNOWN
    ordered = None if ends is None else sorted(sign * end for end in ends)
    return f"{points(sign * value)} {interval(ordered, signed=True)}".strip()


def predictor_rows(report: dict[str, Any]) -> Table:
    """Return predictors of prior success, best first."""
    rows = [
        (
            LINE.join(part for part in predictor_parts(entry["predictor"]) if part),
            number(entry["r2"]),
            _plain_interval(entry["r2_interval"]),
            _error(entry["leave_one_run_out_rmse"]),
            str(entry["n_points"]),
        )
        for entry in report["predictors"]
        if entry["r2"] is not None
    ]
    head = ("predictor", "R²", "95%", "error on runs left out", "checkpoints")
    return Table(head, tuple(rows), frozenset({1, 2, 3, 4}))


def unfitted(report: dict[str, Any]) -> list[str]:
    """Return why predictors have no fit, one clause per reason."""
    reasons: dict[str, list[str]] = {}
    for entry in report["predictors"]:
        if entry["r2"] is None:
            reasons.setdefault(entry["reason"] or "unknown", []).append(entry["predictor"])
    return [
        f"{reason} ({', '.join(predictor_name(name) for name in names)})"
        for reason, names in reasons.items()
    ]


def _error(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f} points"


def _plain_interval(ends: Sequence[float] | None) -> str:
    return UNKNOWN if ends is None else f"[{number(ends[0])}, {number(ends[1])}]"


def frontier_table(report: dict[str, Any]) -> Table:
    """Return how much new-task and prior success each arm's frontier dominates, over seeds."""
    rows = [
        (entry["arm"], str(len(entry["points"])), show_estimate(entry["hypervolume"]))
        for entry in report["frontier"]
    ]
    head = ("arm", "checkpoints near the frontier", "area under the frontier, per seed")
    return Table(head, tuple(rows), frozenset({1, 2}))


def last_table(runs: Sequence[RunSeries]) -> Table:
    """Return every run's base and last checkpoint."""
    rows = []
    for run in runs:
        last, base = run.last, run.first
        rows.append(
            (
                run.label,
                str(last.step),
                f"{percent(base.new)} \u2192 {with_interval(last.new, last.new_interval)}",
                str(last.new_n),
                f"{percent(base.prior)} \u2192 {percent(last.prior)}",
                percent(last.retention),
                number(last.kl.get(FORWARD_KL)),
                number(last.kl.get(REVERSE_KL)),
                number(last.entropy),
            )
        )
    head = ("run", "step", "new task", "n", "prior success", "retention")
    more = ("KL(base ‖ tuned)", "KL(tuned ‖ base)", "entropy")
    return Table((*head, *more), tuple(rows), frozenset({1, 2, 3, 4, 5, 6, 7, 8}))


def skill_table(report: dict[str, Any]) -> Table:
    """Return what is left of each prior skill, arm by arm."""
    arms = report["skills"]
    if not arms:
        return Table((), ())
    rows = []
    for i, skill in enumerate(entry["skill"] for entry in arms[0]["skills"]):
        cells = [
            f"{percent(arm['skills'][i]['success_rate'])}, keeps "
            f"{with_interval(arm['skills'][i]['retention'], arm['skills'][i]['interval'])}"
            for arm in arms
        ]
        rows.append((skill, *cells))
    return Table(("skill", *(arm["arm"] for arm in arms)), tuple(rows))


def paired_table(report: dict[str, Any]) -> Table:
    """Return two runs' episodes on the same start states."""
    rows = []
    for pair in report["paired"]:
        for role in ("new", "prior"):
            if role not in pair:
                continue
            entry = pair[role]
            rows.append(
                (
                    f"{pair['first']} {MINUS} {pair['second']}",
                    role,
                    f"{points(entry['difference'])} {interval(entry['interval'], signed=True)}",
                    f"{entry['only_first']} / {entry['only_second']}",
                    str(entry["n"]),
                    f"{entry['p_value']:.2g}",
                )
            )
    head = ("runs", "skills", "difference, points", "only first / second", "n", "p")
    return Table(head, tuple(rows), frozenset({2, 3, 4, 5}))


def setting_table(runs: RunSet) -> Table:
    """Return the settings in which the compared runs differ, one row per setting of an arm."""
    every = list(runs.runs)
    keys = [key for key, _ in setting_differences(every)]
    groups = [(arm, setting) for arm in runs.arms for setting in arm.settings]
    rows = []
    for arm, setting in groups:
        flat = comparable_settings(setting.runs[0])
        seeds = listing([str(run.seed) for run in setting.runs])
        cells = [show_value(flat[key]) if key in flat else UNKNOWN for key in keys]
        rows.append((arm.name, seeds, *cells))
    return Table(("arm", "seeds", *keys), tuple(rows))


def fingerprint_table(report: dict[str, Any]) -> Table:
    """Return what results depend on beyond their settings, one column per distinct fingerprint."""
    groups = report["fingerprints"]
    flats = [flatten(group["fingerprint"]) for group in groups]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    rows = [
        (key.removeprefix("packages."), *(show_value(flat.get(key)) for flat in flats))
        for key in keys
    ]
    names = [_some(group["runs"], len(groups)) for group in groups]
    return Table(("", *names), tuple(rows)) if any(flats) else Table((), ())


def _some(names: Sequence[str], groups: int) -> str:
    if groups == 1:
        return "all runs"
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


# --- CSV ------------------------------------------------------------------------------------------


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
            for checkpoint in run.checkpoints:
                rows.append(
                    {
                        **head,
                        "step": checkpoint.step,
                        "new_success_rate": checkpoint.new,
                        "new_n": checkpoint.new_n,
                        "new_low": checkpoint.new_interval[0],
                        "new_high": checkpoint.new_interval[1],
                        "new_sampled_success_rate": finite(checkpoint.sampled),
                        "prior_success_rate": finite(checkpoint.prior),
                        "prior_retention": finite(checkpoint.retention),
                        **{
                            f"prior/{skill}/success_rate": entry["success_rate"]
                            for skill, entry in checkpoint.skills.items()
                        },
                        **checkpoint.predictors,
                        "entropy": finite(checkpoint.entropy),
                        "env_steps": finite(checkpoint.env_steps),
                        "wall_s": finite(checkpoint.wall_s),
                    }
                )
    return rows


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
            FORWARD_KL: run["kl"].get(FORWARD_KL),
            "setting": entry["setting"],
            "choice": entry["choice"],
        }
        for block in report["matched"]
        for entry in block["arms"]
        for run in entry["runs"]
    ]


def predictor_csv_rows(report: dict[str, Any]) -> list[dict[str, Cell]]:
    """Return one row per predictor."""
    return [
        {
            "predictor": entry["predictor"],
            "r2": entry["r2"],
            "r2_low": entry["r2_interval"][0] if entry["r2_interval"] else None,
            "r2_high": entry["r2_interval"][1] if entry["r2_interval"] else None,
            "leave_one_run_out_rmse": entry["leave_one_run_out_rmse"],
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
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
