"""The messages of a run to its user: when it begins, resumes, is interrupted, or ends."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from robo_razor.core.errors import RunDirectoryError
from robo_razor.core.files import system_refusal
from robo_razor.core.run.display import format_seconds
from robo_razor.core.settings.config import FinetuneConfig

COMMAND_WIDTH = 70
"""Columns of a command, without the text before it."""
INDENT = " " * 8
MAX_LISTED = 12
"""Checkpoints whose steps a greeting lists; of more it gives the number."""


def plan(config: FinetuneConfig, total: int, skills: Iterable[str]) -> str:
    """Return what a run will do.

    Args:
        config: Its settings.
        total: Updates in the run.
        skills: The skills that may be forgotten.
    """
    steps = config.tracking.checkpoints(total)
    listed = ", ".join(map(str, steps)) if len(steps) <= MAX_LISTED else f"{len(steps)} of them"
    return (
        f"{config.method.name} on {config.task} from {config.policy}: {total} updates, checkpoints "
        f"after {listed}. Prior skills: {', '.join(skills) or 'none'}."
    )


def slow_bf16(name: str) -> str:
    """Return the warning of a method that computes in bfloat16 where that is emulated."""
    return (
        f"{name}.bf16 is set, but this processor has no instructions for bfloat16 and emulates "
        "them: the run takes several times longer than without it."
    )


def changed_since(differences: Iterable[str]) -> str:
    """Return the warning of a run that resumes under other conditions."""
    return (
        "since this run began, something changed that its results depend on: "
        f"{'; '.join(differences)}. The measurements from now on may not be comparable."
    )


def expensive_tracking(share: float, config: FinetuneConfig) -> str | None:
    """Return the warning of a run that measured for too long, None where it did not."""
    most = config.tracking.max_share
    if share <= most:
        return None
    return (
        f"tracking took {share:.0%} of the wall time, more than `tracking.max_share` = {most:.0%}: "
        "raise `tracking.every` or lower `tracking.episodes_prior`."
    )


def done(total: int, seconds: float, share: float, best: int | None) -> str:
    """Return the summary of a finished run."""
    return (
        f"Done: {total} updates in {format_seconds(seconds)}, tracking {share:.0%} of it. "
        f"Best checkpoint on the new task: step {best}."
    )


def what_next(path: Path) -> str:
    """Return where a finished run is, and the commands that look at it."""
    return "\n".join(
        (
            f"Run directory: {path}",
            f"Next: {shell('robo-razor', 'compare', str(path), '--out', 'report')}",
            f"      {shell('tensorboard', '--logdir', str(path))}",
        )
    )


def after_pretraining(out: str) -> str:
    """Return where a new base policy is, and the commands that use it."""
    return "\n".join(
        (
            f"Run directory: {out}",
            f"Next: {shell('robo-razor', 'evaluate', '--policy', out, '--skills', 'prior')}",
            f"      {shell('robo-razor', 'finetune', '--policy', out)}",
        )
    )


def shell(*arguments: str) -> str:
    """Return a command that can be copied: a long one is continued on further lines.

    Args:
        arguments: The program and its arguments; an option stays with its value.
    """
    lines = [""]
    for i, argument in enumerate(map(shlex.quote, arguments)):
        room = COMMAND_WIDTH if len(lines) == 1 else COMMAND_WIDTH - len(INDENT)
        follows = i > 0 and arguments[i - 1].startswith("--")
        value = (
            f" {shlex.quote(arguments[i + 1])}"
            if argument.startswith("--") and i + 1 < len(arguments)
            else ""
        )
        if lines[-1] and not follows and len(lines[-1]) + len(argument + value) + 1 > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {argument}".strip()
    return f" \\\n{INDENT}".join(lines)


def how_to_go_on(path: Path) -> str:
    """Return the command that resumes a run."""
    return f"robo-razor finetune --resume --out {path}"


def refused(error: OSError, last: int | None, path: Path) -> RunDirectoryError:
    """Return the error of a disk that is full, a folder that is gone, and so on.

    Args:
        error: The system's error.
        last: Step of the last checkpoint, None before the first.
        path: The run's directory.
    """
    intact = (
        "Nothing was saved yet: mend that and start again."
        if last is None
        else f"The checkpoint of step {last} is intact. Mend that (make room, say), then go on "
        f"with: {how_to_go_on(path)}"
    )
    return RunDirectoryError(system_refusal(error), remedy=intact)
