"""The forgetting law: how well a distance from the base predicts what is left of the prior skills.

"RL's Razor" (arXiv 2509.04259) fits a second-degree polynomial of prior success in a predictor,
forward KL on the new task's inputs first among them, and orders predictors by R2:

    prior = c0 + c1 x + c2 x^2,    R2 = 1 - sum (prior - fit)^2 / sum (prior - mean)^2.

The paper gives no intervals. Checkpoints of one run are alike, so here runs are what is resampled
(interval of R2) and what is left out (error on a run that the fit has not seen). R2 is that of the
fitted points, so it flatters; the leave-one-run-out error does not.

Axis legend: n points, G runs, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robo_razor.bootstrap import cluster_counts
from robo_razor.errors import ReportError
from robo_razor.estimate import percentile_estimate

PREDICTOR = "kl_base_tuned/new_base_visited"
"""The paper's predictor, nats per decision: KL(base || tuned) where the base goes on the task."""

MIN_POINTS = 6
"""Twice the coefficients; with fewer, a parabola fits whatever it is given."""
MIN_RUNS = 3
"""Checkpoints of one or two runs are one or two curves, which a parabola follows anyway."""
MIN_BINS, BINS = 4, 20
"""The predictor must fall into so many of so many equal parts of its range: with all points but one
in a heap, that one carries the fit."""
MIN_PRIOR_SPREAD = 0.05
"""Prior success must differ by so much; less is what a few hundred episodes scatter by chance."""


@dataclass(frozen=True)
class LawPoint:
    """One checkpoint.

    Attributes:
        run: Name of its run.
        step: Its training step; 0 is the base.
        prior: Success on the prior skills, [0, 1].
        predictors: Name -> value of every distance from the base; NaN or absent where unknown.
    """

    run: str
    step: int
    prior: float
    predictors: Mapping[str, float]


