"""The charts of the comparison: retention at equal success, and the frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence

from robo_razor.report import analysis
from robo_razor.report.arms import Arm, RunSet
from robo_razor.report.charts.spec import (
    Axis,
    Chart,
    Panel,
    Reference,
    Remark,
    Series,
    View,
    base_star,
    columns,
    cut_at_zero,
    describe,
    line,
    shifted,
)
from robo_razor.report.equal_success import ArmMatch, Matched, match_arm
from robo_razor.report.format import number, percent, with_interval
from robo_razor.report.load import Checkpoint, RunSeries

MAX_PATHS = 12
"""Most runs whose courses are drawn as lines; more would hide the points."""
APART, MAX_APART = 0.004, 0.02
"""Success rate by which arms are drawn above each other, and the most between first and last."""
CLOSE_UP = 0.9
"""Prior success from which the close-up begins."""


# --- Equal success --------------------------------------------------------------------------------


def matched_chart(runs: RunSet, levels: Sequence[float], headline: float | None) -> Chart | None:
    """Return retention per arm at equal new-task success, one view per level."""
    views = []
    for level in levels:
        matches = [(i, match_arm(arm, level)) for i, arm in enumerate(runs.arms)]
        if any(match.values("retention") for _, match in matches):
            views.append((level, _matched_view(runs, level, matches)))
    if not views:
        return None
    selected = next((i for i, (level, _) in enumerate(views) if level == headline), len(views) - 1)
    return Chart(
        "matched",
        "Share of the prior skills kept by each arm at equal new-task success",
        84 + 50 * len(runs.arms),
        tuple(view for _, view in views),
        selected,
    )


def _matched_view(runs: RunSet, level: float, matches: Sequence[tuple[int, ArmMatch]]) -> View:
    def order(item: tuple[int, ArmMatch]) -> float:
        value = item[1].estimate("retention").value
        return value if math.isfinite(value) else -1.0

    ordered = sorted(matches, key=order)
    titles = {run.name: run.title for run in runs.runs}
    series: list[Series] = []
    remarks = []
    for row, (i, match) in enumerate(ordered):
        if match.values("retention"):
            series += _matched_row(row, i, match, titles)
        else:
            remarks.append(Remark(row, match.reason or "no prior skills"))
    panel = Panel(
        tuple(series),
        Axis("share of the prior skills kept", "rate"),
        Axis(rows=tuple(match.arm for _, match in ordered)),
        (Reference(x=1.0),),
        tuple(remarks),
    )
    return View(percent(level), (panel,))


def _matched_row(row: int, i: int, match: ArmMatch, titles: dict[str, str]) -> list[Series]:
    """Return an arm's mean with its interval, and its seeds where there are several."""
    values, estimate = match.values("retention"), match.estimate("retention")
    known = math.isfinite(estimate.low)
    episodes = match.over_episodes("retention")
    text = with_interval(estimate.value, estimate.interval if known else episodes)
    if episodes is not None:
        text += " over the episodes of one seed"
    hover = [f"{match.arm} at {percent(match.level)}", f"keeps {text}", match.choice]
    hover += match.setting.split(", ") if match.setting else []
    seeds: list[Series] = []
    if len(values) > 1:
        reached = [run for run in match.runs if run.retention is not None]
        texts = tuple(_seed_text(run, match.level, titles[run.run]) for run in reached)
        rows = (float(row),) * len(values)
        seeds = [Series(i, tuple(values), rows, size=7, alpha=0.5, hover=texts)]
    mean = Series(
        i,
        (estimate.value,),
        (float(row),),
        size=13,
        hover=("\n".join(hover),),
        labels=(percent(estimate.value),),
        x_ends=cut_at_zero([estimate.interval if known else episodes]),
        # Thin where it says nothing about other seeds.
        end_width=2.5 if known else 1,
        end_alpha=1.0 if known else 0.6,
    )
    return [*seeds, mean]


