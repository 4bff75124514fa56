"""The forgetting law: how well a distance from the base predicts success on the prior skills.

"RL's Razor" (arXiv 2509.04259) fits a second-degree polynomial of prior success in a predictor,
forward KL on the new task's inputs first among them, and orders predictors by R2:

    prior = c0 + c1 x + c2 x^2,    R2 = 1 - sum (prior - fit)^2 / sum (prior - mean)^2.

The paper gives no intervals. Checkpoints of one run are similar, so runs are resampled (for the
interval of R2) and left out (for the error on a run that the fit has not seen). R2 is that of the
fitted points, so it is optimistic; the leave-one-run-out error is not.

Two arms that lie far apart give a high R2 to any predictor that separates them, whatever happens
inside each. So a fit says where the predictor leaves more than a third of its range empty. Beside
the pooled R2 it gives the R2 within arms (each arm has its own intercept: the within R2 of panel
regression, Wooldridge 2010, chapter 10) and the error on an arm that it has not seen.

Percentiles of a resampled R2 cover too little, since resamples repeat runs and so fit better: in
simulations of 4 to 24 runs nominal 95 % covered 65 % to 92 %. The interval is therefore Student's
in log(1 - R2), with the standard error of the clustered bootstrap, which covered 89 % to 99 %.

Axis legend: n points, G runs, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robo_razor.core.errors import ReportError
from robo_razor.statistics.bootstrap import cluster_counts, student_estimate
from robo_razor.statistics.intervals import Estimate

Floats = NDArray[np.float64]

PREDICTOR = "kl_base_tuned/new_base_visited"
"""The paper's predictor, nats per decision: KL(base || tuned) where the base goes on the task."""

BASE = "(base)"
"""The arm of the base's points: the base belongs to no arm."""

MIN_POINTS = 6
"""Twice the number of coefficients; with fewer points a parabola fits anything."""
MIN_RUNS = 3
"""Checkpoints of one or two runs are one or two curves, which a parabola follows anyway."""
MIN_BINS, BINS = 4, 20
"""The predictor must fall into so many of so many equal parts of its range. If all points but one
lie close together, that one determines the fit."""
MAX_GAP = 1 / 3
"""Share of the predictor's range that may lie empty between two neighbouring points. A wider gap
shows only that its sides differ, not the shape of the curve."""
MIN_PRIOR_SPREAD = 0.05
"""Prior success must differ by so much; a few hundred episodes scatter by less by chance."""


@dataclass(frozen=True)
class LawPoint:
    """One checkpoint.

    Attributes:
        run: Name of its run.
        step: Its training step; 0 is the base.
        prior: Success on the prior skills, [0, 1].
        predictors: Name -> value of every distance from the base; NaN or absent where unknown.
        arm: The run's arm in a comparison; empty without arms.
    """

    run: str
    step: int
    prior: float
    predictors: Mapping[str, float]
    arm: str = ""


