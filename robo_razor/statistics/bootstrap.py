"""Resampling: intervals of means, differences, retention and negative backward transfer.

The independent units are resampled: start states within one run, whole runs across runs.
Retention of a skill = success after / success before; negative backward transfer (NBT) = mean over
prior skills of (success before - success after). Both arms run on the same start states.

References: Efron's percentile bootstrap; Rubin (1981), The Bayesian bootstrap; Hesterberg (2015),
What teachers should know about the bootstrap, The American Statistician 69:371 (few clusters). Axis
legend: n values, R resamples, C clusters, K skills.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robo_razor.statistics.intervals import (
    Estimate,
    Statistic,
    check_confidence,
    paired,
    percentile_estimate,
)
from robo_razor.statistics.seeds import student_quantile

BLOCK = 2_000_000
"""Most numbers drawn at once, to bound the memory."""


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return mean(first) - mean(second) with a percentile interval, start states resampled.

    Args:
        first: float [n], a number (or success) per start state.
        second: float [n], the same for the other arm.
        resamples: Bootstrap samples.
        confidence: Coverage in (0, 1).
        seed: Seed of the resampling.
    """
    first_values, second_values = paired(first, second)
    if len(first_values) == 0:
        raise ValueError("a bootstrap needs at least one pair")
    return bootstrap_mean(
        first_values - second_values, resamples=resamples, confidence=confidence, seed=seed
    )


