"""The page: one HTML file with everything in it, that opens without a network."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.errors import ReportError
from robo_razor.reporting import charts, charts_of_runs, tables
from robo_razor.reporting.analysis import FRONTIER_TOLERANCE
from robo_razor.reporting.arms import RunSet, shown_flat_settings
from robo_razor.reporting.chart import Chart, arm_colour, arm_symbol
from robo_razor.reporting.matching import GRID_RULE
from robo_razor.reporting.matrix import success_matrix
from robo_razor.reporting.statement import skill_of
from robo_razor.reporting.words import listing, number, plural

if TYPE_CHECKING:
    from robo_razor.reporting.tables import Table
    from robo_razor.reporting.videos import Video

HERE = Path(__file__).parent
MANY_ROWS = 12
"""Rows beyond which a table is folded away."""

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


def make_page(
    runs: RunSet, report: dict[str, Any], files: Mapping[str, str], videos: Sequence[Video] = ()
) -> str:
    """Return the page.

    Args:
        runs: What is compared.
        report: The report's plain values.
        files: Name -> text of files that the page offers for download.
        videos: Base and tuned on the same start states.
    """
    page = _Page(runs, report)
    sections = [
        page.matched(),
        page.frontier(),
        page.law(),
        page.skills(),
        page.videos(videos),
        page.training(),
        page.provenance(),
        page.notes(),
        _downloads(report, files),
    ]
    values = json.dumps([chart.to_dict() for chart in page.charts], allow_nan=False)
    title = html.escape(f"{skill_of(report['task'])}: what was learnt, what was kept")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="robo-razor {html.escape(report["robo_razor"])}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{page.header()}
{page.legend()}
<main>
{"".join(sections)}</main>
<footer>Made by robo-razor {html.escape(report["robo_razor"])}. This file needs no network.</footer>
<script type="application/json" id="charts">{values.replace("</", "<\\/")}</script>
<script>{_plotly()}</script>
<script>
{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


class _Page:
    """Builds the sections and keeps the charts that they use."""

    def __init__(self, runs: RunSet, report: dict[str, Any]) -> None:
        self.runs, self.report = runs, report
        self.charts: list[Chart] = []
        self.arm_names = [arm.name for arm in runs.arms]

    def header(self) -> str:
        statement = self.report["statement"]
        sentences = "".join(f"<p>{self._rich(text)}</p>" for text in statement["sentences"])
        every = self.runs.runs
        bases = sorted({str(run.config.get("policy")) for run in every})
        facts = [
            plural(len(self.runs.arms), "arm"),
            plural(len(every), "run"),
            plural(sum(len(run.checkpoints) for run in every), "checkpoint"),
            f"{plural(len(every[0].last.skills), 'prior skill')}",
            f"base {listing(bases)}",
        ]
        return (
            '<header class="top"><div class="eyebrow"><span>robo-razor comparison on '
            f"{html.escape(self.report['task'])}</span>"
            '<button class="theme" type="button">Dark</button></div>'
            f"<h1>{self._rich(statement['headline'])}</h1>"
            f'<div class="lede">{sentences}</div>'
            f'<p class="facts">{html.escape(" · ".join(facts))}</p></header>'
        )

    def legend(self) -> str:
        buttons = "".join(
            f'<button type="button" aria-pressed="true" style="{_arm_style(i)}">'
            f"{_marker(i)}{html.escape(name)}</button>"
            for i, name in enumerate(self.arm_names)
        )
        return f'<nav class="legend" aria-label="Arms: hide or show"><div>{buttons}</div></nav>'

    def matched(self) -> str:
        report = self.report
        levels = [block["level"] for block in report["matched"]]
        chart = charts.matched_chart(self.runs, levels, report["headline_level"])
        if chart is None:
            return ""
        pairs, every = tables.pair_table(report), tables.matched_table(report)
        parts = [f"<p>{html.escape(report['rule'])}</p>"]
        if any(arm.settings[1:] for arm in self.runs.arms):
            parts.append(f"<p>{html.escape(GRID_RULE)}</p>")
        parts += [self._figure(chart, "New-task success"), self._table(every, "All levels")]
        if pairs:
            folded = len(pairs.rows) > MANY_ROWS
            title = "Differences between arms, at the highest level that both reach"
            parts.append(self._table(pairs, title) if folded else f"<h3>{title}</h3>")
            parts.append("" if folded else self._table(pairs))
        return _section("At equal success on the new task", parts)

    def frontier(self) -> str:
        chart = charts.frontier_chart(self.runs, self.report["headline_level"])
        if chart is None:
            return ""
        text = (
            "Every point is a checkpoint; up and to the right is better. Filled points lie within "
            f"{100 * FRONTIER_TOLERANCE:.0f} points of their arm's frontier, which the line joins; "
            "the star is the base."
        )
        rows = [
            (entry["arm"], str(len(entry["points"])), tables.show_estimate(entry["hypervolume"]))
            for entry in self.report["frontier"]
        ]
        head = ("arm", "checkpoints near the frontier", "area under the frontier, per seed")
        table = tables.Table(head, tuple(rows), frozenset({1, 2}))
        parts = [f"<p>{text}</p>", self._figure(chart), self._table(table, "Areas")]
        return _section("Learning against forgetting", parts)

    def law(self) -> str:
        chart = charts.law_chart(self.runs, self.report)
        if chart is None:
            return ""
        fit = self.report["law"]
        if fit["r2"] is None:
            text = f"No law is fitted: {fit['reason']}."
        else:
            text = (
                "A second-degree polynomial of prior success in the distance from the base, over "
                f"{fit['n_points']} checkpoints. On a run left out of the fit it errs by "
                f"{number(100 * (fit['leave_one_run_out_rmse'] or 0), 1)} points (root mean "
                "square). Intervals are from a bootstrap over whole runs."
            )
        parts = [f"<p>{html.escape(text)}</p>", self._figure(chart, "Predictor")]
        return _section("What explains forgetting", [*parts, self._predictors()])

    def _predictors(self) -> str:
        table = tables.predictor_rows(self.report)
        if not table:
            return ""
        bars = [entry["r2"] for entry in self.report["predictors"] if entry["r2"] is not None]
        without = tables.unfitted(self.report)
        remark = f"<p>Not fitted: {html.escape('; '.join(without))}.</p>" if without else ""
        title = "Predictors by the share of variation that they explain"
        return f"<h3>{title}</h3>{self._html_table(table, bars={2: bars})}{remark}"

    def skills(self) -> str:
        chart = charts_of_runs.skill_chart(self.report)
        if chart is None:
            return ""
        over = {
            skill["interval_over"] for arm in self.report["skills"] for skill in arm["skills"]
        } - {None}
        text = "What each arm keeps of each prior skill at its last checkpoint, not at equal "
        text += "success. The dotted line is the base."
        if over:
            text += f" Intervals (95%) are over {listing(sorted(over))}"
            text += (
                " (one run: nothing is known about other seeds)." if over == {"episodes"} else "."
            )
        parts = [f"<p>{text}</p>", self._figure(chart)]
        parts.append("<h3>Success on every skill after every run</h3>")
        parts.append(
            "<p>In percent at the last checkpoint, next to the base. Orange: below the base; "
            "blue: above it.</p>"
        )
        parts.append(success_matrix(self.runs, self.report))
        return _section("Skill by skill", parts)

    def training(self) -> str:
        found = charts_of_runs.training_charts(self.runs, self.report["headline_level"])
        if not found:
            return ""
        self.charts += found
        without = [
            arm.name
            for arm in self.runs.arms
            if all(run.last.env_steps != run.last.env_steps for run in arm.runs)
        ]
        text = "Every line is a run."
        if without and len(without) < len(self.runs.arms):
            text += (
                f" {listing(without)} {'learn' if len(without) > 1 else 'learns'} from "
                "demonstrations, without environment steps of its own."
            )
        control = _control(found[0], "Against")
        panels = "".join(_plot(chart) for chart in found)
        parts = [f"<p>{html.escape(text)}</p>", control, f'<div class="panels">{panels}</div>']
        return _section("Along training", parts)

    def videos(self, videos: Sequence[Video]) -> str:
        if not videos:
            return ""
        blocks = "".join(
            f"<figure>{video.tag()}<figcaption>{html.escape(video.caption)}</figcaption></figure>"
            for video in videos
        )
        text = (
            "The base and tuned policies from the same start states. These were picked because "
            "outcomes differ there; they are no sample."
        )
        return _section(
            "Base and tuned, side by side",
            [f"<p>{text}</p>", f'<div class="videos">{blocks}</div>'],
        )

    def provenance(self) -> str:
        settings = tables.setting_table(self.runs)
        parts = ["<h3>Settings that differ</h3>", self._table(settings)]
        for arm in self.runs.arms:
            lines = [f"{key}: {value}" for key, value in shown_flat_settings(arm.runs[0]).items()]
            body = f"<pre>{html.escape(chr(10).join(lines))}</pre>"
            parts.append(_fold(f"All settings of {arm.runs[0].name}", body))
        parts.append(self._table(tables.last_table(self.runs.runs), "Last checkpoint of every run"))
        paired = tables.paired_table(self.report)
        title = "Episodes on the same start states, last checkpoints (exact McNemar)"
        parts.append(self._table(paired, title) if paired else "")
        prints = tables.fingerprint_table(self.report)
        if prints:
            parts += ["<h3>Made with</h3>", self._table(prints, "Versions and machine")]
        return _section("What was run", parts)

    def notes(self) -> str:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in self.report["notes"])
        return _section("Before you believe it", [f'<ul class="notes">{items}</ul>'])

    def _figure(self, chart: Chart, control: str = "") -> str:
        self.charts.append(chart)
        return f"<figure>{_control(chart, control)}{_plot(chart)}</figure>"

    def _table(self, table: Table, fold: str = "") -> str:
        if not table:
            return ""
        body = self._html_table(table)
        return _fold(fold, body) if fold else body

    def _html_table(self, table: Table, bars: Mapping[int, Sequence[float]] | None = None) -> str:
        head = "".join(
            f"<th{_class(i in table.numeric)}>{html.escape(text)}</th>"
            for i, text in enumerate(table.head)
        )
        rows = []
        for r, row in enumerate(table.rows):
            cells = "".join(
                f"<td{_class(i in table.numeric)}>{_bar(bars, i, r)}{self._cell(text, i)}</td>"
                for i, text in enumerate(row)
            )
            rows.append(f"<tr>{cells}</tr>")
        return (
            f'<div class="table"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )

    def _cell(self, text: str, column: int) -> str:
        if column > 1 or text not in self.arm_names:
            return html.escape(text)
        i = self.arm_names.index(text)
        return (
            f'<span class="swatch" style="{_arm_style(i)}">{_marker(i)}{html.escape(text)}</span>'
        )

    def _rich(self, text: str) -> str:
        """Return HTML of text with `**bold**`; an arm's name takes its colour."""

        def bold(found: re.Match[str]) -> str:
            words = html.unescape(found[1])
            if words in self.arm_names:
                style = _arm_style(self.arm_names.index(words))
                return f'<strong class="arm" style="{style}">{found[1]}</strong>'
            return f"<strong>{found[1]}</strong>"

        return re.sub(r"\*\*(.+?)\*\*", bold, html.escape(text))


