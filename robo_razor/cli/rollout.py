"""`robo-razor rollout`: run a policy on a task and print how often it succeeded."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from robo_razor.core.settings.config import RolloutConfig
from robo_razor.core.types import EpisodeBatch
from robo_razor.rollout.episodes import Progress, episode_bar
from robo_razor.rollout.video import Rollout, roll_out
from robo_razor.statistics.intervals import wilson_interval

REPORT_EVERY_S = 10.0
"""Time between two lines of progress where there is no terminal, in seconds."""


def run_rollout(config: RolloutConfig, console: Console | None = None) -> EpisodeBatch:
    """Run a policy on a task as the settings say, print its success, and write the video.

    Args:
        config: Settings of `robo-razor rollout`.
        console: Where progress and the result are shown; default: standard output, and progress on
            standard error.

    Returns:
        The episodes.

    Raises:
        RoboRazorError: Unknown task or policy, or one that does not fit the environment.
    """
    about = console or Console(stderr=True)
    about.print(
        f"Rolling out {config.episodes} episodes of {config.policy} on {config.task} ...",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    with episode_bar(about, f"{config.policy} on {config.task}") as bar:
        rollout = roll_out(config, bar if about.is_terminal else progress_lines())
    show_rollout(config, rollout, console or Console())
    return rollout.batch


def show_rollout(config: RolloutConfig, rollout: Rollout, console: Console) -> None:
    """Print how often the policy succeeded, and where the video is."""
    batch = rollout.batch
    successes, n = int(batch.success.sum()), len(batch)
    low, high = wilson_interval(successes, n)
    console.print(
        f"{config.policy} on {rollout.task}: {successes} of {n} episodes succeeded "
        f"({successes / n:.0%}, 95 % interval {low:.0%} - {high:.0%}); instruction: "
        f"{batch.instructions[0]!r}",
        highlight=False,
        markup=False,
    )
    if rollout.video is not None:
        console.print(f"Video: {rollout.video}", highlight=False, markup=False)


def progress_lines() -> Progress:
    """Return a callback that writes a line to standard error now and then."""
    last = time.monotonic()

    def progress(finished: int, total: int, successes: int) -> None:
        nonlocal last
        if finished < total and time.monotonic() - last < REPORT_EVERY_S:
            return
        last = time.monotonic()
        sys.stderr.write(f"{finished} of {total} episodes, success {successes / finished:.0%}\n")
        sys.stderr.flush()

    return progress
