"""A faulty worker is reported with what is needed to replay its episodes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NO_GUARD = 77
"""Exit code of a worker process that would start workers itself, while it reads its script."""
_STARTING = "GYM_RAZOR_STARTS_WORKERS"


class WorkerError(RuntimeError):
    """A worker process died, hung or raised; the text names its episodes and their dump."""


class StartError(WorkerError):
    """Worker processes cannot be started from this program; the text says what to do."""


class EnvironmentFault(RuntimeError):
    """An environment raised, or broke the contract; the text names task, seed and control step."""


class Breach(ValueError):
    """What an environment offers or gives cannot be used; the text goes on after its name."""


def dump_episodes(
    reason: str, episodes: Sequence[Mapping[str, Any]], directory: str | Path | None = None
) -> Path:
    """Write episodes to a JSON file.

    Args:
        reason: What went wrong.
        episodes: Per episode `env`, `task`, `seed`, `instruction` and `actions`: a start state is a
            pure function of (task, seed), so that is enough to replay it.
        directory: Where; the system's temporary folder if None.
    """
    folder = Path(directory or tempfile.gettempdir())
    path = folder / f"gym_razor-fault-{os.getpid()}-{time.time_ns()}.json"
    path.write_text(json.dumps({"reason": reason, "episodes": list(episodes)}))
    return path


def worker_error(worker: str, what: str, episodes: Sequence[Mapping[str, Any]], dump: Path) -> str:
    """Return the text of a `WorkerError`."""
    named = ", ".join(f"{episode['task']} seed {episode['seed']}" for episode in episodes[:4])
    more = f" and {len(episodes) - 4} more" if len(episodes) > 4 else ""
    return (
        f"{worker} {what}. Its episodes ({named}{more}) with the actions so far are in {dump}; "
        "replay one by resetting its task with its seed and stepping those actions."
    )


def unguarded() -> StartError:
    """Return the error for a script that starts workers as it is read, which every worker does."""
    return StartError(
        "Worker processes cannot start, because your script makes environments as soon as it is "
        "read, and every worker reads it first. Put what your script runs under "
        '`if __name__ == "__main__":`, or make the environments with num_workers=0.'
    )


def check_can_start() -> None:
    """Check that this program can start worker processes.

    In a worker that is still reading its script, the process ends quietly: its parent says why.

    Raises:
        StartError: The program was not read from a file that a worker could read.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False) and _STARTING in os.environ:
        os._exit(NO_GUARD)
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and path is not None and not Path(path).exists():
        raise StartError(
            f"Worker processes cannot start, because the program comes from {Path(path).name}, "
            "which they cannot read. Save it as a file, with what it runs under "
            '`if __name__ == "__main__":`, or make the environments with num_workers=0.'
        )


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Start worker processes within; see `check_can_start`."""
    os.environ[_STARTING] = "1"
    try:
        yield
    finally:
        os.environ.pop(_STARTING, None)
