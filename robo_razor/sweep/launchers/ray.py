"""Starting runs on a Ray cluster: `robo-razor sweep FILE --backend ray`.

Connects to the cluster that RAY_ADDRESS names or that runs on this machine, else starts Ray here.
All machines of a cluster must see the working directory under the same path (a shared file system)
and have robo-razor installed. Ray decides where a run goes; the rest (order, resuming, failures) is
the same as without Ray.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robo_razor.core.errors import SweepError
from robo_razor.core.plugins import LAUNCHERS
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.sweep.launchers import cores_needed
from robo_razor.sweep.processes import PROGRAM, ProcessHandle, start_process

LOST = -int(signal.SIGKILL)
"""Exit status of a run whose machine or Ray worker disappeared."""
POLL_S = 0.2
OBJECT_STORE_BYTES = 100 * 1024**2
"""Ray's shared memory on this machine; a run passes it a number only."""


class RayHandle:
    """A run in a Ray task, which keeps the run's process as a child."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def poll(self) -> int | None:
        """Return the exit status; None while the run is running or waits for a place."""
        import ray
        from ray.exceptions import RayError

        ready, _ = ray.wait([self._task], timeout=0)
        if not ready:
            return None
        try:
            return int(ray.get(self._task))
        except RayError:
            return LOST

    def interrupt(self) -> None:
        """Ask the run to save a checkpoint and stop."""
        import ray

        ray.cancel(self._task)

    def kill(self) -> None:
        """Stop the run and all its processes at once."""
        import ray

        ray.cancel(self._task)  # the second one: see `_keep`
        while self.poll() is None:
            time.sleep(POLL_S)


@LAUNCHERS.register("ray")
class RayLauncher:
    """Starts runs as Ray tasks.

    Args:
        parallel: Runs at a time; None: as the cluster's cores allow.
        configs: Settings of the runs. They share the cluster's GPUs, unless all are for the CPU.
        program: The command to call in place of `robo-razor`.

    Raises:
        SweepError: Ray is not installed or does not start, or has too few cores for one run.
    """

    def __init__(
        self,
        parallel: int | None,
        configs: Sequence[FinetuneConfig] = (),
        program: Sequence[str] = PROGRAM,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise SweepError(
                "`--backend ray` needs Ray, which is not installed",
                remedy="Install it: `uv pip install --editable '.[ray]'` in the checkout.",
            ) from error
        self._program = tuple(program)
        self._owner = not ray.is_initialized()
        if self._owner:
            connect(ray)
        resources = ray.cluster_resources()
        available, cores = int(resources.get("CPU", 0)), cores_needed(configs)
        if available < cores:
            self.close()
            raise SweepError(
                f"A run keeps {cores} cores busy, but Ray has {available}",
                remedy="Lower `env.num_workers`, or start Ray with more cores.",
            )
        self.parallel = parallel or available // cores
        self.threads = cores
        on_gpu = any(config.device != "cpu" for config in configs)
        gpus = resources.get("GPU", 0.0) if on_gpu else 0.0  # without its share a task sees none
        share = math.floor(1e4 * min(1.0, gpus / self.parallel)) / 1e4
        self._task = ray.remote(num_cpus=cores, num_gpus=share, max_retries=0)(_keep)

    def start(self, arguments: Sequence[str], log: Path) -> RayHandle:
        """Start `robo-razor ARGUMENTS` and append its output to `log`."""
        directory = os.getcwd()
        command = [*self._program, *arguments]
        return RayHandle(self._task.remote(command, str(Path(directory, log)), directory))

    def close(self) -> None:
        """Disconnect; Ray's processes end if they were started here."""
        import ray

        if self._owner and ray.is_initialized():
            ray.shutdown()


def connect(ray: Any, cores: int | None = None) -> None:
    """Connect to a cluster, or start Ray on this machine where there is none.

    Args:
        ray: The module.
        cores: Cores that a Ray started here offers; None: all.

    Raises:
        SweepError: Ray does not start.
    """
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address="auto", **options)
        return
    except ConnectionError:
        pass
    try:
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **options,
        )
    except Exception as error:  # Ray raises a plain `Exception` after 30 s
        ray.shutdown()
        raise SweepError(
            f"Ray does not start on this machine ({error})",
            remedy="Start a cluster first (`ray start --head`), or use `--backend local`.",
        ) from error


def _keep(command: Sequence[str], log: str, directory: str) -> int:
    """Run a command to its end (on the machine that Ray chose) and return its exit status.

    Ray cancels a task by raising KeyboardInterrupt in it: at the first one the command may save
    itself, at the second it is killed.
    """
    process = ProcessHandle(start_process(command, Path(log), directory))
    interrupts = 0
    while True:
        try:
            status = process.poll()
            if status is not None:
                return status
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            interrupts += 1
            process.interrupt() if interrupts == 1 else process.kill()
