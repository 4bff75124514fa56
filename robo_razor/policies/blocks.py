"""Inference in blocks of one size.

Matrix products of another batch size round differently, so without the fixed size an episode's
outcome would depend on how many environments run beside it.

Axis letters as in `types`: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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
