"""A figure of the page as plain Plotly values, and the pieces that figures are made of.

A chart has views, of which one is shown at a time (levels, predictors, the x axis). Colours are
names of CSS variables (`var(--arm-0)@0.4`: with opacity), which the page resolves to its light or
dark theme. A trace's `meta.arm` is the arm that the legend hides and shows.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robo_razor.core.files import finite
from robo_razor.report.arms import Arm
from robo_razor.report.format import number, percent, with_interval
from robo_razor.report.load import FORWARD_KL, Checkpoint, RunSeries

SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "pentagon",
    "cross",
    "x",
)
NUM_COLOURS = 8
MAX_LABEL = 20
"""Characters of a label in one line."""

Trace = dict[str, Any]


@dataclass(frozen=True)
class View:
    """One state of a chart."""

    label: str
    traces: list[Trace]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One figure of the page; charts of one `group` are switched together."""

    id: str
    description: str
    height: int
    views: tuple[View, ...]
    selected: int = 0
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the page's script."""
        return {
            "id": self.id,
            "height": self.height,
            "selected": self.selected,
            "group": self.group or self.id,
            "views": [vars(view) for view in self.views],
        }


def arm_colour(index: int, alpha: float = 1.0) -> str:
    """Return the name of an arm's colour."""
    name = f"var(--arm-{index % NUM_COLOURS})"
    return name if alpha == 1.0 else f"{name}@{alpha:g}"


def literal(text: str) -> str:
    """Return a text that Plotly shows as it is; it reads tags such as `<a href=...>`."""
    return html.escape(text, quote=False)


def wrapped(name: str) -> str:
    """Return a name in lines that leave a phone room for the figure."""
    return "<br>".join(map(literal, textwrap.wrap(name, MAX_LABEL, break_long_words=False)))


def arm_symbol(index: int) -> str:
    """Return an arm's marker; arms of equal colour have different ones."""
    return SYMBOLS[(index + index // NUM_COLOURS) % len(SYMBOLS)]


def describe(arm: Arm, run: RunSeries, checkpoint: Checkpoint) -> str:
    """Return what hovering over a checkpoint tells."""
    lines = [
        f"<b>{literal(run.name)}</b>, update {checkpoint.step}",
        f"new task {with_interval(checkpoint.new, checkpoint.new_interval)}, "
        f"n = {checkpoint.new_n}",
        f"prior skills {with_interval(checkpoint.prior, checkpoint.prior_interval)}",
        f"keeps {with_interval(checkpoint.retention, checkpoint.retention_interval)} (episodes)",
    ]
    if checkpoint.sampled_n:
        sampled = with_interval(checkpoint.sampled, checkpoint.sampled_interval)
        lines.insert(2, f"sampled actions {sampled}, n = {checkpoint.sampled_n}")
    if FORWARD_KL in checkpoint.kl:
        lines.append(f"KL(base ‖ tuned) {number(checkpoint.kl[FORWARD_KL])} nats per decision")
    setting = next((s.label for s in arm.settings if run in s.runs), "")
    made = f"{run.method}, seed {run.seed}" + (f", {setting}" if setting else "")
    lines.append(literal(made))
    return "<br>".join(lines)


def markers(
    i: int,
    x: Sequence[float],
    y: Sequence[float],
    texts: Sequence[str],
    *,
    size: float,
    alpha: float = 1.0,
) -> Trace:
    """Return points of an arm with what hovering over them tells."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "customdata": list(texts),
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "symbol": arm_symbol(i),
            "size": size,
            "color": arm_colour(i, alpha),
            "line": {"width": 1 if alpha == 1.0 else 0, "color": "var(--page)"},
        },
        "meta": {"arm": i},
    }


def line(
    i: int | None, x: Sequence[float], y: Sequence[float], *, width: float, alpha: float = 1.0
) -> Trace:
    """Return a line of an arm, or a neutral one, that does not react to the pointer."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "hoverinfo": "skip",
        "line": {"color": "var(--ink)" if i is None else arm_colour(i, alpha), "width": width},
        "meta": {"arm": i},
    }


def base_marker(where: Sequence[tuple[float, float]], text: str) -> Trace:
    """Return a star for the base, which belongs to no arm."""
    known = [(x, y) for x, y in where if math.isfinite(x) and math.isfinite(y)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in known],
        "y": [y for _, y in known],
        "customdata": [f"<b>{literal(text)}</b><br>prior skills {percent(y)}" for _, y in known],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {"symbol": "star", "size": 13, "color": "var(--ink)"},
        "meta": {"arm": None},
    }


def whiskers(
    values: Sequence[float],
    ends: Sequence[Sequence[float]],
    i: int,
    *,
    thickness: float,
    alpha: float = 1.0,
) -> dict[str, Any]:
    """Return error bars, cut at 0: nothing is kept less than not at all; NaN ends: no bar."""
    low = [
        value - max(0.0, finite(end[0]) or 0.0) if math.isfinite(end[0]) else 0.0
        for value, end in zip(values, ends, strict=True)
    ]
    high = [end[1] - value for value, end in zip(values, ends, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, finite(h) or 0.0) for h in high],
        "arrayminus": [max(0.0, finite(v) or 0.0) for v in low],
        "color": arm_colour(i, alpha),
        "thickness": thickness,
        "width": 0,
    }


def rate_axis(title: str) -> dict[str, Any]:
    """Return an axis in percent."""
    axis: dict[str, Any] = {"tickformat": ".0%"}
    return axis | {"title": {"text": title}} if title else axis


def line_at(x: float) -> dict[str, Any]:
    """Return a dotted vertical line."""
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "layer": "below",
        "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
    }


def top_label(text: str, y: float = 1.0) -> dict[str, Any]:
    """Return a y axis's name, written level above its axis so that phones keep the width."""
    return {
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": y,
        "yref": "paper",
        "yanchor": "bottom",
        "yshift": 6,
        "text": text,
        "showarrow": False,
        "font": {"color": "var(--muted)", "size": 13},
    }
