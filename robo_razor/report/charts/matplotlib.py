"""Charts as PNG and SVG for a paper, drawn by matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.plain_text import shortened
from robo_razor.report.charts.spec import Axis, Ends, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers differ as well.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#66707A",
    "#882255",
)
MARKERS = "osD^vpPX"
NEUTRAL = "black"
SUFFIXES = (".png", ".svg")
WIDTH, PIXELS_PER_INCH = 6.4, 100
"""Width of a figure in inches, and the page's pixels per inch of height."""
POINTS = 0.6
"""Size of a marker in points per pixel of the page."""
MAX_NAME = 60
"""Most characters of a name in a figure."""
DASHES = {"": "-", "dot": ":", "dash": "--"}


def save(panels: Sequence[Panel], title: str, height: float, stem: Path) -> list[str]:
    """Draw panels above each other; return the names of the files.

    Args:
        panels: The panels; the first one gets the title.
        title: The figure's title.
        height: Pixels on the page.
        stem: The files without their suffix.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (WIDTH, max(3.0, height / PIXELS_PER_INCH))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, panels, title)
    for suffix in SUFFIXES:
        # A fixed salt and no date: the same runs give the same file.
        with mpl.rc_context({"svg.hashsalt": stem.name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(stem.with_suffix(suffix), metadata=metadata)
    return [f"{stem.name}{suffix}" for suffix in SUFFIXES]


def draw(figure: Figure, panels: Sequence[Panel], title: str) -> None:
    """Draw panels into a figure, with one legend for all of them."""
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel)
    all_axes[0].set_title(literal(title), fontsize="medium")
    handles: dict[str, Any] = {}
    for axes in all_axes:
        handles |= {
            label: handle
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            if label not in handles
        }
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            frameon=False,
            fontsize="small",
            ncols=min(4, len(handles)),
        )


def literal(name: str) -> str:
    """Return a name that matplotlib shows as it is: no formula in `$`, no hidden `_name`."""
    text = shortened(name, MAX_NAME).replace("‖", "||").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for series in panel.series:
        _draw_series(axes, series)
    for reference in panel.references:
        style: dict[str, Any] = {"color": NEUTRAL, "linewidth": 0.7, "linestyle": ":"}
        if reference.x is not None:
            axes.axvline(reference.x, **style)
        elif reference.y is not None:
            axes.axhline(reference.y, **style)
    for remark in panel.remarks:
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
        axes.text(0.01, remark.row, literal(remark.text), fontsize="x-small", **place)
    _set_axis(axes, panel.x, "x")
    _set_axis(axes, panel.y, "y")
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_series(axes: Axes, series: Series) -> None:
    colour = NEUTRAL if series.arm is None else COLOURS[series.arm % len(COLOURS)]
    label = literal(series.name) if series.name else None
    if series.mark == "line":
        style: dict[str, Any] = {"linestyle": DASHES[series.dash], "alpha": series.alpha}
        axes.plot(
            series.x, series.y, color=colour, linewidth=POINTS * series.size, label=label, **style
        )
        return
    _draw_ends(axes, series, colour)
    axes.plot(
        series.x,
        series.y,
        _marker(series),
        linestyle="-" if series.joined else "",
        linewidth=1,
        color=colour,
        alpha=series.alpha,
        markersize=POINTS * series.size,
        markerfacecolor="none" if series.mark == "open" else colour,
        label=label,
    )
    for x, y, text in zip(series.x, series.y, series.labels, strict=False):
        place: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        axes.annotate(literal(text), (x, y), fontsize="x-small", **place)


def _marker(series: Series) -> str:
    if series.arm is None:
        return "*"
    return MARKERS[(series.arm + series.arm // len(COLOURS)) % len(MARKERS)]


def _draw_ends(axes: Axes, series: Series, colour: str) -> None:
    style: dict[str, Any] = {"color": colour, "linewidth": 0.8 * series.end_width}
    style["alpha"] = series.end_alpha
    if known := _known(series.y, series.x_ends):
        axes.hlines(*zip(*known, strict=True), **style)
    if known := _known(series.x, series.y_ends):
        axes.vlines(*zip(*known, strict=True), **style)


def _known(places: Sequence[float], ends: Sequence[Ends]) -> list[tuple[float, float, float]]:
    """Return (place, low, high) of the intervals that are known."""
    return [
        (place, low, high)
        for place, (low, high) in zip(places, ends, strict=False)
        if math.isfinite(low) and math.isfinite(high)
    ]


def _set_axis(axes: Axes, axis: Axis, letter: str) -> None:
    from matplotlib.ticker import PercentFormatter

    target = axes.xaxis if letter == "x" else axes.yaxis
    if axis.title:
        target.set_label_text(literal(axis.title), fontsize="small")
    if axis.kind == "rate":
        target.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if axis.kind == "log":
        axes.set(**{f"{letter}scale": "log"})
    if axis.rows:
        names = [literal(name) for name in axis.rows]
        target.set_ticks(range(len(names)), labels=names, fontsize="x-small")
        axes.set(**{f"{letter}lim": (-0.6, len(names) - 0.4)})
    if axis.limits is not None:
        axes.set(**{f"{letter}lim": axis.limits})
    if axis.from_zero:
        axes.set(**{f"{letter}lim": (0.0, None)})
