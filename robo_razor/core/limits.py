"""What the operating system will refuse later, asked before long work starts.

Room on the disk, lengths of paths, and file descriptors of worker processes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from robo_razor.core.errors import EnvError, RunDirectoryError

DEEPEST = "checkpoints/.000000.0000000.tmp/pretrained_model/" + "x" * 80
"""About the longest name that a run writes below its directory."""
DESCRIPTORS, PER_WORKER = 48, 4
"""Files that a process of ours has open: by itself, and for each worker it starts."""


def check_path_length(directory: str | Path) -> None:
    """Check that the files of a run can have names below a directory.

    Raises:
        RunDirectoryError: The path is too long for that.
    """
    path = Path(os.path.abspath(directory))
    limits = {"PC_PATH_MAX": 4096, "PC_NAME_MAX": 255}
    above = next((folder for folder in path.parents if _is_directory(folder)), None)
    if above is not None and hasattr(os, "pathconf"):
        limits = {name: os.pathconf(above, name) for name in limits}
    deepest = len(os.fsencode(path / DEEPEST))
    name = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if deepest < limits["PC_PATH_MAX"] and name <= limits["PC_NAME_MAX"]:
        return
    raise RunDirectoryError(
        f"The output directory {str(directory)[:60] + '...'!r} has a name of {len(str(path))} "
        "letters, which is too long for this system",
        allowed=f"names up to {limits['PC_NAME_MAX']} letters, paths up to "
        f"{limits['PC_PATH_MAX'] - len(DEEPEST) - 1}",
    )


def check_room(directory: str | Path, checkpoint_bytes: int, checkpoints: int) -> None:
    """Check that a run's checkpoints will fit on the disk.

    Args:
        directory: Where the run goes; it need not be there yet.
        checkpoint_bytes: Size of one.
        checkpoints: How many are there at a time.

    Raises:
        RunDirectoryError: They do not.
    """
    path = Path(os.path.abspath(directory))
    place = next(folder for folder in (path, *path.parents) if _is_directory(folder))
    free, needed = shutil.disk_usage(place).free, checkpoint_bytes * checkpoints
    if free < needed:
        raise RunDirectoryError(
            f"The disk of {str(place)!r} has {free / 2**20:,.0f} MiB free, and up to {checkpoints} "
            f"checkpoints of about {checkpoint_bytes / 2**20:,.0f} MiB will be there at a time",
            remedy="Make room, write elsewhere with `--out`, or keep fewer (`--checkpoint.keep`).",
        )


def check_descriptors(workers: int) -> None:
    """Raise the limit of open files for worker processes, as far as the system allows.

    Raises:
        EnvError: It stays too low.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return
    needed = DESCRIPTORS + PER_WORKER * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    raise EnvError(
        f"{workers} worker processes need some {needed} open files, and this system allows {hard}",
        remedy=f"Raise the limit (`ulimit -n {needed}`), or lower `--env.num-workers`.",
    )


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long
        return False
