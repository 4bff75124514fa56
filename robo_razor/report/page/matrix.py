"""S_ij: success on every skill after every run, as a table of the page."""

from __future__ import annotations

import html
from typing import Any

from robo_razor.report.analysis import base_success
from robo_razor.report.arms import RunSet, shown_setting_of
from robo_razor.report.charts.chart import arm_colour
from robo_razor.report.format import UNKNOWN, percent
from robo_razor.report.sentences import skill_of


def success_matrix(runs: RunSet, report: dict[str, Any]) -> str:
    """Return success on skills (rows) after runs (columns), tinted by the change since the base."""
    columns = [
        (i, run)
        for i, (arm, entry) in enumerate(zip(runs.arms, report["arms"], strict=True))
        for run in shown_setting_of(arm, entry["shown_setting"]).runs
    ]
    heads, seeds = ["<th></th><th>base</th>"], ['<th class="seed">seed</th><th></th>']
    for i, arm in enumerate(runs.arms):
        count = sum(index == i for index, _ in columns)
        heads.append(
            f'<th class="head" colspan="{count}" style="--arm:{arm_colour(i)}">'
            f"{html.escape(arm.name)}</th>"
        )
    seeds += [f"<th>{run.seed}</th>" for _, run in columns]
    first = runs.runs[0]
    rows = []
    for skill in sorted(first.last.skills):
        before = base_success(first, skill)
        cells = [
            _cell(run.last.skills[skill]["success_rate"], base_success(run, skill))
            for _, run in columns
        ]
        rows.append(f"<tr><th>{html.escape(skill)}</th>{_cell(before, None)}{''.join(cells)}</tr>")
    cells = [_cell(run.last.new, run.first.new) for _, run in columns]
    rows.append(
        f'<tr class="new"><th>{html.escape(skill_of(runs.task))} (new)</th>'
        f"{_cell(first.first.new, None)}{''.join(cells)}</tr>"
    )
    return (
        '<div class="table matrix"><table><thead>'
        f"<tr>{''.join(heads)}</tr><tr>{''.join(seeds)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: float | None, base: float | None) -> str:
    if value is None:
        return f"<td>{UNKNOWN}</td>"
    change = 0.0 if base is None else value - base
    tone = "--loss" if change < 0 else "--gain"
    share = min(70.0, 85 * abs(change))
    text = percent(value).removesuffix("%")
    return f'<td style="--tone:var({tone});--share:{share:.0f}">{text}</td>'
