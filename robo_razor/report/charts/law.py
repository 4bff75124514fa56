"""The charts about the causes of forgetting: the law in every predictor, and all predictors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from robo_razor.core.metrics import KL_DIRECTIONS
from robo_razor.core.quantities import NATS
from robo_razor.report import analysis
from robo_razor.report.arms import RunSet
from robo_razor.report.charts.spec import (
    Axis,
    Chart,
    Panel,
    Reference,
    Series,
    View,
    base_star,
    columns,
    describe,
    line,
)
from robo_razor.report.format import number, predictor_name, predictor_parts, with_interval
from robo_razor.report.load import FORWARD_KL
from robo_razor.statistics.hill import Falloff

MAX_PREDICTORS = 12
"""Most predictors in the menu of the law."""
CURVE_POINTS = 60


def law_chart(runs: RunSet, report: dict[str, Any]) -> Chart | None:
    """Return prior success against predictors, with the fit and its residuals below."""
    main = report["law"]
    fitted = [fit for fit in report["predictors"] if fit["coefficients"] is not None]
    fits = [fit for fit in fitted[:MAX_PREDICTORS] if fit["predictor"] != main["predictor"]]
    if main["n_points"]:
        fits = [main, *fits]
    if not fits:
        return None
    views = [
        law_view(runs, fit, analysis.falloff_of(report) if fit is main else None) for fit in fits
    ]
    return Chart(
        "law",
        "Success on prior skills against distance from the base, with a fitted polynomial",
        540,
        tuple(views),
    )


def law_view(runs: RunSet, fit: dict[str, Any], falloff: Falloff | None) -> View:
    """Return the law in one predictor: points and curves, and the residuals of a fit.

    Args:
        runs: The runs of the comparison.
        fit: The law as plain values.
        falloff: A second curve; None: there is none.
    """
    name, coefficients = fit["predictor"], fit["coefficients"]
    points, residuals = [], []
    for i, arm in enumerate(runs.arms):
        known = [
            (run, checkpoint)
            for run in arm.runs
            for checkpoint in run.checkpoints
            if name in checkpoint.predictors
            and checkpoint.step > 0
            and math.isfinite(checkpoint.prior)
        ]
        if not known:
            continue
        x, y = columns([(c.predictors[name], c.prior) for _, c in known])
        texts = tuple(describe(arm, run, checkpoint) for run, checkpoint in known)
        points.append(Series(i, x, y, size=8, alpha=0.8, hover=texts, name=arm.name))
        if coefficients:
            errors = tuple(b - _predict(coefficients, a) for a, b in zip(x, y, strict=True))
            residual = Series(i, x, errors, size=7, alpha=0.8, hover=texts, name=arm.name)
            residuals.append(residual)
    highest = max((x for series in points for x in series.x), default=0.0)
    bases = [(run.first.predictors[name], run.first.prior) for run in _bases(runs, name)]
    star = base_star(bases)
    points += [star] if star else []
    lowest = min((x for series in points for x in series.x), default=0.0)
    if coefficients:
        points += _curve(fit, lowest, highest)
    if falloff is not None:
        grid = _grid(lowest, highest)
        curve = list(zip(grid, falloff.predict(grid).tolist(), strict=True))
        label = f"level, then falling: R² = {number(falloff.r2)}"
        points.append(line(None, curve, size=2, dash="dash", name=label))
    x_axis = Axis(predictor_title(name))
    y_axis = Axis("success on prior skills, mean", "rate")
    panels = [Panel(tuple(points), x_axis, y_axis, share=0.68 if residuals else 1.0)]
    if residuals:
        y_axis = Axis("residual: measured minus fitted", "rate")
        panels.append(Panel(tuple(residuals), x_axis, y_axis, (Reference(y=0.0),), share=0.32))
    text = f"R² = {number(fit['r2'])}" if fit["r2"] is not None else "no fit"
    return View(f"{predictor_name(name)} ({text})", tuple(panels))


def _bases(runs: RunSet, name: str) -> list[Any]:
    return [run for run in runs.runs if run.first.step == 0 and name in run.first.predictors]


def predictor_title(name: str) -> str:
    """Return the title of a predictor's axis, with its unit."""
    return predictor_parts(name)[0] + _unit(name)


