"""The description of a chart: its content, not how it is drawn.

`plotly` draws it on the page and `matplotlib` as PNG and SVG. Texts are plain: each back end
escapes its own markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from robo_razor.core.files import finite
from robo_razor.report.arms import Arm
from robo_razor.report.format import number, percent, with_interval
from robo_razor.report.load import FORWARD_KL, Checkpoint, RunSeries

Ends = tuple[float, float]
"""The low and high end of an interval."""
Mark = Literal["point", "open", "star", "line"]
Dash = Literal["", "dot", "dash"]


@dataclass(frozen=True)
class Axis:
    """One axis."""

    title: str = ""
    kind: Literal["number", "rate", "log"] = "number"
    """`rate`: numbers in [0, 1], written in percent."""
    rows: tuple[str, ...] = ()
    """Names at 0, 1, ...: the axis is a list, first name at the bottom."""
    limits: Ends | None = None
    """Range shown; None: all of the data."""
    from_zero: bool = False


@dataclass(frozen=True)
class Series:
    """Points, or a line, of one arm."""

    arm: int | None
    """Index of the arm, which decides colour and marker; None: neutral."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    mark: Mark = "point"
    size: float = 8.0
    """Diameter of points or width of a line, in pixels of the page."""
    alpha: float = 1.0
    dash: Dash = ""
    joined: bool = False
    """Points with a thin line through them."""
    hover: tuple[str, ...] = ()
    """Texts at the pointer, one per point; the first line is the title."""
    labels: tuple[str, ...] = ()
    """Text drawn above each point."""
    x_ends: tuple[Ends, ...] = ()
    y_ends: tuple[Ends, ...] = ()
    end_width: float = 1.0
    """Width of the intervals' lines."""
    end_alpha: float = 1.0
    name: str = ""
    """Name in a printed legend; empty: none."""


@dataclass(frozen=True)
class Reference:
    """A dotted line through the whole panel, at an x or at a y."""

    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Remark:
    """The reason why a row has no point."""

    row: int
    text: str


@dataclass(frozen=True)
class Panel:
    """One coordinate system; panels of a view stand above each other and share their x axis."""

    series: tuple[Series, ...]
    x: Axis
    y: Axis
    references: tuple[Reference, ...] = ()
    remarks: tuple[Remark, ...] = ()
    share: float = 1.0
    """Part of the view's height."""


@dataclass(frozen=True)
class View:
    """One state of a chart: a level, a predictor, an x axis."""

    label: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Chart:
    """One figure; charts of one `group` are switched together."""

    id: str
    description: str
    height: int
    """Pixels on the page."""
    views: tuple[View, ...]
    selected: int = 0
    group: str = ""

    @property
    def shown(self) -> View:
        """The selected view."""
        return self.views[self.selected]


def line(
    arm: int | None,
    points: Sequence[tuple[float, float]],
    *,
    size: float,
    alpha: float = 1.0,
    dash: Dash = "",
    name: str = "",
) -> Series:
    """Return a line through (x, y); without an arm it is neutral."""
    x, y = columns(points)
    return Series(arm, x, y, "line", size, alpha, dash, name=name)


def base_star(where: Sequence[tuple[float, float]]) -> Series | None:
    """Return a star for the base at the mean of its measurements; None: there is none."""
    known = [(x, y) for x, y in where if math.isfinite(x) and math.isfinite(y)]
    if not known:
        return None
    x, y = (sum(values) / len(values) for values in zip(*known, strict=True))
    text = f"the base\nprior skills {percent(y)}"
    if len(set(known)) > 1:
        text += f"\nmean of {len(known)} measurements"
    return Series(None, (x,), (y,), "star", 13, hover=(text,), name="base")


def cut_at_zero(ends: Sequence[Sequence[float] | None]) -> tuple[Ends, ...]:
    """Return intervals cut off at 0, as a share cannot be negative.

    Unknown ends become NaN.
    """
    return tuple(
        (math.nan, math.nan)
        if pair is None or not math.isfinite(pair[0])
        else (max(0.0, pair[0]), math.nan if finite(pair[1]) is None else max(0.0, pair[1]))
        for pair in ends
    )


def shifted(series: Sequence[Series], dy: float) -> list[Series]:
    """Return series moved up, intervals too."""
    return [
        replace(
            item,
            y=tuple(y + dy for y in item.y),
            y_ends=tuple((low + dy, high + dy) for low, high in item.y_ends),
        )
        for item in series
    ]


def columns(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the x and the y of points."""
    return tuple(x for x, _ in points), tuple(y for _, y in points)


def describe(arm: Arm, run: RunSeries, checkpoint: Checkpoint) -> str:
    """Return the text at the pointer for a checkpoint, a line per fact."""
    lines = [
        f"{run.title}, update {checkpoint.step}",
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
    lines.append(f"{run.method}, seed {run.seed}" + (f", {setting}" if setting else ""))
    return "\n".join(lines)
