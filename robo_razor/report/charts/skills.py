"""The chart of the retention of every prior skill."""

from __future__ import annotations

import math
from typing import Any

from robo_razor.report.charts.spec import Axis, Chart, Panel, Reference, Series, View, cut_at_zero
from robo_razor.report.format import percent, with_interval


def skill_chart(report: dict[str, Any], most: int | None = None) -> Chart | None:
    """Return the share kept of every prior skill: a row per skill, a marker per arm.

    Args:
        report: The report's plain values.
        most: Most skills in the chart; of more, it shows those with the lowest retention.
    """
    arms = _drawn_skills(report, most)
    if not arms:
        return None
    names = [entry["skill"] for entry in arms[0]["skills"]]
    width = min(0.26, 0.76 / len(arms))
    series = []
    for i, arm in enumerate(arms):
        rows = [
            (len(names) - 1 - k - width * (i - (len(arms) - 1) / 2), entry)
            for k, entry in enumerate(arm["skills"])
            if entry["retention"] is not None
        ]
        if rows:
            series += _arm_series(i, arm["arm"], rows)
    left_out = len(report["skills"][0]["skills"]) - len(names)
    title = f"{left_out} skills with higher retention are left out" if left_out else ""
    panel = Panel(
        tuple(series),
        Axis("share of the base's success kept", "rate", from_zero=True),
        Axis(title, rows=tuple(names[::-1])),
        (Reference(x=1.0),),
    )
    height = 90 + len(names) * max(34, 11 * len(arms) + 14)
    return Chart("skills", "Share kept of each prior skill", height, (View("", (panel,)),))


def _drawn_skills(report: dict[str, Any], most: int | None) -> list[dict[str, Any]]:
    """Return the arms with the skills that are drawn, the same for all arms."""

    def least(k: int) -> float:
        retentions = [arm["skills"][k]["retention"] for arm in report["skills"]]
        return min((value for value in retentions if value is not None), default=math.inf)

    count = len(report["skills"][0]["skills"]) if report["skills"] else 0
    drawn = sorted(sorted(range(count), key=least)[:most])
    return [{**arm, "skills": [arm["skills"][k] for k in drawn]} for arm in report["skills"]]


def _arm_series(i: int, name: str, rows: list[tuple[float, dict[str, Any]]]) -> list[Series]:
    seeds = [(value, y) for y, e in rows for value in e["values"] if len(e["values"]) > 1]
    series = []
    if seeds:
        texts = tuple(f"{name}, one seed\nkeeps {percent(value)}" for value, _ in seeds)
        x, y = tuple(value for value, _ in seeds), tuple(y for _, y in seeds)
        series.append(Series(i, x, y, size=4, alpha=0.5, hover=texts))
    known = any(entry.get("interval") for _, entry in rows)
    means = Series(
        i,
        tuple(entry["retention"] for _, entry in rows),
        tuple(y for y, _ in rows),
        size=9,
        hover=tuple(_text(name, entry) for _, entry in rows),
        x_ends=cut_at_zero([entry["interval"] for _, entry in rows]) if known else (),
        end_width=1.5,
        end_alpha=0.7,
        name=name,
    )
    return [*series, means]


def _text(name: str, entry: dict[str, Any]) -> str:
    retention = f"keeps {with_interval(entry['retention'], entry['interval'])}"
    if entry.get("interval_over"):
        retention += f", interval over {entry['interval_over']}"
    success = f"success {percent(entry['success_rate'])}, n = {entry['n']}"
    return f"{name}, {entry['skill']}\n{retention}\n{success}"