@dataclass(frozen=True)
class Law:
    """Prior success as a parabola in one predictor, or the reason why there is no fit.

    Attributes:
        predictor: Name of the predictor x.
        coefficients: (c0, c1, c2) of prior = c0 + c1 x + c2 x^2; None without a fit.
        r2: Share of the variance of prior success that the fit explains; None without a fit.
        r2_interval: 95 % interval of R2, runs resampled; wide with few runs.
        leave_one_run_out_rmse: Root mean square error, in success rate, on runs left out of the
            fit one at a time; None where the rest does not determine a parabola.
        n_points: Points with the predictor.
        n_runs: Runs they come from.
        x: The predictor at each point.
        y: Prior success at each point.
        fitted: The fit at each point; empty without one.
        reason: Why there is no fit: too few points or runs, or too little spread; None with one.
        n_arms: Arms that the runs belong to.
        within_r2: R2 within arms; None with one arm, or where nothing varies within arms.
        leave_one_arm_out_rmse: As `leave_one_run_out_rmse` for arms; None with a single one.
        gap: The widest empty part (from, to) of the predictor's range where it is above `MAX_GAP`
            of it, else None. With a gap R2 says that its sides differ, not what lies between.
        resampled_r2: R2 [R] of the fits to resampled runs, for curves of other shapes; empty
            without a fit.
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
    n_arms: int = 1
    within_r2: float | None = None
    leave_one_arm_out_rmse: float | None = None
    gap: tuple[float, float] | None = None
    resampled_r2: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def predict(self, x: ArrayLike) -> Floats:
        """Return the fit at x; outside the range of the points it is meaningless.

        Raises:
            ReportError: There is no fit.
        """
        if self.coefficients is None:
            raise ReportError(f"No law was fitted in {self.predictor}: {self.reason}")
        values = np.asarray(x, dtype=np.float64)
        c0, c1, c2 = self.coefficients
        return np.asarray(c0 + values * (c1 + values * c2))


def fit_law(
    points: Sequence[LawPoint],
    predictor: str = PREDICTOR,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Law:
    """Fit prior success as a second-degree polynomial of a predictor.

    Every point counts equally. The base (step 0) is the same policy in every run: points of it with
    the same value of the predictor become one point at their mean success.

    Args:
        points: Checkpoints; those without the predictor, or with NaN, are left out.
        predictor: Key of `LawPoint.predictors`.
        resamples: Bootstrap samples of the interval of R2.
        seed: Seed of the resampling.
    """
    x, y, runs, arms, n_runs = point_columns(points, predictor)
    reason = _why_not(x, y, n_runs)
    columns = tuple(x.tolist()), tuple(y.tolist())
    if reason is not None:
        return Law(predictor, None, None, None, None, len(x), n_runs, *columns, (), reason)
    fit, by_arm = _Fit.of(x, y, runs), _Fit.of(x, y, arms)
    resampled = fit.resampled(resamples, seed)
    n_arms = len(set(arms) - {BASE})
    return Law(
        predictor=predictor,
        coefficients=fit.coefficients,
        r2=fit.r2,
        r2_interval=r2_interval(fit.r2, resampled, n_runs),
        leave_one_run_out_rmse=fit.leave_one_out_rmse(),
        n_points=len(x),
        n_runs=n_runs,
        x=columns[0],
        y=columns[1],
        fitted=tuple((0.5 + _powers(fit.z) @ fit.beta).tolist()),
        reason=None,
        n_arms=n_arms,
        within_r2=by_arm.within_r2() if n_arms > 1 else None,
        leave_one_arm_out_rmse=by_arm.leave_one_out_rmse() if n_arms > 1 else None,
        gap=_gap(x),
        resampled_r2=resampled,
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
    laws = [fit_law(points, name, resamples=resamples, seed=seed) for name in names]
    return sorted(laws, key=lambda law: -math.inf if law.r2 is None else law.r2, reverse=True)


def r2_difference(
    points: Sequence[LawPoint],
    first: str,
    second: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return R2 of one predictor minus that of another, with an interval from resampled runs.

    Both use the same points and resamples, so this can separate predictors whose own intervals
    overlap.

    Args:
        points: Checkpoints; only those with both predictors count.
        first: Key of `LawPoint.predictors`.
        second: The other one.
        resamples: Bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        The 95 % interval; all NaN where one of the two cannot be fitted.
    """
    shared = [p for p in points if all(_known(p, name) for name in (first, second))]
    r2, resampled, n_runs = [], [], 0
    for name in (first, second):
        x, y, runs, _, n_runs = point_columns(shared, name)
        if _why_not(x, y, n_runs) is not None:
            return Estimate(math.nan, math.nan, math.nan)
        fit = _Fit.of(x, y, runs)
        r2.append(fit.r2)
        resampled.append(fit.resampled(resamples, seed))
    return student_estimate(r2[0] - r2[1], resampled[0] - resampled[1], n_runs)


def _known(point: LawPoint, predictor: str) -> bool:
    return math.isfinite(point.prior) and math.isfinite(point.predictors.get(predictor, math.nan))


def point_columns(
    points: Sequence[LawPoint], predictor: str
) -> tuple[Floats, Floats, list[str], list[str], int]:
    """Return x [n], y [n], the run and the arm of each point, and how many runs were trained.

    Points of the base (step 0) with one value of the predictor become one point, of no arm.
    """
    used = [point for point in points if _known(point, predictor)]
    bases: dict[float, list[LawPoint]] = {}
    for point in used:
        if point.step == 0:
            bases.setdefault(point.predictors[predictor], []).append(point)
    rows = [
        (group[0].run, BASE, x, float(np.mean([p.prior for p in group])))
        for x, group in bases.items()
    ]
    rows += [(p.run, p.arm, p.predictors[predictor], p.prior) for p in used if p.step > 0]
    return (
        np.array([x for _, _, x, _ in rows], dtype=np.float64),
        np.array([y for _, _, _, y in rows], dtype=np.float64),
        [run for run, _, _, _ in rows],
        [arm for _, arm, _, _ in rows],
        len({point.run for point in used if point.step > 0}),
    )


def _gap(x: Floats) -> tuple[float, float] | None:
    """Return the widest gap between neighbouring x where it exceeds `MAX_GAP` of the range."""
    ordered = np.sort(x)
    widths = np.diff(ordered)
    widest = int(widths.argmax())
    if widths[widest] <= MAX_GAP * (ordered[-1] - ordered[0]):
        return None
    return float(ordered[widest]), float(ordered[widest + 1])


def _why_not(x: Floats, y: Floats, n_runs: int) -> str | None:
    """Return why a parabola through these points would be meaningless; None: it is not."""
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
            f"{100 * MIN_PRIOR_SPREAD:g} percentage points are needed to distinguish it from chance"
        )
    return None


