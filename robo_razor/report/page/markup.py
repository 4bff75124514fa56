"""Pieces of the page's HTML: sections, tables, controls, the arms' markers."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence

from robo_razor.report.charts.chart import Chart, arm_colour, arm_symbol
from robo_razor.report.tables import LINE, Table

LONG_TEXT = 34
"""Characters beyond which a table's cell is broken into lines."""
MANY_BUTTONS, LONG_LABEL = 8, 24
"""Views beyond which, and label length from which, a menu takes the place of buttons."""

_SHAPES = {
    # Marker -> its outline in a box from -6 to 6, as Plotly draws it.
    "circle": "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z",
    "square": "M-4.6-4.6H4.6V4.6H-4.6Z",
    "diamond": "M0-6L6 0L0 6L-6 0Z",
    "triangle-up": "M0-5.5L6 4.5H-6Z",
    "triangle-down": "M0 5.5L6-4.5H-6Z",
    "pentagon": "M0-6L5.7-1.9L3.5 4.9H-3.5L-5.7-1.9Z",
    "cross": "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "x": "M-6-3.4L-3.4-6L0-2.6L3.4-6L6-3.4L2.6 0L6 3.4L3.4 6L0 2.6L-3.4 6L-6 3.4L-2.6 0Z",
}


class Markup:
    """Turns texts and tables into HTML; arms are known by name and get their colour and marker."""

    def __init__(self, arms: Sequence[str]) -> None:
        self.arms = list(arms)

    def legend(self) -> str:
        """Return the bar of arms, each a button that hides and shows it."""
        buttons = "".join(
            f'<button type="button" aria-pressed="true" style="{_arm_style(i)}">'
            f"{_marker(i)}{html.escape(name)}</button>"
            for i, name in enumerate(self.arms)
        )
        return f'<nav class="legend" aria-label="Arms: hide or show"><div>{buttons}</div></nav>'

    def table(self, table: Table, bars: Mapping[int, Sequence[float]] | None = None) -> str:
        """Return a table that scrolls sideways where it has to; nothing without rows.

        Args:
            table: Its texts.
            bars: Column -> share per row, drawn as a bar before the text.
        """
        if not table:
            return ""
        head = "".join(
            f"<th{_class(i in table.numeric)}>{html.escape(text)}</th>"
            for i, text in enumerate(table.head)
        )
        rows = []
        for r, row in enumerate(table.rows):
            cells = "".join(
                f"<td{_class(i in table.numeric, text)}>{_bar(bars, i, r)}"
                f"{self._cell(text, i)}</td>"
                for i, text in enumerate(row)
            )
            rows.append(f"<tr>{cells}</tr>")
        return (
            f'<div class="table"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )

    def rich(self, text: str) -> str:
        """Return text with `**bold**` as HTML; an arm's name takes its colour."""

        def bold(found: re.Match[str]) -> str:
            words = html.unescape(found[1])
            if words in self.arms:
                style = _arm_style(self.arms.index(words))
                return f'<strong class="arm" style="{style}">{found[1]}</strong>'
            return f"<strong>{found[1]}</strong>"

        return re.sub(r"\*\*(.+?)\*\*", bold, html.escape(text))

    def _cell(self, text: str, column: int) -> str:
        first, _, second = text.partition(LINE)
        if second:
            return f"{html.escape(first)}<small>{html.escape(second)}</small>"
        if column > 1 or text not in self.arms:
            return html.escape(text)
        i = self.arms.index(text)
        return (
            f'<span class="swatch" style="{_arm_style(i)}">{_marker(i)}{html.escape(text)}</span>'
        )


def section(title: str, parts: Sequence[str]) -> str:
    """Return a section of the page."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>\n"


def fold(title: str, body: str) -> str:
    """Return something that is folded away until it is asked for; nothing without a body."""
    if not body:
        return ""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def control(chart: Chart, name: str) -> str:
    """Return what switches a chart's views: buttons, or a menu where they are many or long."""
    if len(chart.views) < 2:
        return ""
    label = f"<span>{html.escape(name)}</span>"
    texts = [html.escape(view.label) for view in chart.views]
    if len(texts) > MANY_BUTTONS or max(map(len, texts)) > LONG_LABEL:
        options = "".join(
            f"<option{' selected' if i == chart.selected else ''}>{text}</option>"
            for i, text in enumerate(texts)
        )
        inner = f'{label}<select aria-label="{html.escape(name)}">{options}</select>'
    else:
        pressed = [json.dumps(i == chart.selected) for i in range(len(texts))]
        inner = label + "".join(
            f'<button type="button" aria-pressed="{state}">{text}</button>'
            for state, text in zip(pressed, texts, strict=True)
        )
    return f'<div class="control" data-group="{chart.group or chart.id}">{inner}</div>'


def plot(chart: Chart) -> str:
    """Return the place that the page's script draws a chart in."""
    return (
        f'<div class="plot" id="{chart.id}" role="img" style="min-height:{chart.height}px" '
        f'aria-label="{html.escape(chart.description)}"></div>'
    )


def _arm_style(i: int) -> str:
    return f"--arm:{arm_colour(i)}"


def _marker(i: int) -> str:
    path = f'<path d="{_SHAPES[arm_symbol(i)]}"/>'
    return f'<svg viewBox="-6.5 -6.5 13 13" aria-hidden="true">{path}</svg>'


def _class(numeric: bool, text: str = "") -> str:
    if numeric:
        return ' class="num"'
    return ' class="long"' if len(text) > LONG_TEXT else ""


def _bar(bars: Mapping[int, Sequence[float]] | None, column: int, row: int) -> str:
    if bars is None or column not in bars:
        return ""
    share = max(0.0, min(1.0, bars[column][row]))
    return f'<i class="bar" style="--share:{share:.3f}"></i>'
