"""Launchers, which start the runs of a sweep: one module per launcher, registered under its name.

`robo-razor sweep FILE --backend NAME` takes the launcher of that name. One of your own is a class
with the methods of `Launcher`::

    from robo_razor.core.plugins import LAUNCHERS

    @LAUNCHERS.register("slurm")
    class Slurm:
        def __init__(self, parallel, configs):
            self.parallel, self.threads = parallel or 100, 4

        def start(self, arguments, log):
            ...  # submit `robo-razor ARGUMENTS`, its output appended to `log`; return a `Handle`

        def close(self): ...

The sweep finds it by `--plugins my_module`, or by an entry point `slurm = "my_module:Slurm"` in the
group `robo_razor.launchers` of an installed package. The machines must see the sweep's directory
under the same path: the sweep reads the state of its runs from there, and resumes them from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from robo_razor.core.settings.config import FinetuneConfig


class Handle(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it is running."""
        ...

    def interrupt(self) -> None:
        """Ask the run to save a checkpoint and stop."""
        ...

    def kill(self) -> None:
        """Stop the run and all its processes at once."""
        ...


class Launcher(Protocol):
    """Starts runs; the sweep decides the order.

    A launcher is a class that is called with

    - `parallel`: runs at a time (>= 1); None: as many as there is room for;
    - `configs`: the settings of all runs, which tell what a run needs (`cores_of`, `device`);

    and raises `SweepError` where it cannot work.
    """

    parallel: int
    """Runs at a time (>= 1)."""
    threads: int
    """CPU threads of a run, unless the experiment sets them."""

    def start(self, arguments: Sequence[str], log: Path) -> Handle:
        """Start `robo-razor ARGUMENTS` and append its output to `log`.

        Args:
            arguments: A command, e.g. `finetune --resume --out runs/x`; paths are relative to the
                working directory.
            log: File, which need not exist yet.

        Raises:
            SweepError: The run cannot be started; it counts as failed.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def cores_of(config: FinetuneConfig) -> int:
    """Return the CPU cores that a run keeps busy: one per environment worker."""
    return max(1, config.env.num_workers)


def cores_needed(configs: Sequence[FinetuneConfig]) -> int:
    """Return the CPU cores that the largest of some runs keeps busy."""
    return max(map(cores_of, configs), default=1)
