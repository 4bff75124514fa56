"""Which device and how many CPU threads torch computes with."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from robo_razor.core.errors import ConfigError

_KEPT_BYTES = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def resolve_device(device: str) -> str:
    """Return the torch device that a setting means (`auto`: CUDA where there is one)."""
    if device != "auto":
        kind, _, index = device.partition(":")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        here = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        if device in here:
            return device
        problem = "is none that this toolkit knows"
        if kind == "cuda" and (index.isdecimal() or not index):
            problem = f"is not here: torch sees {count or 'no'} CUDA device{'s' * (count != 1)}"
        raise ConfigError(f"The device {device!r} (`device`) {problem}", allowed=", ".join(here))
    # With several ranks the launcher's own device is the current one, see `ranks`.
    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_freed_memory() -> bool:
    """Let the C library keep up to 1 GiB of freed memory for the next tensors, where it is glibc.

    By default it gives blocks above 32 MiB back to the system at once, and the kernel zeroes them
    anew at every gradient step: a tenth of a step's time. Results do not change.

    Returns:
        Whether anything was set: not where the user chose (`MALLOC_*`, `GLIBC_TUNABLES`) or the
        library is another one.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # In this order: older versions refuse the first, and the second alone would make them slower.
    return all(mallopt(name, _KEPT_BYTES) == 1 for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


class torch_threads:  # in lower case: it reads like a function where it is used
    """Set torch's number of CPU threads inside a `with` block.

    Args:
        threads: Number of threads; None: one per core that this process may use.
        processes: As many processes share the cores.
        beside: So many cores are left to the workers of an environment, as long as one remains.
    """

    def __init__(self, threads: int | None, processes: int = 1, beside: int = 0) -> None:
        from robo_razor.core.fingerprint import cpu_count

        self._threads = threads or max(1, cpu_count() // processes - beside)
        self._before = torch.get_num_threads()

    def __enter__(self) -> int:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        return self._threads

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
