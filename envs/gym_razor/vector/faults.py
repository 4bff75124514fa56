"""Faults of workers and environments, and the dump from which episodes can be replayed."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class WorkerError(RuntimeError):
    """A worker process died, hung or raised; the text names its episodes and their dump."""


class EnvironmentFault(RuntimeError):
    """An environment raised, or broke the contract; the text names task, seed and control step."""


class Breach(ValueError):
    """An environment breaks the contract; the text continues a sentence after its name."""


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


def worker_error(worker: str, fault: str, episodes: Sequence[Mapping[str, Any]], dump: Path) -> str:
    """Return the text of a `WorkerError`."""
    named = ", ".join(f"{episode['task']} seed {episode['seed']}" for episode in episodes[:4])
    more = f" and {len(episodes) - 4} more" if len(episodes) > 4 else ""
    return (
        f"{worker} {fault}. Its episodes ({named}{more}) with the actions so far are in {dump}; "
        "replay one by resetting its task with its seed and stepping those actions."
    )
