"""Intervals and tests for success rates; pure functions, 95 % and two-sided unless said otherwise.

Rates of one or two arms are here; what else belongs to statistics is in `bootstrap` (resampling),
`seeds` (intervals over seeds), `stopping` (stopping when an interval is narrow enough) and
`tradeoffs` (frontiers and areas). All of it can be imported from here.

References: Wilson (1927); Newcombe (1998), Statistics in Medicine 17:873, method 10 (difference of
independent proportions); McNemar (1947), exact binomial form; Connor (1987), Biometrics 43:207
(number of pairs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from robo_razor.statistics.bootstrap import (
    bootstrap_mean,
    clustered_bootstrap,
    mean_rate_interval,
    mean_retention_interval,
    nbt_interval,
    paired_bootstrap,
    retention_interval,
)
from robo_razor.statistics.estimate import Estimate, normal_quantile, paired
from robo_razor.statistics.seeds import seed_difference, seed_interval
from robo_razor.statistics.stopping import SequentialInterval
from robo_razor.statistics.tradeoffs import (
    area_under_curve,
    areas_under_curves,
    frontier,
    hypervolume,
    interpolate_at,
    isotonic,
)

__all__ = [
    "Estimate",
    "PairedTest",
    "SequentialInterval",
    "area_under_curve",
    "areas_under_curves",
    "bootstrap_mean",
    "clustered_bootstrap",
    "detectable_difference",
    "episodes_needed",
    "frontier",
    "hypervolume",
    "interpolate_at",
    "isotonic",
    "mcnemar_exact",
    "mean_rate_interval",
    "mean_retention_interval",
    "nbt_interval",
    "newcombe_difference",
    "paired_bootstrap",
    "paired_episodes_needed",
    "retention_interval",
    "seed_difference",
    "seed_interval",
    "standard_error",
    "wilson_interval",
]


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
    one, two = paired(first, second)
    only_first = int(np.sum((one == 1) & (two == 0)))
    only_second = int(np.sum((one == 0) & (two == 1)))
    discordant = only_first + only_second
    tail = _binomial_half_cdf(min(only_first, only_second), discordant)
    return PairedTest(only_first, only_second, min(1.0, 2 * tail))


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
    start states need fewer, see `paired_episodes_needed`.

    Args:
        rate_1: Success rate of one arm, [0, 1].
        rate_2: Success rate of the other, [0, 1], not equal to `rate_1`.
        power: Probability of seeing the difference.
        confidence: 1 - probability of seeing one that is not there.
    """
    effect = abs(_arcsine(rate_1) - _arcsine(rate_2))
    if effect == 0:
        raise ValueError("no number of episodes tells equal success rates apart")
    z = normal_quantile(confidence) + NormalDist().inv_cdf(power)
    return math.ceil(2 * (z / effect) ** 2)


def paired_episodes_needed(
    discordant_rate: float, difference: float, *, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Return the start states that tell two arms apart when both run on each (McNemar's test).

    Connor's formula, n = (z_a sqrt(D) + z_b sqrt(D - d^2))^2 / d^2, plus 2 / |d| because the exact
    test that `mcnemar_exact` makes rejects less often than the one the formula is for.

    Args:
        discordant_rate: D, share of start states that exactly one arm solves, in (0, 1]; the more
            alike the arms, the smaller.
        difference: d, success rate of one arm minus the other's, 0 < |d| <= D.
        power: Probability of seeing the difference.
        confidence: 1 - probability of seeing one that is not there.
    """
    size = abs(difference)
    if not 0 < size <= discordant_rate <= 1:
        raise ValueError(
            f"difference = {difference} and discordant_rate = {discordant_rate}: expected "
            "0 < |difference| <= discordant_rate <= 1, since arms differ on discordant pairs only"
        )
    spread = math.sqrt(max(0.0, discordant_rate - size**2))
    z = normal_quantile(confidence) * math.sqrt(discordant_rate)
    return math.ceil(((z + NormalDist().inv_cdf(power) * spread) / size) ** 2 + 2 / size)


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
    effect = (normal_quantile(confidence) + NormalDist().inv_cdf(power)) * math.sqrt(2 / n)
    angle = _arcsine(rate)
    others = [
        math.sin(other / 2) ** 2
        for other in (angle - effect, angle + effect)
        if 0 <= other <= math.pi
    ]
    return min((abs(other - rate) for other in others), default=math.nan)


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
