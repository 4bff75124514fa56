"""The same noise for every decision of a policy that draws its own, such as LeRobot's Diffusion.

Without, an episode's outcome would depend on how many environments run beside it and on what ran
before, and two policies could not be compared: their chunks differ by their noise already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from robo_razor.core.seeding import derive

DRAWS = frozenset({torch.randn, torch.randn_like, torch.rand, torch.rand_like})


class _EqualRows(TorchFunctionMode):
    """Lets every row of what is drawn be like the first."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in DRAWS and found.ndim > 1:
            return found[:1].expand_as(found).clone()
        return found


@contextlib.contextmanager
def fixed_noise() -> Iterator[None]:
    """Draw the same numbers every time, in every row of a batch; torch's own stream stays put."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), _EqualRows():
        torch.manual_seed(derive("noise of a policy's own"))
        yield
