"""A launcher of your own: the runs of a sweep, one after another on this machine."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen

from robo_razor.core.machine import cpu_count
from robo_razor.core.plugins import LAUNCHERS
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.sweep.processes import PROGRAM, start_process


class StartedRun:
    """A run that was started. On a cluster these would be the commands of its queue."""

    def __init__(self, process: Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the run goes on."""
        return self.process.poll()

    def interrupt(self) -> None:
        """Ask the run to save a checkpoint and stop."""
        self.process.terminate()

    def kill(self) -> None:
        """Stop the run and its workers at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@LAUNCHERS.register("my_launcher")
class MyLauncher:
    """Starts one run at a time, which gets all cores of this machine.

    Args:
        parallel: Runs at a time that were asked for; None: as many as there is room for.
        configs: Settings of all runs.
    """

    def __init__(self, parallel: int | None, configs: Sequence[FinetuneConfig]) -> None:
        self.parallel = 1
        self.threads = cpu_count()

    def start(self, arguments: Sequence[str], log: Path) -> StartedRun:
        """Start `robo-razor ARGUMENTS`, with what it prints appended to `log`."""
        return StartedRun(start_process([*PROGRAM, *arguments], log))

    def close(self) -> None:
        """Let go of what the sweep needed: here there is nothing."""
