"""Observations that are encoded on demand, in batches of one size, unless they are already.

Matrix products of another batch size round differently, so without the fixed size an episode's
outcome would depend on how many environments run at the same time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robo_razor.policies.flow.adapter import PREFIX, FlowAdapter, Prefix
from robo_razor.policies.reproducible import block_rows, join_blocks

Work = Callable[..., tuple[Tensor, ...]]

KEY = f"{PREFIX}key"
"""Of encoded observations: their `row_keys` from before they were encoded, int64 [B]."""


class Observations:
    """B prepared observations of one policy.

    Args:
        adapter: Encodes them.
        batch: Policy inputs, tensors of first axis B, or the result of `Prefix.tensors`.
        size: Rows per inference without gradients; a smaller block is filled up.
        checkpointing: Encode again in the backward pass instead of storing activations.
    """

    def __init__(
        self,
        adapter: FlowAdapter,
        batch: dict[str, Tensor],
        size: int,
        checkpointing: bool = False,
    ) -> None:
        self.adapter, self.batch, self.size = adapter, batch, size
        self.checkpointing = checkpointing
        self._prefixes: list[Prefix] = []
        self._with_gradient: Prefix | None = None

    def __len__(self) -> int:
        return len(next(iter(self.batch.values())))

    @functools.cached_property
    def keys(self) -> list[int]:
        """Return a number for each observation that depends on that observation alone."""
        if KEY in self.batch:
            return list(map(int, self.batch[KEY].tolist()))
        return row_keys(self.batch)

    def keep(self) -> None:
        """Encode and remember the result, for observations that are used for a short time."""
        if not torch.is_grad_enabled() and not self._prefixes:
            self._prefixes = [self._encode(self._rows(rows)) for rows in self._blocks()]

    def run(self, work: Work, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results of `work(prefix, *rows of the tensors)` for all observations.

        With gradients enabled everything is one batch, which is encoded once.

        Args:
            work: Returns tensors whose first axis is that of the prefix.
            *tensors: Further arguments of first axis B.
        """
        if torch.is_grad_enabled():
            if self._with_gradient is None:
                self._with_gradient = self._encode(self.batch)
            return work(self._with_gradient, *tensors)
        parts = []
        for block, rows in enumerate(self._blocks()):
            prefix = self._prefixes[block] if self._prefixes else self._encode(self._rows(rows))
            parts.append(work(prefix, *(tensor[rows] for tensor in tensors)))
        return join_blocks(parts, len(self))

    def _blocks(self) -> list[Tensor]:
        """Return the rows of every inference."""
        return block_rows(len(self), self.size, next(iter(self.batch.values())).device)

    def _rows(self, rows: Tensor) -> dict[str, Tensor]:
        return {key: value[rows] for key, value in self.batch.items()}

    def _encode(self, batch: dict[str, Tensor]) -> Prefix:
        known = Prefix.from_tensors(batch)
        if known is not None:
            return known
        inputs = policy_batch(batch)
        if self.checkpointing and torch.is_grad_enabled():
            encoded: Prefix = checkpoint(
                self.adapter.encode, inputs, use_reentrant=False, preserve_rng_state=False
            )
            return encoded
        return self.adapter.encode(inputs)


def row_keys(batch: dict[str, Tensor]) -> list[int]:
    """Return a number in [0, 2^63) for each row, a hash of its tensors' bytes."""
    columns = []
    for name in sorted(batch):
        tensor = batch[name].detach().cpu().contiguous()
        columns.append(tensor.view(len(tensor), -1).view(torch.uint8).numpy())
    keys = []
    for row in zip(*columns, strict=True):
        digest = hashlib.blake2b(digest_size=8)
        for part in row:
            digest.update(part.tobytes())
        keys.append(int.from_bytes(digest.digest(), "little") >> 1)
    return keys


def policy_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn images that are stored as uint8 [B, W, W, 3] into float32 [B, 3, W, W] in [0, 1]."""
    return {
        key: value.permute(0, 3, 1, 2).float() / 255.0 if value.dtype == torch.uint8 else value
        for key, value in batch.items()
    }
