"""A value with its interval, and the intervals and tests of success rates.

Everything is 95 % and two-sided unless said otherwise. The other modules of this room build on
`Estimate`.

References: Wilson (1927); Newcombe (1998), Statistics in Medicine 17:873, method 10 (difference of
independent proportions); McNemar (1947), exact binomial form; Cohen (1988), Statistical Power
Analysis for the Behavioral Sciences, chapter 6 (detectable difference).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], float]
"""From float [n] or [n, columns] to one number, e.g. `np.mean`."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, `low <= value <= high`; NaN where it is unknown."""

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
    z, rate = normal_quantile(confidence), successes / n
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
    first_successes, second_successes = paired(first, second)
    only_first = int(np.sum((first_successes == 1) & (second_successes == 0)))
    only_second = int(np.sum((first_successes == 0) & (second_successes == 1)))
    discordant = only_first + only_second
    tail = _binomial_half_cdf(min(only_first, only_second), discordant)
    return PairedTest(only_first, only_second, min(1.0, 2 * tail))


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of the mean of float [n]; NaN below two values."""
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        return math.nan
    return float(data.std(ddof=1) / math.sqrt(len(data)))


def detectable_difference(
    rate: float, n: int, *, power: float = 0.8, confidence: float = 0.95
) -> float:
    """Return the smallest drop or rise from `rate` that n episodes per arm can detect.

    The smaller of the two directions that fit into [0, 1]; NaN when neither does.

    Args:
        rate: Success rate of one arm, [0, 1].
        n: Episodes per arm.
        power: Probability of seeing the difference.
        confidence: 1 - probability of seeing a difference that does not exist.
    """
    if n < 1:
        return math.nan
    effect = (normal_quantile(confidence) + NormalDist().inv_cdf(power)) * math.sqrt(2 / n)
    angle = _arcsine(rate)
    others = [
        math.sin(other / 2) ** 2
        for other in (angle - effect, angle + effect)
        if 0 <= other <= math.pi
    ]
    return min((abs(other - rate) for other in others), default=math.nan)


def normal_quantile(confidence: float) -> float:
    """Return z such that a standard normal lies in [-z, z] with probability `confidence`."""
    check_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def percentile_estimate(
    value: float, resampled: NDArray[np.float64], confidence: float
) -> Estimate:
    """Return Efron's percentile interval, widened to hold the value if necessary.

    Args:
        value: The statistic of the data themselves.
        resampled: float [resamples], the statistic of each resample; NaN ones are left out.
        confidence: Coverage in (0, 1).
    """
    check_confidence(confidence)
    known = resampled[~np.isnan(resampled)]
    if len(known) == 0 or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"))
    tail = 50.0 * (1 - confidence)
    low, high = np.percentile(known, [tail, 100 - tail])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def check_confidence(confidence: float) -> None:
    """Refuse a coverage outside of (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie in (0, 1)")


def vector(values: ArrayLike, name: str = "values") -> NDArray[np.float64]:
    """Return float [n], or refuse anything that is not a list of numbers."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"{name}: expected a list of numbers, got shape {data.shape}")
    return data


def paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two equally long lists of numbers as float [n], or refuse them."""
    first_values = np.asarray(first, dtype=np.float64)
    second_values = np.asarray(second, dtype=np.float64)
    if first_values.shape != second_values.shape or first_values.ndim != 1:
        shapes = f"{first_values.shape}, {second_values.shape}"
        raise ValueError(f"pairs need two equally long lists, got shapes {shapes}")
    return first_values, second_values


def _arcsine(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ValueError(f"success rate {rate} must lie in [0, 1]")
    return 2 * math.asin(math.sqrt(rate))


def _check_count(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials is not possible")


def _binomial_half_cdf(k: int, n: int) -> float:
    """Return P(X <= k) for X ~ Binomial(n, 1/2), exactly (integer arithmetic)."""
    term = total = 1
    for i in range(k):  # each coefficient from the one before: `math.comb` takes long for large n
        term = term * (n - i) // (i + 1)
        total += term
    return float(total / 2**n)
