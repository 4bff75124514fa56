"""Which device and how many CPU threads torch computes with."""

from __future__ import annotations

import torch

from robo_razor.errors import ConfigError


def resolve_device(device: str) -> str:
    """Return the torch device that a setting means (`auto`: CUDA where there is one)."""
    if device != "auto":
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"`device` = {device!r}, but torch sees no CUDA device here",
                allowed="auto, cpu",
            )
        return device
    # With several ranks the launcher's own device is the current one, see `ranks`.
    return "cuda" if torch.cuda.is_available() else "cpu"


class torch_threads:  # in lower case: it reads like a function where it is used
    """Set torch's number of CPU threads inside a `with` block.

    Args:
        threads: Number of threads; None: one per core that this process may use.
        processes: As many processes share the cores.
    """

    def __init__(self, threads: int | None, processes: int = 1) -> None:
        from robo_razor.fingerprint import cpu_count

        self._threads = threads or max(1, cpu_count() // processes)
        self._before = torch.get_num_threads()

    def __enter__(self) -> int:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        return self._threads

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
