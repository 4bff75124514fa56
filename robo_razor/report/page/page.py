"""The page: one HTML file with everything in it, that opens without a network.

`page.html.j2` holds its text, and escapes every value; this module computes the values.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.files import without_nan
from robo_razor.report import tables
from robo_razor.report.analysis import FRONTIER_TOLERANCE, base_success
from robo_razor.report.arms import RunSet, arm_descriptions, setting_lines, shown_setting_of
from robo_razor.report.charts.comparison import apart, frontier_chart, matched_chart
from robo_razor.report.charts.law import law_chart
from robo_razor.report.charts.plotly import arm_colour, arm_symbol, page_data
from robo_razor.report.charts.skills import skill_chart
from robo_razor.report.charts.spec import Chart
from robo_razor.report.charts.training import MAX_SAMPLED, training_charts
from robo_razor.report.comparability import HARMLESS
from robo_razor.report.equal_success import GRID_RULE, shown_setting
from robo_razor.report.format import UNKNOWN, listing, number, percent, plural
from robo_razor.report.sentences import FIRST, against_parabola, skill_of
from robo_razor.report.tables import LINE

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from robo_razor.report.videos import Video

HERE = Path(__file__).parent
PLOTLY = "plotly-basic.min.js"
MANY_ROWS = 12
"""A table with more rows is folded."""
BEST_PREDICTORS = 8
"""Predictors in the table that is not folded."""
LONG_TEXT = 34
"""A table's cell with more characters is broken into lines."""
MANY_BUTTONS, LONG_LABEL = 8, 24
"""With more views, or a longer label, a menu replaces the buttons."""
MEDIA_TYPES = {".csv": "text/csv", ".json": "application/json"}
SHAPES = {
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
_INTERVAL = re.compile(r"^(?P<value>[^\[\]]*\S)\s(?P<rest>\[[^\[\]]*\].*)$")


@dataclass(frozen=True)
class ArmMark:
    """An arm's name, description, colour and marker on the page."""

    name: str
    about: str
    style: str
    shape: str

    @property
    def path(self) -> str:
        """The outline of its marker."""
        return SHAPES[self.shape]


@dataclass(frozen=True)
class MatrixCell:
    """Success on one skill after one run, tinted by the change since the base."""

    text: str
    tone: str = "--gain"
    share: int = 0


def make_page(
    runs: RunSet,
    report: dict[str, Any],
    files: Mapping[str, str],
    videos: Sequence[Video] = (),
    command: str | None = None,
) -> str:
    """Return the page.

    Args:
        runs: The runs of the comparison.
        report: The report's plain values.
        files: Name -> text of files that the page offers for download.
        videos: Videos of base and tuned policies on the same start states.
        command: The command that made the page; None: unknown.
    """
    descriptions = arm_descriptions(runs)
    arms = [
        ArmMark(arm.name, descriptions[arm.name], f"--arm:{arm_colour(i)}", arm_symbol(i))
        for i, arm in enumerate(runs.arms)
    ]
    charts = _charts(runs, report)
    template = _environment(arms).get_template("page.html.j2")
    return template.render(
        **_texts(runs, report),
        **_tables(runs, report),
        arms=arms,
        report=report,
        charts=charts,
        chart_data=_script_json(page_data([chart for group in charts.values() for chart in group])),
        videos=videos,
        downloads=_downloads(report, files),
        command=command,
        date=datetime.date.today().isoformat(),
        style=_file("page.css"),
        script=_file("page.js"),
        plotly=_file(PLOTLY),
    )


def _charts(runs: RunSet, report: dict[str, Any]) -> dict[str, list[Chart]]:
    """Return section -> its charts; a section without data has none."""
    level = report["headline_level"]
    levels = [block["level"] for block in report["matched"]]
    single = {
        "matched": matched_chart(runs, levels, level),
        "frontier": frontier_chart(runs, level),
        "law": law_chart(runs, report),
        "skills": skill_chart(report),
    }
    charts = {name: [] if chart is None else [chart] for name, chart in single.items()}
    return {**charts, "training": training_charts(runs, level)}


def _texts(runs: RunSet, report: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of the page that depend on the runs."""
    all_runs = runs.runs
    without_steps = [
        arm.name for arm in runs.arms if all(math.isnan(run.last.env_steps) for run in arm.runs)
    ]
    entries = [skill for arm in report["skills"] for skill in arm["skills"]]
    statement = report["statement"]
    selection = [shown_setting(arm, report["headline_level"]).runs for arm in runs.arms]
    return {
        "title": f"{skill_of(report['task'])}: what was learnt, what was kept",
        "first": statement["sentences"][:FIRST],
        "more": statement["sentences"][FIRST:],
        "facts": [
            plural(len(runs.arms), "arm"),
            plural(len(all_runs), "run"),
            plural(sum(len(run.checkpoints) for run in all_runs), "checkpoint"),
            plural(len(all_runs[0].last.skills), "prior skill"),
            f"base {listing(sorted({str(run.config.get('policy')) for run in all_runs}))}",
        ],
        "grid_rule": GRID_RULE if any(arm.settings[1:] for arm in runs.arms) else "",
        "tolerance": f"{100 * FRONTIER_TOLERANCE:.0f}",
        "apart": number(100 * apart(len(runs.arms)) * (len(runs.arms) - 1) / 2, 1)
        if apart(len(runs.arms))
        else "",
        "refusals": [
            f"**{pair['first']}** and **{pair['second']}** cannot be compared at equal success: "
            f"{pair['refused']}."
            for pair in report["comparisons"]
            if pair["refused"]
        ],
        "intervals_over": sorted({entry["interval_over"] for entry in entries} - {None}),
        "has_means": any(len(runs) > 1 for runs in selection),
        "sampled_drawn": sum(map(len, selection)) <= MAX_SAMPLED
        and any(run.last.sampled_n for runs in selection for run in runs),
        "without_steps": without_steps if len(without_steps) < len(runs.arms) else [],
        "notes": [note for note in report["notes"] if not note.startswith(HARMLESS)],
        "harmless": [
            note.removeprefix(HARMLESS).strip()
            for note in report["notes"]
            if note.startswith(HARMLESS)
        ],
        "settings": [
            (arm.runs[0].title, "\n".join(setting_lines(arm.runs[0]))) for arm in runs.arms
        ],
    }


def _tables(runs: RunSet, report: dict[str, Any]) -> dict[str, Any]:
    predictors = tables.predictor_rows(report)
    if predictors:
        predictors = predictors.below(1)
    return {
        "tables": {
            "headline": tables.headline_table(report),
            "matched": tables.matched_table(report),
            "seeds": tables.seed_table(runs, report),
            "pairs": tables.pair_table(report),
            "frontier": tables.frontier_table(report),
            "predictors": predictors,
            "best_predictors": replace(predictors, rows=predictors.rows[:BEST_PREDICTORS]),
            "settings": tables.setting_table(runs),
            "last": tables.last_table(runs.runs, report),
            "paired": tables.paired_table(runs, report),
            "fingerprints": tables.fingerprint_table(runs, report),
        },
        "shares": [e["r2"] for e in report["predictors"] if e["r2"] is not None],
        "remarks": tables.predictor_remarks(report),
        "matrix": _matrix(runs, report),
        "many_rows": MANY_ROWS,
    }


def _matrix(runs: RunSet, report: dict[str, Any]) -> dict[str, Any]:
    """Return S_ij, success on skills (rows) after runs (columns), with the heads of the columns."""
    groups = [
        shown_setting_of(arm, entry["shown_setting"]).runs
        for arm, entry in zip(runs.arms, report["arms"], strict=True)
    ]
    columns = [run for group in groups for run in group]
    first = runs.runs[0]
    rows = []
    for skill in sorted(first.last.skills):
        cells = [
            _matrix_cell(run.last.skills[skill].success_rate, base_success(run, skill))
            for run in columns
        ]
        rows.append((skill, [_matrix_cell(base_success(first, skill), None), *cells]))
    new = [_matrix_cell(run.last.new, run.first.new) for run in columns]
    rows.append((f"{skill_of(runs.task)} (new)", [_matrix_cell(first.first.new, None), *new]))
    return {
        "widths": [len(group) for group in groups],
        "seeds": [run.seed for run in columns],
        "rows": rows,
    }


def _matrix_cell(value: float | None, base: float | None) -> MatrixCell:
    if value is None:
        return MatrixCell(UNKNOWN)
    change = 0.0 if base is None else value - base
    return MatrixCell(
        percent(value).removesuffix("%"),
        "--loss" if change < 0 else "--gain",
        round(min(70.0, 85 * abs(change))),
    )


def _environment(arms: Sequence[ArmMark]) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    by_name = {arm.name: arm for arm in arms}

    def bold(text: str) -> Markup:
        return _bold(text, by_name)

    def cell(text: str, column: int) -> Markup:
        return _cell(text, column, by_name)

    environment.filters |= {
        "bold": bold,
        "cell": cell,
        "percent": percent,
        "number": number,
        "listing": listing,
        "against": against_parabola,
    }
    environment.globals |= {
        "is_long": lambda text: len(text) > LONG_TEXT,
        "is_menu": _is_menu,
    }
    return environment


def _is_menu(chart: Chart) -> bool:
    labels = [view.label for view in chart.views]
    return len(labels) > MANY_BUTTONS or max(map(len, labels)) > LONG_LABEL


def _bold(text: str, arms: Mapping[str, ArmMark]) -> Markup:
    """Return text with `**bold**` as HTML; an arm's name takes its colour."""
    from markupsafe import Markup, escape

    parts = re.split(r"\*\*(.+?)\*\*", text)
    html = Markup()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            html += escape(part)
        elif part in arms:
            html += Markup('<strong class="arm" style="{}">{}</strong>').format(
                arms[part].style, part
            )
        else:
            html += Markup("<strong>{}</strong>").format(part)
    return html


def _cell(text: str, column: int, arms: Mapping[str, ArmMark]) -> Markup:
    """Return a table's cell: an arm with its marker, an interval that breaks off on phones."""
    from markupsafe import Markup

    first, _, second = text.partition(LINE)
    if second:
        return Markup("{}<small>{}</small>").format(first, second)
    if column <= 1 and text in arms:
        arm = arms[text]
        marker = '<svg viewBox="-6.5 -6.5 13 13" aria-hidden="true"><path d="{}"/></svg>'
        html = Markup('<span class="swatch" style="{}">' + marker + "{}</span>")
        return html.format(arm.style, arm.path, text)
    parts = _INTERVAL.match(text)
    if parts is None:
        return Markup("{}").format(text)
    return Markup('{} <span class="interval">{}</span>').format(parts["value"], parts["rest"])


def _script_json(values: Any) -> Markup:
    """Return values as JSON for a script element: without `<`."""
    from markupsafe import Markup

    text = json.dumps(without_nan(values), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _downloads(report: dict[str, Any], files: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (name, media type, content in gzip and base64) of the page's downloads."""
    all_files = {**files, "report.json": json.dumps(report, indent=2, allow_nan=False)}
    return [
        (
            name,
            MEDIA_TYPES[Path(name).suffix],
            base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode(),
        )
        for name, text in all_files.items()
    ]


def _file(name: str) -> Markup:
    from markupsafe import Markup

    return Markup((HERE / name).read_text(encoding="utf-8"))
