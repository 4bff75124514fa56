"""Intervals over seeds: each seed is one training run and gives one number.

The seed is the unit. Episodes of one run share its policy, so pooling the episodes of several runs
as if they were independent makes the interval too narrow. References: Student (1908); Welch (1947).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike

from robo_razor.estimate import Estimate, check_confidence, vector


def seed_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return the mean over seeds with Student's t interval; never give it pooled episodes.

    It assumes that the numbers of the seeds are about normal. Seeds that agree exactly (all at 0 or
    at 1) give an interval without width, because nothing differs between them: show the episodes'
    own interval beside it then.

    Args:
        values: float [seeds], one number per seed, e.g. its success rate.
        confidence: Coverage in (0, 1).
        bounds: Range of what is possible, e.g. (0, 1) for rates; the interval is cut to it.

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
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return Estimate(mean, min(low, mean), max(high, mean))


def seed_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return mean(first) - mean(second) over seeds with Welch's interval.

    Args:
        first: float [seeds], one number per seed of one arm.
        second: float [seeds of the other arm]; the spreads may differ.
        confidence: Coverage in (0, 1).

    Returns:
        The interval; its ends are NaN if an arm has fewer than two seeds.
    """
    one, two = vector(first, "first"), vector(second, "second")
    if len(one) == 0 or len(two) == 0:
        raise ValueError("a difference over seeds needs at least one seed in each arm")
    difference = float(one.mean() - two.mean())
    if min(len(one), len(two)) < 2:
        check_confidence(confidence)
        return Estimate(difference, math.nan, math.nan)
    errors = np.array([one.var(ddof=1) / len(one), two.var(ddof=1) / len(two)])
    total = float(errors.sum())
    if total == 0:
        return Estimate(difference, difference, difference)
    weights = errors / total  # first, or the squares of small spreads underflow
    freedom = 1 / float((weights**2 / np.array([len(one) - 1, len(two) - 1])).sum())
    half = student_quantile(confidence, freedom) * math.sqrt(total)
    return Estimate(difference, difference - half, difference + half)


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
    # P(|T| <= t) = I_x(1/2, freedom/2) with x = t^2 / (freedom + t^2): find the x, then its t.
    # Searched on 1 - x in logs, which keeps all digits for heavy tails (x close to 1) too.
    low, high = -700.0, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if 1 - _beta_cdf(math.exp(middle), freedom / 2, 0.5) > confidence:
            low = middle
        else:
            high = middle
        if high - low < 1e-14 * abs(low):
            break
    rest = math.exp((low + high) / 2)
    return math.sqrt(freedom * -math.expm1((low + high) / 2) / rest)


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), x in [0, 1]."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction below converges slowly
        return 1 - _beta_cdf(1 - x, b, a)
    scale = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return scale * _beta_fraction(x, a, b) / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Evaluate the continued fraction of I_x(a, b) (Abramowitz and Stegun 26.5.8) after Lentz."""
    tiny = 1e-300
    ratio, product = 1.0, 1.0 / _not_zero(1 - (a + b) * x / (a + 1), tiny)
    value = product
    for m in range(1, 10_000):
        before = value
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            product = 1 / _not_zero(1 + term * product, tiny)
            ratio = _not_zero(1 + term / ratio, tiny)
            value *= product * ratio
        if abs(value - before) <= 1e-16 * abs(value):
            break
    return value


def _not_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