@dataclass(frozen=True)
class Law:
    """Prior success as a parabola in one predictor, or why there is none.

    Attributes:
        predictor: Name of the predictor x.
        coefficients: (c0, c1, c2) of prior = c0 + c1 x + c2 x^2; None without a fit.
        r2: Share of the variance of prior success that the fit explains; None without a fit.
        r2_interval: 95 % percentile interval of R2, runs resampled; crude with few runs.
        leave_one_run_out_rmse: Root mean square error, in success rate, on runs left out of the
            fit one at a time; None where the rest does not determine a parabola.
        n_points: Points with the predictor.
        n_runs: Runs they come from.
        x: The predictor at each point.
        y: Prior success at each point.
        fitted: The fit at each point; empty without one.
        reason: Why there is no fit: too few points or runs, or too little spread; None with one.
    """

    predictor: str
    coefficients: tuple[float, float, float] | None
    r2: float | None
    r2_interval: tuple[float, float] | None
    leave_one_run_out_rmse: float | None
    n_points: int
    n_runs: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    fitted: tuple[float, ...]
    reason: str | None

    @property
    def residuals(self) -> tuple[float, ...]:
        """Prior success minus the fit at each point; empty without a fit."""
        return tuple(y - fit for y, fit in zip(self.y, self.fitted, strict=False))

    def predict(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return the fit at x; it means nothing outside of the range of the points.

        Raises:
            ReportError: There is no fit.
        """
        if self.coefficients is None:
            raise ReportError(f"No law was fitted in {self.predictor}: {self.reason}")
        values = np.asarray(x, dtype=np.float64)
        c0, c1, c2 = self.coefficients
        return np.asarray(c0 + values * (c1 + values * c2))


def law(
    points: Sequence[LawPoint],
    predictor: str = PREDICTOR,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Law:
    """Fit prior success as a second-degree polynomial of a predictor.

    Every point counts equally. The base (step 0) is the same point in every run; where several runs
    bring it with equal values it counts once.

    Args:
        points: Checkpoints; those without the predictor, or with NaN, are left out.
        predictor: Key of `LawPoint.predictors`.
        resamples: Bootstrap samples of the interval of R2.
        seed: Seed of the resampling.
    """
    used = _usable(points, predictor)
    x = np.array([point.predictors[predictor] for point in used], dtype=np.float64)
    y = np.array([point.prior for point in used], dtype=np.float64)
    runs = [point.run for point in used]
    n_runs = len({point.run for point in used if point.step > 0})
    reason = _why_not(x, y, n_runs)
    if reason is not None:
        return Law(
            predictor, None, None, None, None, len(x), n_runs, tuple(x), tuple(y), (), reason
        )
    centre, scale = (x.min() + x.max()) / 2, (x.max() - x.min()) / 2
    z = (x - centre) / scale  # in [-1, 1], or the powers of x would drown in rounding
    names, owner = np.unique(runs, return_inverse=True)
    moments = _moments(z, y, owner, len(names))
    total = moments.sum(axis=0)
    beta = _solve(total[None])[0]
    r2 = float(_r_squared(total[None])[0])
    resampled = _r_squared(cluster_counts(len(names), resamples, seed) @ moments)
    interval = percentile_estimate(r2, resampled, 0.95).interval
    fitted = 0.5 + _powers(z) @ beta
    return Law(
        predictor=predictor,
        coefficients=_unscaled(beta, centre, scale),
        r2=r2,
        r2_interval=interval,
        leave_one_run_out_rmse=_leave_one_run_out(z, y, owner, total - moments),
        n_points=len(x),
        n_runs=n_runs,
        x=tuple(x.tolist()),
        y=tuple(y.tolist()),
        fitted=tuple(fitted.tolist()),
        reason=None,
    )


def predictor_table(
    points: Sequence[LawPoint], *, resamples: int = 1000, seed: int = 0
) -> list[Law]:
    """Fit every predictor found in the points: best R2 first, those without a fit last.

    Predictors that are known at other points (see `n_points`) are not strictly comparable.

    Args:
        points: Checkpoints.
        resamples: Bootstrap samples of each interval.
        seed: Seed of the resampling, the same for all, so that they see the same resampled runs.
    """
    names = sorted({name for point in points for name in point.predictors})
    laws = [law(points, name, resamples=resamples, seed=seed) for name in names]
    return sorted(laws, key=lambda one: -math.inf if one.r2 is None else one.r2, reverse=True)


def _usable(points: Sequence[LawPoint], predictor: str) -> list[LawPoint]:
    """Return the points with the predictor, the base only once."""
    bases: set[tuple[float, float]] = set()
    used = []
    for point in points:
        value = point.predictors.get(predictor, math.nan)
        if not (math.isfinite(value) and math.isfinite(point.prior)):
            continue
        if point.step == 0:
            if (value, point.prior) in bases:
                continue
            bases.add((value, point.prior))
        used.append(point)
    return used


def _why_not(x: NDArray[np.float64], y: NDArray[np.float64], n_runs: int) -> str | None:
    """Return why a parabola would say nothing about these points, or None if it would."""
    if len(x) < MIN_POINTS:
        return f"too few points: {len(x)} with this predictor, at least {MIN_POINTS} are needed"
    if n_runs < MIN_RUNS:
        return f"too few runs: {n_runs}, at least {MIN_RUNS} are needed"
    low, high = float(x.min()), float(x.max())
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return f"too little spread: the predictor is {low:.4g} everywhere"
    bins = len(np.unique(np.minimum((x - low) / (high - low) * BINS, BINS - 1).astype(np.int64)))
    if bins < MIN_BINS:
        return (
            f"too little spread: the predictor lies in {bins} of {BINS} equal parts of its range "
            f"{low:.4g} to {high:.4g}, at least {MIN_BINS} are needed to see a curve"
        )
    spread = float(y.max() - y.min())
    if spread < MIN_PRIOR_SPREAD:
        return (
            f"too little spread: prior success only varies from {y.min():.1%} to {y.max():.1%}; "
            f"{100 * MIN_PRIOR_SPREAD:g} percentage points are needed to tell it from chance"
        )
    return None


def _powers(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(z), z, z * z], axis=-1)


def _moments(
    z: NDArray[np.float64], y: NDArray[np.float64], owner: NDArray[np.int64], runs: int
) -> NDArray[np.float64]:
    """Return [G, 9]: per run, sums of 1, z .. z^4, y, z y, z^2 y, y^2; they add over runs."""
    y = y - 0.5  # both in [-1, 1]
    columns = [z**power for power in range(5)] + [y, z * y, z * z * y, y * y]
    return np.stack([np.bincount(owner, column, minlength=runs) for column in columns], axis=-1)


def _solve(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least squares coefficients [R, 3] (of y - 0.5) for moments [R, 9].

    Where a resample does not determine a parabola, the smallest of the best coefficients.
    """
    gram = moments[:, np.add.outer(range(3), range(3))]
    inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
    beta: NDArray[np.float64] = np.einsum("rij,rj->ri", inverse, moments[:, 5:8])
    return beta


def _r_squared(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R2 [R] of the fits to moments [R, 9]; NaN where y does not vary."""
    explained = np.einsum("ri,ri->r", _solve(moments), moments[:, 5:8])
    level = moments[:, 5] ** 2 / moments[:, 0]
    total = moments[:, 8] - level
    varies = total > 1e-12 * moments[:, 0]
    return np.where(varies, (explained - level) / np.where(varies, total, 1), np.nan).clip(0, 1)


def _unscaled(beta: NDArray[np.float64], centre: float, scale: float) -> tuple[float, float, float]:
    """Return the coefficients in x of those in z = (x - centre) / scale, for y rather than y-.5."""
    b0, b1, b2 = beta.tolist()
    c1, c2 = b1 / scale, b2 / scale**2
    return 0.5 + b0 - c1 * centre + c2 * centre**2, c1 - 2 * c2 * centre, c2


def _leave_one_run_out(
    z: NDArray[np.float64],
    y: NDArray[np.float64],
    owner: NDArray[np.int64],
    others: NDArray[np.float64],
) -> float | None:
    """Return the error on runs left out, given the moments [G, 9] of all the others."""
    gram = others[:, np.add.outer(range(3), range(3))]
    if (np.linalg.matrix_rank(gram, tol=1e-10 * len(z), hermitian=True) < 3).any():
        return None
    beta = _solve(others)
    predicted = 0.5 + np.einsum("ni,ni->n", _powers(z), beta[owner])
    return float(np.sqrt(np.mean(np.square(y - predicted))))