def _unit(name: str) -> str:
    return f", {NATS}" if name.partition("/")[0] in KL_DIRECTIONS else ""


def _curve(fit: dict[str, Any], lowest: float, highest: float) -> list[Series]:
    """Return the fit as a line, dotted where no checkpoint lies for a wide part of the range."""
    labels = (f"fit: R² = {number(fit['r2'])}", "no checkpoints there", "")
    ends = [lowest, *(fit["gap"] or ()), highest]
    parts = []
    for k, (low, high) in enumerate(itertools.pairwise(ends)):
        points = [(x, _predict(fit["coefficients"], x)) for x in _grid(low, high)]
        parts.append(line(None, points, size=2, dash="dot" if k == 1 else "", name=labels[k]))
    return parts


def _grid(low: float, high: float) -> list[float]:
    return [low + (high - low) * step / CURVE_POINTS for step in range(CURVE_POINTS + 1)]


def _predict(coefficients: Sequence[float], x: float) -> float:
    c0, c1, c2 = coefficients
    return float(c0 + x * (c1 + x * c2))


def best_law_chart(runs: RunSet, report: dict[str, Any]) -> Chart | None:
    """Return the law in the best predictor where it is not the paper's, which has its own chart."""
    known = report["law"]["n_points"]  # with other numbers, the checkpoints differ
    fits = [f for f in report["predictors"] if f["r2"] is not None and f["n_points"] == known]
    if not fits or fits[0]["predictor"] == FORWARD_KL:
        return None
    (panel, *_) = law_view(runs, fits[0], None).panels
    view = View("", (on_states(panel, fits[0]["predictor"]),))
    return Chart("best-law", "Forgetting against the predictor that explains most", 440, (view,))


def on_states(panel: Panel, predictor: str) -> Panel:
    """Return a panel whose x axis also names the states of the predictor."""
    return replace(panel, x=Axis(predictor_name(predictor) + _unit(predictor)), share=1.0)


def learning_chart(runs: RunSet) -> Chart | None:
    """Return new-task success against the distance from the base."""
    series = []
    for i, arm in enumerate(runs.arms):
        known = [
            (run, c) for run in arm.runs for c in run.checkpoints if FORWARD_KL in c.predictors
        ]
        if known:
            x, y = columns([(c.predictors[FORWARD_KL], c.new) for _, c in known])
            texts = tuple(describe(arm, run, c) for run, c in known)
            series.append(Series(i, x, y, alpha=0.8, hover=texts, name=arm.name))
    if not series:
        return None
    panel = Panel(
        tuple(series), Axis(predictor_title(FORWARD_KL)), Axis("success on the new task", "rate")
    )
    return Chart("learning", "Learning against distance from the base", 440, (View("", (panel,)),))


def predictor_chart(report: dict[str, Any]) -> Chart | None:
    """Return how much each predictor explains, best at the top."""
    fitted = [fit for fit in report["predictors"] if fit["r2"] is not None][:MAX_PREDICTORS][::-1]
    if not fitted:
        return None
    texts = [
        f"{predictor_name(fit['predictor'])}\nR² {with_interval(fit['r2'], fit['r2_interval'])}"
        for fit in fitted
    ]
    series = Series(
        0,
        tuple(fit["r2"] for fit in fitted),
        tuple(map(float, range(len(fitted)))),
        hover=tuple(texts),
        x_ends=tuple(tuple(fit["r2_interval"] or (fit["r2"], fit["r2"])) for fit in fitted),
        end_width=2,
        end_alpha=0.6,
    )
    names = tuple(predictor_name(fit["predictor"]) for fit in fitted)
    panel = Panel(
        (series,),
        Axis("R² of a second-degree polynomial (95%, runs resampled)", limits=(0.0, 1.02)),
        Axis(rows=names),
    )
    return Chart("predictors", "What explains forgetting", 440, (View("", (panel,)),))
