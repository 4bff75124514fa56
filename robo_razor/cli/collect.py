"""`robo-razor collect`: write demonstrations as a data set."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from robo_razor.core.plain_text import printable
from robo_razor.core.run.messages import shell
from robo_razor.core.settings.config import CollectConfig
from robo_razor.rollout.demonstrations import EXPERT, Collected, collect
from robo_razor.statistics.intervals import wilson_interval

NEXT = ("robo-razor", "finetune", "--method", "bc", "--bc.demonstrations")
"""The command that learns from the demonstrations; the directory follows."""


def run_collect(config: CollectConfig, console: Console | None = None) -> Path:
    """Collect demonstrations as the settings say and write them as a LeRobotDataset v3.

    Args:
        config: Settings of `robo-razor collect`.
        console: Where progress and the result are shown; default: standard output.

    Returns:
        The dataset's directory.

    Raises:
        RoboRazorError: Unknown task or policy, output in use, or too few successes.
    """
    console = console or Console()
    collected = collect(config, console)
    show_collected(config, collected, console)
    return collected.directory


def show_collected(config: CollectConfig, collected: Collected, console: Console) -> None:
    """Print what was written, the demonstrator's success rate, and the next command."""
    low, high = wilson_interval(collected.succeeded, collected.tried)
    demonstrator = f"the expert, style {config.style}" if config.policy == EXPERT else config.policy
    successes = f"{collected.succeeded} of {collected.tried} episodes succeeded"
    lines = (
        f"{collected.episodes} episodes of {', '.join(collected.tasks)} in {collected.directory}",
        f"Demonstrated by {demonstrator}: {successes}",
        f"({collected.succeeded / collected.tried:.0%}, 95 % interval {low:.0%} - {high:.0%}); "
        "only successes are written.",
        f"Next: {shell(*NEXT, str(collected.directory))}",
    )
    for text in lines:
        for line in text.split("\n"):
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