def _section(title: str, parts: Sequence[str]) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>\n"


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def _control(chart: Chart, name: str) -> str:
    """Return what switches a chart's views: buttons, or a menu where they are many or long."""
    if len(chart.views) < 2:
        return ""
    label = f"<span>{html.escape(name)}</span>"
    texts = [html.escape(view.label) for view in chart.views]
    if len(texts) > 8 or max(map(len, texts)) > 24:
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


def _plot(chart: Chart) -> str:
    return (
        f'<div class="plot" id="{chart.id}" role="img" style="min-height:{chart.height}px" '
        f'aria-label="{html.escape(chart.description)}"></div>'
    )


def _downloads(report: dict[str, Any], files: Mapping[str, str]) -> str:
    kinds = {".csv": "text/csv", ".json": "application/json", ".md": "text/markdown"}
    every = {**files, "report.json": json.dumps(report, indent=2, allow_nan=False)}
    items = "".join(
        f'<li><a download="{name}" href="data:{kinds[Path(name).suffix]};charset=utf-8;base64,'
        f'{base64.b64encode(text.encode()).decode()}">{name}</a></li>'
        for name, text in every.items()
    )
    return _section("Download", [f'<ul class="downloads">{items}</ul>'])


def _arm_style(i: int) -> str:
    return f"--arm:{arm_colour(i)}"


def _marker(i: int) -> str:
    path = f'<path d="{_SHAPES[arm_symbol(i)]}"/>'
    return f'<svg viewBox="-6.5 -6.5 13 13" aria-hidden="true">{path}</svg>'


def _class(numeric: bool) -> str:
    return ' class="num"' if numeric else ""


def _bar(bars: Mapping[int, Sequence[float]] | None, column: int, row: int) -> str:
    if bars is None or column not in bars:
        return ""
    share = max(0.0, min(1.0, bars[column][row]))
    return f'<i class="bar" style="--share:{share:.3f}"></i>'


def _plotly() -> str:
    """Return Plotly's script, from the installed package.

    Raises:
        ReportError: The package is missing.
    """
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        raise ReportError(
            "The package plotly is missing, which draws the page's figures",
            remedy="Install it: `pip install plotly`.",
        )
    return (Path(found.origin).parent / "package_data" / "plotly.min.js").read_text(
        encoding="utf-8"
    )
