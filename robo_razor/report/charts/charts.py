"""The figures about what is compared: matched success, the frontier, the law."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from robo_razor.report import analysis
from robo_razor.report.arms import Arm, RunSet
from robo_razor.report.charts.chart import (
    Chart,
    Trace,
    View,
    arm_symbol,
    base_marker,
    describe,
    line,
    line_at,
    literal,
    markers,
    rate_axis,
    top_label,
    whiskers,
    wrapped,
)
from robo_razor.report.equal_success import ArmMatch, match_arm
from robo_razor.report.format import (
    number,
    percent,
    points,
    predictor_name,
    predictor_parts,
    with_interval,
)
from robo_razor.report.load import Checkpoint, RunSeries
from robo_razor.statistics.hill import Falloff

MAX_PATHS = 12
"""Runs whose ways are drawn as lines; more would hide the points."""
MAX_PREDICTORS = 12
"""Predictors that the law can be looked at in."""


# --- Matched success ------------------------------------------------------------------------------


def matched_chart(runs: RunSet, levels: Sequence[float], headline: float | None) -> Chart | None:
    """Return retention per arm at equal new-task success, one view per level."""
    views = []
    for level in levels:
        found = [(i, match_arm(arm, level)) for i, arm in enumerate(runs.arms)]
        if any(entry.values("retention") for _, entry in found):
            views.append((level, _matched_view(level, found)))
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


def _matched_view(level: float, found: Sequence[tuple[int, ArmMatch]]) -> View:
    def key(item: tuple[int, ArmMatch]) -> float:
        value = item[1].estimate("retention").value
        return value if math.isfinite(value) else -1.0

    ordered = sorted(found, key=key)
    traces: list[Trace] = []
    annotations = []
    for row, (i, entry) in enumerate(ordered):
        values = entry.values("retention")
        if not values:
            annotations.append(_remark(row, entry.reason or "no prior skills"))
            continue
        estimate = entry.estimate("retention")
        known = math.isfinite(estimate.low)
        episodes = entry.over_episodes("retention")
        text = with_interval(estimate.value, estimate.interval if known else episodes)
        if episodes is not None:
            text += " over the episodes of one seed"
        hover = f"<b>{literal(entry.arm)}</b> at {percent(level)}<br>keeps {text}"
        hover += f"<br>{literal(entry.choice)}"
        if entry.setting:
            hover += f"<br>{literal(entry.setting).replace(', ', '<br>')}"
        if len(values) > 1:
            traces.append(
                markers(
                    i,
                    values,
                    [row] * len(values),
                    [
                        f"<b>{literal(run.run)}</b> at {percent(level)}"
                        f"<br>keeps {percent(run.retention)}<br>update {number(run.step, 1)}"
                        for run in entry.runs
                        if run.retention is not None
                    ],
                    size=7,
                    alpha=0.5,
                )
            )
        mean = markers(i, [estimate.value], [row], [hover], size=13)
        if known:
            mean["error_x"] = whiskers([estimate.value], [estimate.interval], i, thickness=2.5)
        elif episodes is not None:  # thin: it says nothing about other seeds
            mean["error_x"] = whiskers([estimate.value], [episodes], i, thickness=1, alpha=0.6)
        mean |= {"mode": "markers+text", "text": [percent(estimate.value)]}
        mean |= {"textposition": "top center", "textfont": {"size": 13}, "cliponaxis": False}
        traces.append(mean)
    names = [entry.arm for _, entry in ordered]
    layout = {
        "xaxis": rate_axis("share of the prior skills kept"),
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [wrapped(name) for name in names],
            "range": [-0.6, len(names) - 0.4],
            "showgrid": False,
        },
        "shapes": [line_at(1.0)],
        "annotations": annotations,
    }
    return View(percent(level), traces, layout)


def _remark(row: int, text: str) -> dict[str, Any]:
    return {
        "x": 0.01,
        "xref": "paper",
        "xanchor": "left",
        "y": row,
        "yref": "y",
        "text": literal(text),
        "showarrow": False,
        "font": {"color": "var(--muted)", "size": 13},
    }


# --- Frontier -------------------------------------------------------------------------------------


def frontier_chart(runs: RunSet, headline: float | None) -> Chart | None:
    """Return new-task against prior success of all checkpoints, those near a frontier filled."""
    traces: list[Trace] = []
    for i, arm in enumerate(runs.arms):
        traces += _frontier_traces(i, arm, paths=len(runs.runs) <= MAX_PATHS)
    if not traces:
        return None
    bases = {(run.first.new, run.first.prior) for run in runs.runs if run.first.step == 0}
    traces.append(base_marker(sorted(bases), "the base"))
    layout: dict[str, Any] = {
        "xaxis": rate_axis("success on the new task"),
        "yaxis": rate_axis(""),
        "annotations": [top_label("success on prior skills, mean")],
    }
    if headline is not None:
        layout["shapes"] = [line_at(headline)]
    return Chart(
        "frontier",
        "Success on prior skills against success on the new task, every checkpoint a point",
        460,
        (View("", traces, layout),),
    )


def _frontier_traces(i: int, arm: Arm, *, paths: bool) -> list[Trace]:
    near = {(run.name, index) for run, index in analysis.frontier_of(arm)}
    split: dict[bool, list[tuple[RunSeries, Checkpoint]]] = {True: [], False: []}
    traces: list[Trace] = []
    for run in arm.runs:
        known = [c for c in run.checkpoints if math.isfinite(c.prior)]
        for index, checkpoint in enumerate(run.checkpoints):
            if math.isfinite(checkpoint.prior) and checkpoint.step > 0:
                split[(run.name, index) in near].append((run, checkpoint))
        if paths and len(known) > 1:
            traces.append(
                line(i, [c.new for c in known], [c.prior for c in known], alpha=0.35, width=1)
            )
    if not any(split.values()):
        return []
    edge = analysis.frontier_line(arm)
    traces.append(line(i, [x for x, _ in edge], [y for _, y in edge], width=2))
    for filled, pairs in split.items():
        if pairs:
            trace = markers(
                i,
                [c.new for _, c in pairs],
                [c.prior for _, c in pairs],
                [describe(arm, run, c) for run, c in pairs],
                size=10 if filled else 7,
                alpha=1.0 if filled else 0.6,
            )
            if filled:
                news, priors = [c.new for _, c in pairs], [c.prior for _, c in pairs]
                widths: dict[str, Any] = {"thickness": 1, "alpha": 0.22}
                trace["error_x"] = whiskers(news, [c.new_interval for _, c in pairs], i, **widths)
                ends = [c.prior_interval for _, c in pairs]
                trace["error_y"] = whiskers(priors, ends, i, **widths)
            if not filled:
                trace["marker"]["symbol"] = f"{arm_symbol(i)}-open"
            traces.append(trace)
    return traces


# --- The law --------------------------------------------------------------------------------------


def law_chart(runs: RunSet, report: dict[str, Any]) -> Chart | None:
    """Return prior success against predictors, with the fit and its residuals below."""
    laws, main = report["predictors"], report["law"]
    fitted = [fit for fit in laws if fit["coefficients"] is not None][:MAX_PREDICTORS]
    shown = [fit for fit in fitted if fit["predictor"] != main["predictor"]]
    if main["n_points"]:
        shown = [main, *shown]
    if not shown:
        return None
    return Chart(
        "law",
        "Success on prior skills against distance from the base, with a fitted polynomial",
        520,
        tuple(
            _law_view(runs, fit, analysis.falloff_of(report) if fit is main else None)
            for fit in shown
        ),
    )


def _law_view(runs: RunSet, fit: dict[str, Any], falloff: Falloff | None) -> View:
    traces: list[Trace] = []
    highest = 0.0
    name, coefficients = fit["predictor"], fit["coefficients"]
    for i, arm in enumerate(runs.arms):
        found = [
            (run, checkpoint, checkpoint.predictors[name])
            for run in arm.runs
            for checkpoint in run.checkpoints
            if name in checkpoint.predictors
            and checkpoint.step > 0
            and math.isfinite(checkpoint.prior)
        ]
        if not found:
            continue
        xs = [x for _, _, x in found]
        highest = max(highest, *xs)
        texts = [describe(arm, run, checkpoint) for run, checkpoint, _ in found]
        traces.append(markers(i, xs, [c.prior for _, c, _ in found], texts, size=8, alpha=0.8))
        if coefficients:
            errors = [c.prior - _predict(coefficients, x) for _, c, x in found]
            texts = [
                f"{text}<br>residual {points(error)} points"
                for text, error in zip(texts, errors, strict=True)
            ]
            residual = markers(i, xs, errors, texts, size=7, alpha=0.8)
            traces.append(residual | {"yaxis": "y2"})
    bases = {
        (run.first.predictors[name], run.first.prior)
        for run in runs.runs
        if run.first.step == 0 and name in run.first.predictors
    }
    if bases:
        traces.append(base_marker(sorted(bases), "the base"))
    lowest = min((x for trace in traces for x in trace["x"]), default=0.0)
    if coefficients:
        traces += _curve(coefficients, lowest, highest, fit["gap"])
    if falloff is not None:
        grid = [lowest + (highest - lowest) * step / 160 for step in range(161)]
        trace = line(None, grid, falloff.predict(grid).tolist(), width=2)
        traces.append(trace | {"line": trace["line"] | {"dash": "dash"}})
    unit = ", nats per decision" if name.startswith("kl_") else ""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": literal(f"{predictor_parts(name)[0]}{unit}")}, "anchor": "y2"},
        "yaxis": rate_axis("") | {"domain": [0.36, 1.0] if coefficients else [0.0, 1.0]},
        "annotations": [top_label("success on prior skills, mean")],
    }
    if coefficients:
        layout["yaxis2"] = rate_axis("") | {"domain": [0.0, 0.26], "zeroline": True}
        layout["annotations"].append(top_label("residual, measured minus fitted", y=0.26))
    else:
        layout["xaxis"]["anchor"] = "y"
    text = f"R² = {number(fit['r2'])}" if fit["r2"] is not None else "no fit"
    return View(f"{predictor_name(name)} ({text})", traces, layout)


def _curve(
    coefficients: Sequence[float], lowest: float, highest: float, gap: Sequence[float] | None
) -> list[Trace]:
    """Return the fit as a line, dotted where no checkpoint lies for a wide part of the range."""
    ends = [lowest, *(gap or ()), highest]
    traces = []
    for k, (low, high) in enumerate(itertools.pairwise(ends)):
        grid = [low + (high - low) * step / 80 for step in range(81)]
        trace = line(None, grid, [_predict(coefficients, x) for x in grid], width=2)
        traces.append(trace | {"line": trace["line"] | {"dash": "dot"}} if k == 1 else trace)
    return traces


def _predict(coefficients: Sequence[float], x: float) -> float:
    c0, c1, c2 = coefficients
    return c0 + x * (c1 + x * c2)
