"""The figures about single skills and about the way through training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from robo_razor.report.arms import Arm, RunSet
from robo_razor.report.charts.chart import (
    Chart,
    Trace,
    View,
    arm_colour,
    describe,
    line,
    line_at,
    literal,
    markers,
    rate_axis,
    top_label,
    whiskers,
)
from robo_razor.report.equal_success import shown_setting
from robo_razor.report.format import percent, with_interval
from robo_razor.report.load import FORWARD_KL, Checkpoint, RunSeries

# --- Skills ---------------------------------------------------------------------------------------


def skill_chart(report: dict[str, Any]) -> Chart | None:
    """Return the share kept of every prior skill, a bar per arm, with intervals and seeds."""
    arms = report["skills"]
    if not arms:
        return None
    names = [entry["skill"] for entry in arms[0]["skills"]]
    width = 0.82 / len(arms)
    traces: list[Trace] = []
    for i, arm in enumerate(arms):
        rows = [
            (len(names) - 1 - k - width * (i - (len(arms) - 1) / 2), entry)
            for k, entry in enumerate(arm["skills"])
            if entry["retention"] is not None
        ]
        if rows:
            traces += _skill_traces(i, arm["arm"], rows, width)
    layout = {
        "xaxis": rate_axis("share of the base's success kept") | {"rangemode": "tozero"},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [literal(name) for name in names[::-1]],
            "range": [-0.6, len(names) - 0.4],
            "showgrid": False,
        },
        "shapes": [line_at(1.0)],
        "barmode": "overlay",
    }
    height = 90 + len(names) * max(26, 12 * len(arms) + 10)
    return Chart("skills", "Share kept of each prior skill", height, (View("", traces, layout),))


def _skill_traces(
    i: int, name: str, rows: Sequence[tuple[float, dict[str, Any]]], width: float
) -> list[Trace]:
    entries = [entry for _, entry in rows]
    kept = [entry["retention"] for entry in entries]
    bar: Trace = {
        "type": "bar",
        "orientation": "h",
        "x": kept,
        "y": [y for y, _ in rows],
        "width": width * 0.86,
        "marker": {"color": arm_colour(i, 0.42), "line": {"width": 0}},
        "customdata": [
            f"<b>{literal(name)}</b>, {literal(e['skill'])}"
            + f"<br>keeps {with_interval(e['retention'], e['interval'])}"
            + (f", interval over {e['interval_over']}" if e["interval_over"] else "")
            + f"<br>success {percent(e['success_rate'])}, n = {e['n']}"
            for e in entries
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "meta": {"arm": i},
    }
    if any(entry["interval"] for entry in entries):
        ends = [e["interval"] or [e["retention"], e["retention"]] for e in entries]
        bar["error_x"] = whiskers(kept, ends, i, thickness=1.5)
    traces = [bar]
    seeds = [(value, y) for y, e in rows for value in e["values"] if len(e["values"]) > 1]
    if seeds:
        texts = [f"<b>{literal(name)}</b>, one seed: {percent(value)}" for value, _ in seeds]
        xs, ys = [value for value, _ in seeds], [y for _, y in seeds]
        traces.append(markers(i, xs, ys, texts, size=5, alpha=0.9))
    return traces


# --- Along training -------------------------------------------------------------------------------

X_AXES: tuple[tuple[str, str, Callable[[Checkpoint], float]], ...] = (
    ("wall time", "minutes", lambda c: c.wall_s / 60),
    ("environment steps", "environment steps", lambda c: c.env_steps),
    ("updates", "updates", lambda c: float(c.step)),
)
Y_AXES: tuple[tuple[str, str, Callable[[Checkpoint], float]], ...] = (
    ("new", "success on the new task", lambda c: c.new),
    ("prior", "success on prior skills, mean", lambda c: c.prior),
    ("kl", "KL(base ‖ tuned), nats per decision", lambda c: c.kl.get(FORWARD_KL, math.nan)),
    ("entropy", "entropy of the actions, nats per decision", lambda c: c.entropy),
)
INTERVALS: dict[str, Callable[[Checkpoint], tuple[float, float]]] = {
    "new": lambda c: c.new_interval,
    "prior": lambda c: c.prior_interval,
}
"""What has an interval over episodes."""


def training_charts(runs: RunSet, headline: float | None) -> list[Chart]:
    """Return success, KL and entropy along training, against time, steps or updates."""
    charts = []
    for name, title, y in Y_AXES:
        views = []
        for label, unit, x in X_AXES:
            traces = [
                trace
                for i, arm in enumerate(runs.arms)
                for run in shown_setting(arm, headline).runs
                if (trace := _training_trace(i, arm, run, x, y, name)) is not None
            ]
            if name == "new":
                traces += [
                    trace
                    for i, arm in enumerate(runs.arms)
                    for run in shown_setting(arm, headline).runs
                    if (trace := _sampled_trace(i, run, x)) is not None
                ]
            layout: dict[str, Any] = {
                "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
                "yaxis": rate_axis("") if name in ("new", "prior") else {},
                "annotations": [top_label(title)],
            }
            if name == "kl" and _is_wide(traces):
                layout["yaxis"] = {"type": "log", "dtick": 1}
                layout["annotations"] = [top_label(f"{title}, log scale")]
                traces = [_positive(trace) for trace in traces]
            views.append(View(label, traces, layout))
        if any(view.traces for view in views):
            charts.append(Chart(f"training-{name}", title, 300, tuple(views), 0, "training"))
    return charts


def _training_trace(
    i: int,
    arm: Arm,
    run: RunSeries,
    x: Callable[[Checkpoint], float],
    y: Callable[[Checkpoint], float],
    name: str,
) -> Trace | None:
    known = [c for c in run.checkpoints if math.isfinite(x(c)) and math.isfinite(y(c))]
    if not known:
        return None
    texts = [describe(arm, run, checkpoint) for checkpoint in known]
    trace = markers(i, [x(c) for c in known], [y(c) for c in known], texts, size=6)
    if name in INTERVALS:
        ends = [INTERVALS[name](c) for c in known]
        trace["error_y"] = whiskers(trace["y"], ends, i, thickness=1, alpha=0.3)
    return trace | {"mode": "lines+markers", "line": {"color": arm_colour(i, 0.7), "width": 1.6}}


def _sampled_trace(i: int, run: RunSeries, x: Callable[[Checkpoint], float]) -> Trace | None:
    """Return success with sampled actions as a thin dotted line; None where not measured."""
    known = [c for c in run.checkpoints if math.isfinite(x(c)) and math.isfinite(c.sampled)]
    if not known:
        return None
    trace = line(i, [x(c) for c in known], [c.sampled for c in known], width=1, alpha=0.6)
    return trace | {"line": trace["line"] | {"dash": "dot"}}


def _positive(trace: Trace) -> Trace:
    """Leave out what a log scale cannot show: the base's 0."""
    kept = [k for k, value in enumerate(trace["y"]) if value > 0]
    return trace | {key: [trace[key][k] for k in kept] for key in ("x", "y", "customdata")}


def _is_wide(traces: Sequence[Trace]) -> bool:
    """Tell whether values differ by more than a linear axis shows."""
    last = [trace["y"][-1] for trace in traces if trace["y"][-1] > 0]
    return max(last, default=0.0) > 15 * min(last, default=1.0)
