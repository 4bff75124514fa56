"""One list of episodes, divided among ranks: each row runs once, and all get all outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from robo_razor.core.ranks import Ranks
from robo_razor.core.types import EpisodeBatch, EpisodeRow
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Mode
from robo_razor.rollout.episodes import Progress, run_episodes
from robo_razor.rollout.groups import VectorEnv


def run_shared(
    ranks: Ranks,
    env: VectorEnv,
    policy: Policy,
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
        ranks: The ranks of the run, and this process's rank.
        env: This rank's vector environment.
        policy: The policy, with equal weights on all ranks.
        rows: The episodes that all ranks run together.
        mode: As in `run_episodes`.
        record: As in `run_episodes`.
        progress: Called as this rank's episodes finish.
        sampling_seed: Seed of the sampling noise.
        whole: Gather the inputs and actions of all decisions, too. Otherwise they stay with the
            rank that recorded them, see `DecisionRecord.place`.

    Returns:
        All outcomes in the order of `rows`, equal on all ranks except for inputs and actions that
        stay with their rank.
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
    sent = batch
    if batch.record is not None and not whole:
        sent = replace(batch, record=batch.record.elsewhere())
    if not divided:  # too few rows: all have run them, and rank 0 holds the record
        return batch if ranks.is_main else sent
    parts = ranks.gather(sent)
    parts[ranks.rank] = batch
    numbers = np.arange(len(rows))
    shares = [numbers[rank :: ranks.size] for rank in range(ranks.size)]
    return EpisodeBatch.concatenate(parts).take(np.argsort(np.concatenate(shares)))