@dataclass(frozen=True)
class _Fit:
    """A parabola in z = (x - centre) / scale, by least squares on the sums of groups.

    z and y - 0.5 lie in [-1, 1], since powers of x itself would lose their digits to rounding.
    """

    centre: float
    scale: float
    z: Floats
    y: Floats
    owner: NDArray[np.int64]
    """[n], the group (run or arm) of each point."""
    moments: Floats
    """[G, 4, 4]: sums over a group's points of all products of (1, z, z^2, y - 0.5)."""

    @classmethod
    def of(cls, x: Floats, y: Floats, groups: Sequence[str]) -> _Fit:
        """Collect the sums of points x [n], y [n] by their groups [n]."""
        centre, scale = float(x.min() + x.max()) / 2, float(x.max() - x.min()) / 2
        z = (x - centre) / scale
        names, owner = np.unique(groups, return_inverse=True)
        rows = np.column_stack([_powers(z), y - 0.5])
        moments = np.zeros((len(names), 4, 4))
        np.add.at(moments, owner, np.einsum("ni,nj->nij", rows, rows))
        return cls(centre, scale, z, y, owner, moments)

    @property
    def beta(self) -> Floats:
        """Coefficients [3] of y - 0.5 in z."""
        return np.asarray(_solve(self.moments.sum(axis=0, keepdims=True))[0])

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """(c0, c1, c2) of y in x."""
        b0, b1, b2 = self.beta.tolist()
        c1, c2 = b1 / self.scale, b2 / self.scale**2
        return 0.5 + b0 - c1 * self.centre + c2 * self.centre**2, c1 - 2 * c2 * self.centre, c2

    @property
    def r2(self) -> float:
        """R2 of the fitted points."""
        return float(_r_squared(self.moments.sum(axis=0, keepdims=True))[0])

    def resampled(self, resamples: int, seed: int) -> Floats:
        """Return R2 [R] of fits to resampled groups; NaN where y does not vary in them."""
        counts = cluster_counts(len(self.moments), resamples, seed)
        return _r_squared(np.einsum("rg,gij->rij", counts, self.moments))

    def leave_one_out_rmse(self) -> float | None:
        """Return the error on groups left out; None if a group is needed for the fit."""
        remaining = self.moments.sum(axis=0) - self.moments
        smallest = 1e-10 * len(self.z)
        rank = np.linalg.matrix_rank(remaining[:, :3, :3], tol=smallest, hermitian=True)
        if (rank < 3).any():
            return None
        predicted = 0.5 + np.einsum("ni,ni->n", _powers(self.z), _solve(remaining)[self.owner])
        return float(np.sqrt(np.mean(np.square(self.y - predicted))))

    def within_r2(self) -> float | None:
        """Return R2 of z and z^2 with an intercept per group, of the variation within groups."""
        columns = np.stack([self.z, self.z**2, self.y], axis=-1)
        sizes = np.bincount(self.owner)
        means = np.stack([np.bincount(self.owner, c) / sizes for c in columns.T], axis=-1)
        inner = columns - means[self.owner]
        total = float(np.square(inner[:, 2]).sum())
        if total <= 1e-12 * len(self.z):
            return None
        beta = np.linalg.lstsq(inner[:, :2], inner[:, 2], rcond=1e-10)[0]
        unexplained = float(np.square(inner[:, 2] - inner[:, :2] @ beta).sum())
        return min(1.0, max(0.0, 1 - unexplained / total))


def r2_interval(r2: float, resampled: Floats, n_runs: int) -> tuple[float, float]:
    """Return the 95 % interval of R2, Student's in log(1 - R2)."""

    def unexplained(value: Floats | float) -> Floats:
        return np.asarray(np.log(np.maximum(1 - np.asarray(value), 1e-9)))

    estimate = student_estimate(float(unexplained(r2)), unexplained(resampled), n_runs)
    low, high = 1 - math.exp(estimate.high), 1 - math.exp(estimate.low)
    return min(r2, max(0.0, low)), max(r2, high)


def _powers(z: Floats) -> Floats:
    return np.stack([np.ones_like(z), z, z * z], axis=-1)


def _solve(moments: Floats) -> Floats:
    """Return the least squares coefficients [R, 3] for moments [R, 4, 4].

    If a resample does not determine a parabola, these are the smallest of the best coefficients.
    """
    inverse = np.linalg.pinv(moments[:, :3, :3], rcond=1e-10, hermitian=True)
    return np.asarray(np.einsum("rij,rj->ri", inverse, moments[:, :3, 3]))


def _r_squared(moments: Floats) -> Floats:
    """Return R2 [R] of the fits to moments [R, 4, 4]; NaN where y does not vary."""
    size, total = moments[:, 0, 0], moments[:, 0, 3]
    explained = np.einsum("ri,ri->r", _solve(moments), moments[:, :3, 3])
    level = total**2 / size
    spread = moments[:, 3, 3] - level
    varies = spread > 1e-12 * size
    share = (explained - level) / np.where(varies, spread, 1)
    return np.where(varies, share.clip(0, 1), np.nan)
