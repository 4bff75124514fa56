"""Advantages, returns and preferences; pure functions of tensors.

Axis letters: T decisions, B independent streams, E episodes, M flat decisions (see `types`), P
pairs of episodes.

A time limit is not an end: at a truncation the target bootstraps from the value of the *true final
observation* (Pardo et al. 2018), at a termination from 0. The discount is per decision, not per
control step.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Compute generalised advantage estimates (Schulman et al. 2016, eq. 16) and value targets.

    delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
    A_t     = delta_t + gamma * lambda * (1 - terminated_t) * (1 - truncated_t) * A_{t+1}

    Args:
        rewards: float [T, B].
        values: float [T, B], V of the observation of each decision.
        next_values: float [T, B], V of the observation that really followed each decision; at a
            truncation that is the final observation of the episode, not the first of the next.
        terminated: bool [T, B], True where the task ended.
        truncated: bool [T, B], True where only the time limit ended the episode.
        gamma: Discount per decision, in [0, 1].
        gae_lambda: Trace decay, in [0, 1].

    Returns:
        Advantages and value targets (advantages + values), both float [T, B].
    """
    alive = (~terminated).to(values.dtype)
    goes_on = (~(terminated | truncated)).to(values.dtype)
    delta = rewards + gamma * alive * next_values - values
    decay = gamma * gae_lambda * goes_on
    advantages = torch.empty_like(values)
    carry = torch.zeros_like(values[0])
    for t in range(values.shape[0] - 1, -1, -1):
        carry = delta[t] + decay[t] * carry
        advantages[t] = carry
    return advantages, advantages + values


def episode_gae(
    rewards: Tensor,
    values: Tensor,
    final_values: Tensor,
    terminated: Tensor,
    offsets: NDArray[np.int64],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Compute GAE for whole episodes stored flat.

    Args:
        rewards: float [M].
        values: float [M].
        final_values: float [E], V of the true final observation (ignored where terminated).
        terminated: bool [E], False means the episode ended at the time limit.
        offsets: int64 [E + 1]; episode e owns rows offsets[e]:offsets[e + 1].
        gamma: Discount per decision.
        gae_lambda: Trace decay.

    Returns:
        Advantages and value targets, both float [M].
    """
    valid, flat_index = _padding(offsets)
    last = flat_index.shape[0] - 1 if flat_index.shape[0] else 0
    lengths = torch.from_numpy(np.diff(offsets))
    is_last = torch.arange(last + 1)[:, None] == lengths[None, :] - 1
    padded_values = values[flat_index] * valid
    next_values = torch.zeros_like(padded_values)
    next_values[:-1] = padded_values[1:]
    next_values = torch.where(is_last, final_values[None, :].to(values.dtype), next_values)
    advantages, targets = gae(
        rewards[flat_index] * valid,
        padded_values,
        next_values,
        is_last & terminated[None, :],
        is_last & ~terminated[None, :],
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    # Transposed, so that a boolean mask reads episode after episode.
    return advantages.T[valid.T], targets.T[valid.T]


def preference_pairs(outcomes: NDArray[np.float64], groups: Sequence[Hashable]) -> Tensor:
    """Pair episodes of the same start state of which one ended better.

    In every group the best episode is paired with the worst, the second best with the second worst,
    and so on, while the first of the two ended better. So an episode is in at most one pair, and a
    group whose episodes all ended alike gives none.

    Args:
        outcomes: float [E], such as the episodes' returns.
        groups: The start state of each episode, E of them.

    Returns:
        int64 [P, 2], numbers of episodes, the better one first; groups in the order of their first
        episodes.
    """
    members: dict[Hashable, list[int]] = {}
    for episode, group in enumerate(groups):
        members.setdefault(group, []).append(episode)
    pairs: list[tuple[int, int]] = []
    for episodes in members.values():
        ranked = sorted(episodes, key=lambda episode: -outcomes[episode])
        half = len(ranked) // 2
        matched = zip(ranked[:half], reversed(ranked), strict=False)
        pairs += [(best, worst) for best, worst in matched if outcomes[best] > outcomes[worst]]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def normalise(advantages: Tensor, eps: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 (population), float of the same shape."""
    centred = advantages - advantages.mean()
    return centred / (centred.square().mean().sqrt() + eps)


def explained_variance(predictions: Tensor, targets: Tensor) -> float:
    """Return 1 - Var(targets - predictions) / Var(targets); NaN if the targets do not vary."""
    variance = targets.var(correction=0)
    if float(variance) == 0.0:
        return float("nan")
    return float(1.0 - (targets - predictions).var(correction=0) / variance)


def _padding(offsets: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return valid bool [T, E] and the flat row of each padded cell, int64 [T, E]."""
    lengths = np.diff(offsets)
    steps = np.arange(int(lengths.max(initial=0)))[:, None]
    valid = steps < lengths[None, :]
    flat = np.where(valid, offsets[None, :-1] + steps, 0)
    return torch.from_numpy(valid), torch.from_numpy(flat)
