"""Prior success as a Hill curve of the distance: level at first, then falling.

The parabola of `law` is the paper's. It cannot be level and then fall, and after its lowest point
it rises again. Where nothing is lost up to some distance, a dose-response curve fits the shape
better, with as many coefficients, and one of them is a distance:

    prior = top / (1 + (x / half)^steepness),

where half of the top is left at x = half (Hill 1910; the log-logistic curve of toxicology).

The fit is scipy's least squares, started from the best cell of a grid of (half, steepness); the
best top for each has a closed form. Runs are resampled, with the same draws as for the law, and
intervals are Student's: of half in log(half), of R2 in log(1 - R2).

A resample uses the best cell without least squares. In simulations of 150 sets of points, least
squares from three starts never fitted all points worse than the grid. But for 3 of 1000 resamples
it stopped in another minimum, up to a fifth worse, and it took 30 times as long. A cell is 2.7 %
wide in half, which is little compared with the differences between resamples.

Axis legend: n points, G groups (runs or arms), R resamples, K cells of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robo_razor.core.errors import ReportError
from robo_razor.statistics.bootstrap import cluster_counts, student_estimate
from robo_razor.statistics.intervals import Estimate
from robo_razor.statistics.law import PREDICTOR, LawPoint, fit_law, point_columns, r2_interval

Floats = NDArray[np.float64]

HALVES, STEEPNESSES = 200, 40
"""Cells of the grid; half goes from a hundredth of the largest x to twice it."""
STEEPEST, FLATTEST = 30.0, 0.3
BEYOND = 1.25
"""The fit may leave the grid by this factor, in half and in steepness."""
AT_ONCE = 100
"""Resamples at a time: a matrix of them by all cells is in memory."""


@dataclass(frozen=True)
class Falloff:
    """Prior success as a Hill curve in one predictor, or the reason why there is no fit.

    Attributes:
        predictor: Name of the predictor x.
        top: Prior success at x = 0; None without a fit.
        half: The x at which half of the top is left; None without a fit.
        half_interval: Its 95 % interval, runs resampled.
        steepness: Exponent; at `half` prior success falls by top * steepness / 4 per factor e in x.
        r2: Share of the variance of prior success that the curve explains.
        r2_interval: Its 95 % interval, runs resampled.
        minus_parabola: R2 of this curve minus that of the law's parabola, on the same resamples.
        leave_one_run_out_rmse: Root mean square error, in success rate, on runs left out.
        leave_one_arm_out_rmse: The same for arms; None with a single one.
        reason: Why there is no fit; None with one.
    """

    predictor: str
    top: float | None = None
    half: float | None = None
    half_interval: tuple[float, float] | None = None
    steepness: float | None = None
    r2: float | None = None
    r2_interval: tuple[float, float] | None = None
    minus_parabola: Estimate | None = None
    leave_one_run_out_rmse: float | None = None
    leave_one_arm_out_rmse: float | None = None
    reason: str | None = None

    def predict(self, x: ArrayLike) -> Floats:
        """Return the curve at x >= 0.

        Raises:
            ReportError: There is no fit.
        """
        if self.top is None or self.half is None or self.steepness is None:
            raise ReportError(f"No curve was fitted in {self.predictor}: {self.reason}")
        return self.top * _shape(np.asarray(x, dtype=np.float64), self.half, self.steepness)


def fit_falloff(
    points: Sequence[LawPoint],
    predictor: str = PREDICTOR,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Falloff:
    """Fit prior success as a Hill curve of a predictor, on the points that `fit_law` uses.

    There is no fit if the law has none or a gap, if the predictor goes below 0 (a distance does
    not), or if no point has lost half: then the curve's half lies beyond all points.

    Args:
        points: Checkpoints; those without the predictor, or with NaN, are left out.
        predictor: Key of `LawPoint.predictors`.
        resamples: Bootstrap samples of the intervals.
        seed: Seed of the resampling.
    """
    parabola = fit_law(points, predictor, resamples=resamples, seed=seed)
    x, y, runs, arms, n_runs = point_columns(points, predictor)
    reason = parabola.reason or _why_not(x, y)
    if reason is None and parabola.gap is not None:
        low, high = parabola.gap
        reason = f"no checkpoint lies between {low:.4g} and {high:.4g}"
    if reason is not None:
        return Falloff(predictor, reason=reason)
    by_run, by_arm = _Grid.of(x, y, runs), _Grid.of(x, y, arms)
    half, steepness = _refined(x, y, *by_run.best_cell())
    if not x[x > 0].min() <= half <= x.max():
        return Falloff(predictor, reason=f"its half, {half:.4g}, lies outside all checkpoints")
    shape = _shape(x, half, steepness)
    top = _top(shape, y)
    r2 = 1 - float(np.square(y - top * shape).sum() / np.square(y - y.mean()).sum())
    halves, resampled_r2 = by_run.resampled(resamples, seed)
    in_log = student_estimate(math.log(half), np.log(halves), n_runs)
    assert parabola.r2 is not None
    difference = resampled_r2 - parabola.resampled_r2
    return Falloff(
        predictor=predictor,
        top=top,
        half=half,
        half_interval=(math.exp(in_log.low), math.exp(in_log.high)),
        steepness=steepness,
        r2=r2,
        r2_interval=r2_interval(r2, resampled_r2, n_runs),
        minus_parabola=student_estimate(r2 - parabola.r2, difference, n_runs),
        leave_one_run_out_rmse=by_run.leave_one_out_rmse(),
        leave_one_arm_out_rmse=by_arm.leave_one_out_rmse() if parabola.n_arms > 1 else None,
    )


def _why_not(x: Floats, y: Floats) -> str | None:
    if x.min() < -1e-9 * x.max():
        return f"the predictor is not a distance: it goes down to {x.min():.4g}"
    if y.min() > 0.5 * y.max():
        return (
            f"no checkpoint has lost half: prior success goes from {y.max():.1%} to {y.min():.1%}"
        )
    return None


def _shape(x: Floats, half: ArrayLike, steepness: ArrayLike) -> Floats:
    """Return 1 / (1 + (x / half)^steepness), without overflow."""
    with np.errstate(divide="ignore"):
        exponent = np.asarray(steepness) * np.log(np.maximum(x, 0.0) / np.asarray(half))
    return np.asarray(1 / (1 + np.exp(np.minimum(exponent, 700.0))))


def _top(shape: Floats, y: Floats) -> float:
    """Return the top that fits y [n] best with this shape [n]."""
    return float((shape @ y) / (shape @ shape))


def _refined(x: Floats, y: Floats, half: float, steepness: float) -> tuple[float, float]:
    """Return half and steepness by least squares, starting from the given values."""
    from scipy.optimize import least_squares

    def residuals(logs: Floats) -> Floats:
        shape = _shape(x, *np.exp(logs))
        return y - _top(shape, y) * shape

    low = np.log([x.max() / 100 / BEYOND, FLATTEST / BEYOND])
    high = np.log([x.max() * 2 * BEYOND, STEEPEST * BEYOND])
    start = np.log([half, steepness])
    fit = least_squares(residuals, start, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return float(np.exp(fit.x[0])), float(np.exp(fit.x[1]))


@dataclass(frozen=True)
class _Grid:
    """The sums for a fit, of each group and for every cell of the grid."""

    x: Floats
    y: Floats
    owner: NDArray[np.int64]
    """[n], the group of each point."""
    half: Floats
    """[K]"""
    steepness: Floats
    """[K]"""
    with_y: Floats
    """[G, K]: sums of shape times y."""
    squares: Floats
    """[G, K]: sums of shape squared."""
    level: Floats
    """[G, 3]: sums of 1, y and y^2."""

    @classmethod
    def of(cls, x: Floats, y: Floats, groups: Sequence[str]) -> _Grid:
        """Collect the sums of points x [n], y [n] by their groups [n]."""
        halves = np.geomspace(x.max() / 100, x.max() * 2, HALVES)
        steepnesses = np.geomspace(FLATTEST, STEEPEST, STEEPNESSES)
        half, steepness = (axis.ravel() for axis in np.meshgrid(halves, steepnesses, indexing="ij"))
        names, owner = np.unique(groups, return_inverse=True)
        member = (owner == np.arange(len(names))[:, None]).astype(np.float64)
        shape = _shape(x[:, None], half, steepness)
        level = np.stack([np.ones_like(y), y, y * y], axis=-1)
        sums = member @ (y[:, None] * shape), member @ shape**2, member @ level
        return cls(x, y, owner, half, steepness, *sums)

    def explained(self, counts: Floats) -> Floats:
        """Return what each cell explains of sum y^2, [R, K], with groups `counts` [R, G] times."""
        return np.asarray(np.square(counts @ self.with_y) / (counts @ self.squares))

    def best_cell(self) -> tuple[float, float]:
        """Return the best half and steepness for all points."""
        best = int(self.explained(np.ones((1, len(self.level)))).argmax())
        return float(self.half[best]), float(self.steepness[best])

    def resampled(self, resamples: int, seed: int) -> tuple[Floats, Floats]:
        """Return half [R] and R2 [R] of fits to resampled groups; R2 is NaN where y is level."""
        counts = cluster_counts(len(self.level), resamples, seed)
        halves, r2 = [], []
        for rows in np.array_split(counts, math.ceil(resamples / AT_ONCE)):
            explained = self.explained(rows)
            size, total, squares = (rows @ self.level).T
            spread = squares - total**2 / size
            varies = spread > 1e-12 * size
            unexplained = squares - explained.max(axis=1)
            halves.append(self.half[explained.argmax(axis=1)])
            r2.append(np.where(varies, 1 - unexplained / np.where(varies, spread, 1), np.nan))
        return np.concatenate(halves), np.concatenate(r2)

    def leave_one_out_rmse(self) -> float:
        """Return the error on groups left out of the fit one at a time."""
        errors = np.empty_like(self.y)
        for group, counts in enumerate(1 - np.eye(len(self.level))):
            best = int(self.explained(counts[None]).argmax())
            top = (counts @ self.with_y[:, best]) / (counts @ self.squares[:, best])
            left_out = self.owner == group
            shape = _shape(self.x[left_out], self.half[best], self.steepness[best])
            errors[left_out] = self.y[left_out] - top * shape
        return float(np.sqrt(np.mean(np.square(errors))))
