"""The figures of a comparison that are written as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robo_razor.report.arms import RunSet
from robo_razor.report.charts.comparison import frontier_chart, matched_chart
from robo_razor.report.charts.law import (
    best_law_chart,
    law_chart,
    learning_chart,
    on_states,
    predictor_chart,
)
from robo_razor.report.charts.matplotlib import save
from robo_razor.report.charts.skills import skill_chart
from robo_razor.report.charts.spec import Chart, Panel
from robo_razor.report.charts.training import training_charts
from robo_razor.report.format import percent
from robo_razor.report.load import FORWARD_KL

MAX_SKILLS = 60
"""Most skills in a figure; of more, it shows those with the lowest retention."""
SUCCESS = ("training-new", "training-prior")
"""Charts along training that become one figure."""
HEIGHT = 440
"""Pixels of most figures."""


@dataclass(frozen=True)
class Figure:
    """Panels of a chart that become a PNG and an SVG."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    height: float = HEIGHT


def draw_figures(runs: RunSet, report: dict[str, Any], out: Path) -> list[str]:
    """Draw all figures that the runs have data for; return their file names."""
    return [
        name
        for figure in figures_of(runs, report)
        for name in save(figure.panels, figure.title, figure.height, out / figure.name)
    ]


def figures_of(runs: RunSet, report: dict[str, Any]) -> list[Figure]:
    """Return the figures that the runs have data for."""
    level = report["headline_level"]
    matched = matched_chart(runs, [] if level is None else [level], level)
    law = law_chart(runs, report)
    laws = law.views[0].panels if law and report["law"]["n_points"] else ()
    laws = tuple(on_states(panel, FORWARD_KL) for panel in laws)
    training = [chart for chart in training_charts(runs, level) if chart.id in SUCCESS]
    figures = [
        _figure("matched", f"At {percent(level)} success on the new task", matched),
        _figure(
            "new_against_prior", "What learning the new task costs", frontier_chart(runs, level)
        ),
        Figure("prior_against_kl", "Forgetting against distance from the base", laws[:1]),
        _figure(
            "prior_against_best",
            "Forgetting against the predictor that explains most",
            best_law_chart(runs, report),
        ),
        Figure("residuals", "Forgetting: measured minus fitted", laws[1:]),
        _figure("new_against_kl", "Learning against distance from the base", learning_chart(runs)),
        _figure("predictors", "What explains forgetting", predictor_chart(report)),
        _figure(
            "skills", "Kept of each prior skill, last checkpoint", skill_chart(report, MAX_SKILLS)
        ),
        Figure(
            "along_training",
            "Along training",
            tuple(panel for chart in training for panel in chart.views[0].panels),
            300 * len(training),
        ),
    ]
    return [figure for figure in figures if figure is not None and figure.panels]


def _figure(name: str, title: str, chart: Chart | None) -> Figure | None:
    """Return the first view of a chart as a figure; None: there is no chart."""
    if chart is None:
        return None
    height = chart.height if chart.id in ("matched", "skills") else HEIGHT
    return Figure(name, title, chart.shown.panels, height)
