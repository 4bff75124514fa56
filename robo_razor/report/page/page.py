"""The page: one HTML file with everything in it, that opens without a network."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.errors import ReportError
from robo_razor.core.files import without_nan
from robo_razor.report import tables
from robo_razor.report.analysis import FRONTIER_TOLERANCE
from robo_razor.report.arms import RunSet, setting_lines
from robo_razor.report.charts import charts, charts_of_runs
from robo_razor.report.charts.chart import Chart
from robo_razor.report.equal_success import GRID_RULE
from robo_razor.report.format import listing, number, percent, plural
from robo_razor.report.page.markup import Markup, control, fold, paragraph, plot, section
from robo_razor.report.page.matrix import success_matrix
from robo_razor.report.sentences import skill_of

if TYPE_CHECKING:
    from robo_razor.report.videos import Video

HERE = Path(__file__).parent
MANY_ROWS = 12
"""Rows beyond which a table is folded away."""


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
    values = json.dumps(without_nan([chart.to_dict() for chart in page.charts]), allow_nan=False)
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
{page.markup.legend()}
<main>
{"".join(sections)}</main>
<footer>Made by robo-razor {html.escape(report["robo_razor"])}. This file needs no network.</footer>
<script type="application/json" id="charts">{values.replace("<", "\\u003c")}</script>
<script>{_plotly()}</script>
<script>
{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


class _Page:
    """Builds the sections and keeps the charts that they use; a section may be empty."""

    def __init__(self, runs: RunSet, report: dict[str, Any]) -> None:
        self.runs, self.report = runs, report
        self.charts: list[Chart] = []
        self.markup = Markup([arm.name for arm in runs.arms])

    def header(self) -> str:
        statement = self.report["statement"]
        sentences = "".join(f"<p>{self.markup.rich(text)}</p>" for text in statement["sentences"])
        every = self.runs.runs
        facts = [
            plural(len(self.runs.arms), "arm"),
            plural(len(every), "run"),
            plural(sum(len(run.checkpoints) for run in every), "checkpoint"),
            plural(len(every[0].last.skills), "prior skill"),
            f"base {listing(sorted({str(run.config.get('policy')) for run in every}))}",
        ]
        return (
            '<header class="top"><div class="eyebrow"><span>robo-razor comparison on '
            f"{html.escape(self.report['task'])}</span>"
            '<button class="theme" type="button">Dark</button></div>'
            f"<h1>{self.markup.rich(statement['headline'])}</h1>"
            f'<div class="lede">{sentences}</div>'
            f'<p class="facts">{html.escape(" · ".join(facts))}</p></header>'
        )

    def matched(self) -> str:
        report = self.report
        levels = [block["level"] for block in report["matched"]]
        chart = charts.matched_chart(self.runs, levels, report["headline_level"])
        pairs = tables.pair_table(report)
        parts = [paragraph(report["rule"])]
        if any(arm.settings[1:] for arm in self.runs.arms):
            parts.append(paragraph(GRID_RULE))
        if chart is not None:
            every = self.markup.table(tables.matched_table(report))
            seeds = self.markup.table(tables.seed_table(report))
            level = percent(report["headline_level"])
            parts += [
                self._figure(chart, "New-task success"),
                fold("All levels", every),
                fold(f"Every seed at {level}, intervals over episodes", seeds),
            ]
        elif not pairs:
            return ""
        title = "Differences between arms, at the highest level that both reach"
        table = self.markup.table(pairs)
        if len(pairs.rows) > MANY_ROWS:
            parts.append(fold(title, table))
        elif pairs:
            parts.append(f"<h3>{title}</h3>{table}")
        return section("At equal success on the new task", parts)

    def frontier(self) -> str:
        chart = charts.frontier_chart(self.runs, self.report["headline_level"])
        if chart is None:
            return ""
        text = (
            "Every point is a checkpoint; up and to the right is better. The line joins the "
            "checkpoints that no other one of their arm beats; filled points have at most "
            f"{100 * FRONTIER_TOLERANCE:.0f} points less than one of those on either axis; "
            "the star is the base."
        )
        if (level := self.report["headline_level"]) is not None:
            text += f" The dotted line is the level of the comparison above, {percent(level)}."
        areas = self.markup.table(tables.frontier_table(self.report))
        parts = [paragraph(text), self._figure(chart), fold("Area under each frontier", areas)]
        return section("Learning against forgetting", parts)

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
                f"{fit['n_points']} checkpoints. Intervals are from a bootstrap over whole runs."
            )
            if fit["gap"] is not None:
                low, high = (number(end) for end in fit["gap"])
                text += (
                    f" No checkpoint lies between {low} and {high} nats, so the shape of the curve "
                    "there is a guess, and R² only says that the two sides differ."
                )
            if fit["within_r2"] is not None:
                text += f" Within arms it explains {percent(fit['within_r2'])} of the variation."
            if fit["leave_one_run_out_rmse"] is not None:
                error = number(100 * fit["leave_one_run_out_rmse"], 1)
                text += f" On a run left out of the fit it errs by {error} points (RMS)."
            falloff = self.report["falloff"]
            if falloff["half"] is not None:
                low, high = (number(end) for end in falloff["half_interval"])
                text += (
                    " The dashed curve is level at first (Hill's, with as many coefficients): R² "
                    f"{number(falloff['r2'])}, half gone at {number(falloff['half'])} nats "
                    f"[{low}, {high}]."
                )
        parts = [paragraph(text), self._figure(chart, "Predictor"), self._predictors()]
        return section("What explains forgetting", parts)

    def _predictors(self) -> str:
        table = tables.predictor_rows(self.report)
        if not table:
            return ""
        bars = [entry["r2"] for entry in self.report["predictors"] if entry["r2"] is not None]
        remarks = tables.predictor_remarks(self.report)
        return (
            "<h3>Predictors by the share of variation that they explain</h3>"
            + self.markup.table(table, bars={1: bars})
            + "".join(paragraph(remark) for remark in remarks)
        )

    def skills(self) -> str:
        chart = charts_of_runs.skill_chart(self.report)
        if chart is None:
            return ""
        entries = [skill for arm in self.report["skills"] for skill in arm["skills"]]
        over = sorted({entry["interval_over"] for entry in entries} - {None})
        text = (
            "What each arm keeps of each prior skill at its last checkpoint, which is not equal "
            "success on the new task. The dotted line is the base."
        )
        if over:
            alone = (
                " of one run, which say nothing about other seeds" if "seeds" not in over else ""
            )
            text += f" Intervals (95%) are over {listing(over)}{alone}."
        return section(
            "Skill by skill",
            [
                paragraph(text),
                self._figure(chart),
                "<h3>Success on every skill after every run</h3>",
                paragraph(
                    "In percent at the last checkpoint, next to the base. Orange: below the base; "
                    "blue: above it."
                ),
                success_matrix(self.runs, self.report),
            ],
        )

    def videos(self, videos: Sequence[Video]) -> str:
        if not videos:
            return ""
        blocks = "".join(
            f"<figure>{video.tag()}<figcaption>{html.escape(video.caption)}</figcaption></figure>"
            for video in videos
        )
        text = (
            "The base and tuned policies from the same start states, picked because outcomes "
            "differ there: they are no sample."
        )
        parts = [paragraph(text), f'<div class="videos">{blocks}</div>']
        return section("Base and tuned, side by side", parts)

    def training(self) -> str:
        found = charts_of_runs.training_charts(self.runs, self.report["headline_level"])
        if not found:
            return ""
        self.charts += found
        without = [
            arm.name
            for arm in self.runs.arms
            if all(math.isnan(run.last.env_steps) for run in arm.runs)
        ]
        text = (
            "Every line is a run. Success is that of the likeliest (greedy) action; thin dotted "
            "lines are success with sampled actions. Bars are 95% over episodes."
        )
        if any(arm.settings[1:] for arm in self.runs.arms):
            text += " Of an arm with several settings one is shown; the table below has them all."
        if without and len(without) < len(self.runs.arms):
            text += f" No environment steps of its own: {listing(without)}."
        panels = "".join(plot(chart) for chart in found)
        parts = [paragraph(text), control(found[0], "Against")]
        return section("Along training", [*parts, f'<div class="panels">{panels}</div>'])

    def provenance(self) -> str:
        every = [
            f"<h3>{html.escape(arm.runs[0].name)}</h3>"
            f"<pre>{html.escape(chr(10).join(setting_lines(arm.runs[0])))}</pre>"
            for arm in self.runs.arms
        ]
        table = self.markup.table
        parts = [
            "<h3>Settings that differ</h3>",
            table(tables.setting_table(self.runs)),
            fold("All settings of one run of each arm", "".join(every)),
            fold(
                "Last checkpoint of every run, intervals over episodes",
                table(tables.last_table(self.runs.runs)),
            ),
            fold(
                "Episodes on the same start states, last checkpoints (exact McNemar)",
                table(tables.paired_table(self.report)),
            ),
            fold("Fingerprints", table(tables.fingerprint_table(self.report))),
        ]
        return section("What was run", parts)

    def notes(self) -> str:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in self.report["notes"])
        return section("Before you believe it", [f'<ul class="notes">{items}</ul>'])

    def _figure(self, chart: Chart, name: str = "") -> str:
        self.charts.append(chart)
        return f"<figure>{control(chart, name)}{plot(chart)}</figure>"


def _downloads(report: dict[str, Any], files: Mapping[str, str]) -> str:
    kinds = {".csv": "text/csv", ".json": "application/json", ".md": "text/markdown"}
    every = {**files, "report.json": json.dumps(report, indent=2, allow_nan=False)}
    items = "".join(
        f'<li><a download="{name}" href="data:{kinds[Path(name).suffix]};charset=utf-8;base64,'
        f'{base64.b64encode(text.encode()).decode()}">{name}</a></li>'
        for name, text in every.items()
    )
    return section("Download", [f'<ul class="downloads">{items}</ul>'])


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
