"""Starting runs as processes of this machine, and how many it carries at a time.

Whatever a run prints goes to its log. The log is locked by an open file that the run's processes
inherit, so even a sweep that was killed and started again sees which runs are still going.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from robo_razor.core.errors import SweepError
from robo_razor.core.fingerprint import cpu_count
from robo_razor.core.settings.config import FinetuneConfig

PROGRAM = (sys.executable, "-m", "robo_razor.cli")
RUN_MEMORY_GB = 3.0
"""Free memory that a run is reckoned with, its workers included, GiB."""


class Handle(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the run goes on."""
        ...

    def interrupt(self) -> None:
        """Ask the run to save a checkpoint and stop."""
        ...

    def kill(self) -> None:
        """Stop the run and all its processes at once."""
        ...


class Launcher(Protocol):
    """Where runs go."""

    parallel: int
    """Runs at a time."""
    threads: int
    """CPU threads that a run gets where the experiment does not say."""

    def start(self, words: Sequence[str], log: Path) -> Handle:
        """Start `robo-razor WORDS` and append what it prints to `log`."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class ProcessHandle:
    """A run in a process of this machine, with a session of its own.

    Ctrl-C therefore reaches it only through the sweep, once.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the run goes on."""
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


class LocalLauncher:
    """Starts runs as processes of this machine.

    Args:
        parallel: Runs at a time.
        program: What is called in place of `robo-razor`.
    """

    def __init__(self, parallel: int, program: Sequence[str] = PROGRAM) -> None:
        self.parallel = parallel
        self.threads = max(1, cpu_count() // parallel)
        self._program = tuple(program)

    def start(self, words: Sequence[str], log: Path) -> ProcessHandle:
        """Start `robo-razor WORDS` and append what it prints to `log`.

        Raises:
            SweepError: A process of the run is still going.
        """
        return ProcessHandle(start_process([*self._program, *words], log))

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def start_process(
    command: Sequence[str], log: Path, directory: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with its output appended to a locked log.

    Args:
        command: Program and arguments.
        log: File for what it prints.
        directory: Working directory; None: this process's.

    Raises:
        SweepError: A process that was started with this log is still going.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SweepError(f"A process is still writing to {log}") from error
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        # A process inherits what is blocked, and Ray blocks SIGINT in its own.
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
    """Tell whether a process that was started with this log is still going."""
    if not log.is_file():
        return False
    with log.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def cores_of(config: FinetuneConfig) -> int:
    """Return the CPU cores that a run keeps busy: one per environment worker."""
    return max(1, config.env.num_workers)


def machine_limit(configs: Sequence[FinetuneConfig]) -> int:
    """Return how many of these runs the machine carries at a time, by its cores and free memory."""
    by_cores = cpu_count() // max((cores_of(config) for config in configs), default=1)
    free = free_memory_gb()
    by_memory = by_cores if free is None else int(free / RUN_MEMORY_GB)
    return max(1, min(by_cores, by_memory))


def free_memory_gb() -> float | None:
    """Return the memory that can still be used, GiB; None where the system does not tell."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    for line in info.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024**2
    return None
