"""`robo-razor compare`: call the comparison, report its progress, and show the result."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from robo_razor.core.plain_text import literal, printable
from robo_razor.core.settings.config import CompareConfig
from robo_razor.report.build import Comparison, Written, run_compare
from robo_razor.report.format import UNKNOWN, number, percent, plural, with_interval
from robo_razor.report.sentences import FIRST

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def run(config: CompareConfig, console: Console | None = None) -> Comparison:
    """Compare runs as the settings say, write the report, and show its main numbers.

    Args:
        config: Settings of `robo-razor compare`.
        console: Where progress and the result are shown; default: standard output.

    Raises:
        ReportError: No run is given, one cannot be read, or they cannot be compared.
    """
    from rich.console import Console

    from robo_razor.cli.films import film

    console = console or Console(highlight=False)

    def say(line: str) -> None:
        console.print(printable(line), markup=False, highlight=False)

    comparison, written = run_compare(config, film=film, command=command_of(config), progress=say)
    show(comparison, console)
    _show_files(written, console)
    return comparison


def command_of(config: CompareConfig) -> str:
    """Return the command that gives these settings."""
    argv = ["robo-razor", "compare", *config.runs, "--out", config.out]
    if config.match:
        argv += ["--match", *(f"{level:g}" for level in config.match)]
    if config.merge:
        argv += ["--merge", *config.merge]
    default = CompareConfig()
    if config.videos != default.videos:
        argv += ["--videos", str(config.videos)]
    if config.allow_unlike:
        argv.append("--allow-unlike")
    return printable(shlex.join(argv))


def show(comparison: Comparison, console: Console) -> None:
    """Print the headline, the first sentences, and two tables, within 80 columns."""
    from rich.text import Text

    console.print()
    console.print(Text(_line(comparison.headline), style="bold"))
    for sentence in comparison.sentences[:FIRST]:
        console.print(Text(_line(sentence)))
    if comparison.headline_level is not None:
        console.print()
        console.print(_matched(comparison, comparison.headline_level))
        for line in _choices(comparison, comparison.headline_level):
            console.print(Text(line, style="dim"))
    console.print()
    console.print(_last(comparison))


def _line(text: str) -> str:
    """Return a sentence with plain spaces, at which a terminal breaks lines."""
    return " ".join(printable(word) for word in text.split())


def _matched(comparison: Comparison, level: float) -> Table:
    table = _table(f"At {percent(level)} success on the new task, with 95% intervals")
    for name, numeric in (("arm", False), ("seeds", True), ("prior success", True)):
        _column(table, name, numeric=numeric)
    _column(table, "kept", numeric=True)
    _column(table, "KL", numeric=True)
    for match in comparison.at(level).values():
        if match.reason is not None:
            continue
        cells = []
        for quantity in ("prior", "retention"):
            estimate = match.estimate(quantity)
            over = match.over_episodes(quantity)
            cells.append(with_interval(estimate.value, over or estimate.interval))
        kl = match.estimate("kl").value
        table.add_row(literal(match.arm), str(len(match.runs)), *cells, number(kl))
    return table


def _choices(comparison: Comparison, level: float) -> list[str]:
    """Return the setting that represents each arm with several, and why arms are missing."""
    lines = []
    for match in comparison.at(level).values():
        if match.reason is not None:
            lines.append(f" {match.arm}: {match.reason}")
        elif match.setting:
            lines.append(f" {match.arm}: {match.setting}, {match.choice}")
    return [printable(line) for line in lines]


def _last(comparison: Comparison) -> Table:
    from robo_razor.report.load import FORWARD_KL

    table = _table("Last checkpoints: success, share of the prior skills kept (over episodes)")
    _column(table, "run")
    for name in ("new task", "kept", "KL"):
        _column(table, name, numeric=True)
    for run in comparison.runs.runs:
        last = run.last
        new = f"{percent(run.first.new)} → {with_interval(last.new, last.new_interval)}"
        retention = with_interval(last.retention, last.retention_interval)
        kl = number(last.kl.get(FORWARD_KL)) if FORWARD_KL in last.kl else UNKNOWN
        table.add_row(literal(run.title), new, retention, kl)
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )


def _column(table: Table, name: str, *, numeric: bool = False) -> None:
    if numeric:
        table.add_column(name, justify="right", no_wrap=True)
    else:
        table.add_column(name, overflow="fold")


def _show_files(written: Written, console: Console) -> None:
    figures = plural(len(written.figures), "figure")
    others = [figures, plural(len(written.tables), "CSV file"), written.json.name]
    if written.videos:
        others.insert(1, plural(len(written.videos), "video"))
    lines = (
        f"Page: {written.page}",
        f"Text: {written.markdown}",
        f"Beside them: {', '.join(others[:-1])} and {others[-1]}",
    )
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
