"""Inference that gives one observation one result, whatever else is computed beside it.

Matrix products of another batch size round differently, so without blocks of one size an episode's
outcome would depend on how many environments run beside it. A policy that draws its own noise, such
as LeRobot's Diffusion, gets the same for every decision: else an episode's outcome would depend on
what ran before, and the chunks of two policies would differ by their noise already.

Axis letters as in `types`: B batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robo_razor.core.seeding import derive

DRAWS = frozenset({torch.randn, torch.randn_like, torch.rand, torch.rand_like})


def in_blocks[T: tuple[Tensor, ...]](
    work: Callable[[dict[str, Tensor]], T], batch: dict[str, Tensor], size: int
) -> T:
    """Return what `work` makes of a batch, given it in blocks.

    Args:
        work: From inputs to tensors with the same first axis.
        batch: Tensors of first axis B; the last row fills the last block up.
        size: Rows of a block.
    """
    first = next(iter(batch.values()))
    blocks = block_rows(len(first), size, first.device)
    parts = [work({key: value[rows] for key, value in batch.items()}) for rows in blocks]
    return join_blocks(parts, len(first))


def block_rows(count: int, size: int, device: torch.device) -> list[Tensor]:
    """Return the rows int64 [size] of every block; the last row fills the last block up."""
    index = torch.arange(-(-count // size) * size, device=device).clamp(max=count - 1)
    return list(index.view(-1, size))


def join_blocks[T: tuple[Tensor, ...]](parts: Sequence[T], count: int) -> T:
    """Return the tensors of all blocks as one, without what filled the last block up."""
    joined = tuple(torch.cat(tensors)[:count] for tensors in zip(*parts, strict=True))
    return joined  # type: ignore[return-value]


class _EqualRows(TorchFunctionMode):
    """Lets every row of what is drawn be like the first."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in DRAWS and result.ndim > 1:
            return result[:1].expand_as(result).clone()
        return result


@contextlib.contextmanager
def fixed_noise() -> Iterator[None]:
    """Draw the same numbers every time, in every row of a batch; torch's own stream stays put."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), _EqualRows():
        torch.manual_seed(derive("noise of a policy's own"))
        yield
