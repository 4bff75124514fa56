"""The charts along training: success, KL and entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from robo_razor.report.arms import Arm, RunSet
from robo_razor.report.charts.spec import Axis, Chart, Panel, Series, View, columns, describe, line
from robo_razor.report.equal_success import shown_setting
from robo_razor.report.format import number, percent
from robo_razor.report.load import FORWARD_KL, Checkpoint, RunSeries, mean

Value = Callable[[RunSeries, Checkpoint], float]
MAX_SAMPLED = 6
"""Most runs for which success with sampled actions is drawn too; more lines cannot be read."""
SAME_SHARE = 0.03
"""Checkpoints of different seeds are averaged if they differ by at most this part of a run."""
WIDE = 15
"""An axis is logarithmic if the ratio of last values is above this."""


@dataclass(frozen=True)
class _Quantity:
    """A quantity that is drawn along training."""

    name: str
    title: str
    value: Callable[[Checkpoint], float]
    kind: Literal["number", "rate"]
    interval: Callable[[Checkpoint], tuple[float, float]] | None = None
    """Over episodes; None: there is none."""


QUANTITIES = (
    _Quantity("new", "success on the new task", lambda c: c.new, "rate", lambda c: c.new_interval),
    _Quantity(
        "prior",
        "success on prior skills, mean",
        lambda c: c.prior,
        "rate",
        lambda c: c.prior_interval,
    ),
    _Quantity(
        "kl",
        "KL(base ‖ tuned), nats per decision",
        lambda c: c.kl.get(FORWARD_KL, math.nan),
        "number",
    ),
    _Quantity(
        "entropy", "entropy of the actions, nats per decision", lambda c: c.entropy, "number"
    ),
)


def _share(run: RunSeries, checkpoint: Checkpoint) -> float:
    return checkpoint.step / max(1, run.updates or run.last.step)


X_AXES: tuple[tuple[str, Axis, Value], ...] = (
    # The share comes first: wall times of several machines cannot be compared.
    ("share of the run", Axis("share of the run's updates", "rate", from_zero=True), _share),
    ("wall time", Axis("minutes", from_zero=True), lambda _, c: c.wall_s / 60),
    (
        "environment steps",
        Axis("environment steps", from_zero=True),
        lambda _, c: c.env_steps,
    ),
    ("updates", Axis("updates", from_zero=True), lambda _, c: float(c.step)),
)


def training_charts(runs: RunSet, headline: float | None) -> list[Chart]:
    """Return success, KL and entropy along training, against its share, time, steps or updates.

    Of an arm with several settings, the one that represents it at the headline's level is shown.
    """
    selection = [(i, arm, shown_setting(arm, headline).runs) for i, arm in enumerate(runs.arms)]
    charts = []
    for quantity in QUANTITIES:
        views = tuple(_view(selection, quantity, label, axis, x) for label, axis, x in X_AXES)
        if any(panel.series for view in views for panel in view.panels):
            name = f"training-{quantity.name}"
            charts.append(Chart(name, quantity.title, 320, views, group="training"))
    return charts


def _view(
    selection: Sequence[tuple[int, Arm, Sequence[RunSeries]]],
    quantity: _Quantity,
    label: str,
    x_axis: Axis,
    x: Value,
) -> View:
    drawn: list[Series] = []
    for i, arm, runs in selection:
        lines = [
            series for run in runs if (series := _series(i, arm, run, x, quantity)) is not None
        ]
        mean = _mean(i, arm, runs, x, quantity)
        if mean is not None:
            lines = [
                replace(series, mark="line", size=1, alpha=0.35, y_ends=()) for series in lines
            ]
            lines.append(mean)
        drawn += lines
    if quantity.name == "new" and sum(len(runs) for _, _, runs in selection) <= MAX_SAMPLED:
        sampled = [_sampled(i, run, x) for i, _, runs in selection for run in runs]
        drawn += [series for series in sampled if series is not None]
    y_axis = Axis(quantity.title, quantity.kind)
    if quantity.name == "kl" and _is_wide(drawn):
        y_axis = Axis(f"{quantity.title}, log scale", "log")
        drawn = [_positive(series) for series in drawn]
    return View(label, (Panel(tuple(drawn), x_axis, y_axis),))


def _series(i: int, arm: Arm, run: RunSeries, x: Value, quantity: _Quantity) -> Series | None:
    known = [
        c for c in run.checkpoints if math.isfinite(x(run, c)) and math.isfinite(quantity.value(c))
    ]
    if not known:
        return None
    xs, ys = columns([(x(run, c), quantity.value(c)) for c in known])
    ends = tuple(quantity.interval(c) for c in known) if quantity.interval else ()
    return Series(
        i,
        xs,
        ys,
        size=6,
        alpha=0.7,
        joined=True,
        hover=tuple(describe(arm, run, checkpoint) for checkpoint in known),
        y_ends=ends,
        end_alpha=0.25,
        name=arm.name,
    )


def _mean(
    i: int, arm: Arm, runs: Sequence[RunSeries], x: Value, quantity: _Quantity
) -> Series | None:
    """Return the mean over runs where all of them were measured; None: there is a single run."""
    if len(runs) < 2:
        return None
    points, texts = [], []
    for checkpoints in _alike(runs):
        pairs = [(x(run, c), quantity.value(c)) for run, c in zip(runs, checkpoints, strict=True)]
        if not all(math.isfinite(a + b) for a, b in pairs):
            continue
        points.append((mean([a for a, _ in pairs]), mean([b for _, b in pairs])))
        value = points[-1][1]
        text = percent(value) if quantity.kind == "rate" else number(value)
        title = f"{arm.name}, update {checkpoints[0].step}"
        texts.append(f"{title}\n{quantity.title}: {text}, mean of {len(runs)} seeds")
    if not points:
        return None
    xs, ys = columns(points)
    return Series(i, xs, ys, size=7, joined=True, hover=tuple(texts), name=arm.name)


def _alike(runs: Sequence[RunSeries]) -> list[tuple[Checkpoint, ...]]:
    """Return the corresponding checkpoints of runs: equally far along, or at equal steps.

    Runs on data sets of different sizes have the same schedule and different numbers of updates.
    """
    rows = [run.checkpoints for run in runs]
    if len({len(row) for row in rows}) == 1:
        together = list(zip(*rows, strict=True))
        shares = [[_share(run, c) for run, c in zip(runs, row, strict=True)] for row in together]
        if all(max(share) - min(share) < SAME_SHARE for share in shares):
            return together
    by_step = [{c.step: c for c in row} for row in rows]
    steps = [step for step in by_step[0] if all(step in of_run for of_run in by_step)]
    return [tuple(of_run[step] for of_run in by_step) for step in steps]


def _sampled(i: int, run: RunSeries, x: Value) -> Series | None:
    """Return success with sampled actions as a thin dotted line; None where not measured."""
    known = [c for c in run.checkpoints if math.isfinite(x(run, c)) and math.isfinite(c.sampled)]
    if not known:
        return None
    return line(i, [(x(run, c), c.sampled) for c in known], size=1, alpha=0.6, dash="dot")


def _positive(series: Series) -> Series:
    """Leave out the base's 0, which a log scale cannot show."""
    indices = [k for k, value in enumerate(series.y) if value > 0]
    return replace(
        series,
        x=tuple(series.x[k] for k in indices),
        y=tuple(series.y[k] for k in indices),
        hover=tuple(series.hover[k] for k in indices) if series.hover else (),
    )


def _is_wide(series: Sequence[Series]) -> bool:
    """Return whether the values differ by more than a linear axis can show."""
    last = [item.y[-1] for item in series if item.y[-1] > 0]
    return max(last, default=0.0) > WIDE * min(last, default=1.0)
