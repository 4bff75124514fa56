"""A value with its interval: what every function of `robo_razor.statistics.intervals` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], float]
"""From float [n] or [n, columns] to one number, e.g. `np.mean`."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, `low <= value <= high`; NaN where nothing can be said."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """The interval's ends."""
        return self.low, self.high


def normal_quantile(confidence: float) -> float:
    """Return z such that a standard normal lies in [-z, z] with probability `confidence`."""
    check_confidence(confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def percentile_estimate(
    value: float, resampled: NDArray[np.float64], confidence: float
) -> Estimate:
    """Return Efron's percentile interval, widened to hold the value if it has to be.

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


def vector(values: ArrayLike, what: str = "values") -> NDArray[np.float64]:
    """Return float [n], or refuse anything that is no list of numbers."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"{what}: expected a list of numbers, got shape {data.shape}")
    return data


def paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two equally long lists of numbers as float [n], or refuse them."""
    one = np.asarray(first, dtype=np.float64)
    two = np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"pairs need two equally long lists, got shapes {one.shape}, {two.shape}")
    return one, two
