"""Intervals over seeds: each seed is one training run and gives one number.

The seed is the unit. Episodes of one run share its policy, so pooling the episodes of several runs
as if they were independent makes the interval too narrow. On the other hand, seeds may agree by
luck although each was measured in few episodes. So an interval over seeds is at least as wide as
the interval from the finite number of episodes alone. References: Student (1908); Welch (1947); Zou
and Donner (2008), Statistics in Medicine 27:1693 (MOVER: an interval of a sum from those of its
terms).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robo_razor.statistics.intervals import Estimate, check_confidence, vector


def seed_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    *,
    within: ArrayLike | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return the mean over seeds with Student's t interval; never give it pooled episodes.

    It assumes that the numbers of the seeds are about normal. Seeds that agree exactly (all at 0 or
    at 1) would give an interval of width 0. `within` says how precisely each number is known; the
    interval is then at least as wide as the interval from the episodes alone (see
    `episode_offsets`).

    Args:
        values: float [seeds], one number per seed, e.g. its success rate.
        confidence: Coverage in (0, 1).
        within: float [seeds, 2], low and high of each seed's own interval over its episodes, of the
            same confidence; NaN where unknown. None: all are unknown.
        bounds: Possible range, e.g. (0, 1) for rates; the interval is cut to it.

    Returns:
        The interval; its ends are NaN below two seeds.
    """
    data = vector(values)
    n = len(data)
    mean = float(data.mean()) if n else math.nan
    if n < 2:
        check_confidence(confidence)
        return Estimate(mean, math.nan, math.nan)
    half = student_quantile(confidence, n - 1) * float(data.std(ddof=1)) / math.sqrt(n)
    below, above = episode_offsets(data, within)
    low, high = mean - max(half, below), mean + max(half, above)
    return _cut(mean, low, high, bounds)


def seed_difference(
    first: ArrayLike,
    second: ArrayLike,
    confidence: float = 0.95,
    *,
    first_within: ArrayLike | None = None,
    second_within: ArrayLike | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return mean(first) - mean(second) over seeds with Welch's interval.

    As in `seed_interval`, it is at least as wide as the interval from the episodes of the two arms
    alone. Here the arms are taken as independent (Newcombe's method 10, which is MOVER for a
    difference); the difference of arms with the same start states varies less.

    Args:
        first: float [seeds], one number per seed of one arm.
        second: float [seeds of the other arm]; the spreads may differ.
        confidence: Coverage in (0, 1).
        first_within: float [seeds, 2], see `seed_interval`.
        second_within: float [seeds of the other arm, 2].
        bounds: Possible range, e.g. (-1, 1); the interval is cut to it.

    Returns:
        The interval; its ends are NaN if an arm has fewer than two seeds.
    """
    first_values, second_values = vector(first, "first"), vector(second, "second")
    if len(first_values) == 0 or len(second_values) == 0:
        raise ValueError("a difference over seeds needs at least one seed in each arm")
    difference = float(first_values.mean() - second_values.mean())
    if min(len(first_values), len(second_values)) < 2:
        check_confidence(confidence)
        return Estimate(difference, math.nan, math.nan)
    half = _welch_half(first_values, second_values, confidence)
    below_1, above_1 = episode_offsets(first_values, first_within)
    below_2, above_2 = episode_offsets(second_values, second_within)
    low = difference - max(half, math.hypot(below_1, above_2))
    high = difference + max(half, math.hypot(above_1, below_2))
    return _cut(difference, low, high, bounds)


def episode_offsets(values: ArrayLike, within: ArrayLike | None) -> tuple[float, float]:
    """Return the distances from the mean over seeds to the ends of the interval from episodes.

    MOVER (Zou and Donner 2008) adds the distances from the values to the ends of their intervals,
    as sqrt(sum_ij r_ij d_i d_j) / n. The seeds are evaluated on the same start states, so the
    correlations r are positive and unknown. r = 1, which gives the mean distance, is always safe.

    Args:
        values: float [seeds].
        within: float [seeds, 2], low and high of each; NaN where unknown. None: all unknown.

    Returns:
        Both distances, >= 0; 0 where nothing is known.
    """
    data = vector(values)
    if within is None or len(data) == 0:
        return 0.0, 0.0
    ends = np.asarray(within, dtype=np.float64)
    if ends.shape != (len(data), 2):
        raise ValueError(f"expected low and high of {len(data)} values, got shape {ends.shape}")
    offsets = np.stack([data - ends[:, 0], ends[:, 1] - data])
    below, above = np.nan_to_num(np.maximum(offsets, 0.0), nan=0.0).mean(axis=1)
    return float(below), float(above)


def _welch_half(
    first: NDArray[np.float64], second: NDArray[np.float64], confidence: float
) -> float:
    """Return half the width of Welch's interval; 0 where neither arm varies."""
    errors = np.array([first.var(ddof=1) / len(first), second.var(ddof=1) / len(second)])
    total = float(errors.sum())
    if total == 0:
        check_confidence(confidence)
        return 0.0
    weights = errors / total  # first, or the squares of small spreads underflow
    freedom = 1 / float((weights**2 / np.array([len(first) - 1, len(second) - 1])).sum())
    return student_quantile(confidence, freedom) * math.sqrt(total)


def _cut(value: float, low: float, high: float, bounds: tuple[float, float]) -> Estimate:
    return Estimate(value, min(value, max(bounds[0], low)), max(value, min(bounds[1], high)))


@functools.lru_cache(maxsize=1024)
def student_quantile(confidence: float, freedom: float) -> float:
    """Return t such that Student's distribution lies in [-t, t] with probability `confidence`.

    Args:
        confidence: Coverage in (0, 1).
        freedom: Degrees of freedom, > 0, need not be whole.
    """
    check_confidence(confidence)
    if not freedom > 0:
        raise ValueError(f"{freedom} degrees of freedom: must be above 0")
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))
