"""`robo-razor finetune` and `robo-razor pretrain`: run them, and print the next commands."""

from __future__ import annotations

import os

from rich.console import Console

from robo_razor.core.plain_text import printable
from robo_razor.core.run import messages
from robo_razor.core.run.display import Display
from robo_razor.core.settings.config import FinetuneConfig, PretrainConfig
from robo_razor.training.pretrain import pretrain
from robo_razor.training.trainer import FinetuneResult, finetune


def run_finetune(config: FinetuneConfig, console: Console | None = None) -> FinetuneResult:
    """Fine-tune as the settings say, and print the run's directory and the next commands.

    Args:
        config: Settings of `robo-razor finetune`.
        console: Where progress and the result are shown; default: standard output.

    Raises:
        RoboRazorError: Something does not fit; nothing was overwritten.
    """
    console = console or Console()
    result = finetune(config, Display(console))
    if os.environ.get("RANK", "0") == "0":  # of several ranks only the first prints
        _print(messages.what_next(result.run), console)
    return result


def run_pretrain(config: PretrainConfig, console: Console | None = None) -> None:
    """Make a base policy as the settings say, and print the next commands.

    Args:
        config: Settings of `robo-razor pretrain`.
        console: Where progress and the result are shown; default: standard output.

    Raises:
        RoboRazorError: A task is unknown or has no scripted expert, or the directory is in use.
    """
    console = console or Console()
    pretrain(config, console)
    _print(messages.after_pretraining(config.out), console)


def _print(text: str, console: Console) -> None:
    lines = "\n".join(printable(line) for line in text.split("\n"))
    console.print(lines, markup=False, highlight=False, soft_wrap=True)