def bootstrap_mean(
    values: ArrayLike, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Return the mean of float [n] with a percentile bootstrap interval."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0:
        raise ValueError(f"expected a non-empty list of numbers, got shape {data.shape}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, min(resamples, BLOCK // len(data)))
    for begin in range(0, resamples, rows):
        block = means[begin : begin + rows]
        index = generator.integers(len(data), size=(len(block), len(data)))
        block[:] = data[index].mean(axis=1)
    return percentile_estimate(float(data.mean()), means, confidence)


def clustered_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return a statistic with an interval from resampling whole clusters (seeds, runs).

    Values of one cluster stay together, so their common part counts once. With few clusters, such
    as training runs, percentiles are too narrow: nominal 95 % cover 74 % with 3 clusters, 84 % with
    5 and 90 % with 10. So the interval is Student's with the bootstrap's standard error. For the
    mean of equally large clusters it equals `seed_interval` of their means.

    Args:
        values: float [n] or [n, columns], one row per observation.
        clusters: [n], the cluster each row belongs to, e.g. the name of its run.
        statistic: From the rows of a resample to one number; the mean is computed without a loop.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.
        confidence: Coverage in (0, 1).
        bounds: Possible range, e.g. (0, 1) for rates; the interval is cut to it.

    Returns:
        The interval; its ends are NaN with a single cluster.
    """
    data = np.asarray(values, dtype=np.float64)
    names, owner = np.unique(np.asarray(clusters), return_inverse=True)
    if data.ndim == 0 or len(data) == 0 or owner.shape != (len(data),):
        raise ValueError(
            f"expected rows and as many clusters, got shapes {data.shape}, {owner.shape}"
        )
    value = float(statistic(data))
    counts = cluster_counts(len(names), resamples, seed)
    if statistic is np.mean and data.ndim == 1:
        sums, sizes = np.bincount(owner, weights=data), np.bincount(owner)
        resampled = (counts @ sums) / (counts @ sizes)
    else:
        members = [np.flatnonzero(owner == i) for i in range(len(names))]
        resampled = np.array([statistic(data[_rows(members, row)]) for row in counts])
    estimate = student_estimate(value, resampled, len(names), confidence)
    return Estimate(value, max(estimate.low, bounds[0]), min(estimate.high, bounds[1]))


def student_estimate(
    value: float, resampled: NDArray[np.float64], clusters: int, confidence: float = 0.95
) -> Estimate:
    """Return value +- t se, where se is the corrected spread of a clustered bootstrap.

    Args:
        value: The statistic of the data themselves.
        resampled: float [R], the statistic of each resample; NaN ones are left out.
        clusters: Number of resampled clusters, C: t has C - 1 degrees of freedom. The spread is too
            small by sqrt((C - 1) / C), which is corrected.
        confidence: Coverage in (0, 1).
    """
    check_confidence(confidence)
    known = resampled[~np.isnan(resampled)]
    if clusters < 2 or len(known) < 2:
        return Estimate(value, math.nan, math.nan)
    error = float(known.std(ddof=1)) * math.sqrt(clusters / (clusters - 1))
    half = student_quantile(confidence, clusters - 1) * error
    return Estimate(value, value - half, value + half)


def cluster_counts(clusters: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return how often each cluster was drawn: whole numbers [R, C] of sum C in each row."""
    share = np.full(clusters, 1 / clusters)
    drawn = np.random.default_rng(seed).multinomial(clusters, share, size=resamples)
    return drawn.astype(np.float64)


def retention_interval(
    base: ArrayLike,
    tuned: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Return the retention of one skill, mean(tuned) / mean(base), start states paired.

    Smoothed paired bootstrap, see `mean_retention_interval`.

    Args:
        base: bool [n], success before per start state.
        tuned: bool [n], success after on the same start states.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.
        confidence: Coverage in (0, 1).

    Returns:
        The interval; all NaN if the base never succeeded.
    """
    return mean_retention_interval(
        {"": base}, {"": tuned}, resamples=resamples, seed=seed, confidence=confidence
    )


def mean_retention_interval(
    base_by_skill: Mapping[str, ArrayLike],
    tuned_by_skill: Mapping[str, ArrayLike],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Return the mean over skills of retention, with start states paired and skills as strata.

    The plain bootstrap fails near success 0 and 1: 20 of 20 before and after give the interval
    [1, 1], and after a fall from 0.95 to 0.02 on 20 start states its 95 % cover 34 %. So resamples
    draw the rates of the four outcomes (both arms, first only, second only, none) from a Dirichlet
    distribution with half a count added to each. Half counts alone would bias the mean of many
    skills, so the resamples are shifted to have the estimate as median. Coverage measured for 20 to
    200 start states and 1 to 8 skills: 91 % to 100 % for nominal 95 %.

    Args:
        base_by_skill: Skill -> bool [n], success before per start state.
        tuned_by_skill: Skill -> bool [n], success after on the same start states.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.
        confidence: Coverage in (0, 1).

    Returns:
        The interval over the skills that the base has (success above 0); all NaN without one.
    """
    counts = _outcome_counts(base_by_skill, tuned_by_skill)
    counts = counts[(counts[:, 0] + counts[:, 1]) > 0]
    if len(counts) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(np.mean((counts[:, 0] + counts[:, 2]) / (counts[:, 0] + counts[:, 1])))
    before, after = _smoothed_rates(counts, resamples, seed)
    resampled = (after / before).mean(axis=1)
    resampled += value - np.median(resampled)
    return percentile_estimate(value, np.maximum(resampled, 0), confidence)


def nbt_interval(
    base_by_skill: Mapping[str, ArrayLike],
    tuned_by_skill: Mapping[str, ArrayLike],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Return negative backward transfer: mean over skills of success before - success after.

    Start states are paired and skills are strata: the interval holds for these skills, not for
    others. Smoothed paired bootstrap, see `mean_retention_interval`.

    Args:
        base_by_skill: Skill -> bool [n], success before per start state.
        tuned_by_skill: Skill -> bool [n], success after on the same start states.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.
        confidence: Coverage in (0, 1).
    """
    counts = _outcome_counts(base_by_skill, tuned_by_skill)
    value = float(np.mean((counts[:, 1] - counts[:, 2]) / counts.sum(axis=1)))
    before, after = _smoothed_rates(counts, resamples, seed)
    resampled = (before - after).mean(axis=1)
    resampled += value - resampled.mean()
    return percentile_estimate(value, np.clip(resampled, -1, 1), confidence)


def mean_rate_interval(
    successes: ArrayLike,
    episodes: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Return the mean over skills of success, with skills as strata.

    Smoothed like `mean_retention_interval`: each skill's rate is drawn from a Beta distribution
    with half a count added to successes and failures. Its variance is corrected from
    rate (1 - rate) / (n + 2) to the unbiased rate (1 - rate) / (n - 1), and the mean is shifted to
    have the estimate as median. Coverage measured for 4 to 12 skills of 10 and 20 episodes, rates
    0.5 to 1: 91 % to 100 % for nominal 95 %.

    Args:
        successes: [K] whole numbers, successes of each skill.
        episodes: [K] whole numbers, >= 1, episodes of each skill.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.
        confidence: Coverage in (0, 1).

    Returns:
        The interval, within [0, 1]; all NaN without a skill.
    """
    wins, n = paired(successes, episodes)
    if len(wins) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    if (n < 1).any() or (wins < 0).any() or (wins > n).any():
        raise ValueError(f"{wins} successes in {n} episodes is not possible")
    value = float(np.mean(wins / n))
    generator = np.random.default_rng(seed)
    drawn = generator.beta(wins + 0.5, n - wins + 0.5, size=(resamples, len(wins)))
    widen = np.sqrt((n + 2) / np.maximum(1, n - 1))
    means = ((drawn - drawn.mean(axis=0)) * widen).mean(axis=1)
    means += value - np.median(means)
    return percentile_estimate(value, np.clip(means, 0, 1), confidence)


def _outcome_counts(
    base_by_skill: Mapping[str, ArrayLike], tuned_by_skill: Mapping[str, ArrayLike]
) -> NDArray[np.float64]:
    """Return [K, 4]: start states solved by both, by the base only, by the tuned only, by none."""
    if not base_by_skill or base_by_skill.keys() != tuned_by_skill.keys():
        raise ValueError(
            f"expected the same skills before and after, at least one; got {list(base_by_skill)} "
            f"and {list(tuned_by_skill)}"
        )
    rows = []
    for skill, outcomes in base_by_skill.items():
        before, after = paired(outcomes, tuned_by_skill[skill])
        if len(before) == 0 or not np.isin([before, after], [0, 1]).all():
            raise ValueError(f"skill {skill!r}: expected success or failure per start state")
        rows.append(np.bincount((3 - 2 * before - after).astype(np.int64), minlength=4))
    return np.array(rows, dtype=np.float64)


def _smoothed_rates(
    counts: NDArray[np.float64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return success before and after, each [R, K], of resamples with half counts added."""
    generator = np.random.default_rng(seed)
    cells = np.stack([generator.dirichlet(row + 0.5, size=resamples) for row in counts], axis=1)
    return cells[..., 0] + cells[..., 1], cells[..., 0] + cells[..., 2]


def _rows(members: list[NDArray[np.int64]], counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows of the drawn clusters; a cluster that was drawn twice occurs twice."""
    chosen = np.repeat(np.arange(len(members)), counts.astype(np.int64))
    return np.concatenate([members[i] for i in chosen])
