"""One list of episodes, divided among ranks: each row runs once, and all learn all outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.ranks import Ranks
from robo_razor.core.types import DecisionRecord, EpisodeBatch, EpisodeRow
from robo_razor.rollout.episodes import Mode, Progress, run_episodes


def run_shared(
    ranks: Ranks,
    env: Any,
    policy: Any,
    rows: Sequence[EpisodeRow],
    mode: Mode,
    record: bool | Literal["inputs"] = False,
    progress: Progress | None = None,
    *,
    sampling_seed: int = 0,
    whole: bool = False,
) -> EpisodeBatch:
    """Run every row on one of the ranks; all ranks must call it with the same rows.

    Args:
        ranks: This process among the others.
        env: This rank's vector environment.
        policy: A `Policy`, with equal weights on all ranks.
        rows: What all of them run together.
        mode: See `run_episodes`, as for all that is not told here.
        record: Keep every decision.
        progress: Called as this rank's episodes finish.
        sampling_seed: Seed of the sampling noise.
        whole: Bring the inputs and actions of all decisions here too. Otherwise they stay with the
            rank that recorded them, see `DecisionRecord.place`.

    Returns:
        All outcomes in the order of `rows`, equal on all ranks but for what stays elsewhere.
    """
    divided = len(rows) >= ranks.size
    batch = run_episodes(
        env,
        policy,
        rows[ranks.share] if divided else rows,
        mode,
        record,
        progress,
        sampling_seed=sampling_seed,
    )
    if ranks.size == 1:
        return batch
    if not divided:  # too few rows: all have run them, and rank 0 holds the record
        if batch.record is None or whole or ranks.is_main:
            return batch
        nowhere = np.full(len(batch.record), -1, dtype=np.int64)
        return replace(batch, record=replace(batch.record, place=nowhere))
    sent = batch
    if batch.record is not None and not whole:
        sent = replace(batch, record=replace(batch.record, inputs={}, actions=torch.empty(0)))
    parts = ranks.gather(sent)
    size = ranks.size

    def woven[T: np.generic](arrays: Sequence[NDArray[T]]) -> NDArray[T]:
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for rank, array in enumerate(arrays):
            out[rank::size] = array
        return out

    def woven_items(items: Sequence[Sequence[str | None]]) -> list[str | None]:
        return [items[e % size][e // size] for e in range(len(rows))]

    decisions = woven([part.decisions for part in parts])
    return EpisodeBatch(
        rows=tuple(rows),
        instructions=tuple(str(x) for x in woven_items([part.instructions for part in parts])),
        success=woven([part.success for part in parts]),
        decisions=decisions,
        control_steps=woven([part.control_steps for part in parts]),
        episode_return=woven([part.episode_return for part in parts]),
        terminated=woven([part.terminated for part in parts]),
        truncated=woven([part.truncated for part in parts]),
        record=_joined(ranks, batch, parts, decisions, whole=whole),
        wall_s=max(part.wall_s for part in parts),
        start_states=tuple(woven_items([part.start_states for part in parts])),
    )


def _joined(
    ranks: Ranks,
    mine: EpisodeBatch,
    parts: Sequence[EpisodeBatch],
    lengths: NDArray[np.int64],
    *,
    whole: bool,
) -> DecisionRecord | None:
    """Put the records of all ranks in row order."""
    records = [part.record for part in parts if part.record is not None]
    if mine.record is None:
        return None
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths) % ranks.size
    order = torch.from_numpy(np.argsort(np.argsort(owner, kind="stable"), kind="stable"))

    def woven(tensors: Sequence[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present)[order] if present else None

    reward = woven([record.reward for record in records])
    assert reward is not None
    final = None
    if mine.record.final_value is not None:
        final = torch.empty(len(lengths))
        for rank, record in enumerate(records):
            assert record.final_value is not None
            final[rank :: ranks.size] = record.final_value
    place = None
    inputs, actions = mine.record.inputs, mine.record.actions
    if whole:
        together = {key: woven([record.inputs[key] for record in records]) for key in inputs}
        inputs = {key: value for key, value in together.items() if value is not None}
        all_actions = woven([record.actions for record in records])
        assert all_actions is not None
        actions = all_actions
    else:
        place = np.full(len(owner), -1, dtype=np.int64)
        place[owner == ranks.rank] = np.arange(int((owner == ranks.rank).sum()))
    return DecisionRecord(
        inputs=inputs,
        actions=actions,
        log_prob=woven([record.log_prob for record in records]),
        value=woven([record.value for record in records]),
        reward=reward,
        offsets=offsets,
        final_value=final,
        place=place,
    )
