"""Runs as processes of this machine.

A run prints to its log. An open file that the run's processes inherit locks the log, so even a
sweep that was killed and started again sees which runs are still running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from robo_razor.core.errors import SweepError
from robo_razor.core.files import lock

PROGRAM = (sys.executable, "-m", "robo_razor.cli")


class ProcessHandle:
    """A run in a process of this machine, with a session of its own.

    Ctrl-C therefore reaches it only through the sweep, once.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it is running."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Ask the run to save a checkpoint and stop."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Stop the run and all its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def start_process(
    command: Sequence[str], log: Path, directory: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with its output appended to a locked log.

    Args:
        command: Program and arguments.
        log: File for its output.
        directory: Working directory; None: this process's.

    Raises:
        SweepError: A process that was started with this log is still running.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        if lock(output) is False:
            raise SweepError(f"A process is still writing to {log}")
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        # A process inherits blocked signals, and Ray blocks SIGINT in its own processes.
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def is_writing(log: Path) -> bool:
    """Return whether a process that was started with this log is still running."""
    if not log.is_file():
        return False
    with log.open("ab") as file:
        return lock(file) is False
