"""Charts as plain Plotly values, which the page's script draws.

Colours are names of CSS variables (`var(--arm-0)@0.4`: with opacity), which the script resolves to
the page's light or dark theme. A trace's `meta.arm` is the arm that the legend hides and shows.
A checkpoint is in a dozen charts, so hover texts stand once in a list, to which traces refer.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from robo_razor.report.charts.spec import Axis, Chart, Ends, Panel, Remark, Series, View

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
MAX_LABEL, MAX_REMARK = 18, 32
"""Most characters per line of a row's name and of a remark: phones need room for the figure."""
DIGITS = 5
"""Significant digits of numbers; more cannot be seen, and the downloads have all."""
GAP = 0.1
"""Part of the height between two panels."""

Trace = dict[str, Any]


def page_data(charts: Sequence[Chart]) -> dict[str, Any]:
    """Return all charts as plain values for the page's script, with the hover texts they share."""
    texts: dict[str, int] = {}
    return {"charts": [_chart(chart, texts) for chart in charts], "texts": list(texts)}


def _chart(chart: Chart, texts: dict[str, int]) -> dict[str, Any]:
    views: list[dict[str, Any]] = []
    for k, view in enumerate(chart.views):
        # Views that differ only in their axes refer to the traces of the first one.
        earlier = next(
            (i for i in range(k) if _series_of(chart.views[i]) == _series_of(view)), None
        )
        traces: Any = earlier
        if earlier is None:
            traces = [
                # In lists, markers at 0 % are drawn as a whole, beyond the axis.
                _trace(series, n, texts) | ({"cliponaxis": False} if panel.y.rows else {})
                for n, panel in enumerate(view.panels)
                for series in panel.series
            ]
        views.append({"label": view.label, "traces": traces, "layout": _layout(view)})
    return {
        "id": chart.id,
        "height": chart.height,
        "selected": chart.selected,
        "group": chart.group or chart.id,
        "views": views,
    }


def _series_of(view: View) -> list[tuple[Series, ...]]:
    return [panel.series for panel in view.panels]


def arm_colour(index: int | None, alpha: float = 1.0) -> str:
    """Return the name of an arm's colour, or of the neutral one."""
    name = "var(--ink)" if index is None else f"var(--arm-{index % NUM_COLOURS})"
    return name if alpha == 1.0 else f"{name}@{alpha:g}"


