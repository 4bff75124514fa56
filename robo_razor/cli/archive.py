"""`robo-razor archive`: write an archive and print its content."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from robo_razor.core.plain_text import printable
from robo_razor.core.run.archive import write_archive
from robo_razor.core.settings.config import ArchiveConfig


def run_archive(config: ArchiveConfig) -> None:
    """Archive a sweep or a run.

    Raises:
        ConfigError: No directory or no file name is given.
        RunDirectoryError: The directory holds neither a sweep nor a run with an evaluation.
    """
    archived = write_archive(config.directory, config.out)
    runs = "1 run" if archived.runs == 1 else f"{archived.runs} finished runs"
    text = f"{runs} of {Path(config.directory)} in {archived.file} ({archived.size / 1e6:.2f} MB)"
    Console().print(printable(text), markup=False, soft_wrap=True)
