"""Runs on this machine, as many at a time as its cores and memory allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robo_razor.core.machine import available_bytes, cpu_count
from robo_razor.core.plugins import LAUNCHERS
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.sweep.launchers import cores_needed
from robo_razor.sweep.processes import PROGRAM, ProcessHandle, start_process

RUN_MEMORY_BYTES = 3 * 2**30
"""Estimated memory of a run, its workers included."""


@LAUNCHERS.register("local")
class LocalLauncher:
    """Starts runs as processes of this machine.

    Args:
        parallel: Runs at a time; None: as cores and memory allow.
        configs: Settings of the runs.
        program: The command to call in place of `robo-razor`.
    """

    def __init__(
        self,
        parallel: int | None,
        configs: Sequence[FinetuneConfig] = (),
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.parallel = parallel or machine_limit(configs)
        self.threads = max(1, cpu_count() // self.parallel)
        self._program = tuple(program)

    def start(self, arguments: Sequence[str], log: Path) -> ProcessHandle:
        """Start `robo-razor ARGUMENTS` and append its output to `log`.

        Raises:
            SweepError: A process of the run is still running.
        """
        return ProcessHandle(start_process([*self._program, *arguments], log))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def machine_limit(configs: Sequence[FinetuneConfig]) -> int:
    """Return how many of these runs fit on the machine at a time, by its cores and free memory."""
    by_cores = cpu_count() // cores_needed(configs)
    free = available_bytes()
    by_memory = by_cores if free is None else free // RUN_MEMORY_BYTES
    return max(1, min(by_cores, by_memory))