def _seed_text(run: Matched, level: float, title: str) -> str:
    return (
        f"{title} at {percent(level)}\nkeeps {percent(run.retention)}\nupdate {number(run.step, 1)}"
    )


# --- Frontier -------------------------------------------------------------------------------------


def frontier_chart(runs: RunSet, headline: float | None) -> Chart | None:
    """Return new-task against prior success of all checkpoints, those near a frontier filled."""
    series: list[Series] = []
    step = apart(len(runs.arms))
    for i, arm in enumerate(runs.arms):
        middle = (len(runs.arms) - 1) / 2
        drawn = _frontier_series(i, arm, paths=len(runs.runs) <= MAX_PATHS)
        series += shifted(drawn, step * (middle - i))
    if not series:
        return None
    star = base_star([(run.first.new, run.first.prior) for run in runs.runs if not run.first.step])
    series += [star] if star else []
    references = () if headline is None else (Reference(x=headline),)
    x = Axis("success on the new task", "rate")
    views = []
    for label, limits in _frontier_ranges(runs):
        y = Axis("success on prior skills, mean", "rate", limits=limits)
        views.append(View(label, (Panel(tuple(series), x, y, references),)))
    return Chart(
        "frontier",
        "Success on prior skills against success on the new task, every checkpoint a point",
        480,
        tuple(views),
    )


def apart(count: int) -> float:
    """Return the distance between neighbouring arms, as a rate; 0 for two, which hide little."""
    return 0.0 if count < 3 else min(APART, MAX_APART / (count - 1))


def _frontier_ranges(runs: RunSet) -> list[tuple[str, tuple[float, float] | None]]:
    """Return the full range, and a close-up if several arms keep nearly everything and one not.

    Returns:
        (label, range of the y axis) of each view.
    """
    lowest = [
        min((c.prior for r in arm.runs for c in r.checkpoints if math.isfinite(c.prior)), default=1)
        for arm in runs.arms
    ]
    high = sum(low >= CLOSE_UP for low in lowest)
    if high < 2 or min(lowest) > CLOSE_UP - 0.1:
        return [("", None)]
    return [("all", None), (f"close-up above {CLOSE_UP:.0%}", (CLOSE_UP, 1.02))]


def _frontier_series(i: int, arm: Arm, *, paths: bool) -> list[Series]:
    near = {(run.name, index) for run, index in analysis.frontier_of(arm)}
    on_it: list[tuple[RunSeries, Checkpoint]] = []
    off_it: list[tuple[RunSeries, Checkpoint]] = []
    series: list[Series] = []
    for run in arm.runs:
        known = [c for c in run.checkpoints if math.isfinite(c.prior)]
        for index, checkpoint in enumerate(run.checkpoints):
            if math.isfinite(checkpoint.prior) and checkpoint.step > 0:
                (on_it if (run.name, index) in near else off_it).append((run, checkpoint))
        if paths and len(known) > 1:
            series.append(line(i, [(c.new, c.prior) for c in known], size=1, alpha=0.35))
    if not on_it and not off_it:
        return []
    series.append(line(i, analysis.frontier_line(arm), size=2))
    for mark, pairs in (("point", on_it), ("open", off_it)):
        if pairs:
            series.append(_checkpoints(i, arm, pairs, filled=mark == "point"))
    return series


def _checkpoints(
    i: int, arm: Arm, pairs: Sequence[tuple[RunSeries, Checkpoint]], *, filled: bool
) -> Series:
    x, y = columns([(c.new, c.prior) for _, c in pairs])
    return Series(
        i,
        x,
        y,
        "point" if filled else "open",
        10 if filled else 7,
        1.0 if filled else 0.6,
        hover=tuple(describe(arm, run, c) for run, c in pairs),
        x_ends=cut_at_zero([c.new_interval for _, c in pairs]) if filled else (),
        y_ends=cut_at_zero([c.prior_interval for _, c in pairs]) if filled else (),
        end_alpha=0.22,
        name=arm.name if filled else "",
    )
