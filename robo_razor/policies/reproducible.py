"""Inference that gives one observation one result, whatever the other rows of its batch.

Matrix products of another batch size round differently, so without blocks of one size an episode's
outcome would depend on how many environments run at the same time. A policy that draws noise
itself, such as LeRobot's Diffusion, gets the same noise for every decision: else an episode's
outcome would depend on earlier episodes, and the chunks of two policies would differ by their noise
alone.

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
    """Return the results of `work` on a batch that is cut into blocks.

    Args:
        work: Maps inputs to tensors with the same first axis.
        batch: Tensors of first axis B; copies of the last row fill the last block up.
        size: Rows of a block.
    """
    first = next(iter(batch.values()))
    blocks = block_rows(len(first), size, first.device)
    parts = [work({key: value[rows] for key, value in batch.items()}) for rows in blocks]
    return join_blocks(parts, len(first))


def block_rows(count: int, size: int, device: torch.device) -> list[Tensor]:
    """Return the rows int64 [size] of every block; the last block repeats the last row."""
    index = torch.arange(-(-count // size) * size, device=device).clamp(max=count - 1)
    return list(index.view(-1, size))


def join_blocks[T: tuple[Tensor, ...]](parts: Sequence[T], count: int) -> T:
    """Return the tensors of all blocks as one, without the rows that filled the last block up."""
    joined = tuple(torch.cat(tensors)[:count] for tensors in zip(*parts, strict=True))
    return joined  # type: ignore[return-value]


class _EqualRows(TorchFunctionMode):
    """Makes every row of a drawn tensor equal to the first."""

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
    """Draw equal numbers every time and in every row; torch's global stream does not advance."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), _EqualRows():
        torch.manual_seed(derive("noise of a policy's own"))
        yield
