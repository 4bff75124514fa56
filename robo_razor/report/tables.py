"""The report's tables. Markdown and the page render the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robo_razor.core.metrics import NEW, PRIOR
from robo_razor.core.settings.conversion import flatten
from robo_razor.report.analysis import base_success, nbt_entry
from robo_razor.report.arms import (
    RunSet,
    comparable_settings,
    setting_differences,
    show_value,
    shown_setting_of,
)
from robo_razor.report.format import (
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
from robo_razor.report.load import FORWARD_KL, REVERSE_KL, RunSeries

MINUS = "\u2212"
LINE = "\n"
"""Within a cell: the less important text after it stands below."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `numeric` columns are aligned right on the page."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()

    def columns(self, names: Sequence[str]) -> Table:
        """Return some of the columns, in the given order."""
        indices = [self.head.index(name) for name in names]
        rows = tuple(tuple(row[i] for i in indices) for row in self.rows)
        numeric = frozenset(k for k, i in enumerate(indices) if i in self.numeric)
        return Table(tuple(names), rows, numeric)

    def below(self, column: int) -> Table:
        """Return the table with the next column's texts moved below those of this one."""
        rows = tuple(
            (*row[:column], f"{row[column]}{LINE}{row[column + 1]}", *row[column + 2 :])
            for row in self.rows
        )
        head = (*self.head[: column + 1], *self.head[column + 2 :])
        numeric = frozenset(i - (i > column) for i in self.numeric if i != column + 1)
        return Table(head, rows, numeric)

    def __bool__(self) -> bool:
        """Report whether there is any row."""
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
                    _over_seeds(entry["prior"]),
                    _over_seeds(entry["retention"]),
                    number(entry["kl"]["value"]),
                    entry["reason"] or _choice(entry),
                )
            )
    head = ("new task", "arm", "seeds", "prior success", "retention", "KL(base ‖ tuned)", "setting")
    return Table(head, tuple(rows), frozenset({0, 2, 3, 4, 5}))


def headline_table(report: dict[str, Any]) -> Table:
    """Return the arms at the headline's level; empty: there is none."""
    level = report["headline_level"]
    if level is None:
        return Table((), ())
    table = matched_table(report, level)
    return table.columns(table.head[1:])


def _choice(entry: dict[str, Any]) -> str:
    if not entry["setting"]:
        return ""
    return f"{entry['setting']}{LINE}{entry['choice']}"


def show_estimate(entry: dict[str, Any]) -> str:
    """Return a value with its interval, in percent."""
    return with_interval(entry["value"], entry["interval"])


def _over_seeds(entry: dict[str, Any]) -> str:
    """Return a mean over seeds; for a single seed, the interval over its episodes, marked so."""
    if entry["interval"] is None and entry["over_episodes"] is not None:
        return f"{with_interval(entry['value'], entry['over_episodes'])} (episodes)"
    return show_estimate(entry)


def seed_table(runs: RunSet, report: dict[str, Any]) -> Table:
    """Return every seed at the headline's level, with intervals over episodes."""
    titles = {run.name: run.title for run in runs.runs}
    rows = [
        (
            titles[run["run"]],
            number(run["step"], 1),
            with_interval(run["new"], run["new_interval"]),
            str(run["new_n"]),
            with_interval(run["prior"], run["prior_interval"]),
            with_interval(run["retention"], run["retention_interval"]),
            number(run["kl"].get(FORWARD_KL)),
        )
        for block in report["matched"]
        if block["level"] == report["headline_level"]
        for entry in block["arms"]
        for run in entry["runs"]
    ]
    head = ("run", "reached at update", "new task at the next checkpoint", "n", "prior success")
    return Table((*head, "retention", "KL(base ‖ tuned)"), tuple(rows), frozenset(range(1, 7)))


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
    value, ends = entry["value"], entry["interval"] or entry["over_episodes"]
    if value is None:
        return UNKNOWN
    ordered = None if ends is None else sorted(sign * end for end in ends)
    text = f"{points(sign * value)} {interval(ordered, signed=True)}".strip()
    return text if entry["interval"] or ends is None else f"{text} (episodes)"


def predictor_rows(report: dict[str, Any]) -> Table:
    """Return predictors of prior success, best first; `*` marks those with a wide empty range."""
    rows = [
        (
            LINE.join(part for part in predictor_parts(entry["predictor"]) if part),
            number(entry["r2"]) + ("*" if entry["gap"] else ""),
            _plain_interval(entry["r2_interval"]),
            number(entry["within_r2"]),
            f"{_error(entry['leave_one_run_out_rmse'])} / "
            f"{_error(entry['leave_one_arm_out_rmse'])}",
            str(entry["n_points"]),
        )
        for entry in report["predictors"]
        if entry["r2"] is not None
    ]
    head = ("predictor", "R²", "95%", "within arms", "error: run / arm left out", "n")
    return Table(head, tuple(rows), frozenset(range(1, 6)))


