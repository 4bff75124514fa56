"""The command line: arguments become settings and a call."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `robo-razor` with the arguments of the command line; return the exit status."""
    from robo_razor.cli.commands import main as run  # slow to import

    return run(argv)
