"""Data-parallel ranks: one process per device, started by `accelerate launch` or `torchrun`.

Every rank runs the same program with the same seeds. Episodes and the rows of each minibatch are
divided among the ranks, outcomes are gathered, and gradients are summed. So weights stay equal
everywhere, and a run equals that of one process up to the rounding of sums. Only rank 0 writes and
prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from robo_razor.core.errors import ConfigError, shown

MAX_RANKS = 100_000
PATIENCE = timedelta(hours=2)
"""Time that a rank waits for the others, whose episodes may take longer."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of one run.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes; with 1 every method does nothing.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Return which of a list of rows are this rank's: every `size`-th."""
        return slice(self.rank, None, self.size)

    def gather[T](self, item: T) -> list[T]:
        """Return the items of all ranks, in the order of the ranks; all ranks must call it."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(items, item)
        return items

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the ranks, in place; all ranks must call it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of parameters over the ranks, as if one rank had seen all rows.

        A parameter without a gradient on one rank counts as zero there. Where no rank has one, it
        stays without.
        """
        if self.size == 1:
            return
        everything = list(parameters)
        have = torch.tensor([float(p.grad is not None) for p in everything])
        self.sum_(have)
        chosen = [p for p, count in zip(everything, have.tolist(), strict=True) if count]
        if not chosen:
            return
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in chosen]
        )
        self.sum_(flat)
        sizes = [p.numel() for p in chosen]
        for parameter, part in zip(chosen, torch.split(flat, sizes), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def totals(self, values: Mapping[str, float], maxima: Iterable[str] = ()) -> dict[str, float]:
        """Return sums over the ranks, and the largest value for keys that end with one of `maxima`.

        A rank without rows gives no values. If no rank has any, the result is empty.
        """
        if self.size == 1:
            return dict(values)
        totals: dict[str, float] = {}
        largest = tuple(maxima)
        for values_of_rank in self.gather(dict(values)):
            for key, value in values_of_rank.items():
                if key in totals:
                    value = (
                        max(totals[key], value) if key.endswith(largest) else totals[key] + value
                    )
                totals[key] = value
        return totals


ALONE = Ranks()


def launched(device: str = "auto") -> Ranks:
    """Join the other ranks if a launcher started several.

    A process joins once: torch cannot join the same ranks again. Call `part` at its end.

    Args:
        device: The setting; `auto` and `cuda` mean this rank's own device.

    Returns:
        This process among them; `ALONE` without a launcher.

    Raises:
        ConfigError: The setting names one device for several ranks, the environment's variables
            are not those of a launcher, or the ranks cannot be reached.
    """
    size = 1 if "WORLD_SIZE" not in os.environ else _number("WORLD_SIZE", 1, MAX_RANKS)
    if size == 1 or "RANK" not in os.environ:
        return ALONE
    if device.startswith("cuda:"):
        raise ConfigError(
            f"`device` = {device!r}, but {size} ranks were started",
            allowed="auto, cuda (each rank its own), cpu",
        )
    _number("RANK", 0, size - 1)
    local = _number("LOCAL_RANK", 0, size - 1) if "LOCAL_RANK" in os.environ else 0
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "").strip():
            raise _not_launched(f"WORLD_SIZE is {size} and RANK is set, but {name} is not")
    _number("MASTER_PORT", 0, 65535)
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        if local >= (count := torch.cuda.device_count()):
            raise _not_launched(f"LOCAL_RANK is {local}, but torch sees {count} CUDA device(s)")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:  # no such host, the port is taken, ...
            raise _not_launched(
                f"The ranks do not meet ({str(error).splitlines()[0][:200]})"
            ) from error
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _number(name: str, low: int, high: int) -> int:
    """Return one of the launcher's variables as a number."""
    text = os.environ[name].strip()
    # Nobody has that many processes, and Python reads long numbers slowly.
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not low <= value <= high:
        allowed = f"a whole number from {low} to {high}"
        raise _not_launched(f"The environment variable {name} is {shown(text)}", allowed)
    return value


def _not_launched(problem: str, allowed: str | None = None) -> ConfigError:
    return ConfigError(
        problem,
        allowed,
        "For several processes start with `torchrun` or `accelerate launch`, which set these "
        "variables; for one, unset WORLD_SIZE and RANK.",
    )


def part() -> None:
    """Leave the other ranks, once all have finished their common work.

    Do not call it after an error: the other ranks wait elsewhere, and the launcher stops them.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
