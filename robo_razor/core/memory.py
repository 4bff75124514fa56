"""How much memory a process can still take."""

from __future__ import annotations

import os
from pathlib import Path

INFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_bytes(info: Path = INFO, group: Path = GROUP) -> int | None:
    """Return the memory that is free here, bytes; None where the system does not tell.

    Args:
        info: What Linux says of the machine.
        group: What it says of the container (control group v2), whose limit may be lower.
    """
    found = [free for free in (_of_machine(info), _of_container(group)) if free is not None]
    return min(found) if found else None


def local_processes() -> int:
    """Return how many processes of a run share this machine's memory, as its launcher says."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _of_machine(info: Path) -> int | None:
    return _entry(info, "MemAvailable:", 1024)


def _of_container(group: Path) -> int | None:
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # or the word "max"
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    # What files left in memory counts as used, but it is given up when it is needed.
    return max(0, limit - used + (_entry(group / "memory.stat", "inactive_file", 1) or 0))


def _entry(file: Path, name: str, unit: int) -> int | None:
    """Return a number of a file with a name and a number per line."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return int(found[0]) * unit if found else None
