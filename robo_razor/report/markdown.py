"""The text of a comparison, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.plain_text import printable
from robo_razor.report import tables
from robo_razor.report.arms import arm_descriptions
from robo_razor.report.format import percent

if TYPE_CHECKING:
    from robo_razor.report.arms import RunSet
    from robo_razor.report.tables import Table

FIGURE_SUFFIX = ".png"
BOLD = "**"
_MARKUP = re.compile(
    r"[\\`*<>|~$&]|](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=\bwww)\.", re.IGNORECASE
)
"""Characters that begin or end markup, on GitHub too; a bracket only where a link would follow."""
LAW = "What explains forgetting"


def literal(text: str) -> str:
    """Return a text as Markdown that shows the text itself: no links, pictures, code or tables."""
    line = " ".join(printable(word) for word in text.split())
    return _MARKUP.sub(lambda match: f"\\{match.group()}", line)


def _sentence(text: str) -> str:
    """Return a sentence with its `**bold**` as markup and everything else as text."""
    marked = re.split(r"(\*\*)", text)
    return "".join(part if part == BOLD else _inner(part) for part in marked)


def _inner(text: str) -> str:
    """Return a part of a line as text, with the spaces at its ends."""
    left, right = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{left}{literal(text)}{right}" if text.strip() else text


def to_markdown(runs: RunSet, report: dict[str, Any], figures: Sequence[str]) -> str:
    """Return the report as Markdown.

    Args:
        runs: The runs of the comparison.
        report: The report's plain values.
        figures: File names of figures to show; only PNG files are shown.
    """
    parts = [
        *_statement(report),
        _arms(runs),
        "## At equal new-task success",
        _table(tables.matched_table(report)) or "No run rises above the base on the new task.",
        report["rule"],
    ]
    if seeds := tables.seed_table(runs, report):
        level = percent(report["headline_level"])
        parts += [f"### Every seed at {level} (intervals over episodes)", _table(seeds)]
    for title, table in (
        (
            "Difference between arms, at the highest level that both reach",
            tables.pair_table(report),
        ),
        (LAW, tables.predictor_rows(report)),
        ("Area under the frontier of new-task and prior success", tables.frontier_table(report)),
        ("Last checkpoints (intervals over episodes)", tables.last_table(runs.runs, report)),
        ("Prior skills at the last checkpoint", tables.skill_table(report)),
        ("Same start states, last checkpoints (exact McNemar)", tables.paired_table(runs, report)),
        (
            "Success on every skill after every run, last checkpoints, in percent",
            tables.matrix_table(runs, report),
        ),
        ("Settings that differ", tables.setting_table(runs)),
        ("Fingerprints", tables.fingerprint_table(runs, report)),
    ):
        if table:
            parts += [f"## {title}", _table(table)]
            if title == LAW:
                parts += map(literal, tables.predictor_remarks(report))
    if report["notes"]:
        parts += ["## Notes", "\n".join(f"- {literal(note)}" for note in report["notes"])]
    parts += [
        f"![{Path(name).stem.replace('_', ' ')}]({name})"
        for name in figures
        if name.endswith(FIGURE_SUFFIX)
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _statement(report: dict[str, Any]) -> list[str]:
    statement = report["statement"]
    return [
        f"# Comparison on {literal(report['task'])}",
        f"**{literal(statement['headline'].replace(BOLD, ''))}**",
        " ".join(_sentence(sentence) for sentence in statement["sentences"]),
    ]


def _arms(runs: RunSet) -> str:
    """Return a line about each arm."""
    lines = [
        f"- **{literal(name)}**: {literal(text)}" for name, text in arm_descriptions(runs).items()
    ]
    return "\n".join(lines)


def _table(table: Table) -> str:
    if not table:
        return ""
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.head))]
    lines = [list(table.head), rule, *table.rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in cells) + " |" for cells in lines)


def _cell(text: str) -> str:
    return literal(text.replace(tables.LINE, ", "))
