"""`robo-razor collect`: write demonstrations as a data set."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from robo_razor.core.settings.config import CollectConfig
from robo_razor.rollout.demonstrations import Collected, collect


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
    show_collected(collected, console)
    return collected.directory


def show_collected(collected: Collected, console: Console) -> None:
    """Print what was written."""
    console.print(
        f"{collected.episodes} episodes of {', '.join(collected.tasks)} in {collected.directory}",
        highlight=False,
        markup=False,
    )
