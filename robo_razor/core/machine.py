"""This machine: its cores, memory, disk and limits, and what torch computes with.

The checks here run before long work starts, so that the operating system refuses nothing later.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from pathlib import Path

from robo_razor.core.errors import ConfigError, EnvError, RunDirectoryError

INFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
DEEPEST = "checkpoints/.000000.0000000.tmp/pretrained_model/" + "x" * 80
"""About the longest name that a run writes below its directory."""
DESCRIPTORS, PER_WORKER = 48, 4
"""Files that one of our processes has open: by itself, and for each worker that it starts."""

_KEPT_BYTES = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


# --- Cores ----------------------------------------------------------------------------------------


def cpu_count() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(group: Path = GROUP) -> float | None:
    """Return how many cores the container may use, None where it is not limited."""
    try:
        limit, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


class torch_threads:  # in lower case: it reads like a function where it is used
    """Set torch's number of CPU threads inside a `with` block.

    Args:
        threads: Number of threads; None: one per core that this process may use.
        processes: Processes that share the cores.
        beside: Cores that are left to the workers of an environment, as long as one remains.
    """

    def __init__(self, threads: int | None, processes: int = 1, beside: int = 0) -> None:
        import torch

        self._threads = threads or max(1, cpu_count() // processes - beside)
        self._before = torch.get_num_threads()

    def __enter__(self) -> int:
        import torch

        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        return self._threads

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self._before)


def resolve_device(device: str) -> str:
    """Return the torch device that a setting means (`auto`: CUDA where there is one)."""
    import torch

    if device != "auto":
        kind, _, index = device.partition(":")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [
            "auto",
            "cpu",
            *(["cuda"] if count else []),
            *(f"cuda:{i}" for i in range(count)),
        ]
        devices += ["mps"] if torch.backends.mps.is_available() else []
        if device in devices:
            return device
        problem = "is unknown"
        if kind == "cuda" and (index.isdecimal() or not index):
            problem = f"is missing: torch sees {count or 'no'} CUDA device{'s' * (count != 1)}"
        raise ConfigError(f"The device {device!r} (`device`) {problem}", allowed=", ".join(devices))
    # With several ranks the launcher's own device is the current one, see `ranks`.
    return "cuda" if torch.cuda.is_available() else "cpu"


# --- Memory ---------------------------------------------------------------------------------------


def available_bytes(info: Path = INFO, group: Path = GROUP) -> int | None:
    """Return the memory that is free here, bytes; None where the system does not say.

    Args:
        info: Linux's file about the machine.
        group: Its folder about the container (control group v2), whose limit may be lower.
    """
    known = [free for free in (_of_machine(info), _of_container(group)) if free is not None]
    return min(known, default=None)


def local_processes() -> int:
    """Return how many processes of a run share this machine's memory, from its launcher."""
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
    # Cached files count as used, but the system drops them when it needs the memory.
    return max(0, limit - used + (_entry(group / "memory.stat", "inactive_file", 1) or 0))


def _entry(file: Path, name: str, unit: int) -> int | None:
    """Return a number of a file with a name and a number per line."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return int(values[0]) * unit if values else None


def keep_freed_memory() -> bool:
    """Let the C library keep up to 1 GiB of freed memory for the next tensors, where it is glibc.

    By default it returns blocks above 32 MiB to the system at once, and the kernel zeroes them
    again at every gradient step: a tenth of a step's time. So it is with the memory of all threads
    but the first, unless they share one pool. Results do not change.

    Returns:
        Whether anything was set. Nothing is set where the user chose (`MALLOC_*`,
        `GLIBC_TUNABLES`) or the library is another one.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # In this order: older versions refuse the first, and the second alone would make them slower.
    kept = all(mallopt(name, _KEPT_BYTES) == 1 for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
    return kept and mallopt(_M_ARENA_MAX, 1) == 1


# --- Disk and open files --------------------------------------------------------------------------


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
        directory: The run's directory; it need not exist yet.
        checkpoint_bytes: Size of one.
        checkpoints: Checkpoints on disk at a time.

    Raises:
        RunDirectoryError: They do not.
    """
    path = Path(os.path.abspath(directory))
    place = next(folder for folder in (path, *path.parents) if _is_directory(folder))
    free, needed = shutil.disk_usage(place).free, checkpoint_bytes * checkpoints
    if free < needed:
        raise RunDirectoryError(
            f"The disk of {str(place)!r} has {free / 2**20:,.0f} MiB free, but the run needs room "
            f"for {checkpoints} checkpoints of about {checkpoint_bytes / 2**20:,.0f} MiB",
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
