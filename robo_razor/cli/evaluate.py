"""`robo-razor evaluate`: measure a policy's success on skills and show it as a table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robo_razor.core.metrics import NEW, PRIOR
from robo_razor.core.plain_text import literal, printable
from robo_razor.core.settings.config import EvaluateConfig
from robo_razor.core.types import SkillResult
from robo_razor.evaluation.evaluate import evaluate_as_set


def run_evaluate(config: EvaluateConfig, console: Console | None = None) -> dict[str, SkillResult]:
    """Evaluate a policy as the settings say, show a table, and write the result to `json`.

    Args:
        config: Settings of `robo-razor evaluate`.
        console: Where progress and the table are shown; default: standard output.

    Returns:
        Skill name -> result.

    Raises:
        RoboRazorError: Unknown skills or policy, a policy that does not fit the environment, or a
            start state that is not the manifest's.
    """
    console = console or Console()
    try:
        evaluation = evaluate_as_set(config, console)
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ()):
            console.print(note, markup=False)
        raise
    if evaluation.is_main:
        show_results(config, evaluation.results, console)
    return evaluation.results


def show_results(
    config: EvaluateConfig, results: Mapping[str, SkillResult], console: Console
) -> None:
    """Print a table of results, and the skills whose intervals are still too wide."""
    source = config.manifest or f"start states from seed {config.seed_offset}"
    console.print(results_table(results, f"{config.policy}, {config.mode}, {source}"))
    for skill, result in results.items():
        low, high = result.interval
        if config.until_width is not None and high - low > config.until_width:
            console.print(
                f"{printable(skill)}: after {result.n} episodes the interval is {high - low:.3f} "
                f"wide, more than {config.until_width:g}; allow more episodes (`--episodes`).",
                markup=False,
            )


def results_table(results: Mapping[str, SkillResult], title: str = "") -> Table:
    """Return a table of skills with success rates and 95 % Wilson intervals."""
    table = Table(title=escape(printable(title)) or None, title_justify="left")
    table.add_column("skill", overflow="fold")
    table.add_column("role", no_wrap=True)
    for name in ("success", "95 % interval", "n", "mean steps"):
        table.add_column(name, justify="right", no_wrap=True)
    for skill, result in results.items():
        low, high = result.interval
        table.add_row(
            literal(skill),
            result.role,
            f"{result.success_rate:.1%}",
            f"{low:.1%} - {high:.1%}",
            str(result.n),
            f"{result.mean_control_steps:.0f}",
        )
    for role in (PRIOR, NEW):
        rates = [r.success_rate for r in results.values() if r.role == role]
        if len(rates) > 1:
            table.add_section()
            table.add_row(f"mean of {len(rates)}", role, f"{np.mean(rates):.1%}", "", "", "")
    return table
