"""Stop an evaluation when its interval is narrow enough, without losing the interval's coverage.

If an evaluation looks repeatedly and stops at a lucky moment, ordinary intervals cover less than
they promise. Here the looks are fixed beforehand, and z of the interval is raised until the stopped
interval covers the true rate with the promised probability at every rate. That probability is
computed exactly: all outcomes with s successes in n episodes are equally likely, so one counts the
paths that lead to each stop (n, s) without an earlier stop. The method is that of Frey (2010),
Fixed-width sequential confidence intervals for a proportion, The American Statistician 64:242.
Deviations from it: looks after blocks of episodes, a largest n, and Wilson's interval with
continuity correction (Newcombe 1998, Statistics in Medicine 17:857, method 4). Without the
correction the coverage near rates 0 and 1 is below 0.9 for any z near 2.

The price is small: z is about 2 rather than 1.96. Three things are not allowed: looks in between, a
largest n that changes after a look, and episodes in the order in which they end.

Axis legend: n episodes, s successes, K stops, P rates, J successes within one block.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robo_razor.statistics.intervals import check_confidence, normal_quantile

Floats = NDArray[np.float64]

Z_STEP = 0.01
GRID = np.linspace(5e-4, 0.5, 250)
"""Rates at which coverage is checked, besides the ends of intervals, where it drops."""
BLOCK = 2_000_000
"""Most numbers in memory at once."""


@dataclass(frozen=True)
class SequentialInterval:
    """A stopping rule and its interval.

    Count successes over the first n episodes in the order of the manifest, never over the first n
    that end: fast episodes are the successful ones.

    Attributes:
        width: Stop when high - low is at most this, in (0, 1).
        confidence: Coverage in (0, 1) of the interval at the stop, at every success rate.
        look_every: Episodes between looks.
        max_n: Largest number of episodes, at which the rule stops in any case.
    """

    width: float
    confidence: float = 0.95
    look_every: int = 20
    max_n: int = 1000

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_confidence(self.confidence)
        if not 0 < self.width <= 1:
            raise ValueError(f"width = {self.width} must lie in (0, 1]")
        if self.look_every < 1 or self.max_n < 1:
            raise ValueError(
                f"look_every = {self.look_every} and max_n = {self.max_n} must be at least 1"
            )

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of episodes after which to look; the last is `max_n`."""
        return (*range(self.look_every, self.max_n, self.look_every), self.max_n)

    @property
    def z(self) -> float:
        """Standard errors to each side with which the interval covers as promised."""
        return _calibrated(self)[0]

    def update(self, successes: int, n: int) -> bool:
        """Return whether to stop now; call it at each of `looks` until it returns True.

        Args:
            successes: Successes in the first n episodes, in the order of the manifest.
            n: Episodes so far; between looks the result is False.
        """
        low, high = self.interval(successes, n)
        return n >= self.max_n or (
            n > 0 and n % self.look_every == 0 and high - low <= self.width + 1e-12
        )

    def interval(self, successes: int, n: int) -> tuple[float, float]:
        """Return (low, high); after a stop its coverage is as promised."""
        if not 0 <= successes <= n:
            raise ValueError(f"{successes} successes in {n} trials is not possible")
        if n == 0:
            return 0.0, 1.0
        low, high = corrected_wilson(successes, n, self.z)
        return float(low), float(high)


def corrected_wilson(successes: ArrayLike, n: ArrayLike, z: float) -> tuple[Floats, Floats]:
    """Return Wilson's interval with continuity correction, (low, high) of any shape.

    Args:
        successes: Number of successes, 0 <= successes <= n.
        n: Number of trials, at least 1.
        z: Standard errors to each side.
    """
    s, trials = np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64)
    rate = s / trials
    scale, centre = 2 * (trials + z * z), 2 * s + z * z
    below = z * z - 2 - 1 / trials + 4 * rate * (trials - s + 1)
    above = z * z + 2 - 1 / trials + 4 * rate * (trials - s - 1)
    low = (centre - 1 - z * np.sqrt(np.maximum(below, 0))) / scale
    high = (centre + 1 + z * np.sqrt(np.maximum(above, 0))) / scale
    return (
        np.where(s == 0, 0.0, np.clip(low, 0, rate)),
        np.where(s == trials, 1.0, np.clip(high, rate, 1)),
    )


@dataclass(frozen=True)
class _Stops:
    """The possible stops of a rule, all [K]: episodes, successes, log number of paths, interval."""

    n: Floats
    successes: Floats
    log_paths: Floats
    low: Floats
    high: Floats

    def probabilities(self, rates: Floats) -> Floats:
        """Return [K, P], the probability of each stop at each true rate [P], in [0, 1]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            won = np.where(self.successes[:, None] > 0, self.successes[:, None] * np.log(rates), 0)
            lost = (self.n - self.successes)[:, None]
            missed = np.where(lost > 0, lost * np.log1p(-rates), 0)
        return np.asarray(np.exp(self.log_paths[:, None] + won + missed))

    def least_coverage(self) -> float:
        """Return the smallest coverage over rates; 0 to 0.5 is enough, as the rule is symmetric."""
        ends = np.concatenate([self.low, self.high, GRID])
        rates = np.unique(ends[(ends > 0) & (ends <= 0.5)])
        parts = math.ceil(len(rates) * len(self.n) / BLOCK)
        least = 1.0
        for part in np.array_split(rates, parts):
            # Open intervals: a rate at the end of an interval counts as not covered.
            inside = (self.low[:, None] < part) & (part < self.high[:, None])
            least = min(least, float((self.probabilities(part) * inside).sum(axis=0).min()))
        return least


@functools.lru_cache(maxsize=32)
def _calibrated(rule: SequentialInterval) -> tuple[float, _Stops]:
    """Return the smallest z, in steps from the usual one, whose stopped interval covers."""
    z = normal_quantile(rule.confidence)
    while True:
        stops = _find_stops(rule, z)
        if stops.least_coverage() >= rule.confidence:
            return z, stops
        z += Z_STEP


def _find_stops(rule: SequentialInterval, z: float) -> _Stops:
    """Return the stops of the rule with this z, and the number of paths to each."""
    parts: list[tuple[Floats, Floats, Floats]] = []
    before = 0
    paths: Floats = np.zeros(1)  # log of the number of paths to s successes without a stop
    for n in rule.looks:
        paths = _extend(paths, n - before)
        successes = np.arange(n + 1, dtype=np.float64)
        low, high = corrected_wilson(successes, n, z)
        stopping = (high - low <= rule.width + 1e-12) | (n == rule.max_n)
        stops = stopping & (paths > -np.inf)
        parts.append((np.full(int(stops.sum()), float(n)), successes[stops], paths[stops]))
        paths, before = np.where(stopping, -np.inf, paths), n
        if not (paths > -np.inf).any():
            break
    n_all, s_all, log_paths = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Stops(n_all, s_all, log_paths, *corrected_wilson(s_all, n_all, z))


def _extend(paths: Floats, block: int) -> Floats:
    """Return the log number of paths [n + block + 1] after another block of episodes."""
    if len(paths) == 1:
        return _log_choose(block)
    ways = _log_choose(block)
    shifted = np.full((block + 1, len(paths) + block), -np.inf)  # [J, s]
    for j in range(block + 1):
        shifted[j, j : j + len(paths)] = paths + ways[j]
    return np.asarray(np.logaddexp.reduce(shifted, axis=0))


def _log_choose(n: int) -> Floats:
    """Return log(n choose k) for k = 0 .. n."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return np.asarray(log_factorial[n] - log_factorial - log_factorial[::-1])