def predictor_remarks(report: dict[str, Any]) -> list[str]:
    """Return remarks on how to read the table of predictors."""
    fitted = [entry for entry in report["predictors"] if entry["r2"] is not None]
    remarks = []
    if fitted:
        remarks.append(
            "Within arms: R² with an intercept for every arm. Error: root mean square, in points "
            "of prior success, on runs and arms that were left out of the fit. n: checkpoints."
        )
    if any(entry["gap"] for entry in fitted):
        remarks.append(
            "* The checkpoints leave more than a third of this predictor's range empty: R² only "
            "shows that the two sides of the gap differ."
        )
    if len({entry["n_points"] for entry in fitted}) > 1:
        remarks.append(
            "Predictors with different n were measured at different checkpoints: their "
            "R² can be compared only roughly."
        )
    if without := unfitted(report):
        remarks.append(f"Not fitted: {'; '.join(without)}.")
    return remarks


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
    if value is None:
        return UNKNOWN
    return f"{100 * value:.1f}" if value < 1 else "over 100"


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


def last_table(runs: Sequence[RunSeries], report: dict[str, Any] | None = None) -> Table:
    """Return every run's base and last checkpoint; all intervals are over episodes.

    Args:
        runs: The runs to show.
        report: The report's plain values; None: episodes are read from the runs' directories.
    """
    transfers = {entry["name"]: entry["nbt"] for entry in report["runs"]} if report else {}
    rows = []
    for run in runs:
        last, base = run.last, run.first
        sampled = with_interval(last.sampled, last.sampled_interval)
        nbt = transfers[run.name] if report else nbt_entry(run)
        rows.append(
            (
                run.title,
                str(last.step),
                f"{percent(base.new)} \u2192 {with_interval(last.new, last.new_interval)}",
                str(last.new_n),
                f"{sampled}, n = {last.sampled_n}" if last.sampled_n else UNKNOWN,
                f"{percent(base.prior)} \u2192 {with_interval(last.prior, last.prior_interval)}",
                with_interval(last.retention, last.retention_interval),
                f"{points(nbt['value'])} {interval(nbt['interval'], signed=True)}"
                if nbt
                else UNKNOWN,
                number(last.kl.get(FORWARD_KL)),
                number(last.kl.get(REVERSE_KL)),
                number(last.entropy),
            )
        )
    head = ("run", "step", "new task, greedy", "n", "new task, sampled", "prior success")
    further = ("retention", "NBT, points", "KL(base ‖ tuned)", "KL(tuned ‖ base)", "entropy")
    return Table((*head, *further), tuple(rows), frozenset(range(1, 11)))


def matrix_table(runs: RunSet, report: dict[str, Any]) -> Table:
    """Return S_ij, success on every skill (rows) after every run (columns), in percent."""
    columns = [
        (arm, run)
        for arm, entry in zip(runs.arms, report["arms"], strict=True)
        for run in shown_setting_of(arm, entry["shown_setting"]).runs
    ]
    first = runs.runs[0]
    rows = [
        (
            skill,
            _digits(base_success(first, skill)),
            *(_digits(run.last.skills[skill].success_rate) for _, run in columns),
        )
        for skill in sorted(first.last.skills)
    ]
    rows.append(
        ("new task", _digits(first.first.new), *(_digits(run.last.new) for _, run in columns))
    )
    names = [f"{arm.name}: seed {run.seed}" for arm, run in columns]
    return Table(("skill", "base", *names), tuple(rows), frozenset(range(1, len(names) + 2)))


def _digits(value: float | None) -> str:
    return percent(value).removesuffix("%")


def skill_table(report: dict[str, Any]) -> Table:
    """Return the success on and the retention of each prior skill, arm by arm."""
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


def paired_table(runs: RunSet, report: dict[str, Any]) -> Table:
    """Return the comparisons of two runs' episodes on the same start states."""
    titles = {run.name: run.title for run in runs.runs}
    rows = []
    for pair in report["paired"]:
        for role in (NEW, PRIOR):
            if role not in pair:
                continue
            entry = pair[role]
            rows.append(
                (
                    f"{titles[pair['first']]} {MINUS} {titles[pair['second']]}",
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
    all_runs = list(runs.runs)
    keys = [key for key, _ in setting_differences(all_runs)]
    rows = []
    for arm in runs.arms:
        for setting in arm.settings:
            flat = comparable_settings(setting.runs[0])
            seeds = listing([str(run.seed) for run in setting.runs])
            cells = [f"{key}: {show_value(flat[key])}" for key in keys if key in flat]
            rows.append((arm.name, seeds, ", ".join(cells) or "as the others"))
    return Table(("arm", "seeds", "settings that differ"), tuple(rows))


def fingerprint_table(runs: RunSet, report: dict[str, Any]) -> Table:
    """Return what results depend on beyond their settings, a column per distinct fingerprint."""
    groups = report["fingerprints"]
    flats = [flatten(group["fingerprint"]) for group in groups]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    rows = [
        (key.removeprefix("packages."), *(show_value(flat.get(key)) for flat in flats))
        for key in keys
    ]
    titles = {run.name: run.title for run in runs.runs}
    names = [_some([titles[name] for name in group["runs"]], len(groups)) for group in groups]
    return Table(("", *names), tuple(rows)) if any(flats) else Table((), ())


def _some(names: Sequence[str], groups: int) -> str:
    if groups == 1:
        return "all runs"
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