def arm_symbol(index: int) -> str:
    """Return an arm's marker; arms of equal colour have different ones."""
    return SYMBOLS[(index + index // NUM_COLOURS) % len(SYMBOLS)]


def literal(text: str) -> str:
    """Return a text that Plotly shows as it is, without reading tags such as `<a href=...>`."""
    return html.escape(text, quote=False)


# --- Traces ---------------------------------------------------------------------------------------


def _trace(series: Series, panel: int, texts: dict[str, int]) -> Trace:
    trace: Trace = {
        "type": "scatter",
        "x": _rounded(series.x),
        "y": _rounded(series.y),
        "meta": {"arm": series.arm},
    }
    if panel:
        trace["yaxis"] = f"y{panel + 1}"
    if series.mark == "line":
        return trace | {"mode": "lines", "hoverinfo": "skip", "line": _line(series)}
    trace |= {"mode": "markers", "marker": _marker(series)}
    if series.hover:
        residual = "<br>residual %{y:+.0%}" if panel else ""
        trace["customdata"] = [texts.setdefault(_hover(t), len(texts)) for t in series.hover]
        trace["hovertemplate"] = f"%{{customdata}}{residual}<extra></extra>"
    if series.joined:
        line = {"color": arm_colour(series.arm, series.alpha), "width": 1.6}
        trace |= {"mode": "lines+markers", "line": line}
    if series.labels:
        trace |= {
            "mode": "markers+text",
            "text": [literal(text) for text in series.labels],
            "textposition": "top center",
            "textfont": {"size": 13},
            "cliponaxis": False,
        }
    for axis in ("x", "y"):
        if ends := getattr(series, f"{axis}_ends"):
            trace[f"error_{axis}"] = _whiskers(getattr(series, axis), ends, series)
    return trace


def _line(series: Series) -> dict[str, Any]:
    line: dict[str, Any] = {"color": arm_colour(series.arm, series.alpha), "width": series.size}
    return line | {"dash": series.dash} if series.dash else line


def _marker(series: Series) -> dict[str, Any]:
    if series.arm is None:
        return {"symbol": "star", "size": series.size, "color": "var(--ink)"}
    symbol = arm_symbol(series.arm)
    alpha = 1.0 if series.joined else series.alpha
    return {
        "symbol": f"{symbol}-open" if series.mark == "open" else symbol,
        "size": series.size,
        "color": arm_colour(series.arm, alpha),
        "line": {"width": 1 if alpha == 1.0 else 0, "color": "var(--page)"},
    }


def _hover(text: str) -> str:
    title, *lines = (literal(part) for part in text.split("\n"))
    return "<br>".join([f"<b>{title}</b>", *lines])


def _whiskers(values: Sequence[float], ends: Sequence[Ends], series: Series) -> dict[str, Any]:
    """Return error bars; unknown ends: no bar."""
    pairs = list(zip(values, ends, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": _rounded([_length(high - value) for value, (_, high) in pairs]),
        "arrayminus": _rounded([_length(value - low) for value, (low, _) in pairs]),
        "color": arm_colour(series.arm, series.end_alpha),
        "thickness": series.end_width,
        "width": 0,
    }


def _length(value: float) -> float:
    return max(0.0, value) if math.isfinite(value) else 0.0


def _rounded(values: Sequence[float]) -> list[float | int | None]:
    return [_round(value) for value in values]


def _round(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded == int(rounded) else rounded


# --- Layout ---------------------------------------------------------------------------------------


def _layout(view: View) -> dict[str, Any]:
    layout: dict[str, Any] = {"shapes": [], "annotations": []}
    bottom = view.panels[-1]
    last = len(view.panels)
    layout["xaxis"] = _axis(bottom.x) | {"anchor": "y" if last == 1 else f"y{last}"}
    if bottom.x.title:
        layout["xaxis"]["title"] = {"text": literal(bottom.x.title)}
    high = 1.0
    for n, panel in enumerate(view.panels):
        low = 0.0 if n == last - 1 else high - panel.share * (1 - GAP * (last - 1))
        name = "y" if n == 0 else f"y{n + 1}"
        axis = _axis(panel.y)
        if last > 1:
            axis["domain"] = [round(low, 3), round(high, 3)]
        layout[f"{name[0]}axis{name[1:]}"] = axis
        if panel.y.title:
            layout["annotations"].append(_top_label(panel.y.title, round(high, 3)))
        layout["annotations"] += [_remark(remark, name) for remark in panel.remarks]
        layout["shapes"] += _shapes(panel, name)
        high = low - GAP
    return layout


def _axis(axis: Axis) -> dict[str, Any]:
    layout: dict[str, Any] = {}
    if axis.kind == "rate":
        layout["tickformat"] = ".0%"
    if axis.kind == "log":
        layout |= {"type": "log", "dtick": 1}
    if axis.from_zero:
        layout["rangemode"] = "tozero"
    if axis.limits is not None:
        layout["range"] = list(axis.limits)
    if axis.rows:
        layout |= {
            "tickvals": list(range(len(axis.rows))),
            "ticktext": [_wrapped(name, MAX_LABEL) for name in axis.rows],
            "range": [-0.6, len(axis.rows) - 0.4],
            "showgrid": False,
        }
    return layout


def _shapes(panel: Panel, axis: str) -> list[dict[str, Any]]:
    style = {"type": "line", "layer": "below", "line": {"color": "var(--muted)", "width": 1}}
    shapes = []
    for reference in panel.references:
        if reference.x is not None:
            ends = {"x0": reference.x, "x1": reference.x, "y0": 0, "y1": 1, "yref": "paper"}
        else:
            ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": reference.y, "y1": reference.y}
            ends["yref"] = axis
        line = {"color": "var(--muted)", "width": 1, "dash": "dot"}
        shapes.append(style | ends | {"line": line})
    return shapes


def _wrapped(text: str, width: int) -> str:
    return "<br>".join(map(literal, textwrap.wrap(text, width, break_long_words=False)))


def _remark(remark: Remark, axis: str) -> dict[str, Any]:
    return {
        "x": 0.01,
        "xref": "paper",
        "xanchor": "left",
        "align": "left",
        "y": remark.row,
        "yref": axis,
        "text": _wrapped(remark.text, MAX_REMARK),
        "showarrow": False,
        "font": {"color": "var(--muted)", "size": 13},
    }


def _top_label(text: str, y: float) -> dict[str, Any]:
    """Return a y axis's title above its axis, so that phones keep the width for the figure."""
    return {
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "align": "left",
        "y": y,
        "yref": "paper",
        "yanchor": "bottom",
        "yshift": 6,
        "text": literal(text),
        "showarrow": False,
        "font": {"color": "var(--muted)", "size": 13},
    }
