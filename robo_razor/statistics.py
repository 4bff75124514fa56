"""Intervals and tests for success rates; pure functions, 95 % and two-sided unless said otherwise.

References: Wilson (1927); Newcombe (1998), Statistics in Medicine 17:873, method 10 (difference of
independent proportions); McNemar (1947), exact binomial form; Efron's percentile bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, `low <= value <= high`."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """The interval's ends."""
        return self.low, self.high


@dataclass(frozen=True)
class PairedTest:
    """Result of McNemar's test on two arms over the same start states."""

    only_first: int
    """Pairs in which only the first arm succeeded."""
    only_second: int
    """Pairs in which only the second arm succeeded."""
    p_value: float
    """Probability of so uneven a split, or a more uneven one, if the arms were equally good."""


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate.

    Args:
        successes: Number of successes, 0 <= successes <= n.
        n: Number of trials; with 0 nothing is known and the interval is [0, 1].
        confidence: Coverage in (0, 1).
    """
    _check_count(successes, n)
    if n == 0:
        return 0.0, 1.0
    z, rate = _z(confidence), successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def newcombe_difference(
    successes_1: int, n_1: int, successes_2: int, n_2: int, confidence: float = 0.95
) -> Estimate:
    """Return rate 1 minus rate 2 of two independent samples with Newcombe's interval."""
    if n_1 == 0 or n_2 == 0:
        raise ValueError("a difference of rates needs at least one trial in each sample")
    rate_1, rate_2 = successes_1 / n_1, successes_2 / n_2
    low_1, high_1 = wilson_interval(successes_1, n_1, confidence)
    low_2, high_2 = wilson_interval(successes_2, n_2, confidence)
    difference = rate_1 - rate_2
    return Estimate(
        difference,
        difference - math.hypot(rate_1 - low_1, high_2 - rate_2),
        difference + math.hypot(high_1 - rate_1, rate_2 - low_2),
    )


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Test whether two arms differ on the same start states (exact, two-sided).

    Args:
        first: bool [n], success of the first arm per start state.
        second: bool [n], success of the second arm on the same start states.
    """
    one, two = _paired(first, second)
    only_first = int(np.sum((one == 1) & (two == 0)))
    only_second = int(np.sum((one == 0) & (two == 1)))
    discordant = only_first + only_second
    tail = _binomial_half_cdf(min(only_first, only_second), discordant)
    return PairedTest(only_first, only_second, min(1.0, 2 * tail))


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
    one, two = _paired(first, second)
    if len(one) == 0:
        raise ValueError("a bootstrap needs at least one pair")
    return bootstrap_mean(one - two, resamples=resamples, confidence=confidence, seed=seed)


def bootstrap_mean(
    values: ArrayLike, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Return the mean of float [n] with a percentile bootstrap interval."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0:
        raise ValueError(f"expected a non-empty list of numbers, got shape {data.shape}")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, min(resamples, 2_000_000 // len(data)))  # bounds the memory of one block
    for begin in range(0, resamples, rows):
        block = means[begin : begin + rows]
        index = generator.integers(len(data), size=(len(block), len(data)))
        block[:] = data[index].mean(axis=1)
    tail = 50.0 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    mean = float(data.mean())
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of the mean of float [n]; NaN below two values."""
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        return math.nan
    return float(data.std(ddof=1) / math.sqrt(len(data)))


def episodes_needed(
    rate_1: float, rate_2: float, *, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Return the episodes per arm that tell two success rates apart (independent arms).

    Normal approximation with Cohen's effect size h = 2 asin(sqrt(p)), two-sided. Arms over the same
    start states need fewer.

    Args:
        rate_1: Success rate of one arm, [0, 1].
        rate_2: Success rate of the other, [0, 1], not equal to `rate_1`.
        power: Probability of seeing the difference.
        confidence: 1 - probability of seeing one that is not there.
    """
    effect = abs(_arcsine(rate_1) - _arcsine(rate_2))
    if effect == 0:
        raise ValueError("no number of episodes tells equal success rates apart")
    z = _z(confidence) + NormalDist().inv_cdf(power)
    return math.ceil(2 * (z / effect) ** 2)


def detectable_difference(
    rate: float, n: int, *, power: float = 0.8, confidence: float = 0.95
) -> float:
    """Return the smallest drop or rise from `rate` that n episodes per arm can detect.

    The smaller of the two directions that fit into [0, 1]; NaN when neither does.

    Args:
        rate: Success rate of one arm, [0, 1].
        n: Episodes per arm.
        power: Probability of seeing the difference.
        confidence: 1 - probability of seeing one that is not there.
    """
    if n < 1:
        return math.nan
    effect = (_z(confidence) + NormalDist().inv_cdf(power)) * math.sqrt(2 / n)
    angle = _arcsine(rate)
    others = [
        math.sin(other / 2) ** 2
        for other in (angle - effect, angle + effect)
        if 0 <= other <= math.pi
    ]
    return min((abs(other - rate) for other in others), default=math.nan)


def interpolate_at(
    level: float, x: Sequence[float], y: Sequence[float]
) -> tuple[float, bool] | None:
    """Return y where x first reaches `level` along a run, by linear interpolation.

    Args:
        level: The value of x asked for.
        x: Values along the run, in order of steps (need not rise monotonically).
        y: Values at the same steps.

    Returns:
        The value and whether it was interpolated (False: x starts at or above `level`); None when
        x never reaches the level.
    """
    for i, value in enumerate(x):
        if value >= level:
            if i == 0 or value == level:
                return float(y[i]), i > 0
            share = (level - x[i - 1]) / (value - x[i - 1])
            return float(y[i - 1] + share * (y[i] - y[i - 1])), True
    return None


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie in (0, 1)")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _arcsine(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ValueError(f"success rate {rate} must lie in [0, 1]")
    return 2 * math.asin(math.sqrt(rate))


def _check_count(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials is not possible")


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one = np.asarray(first, dtype=np.float64)
    two = np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"pairs need two equally long lists, got shapes {one.shape}, {two.shape}")
    return one, two


def _binomial_half_cdf(k: int, n: int) -> float:
    """Return P(X <= k) for X ~ Binomial(n, 1/2), exactly (integer arithmetic)."""
    return float(sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
