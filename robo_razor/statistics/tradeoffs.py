"""Trade-off curves: the frontier of new against prior success, and areas under learning curves.

A point is (new, prior): success on the new task and on the prior skills, both in [0, 1], both
better when larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def hypervolume(points: ArrayLike, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Return the area that points dominate, where some point is at least as good in both rates.

    Args:
        points: float [n, 2], (new, prior); points with NaN are left out.
        reference: Lower corner of the area; a point below it in either rate adds nothing.
    """
    data = _points(points) - np.asarray(reference, dtype=np.float64)
    data = data[(data > 0).all(axis=1)]
    data = data[np.argsort(-data[:, 0])]
    heights = np.maximum.accumulate(data[:, 1]) if len(data) else data[:, 1]
    widths = data[:, 0] - np.append(data[1:, 0], 0.0)
    return float(np.dot(widths, heights))


def frontier(points: ArrayLike, tolerance: float = 0.02) -> list[int]:
    """Return the indices, rising, of the points within `tolerance` of the Pareto frontier.

    The frontier holds the points that no other point beats (at least as good in both rates, better
    in one). A point is near the frontier if a point on it has at most `tolerance` more in new-task
    *and* in prior success. ("RL's Razor", arXiv 2509.04259, takes checkpoints within 2 points; that
    both axes count is our reading.) So of two checkpoints that keep everything, the one that learnt
    clearly less is not near it.

    Args:
        points: float [n, 2], (new, prior); points with NaN are never on it.
        tolerance: Allowed distance from the frontier in each rate, >= 0.
    """
    data = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    known = np.flatnonzero(np.isfinite(data).all(axis=1))
    slack = 1e-12
    excess: NDArray[np.float64] = data[known][None, :, :] - data[known][:, None, :]
    least, most = excess.min(axis=2), excess.max(axis=2)  # [i, j]: what j has more than i
    beaten = ((least >= -slack) & (most > slack)).any(axis=1)
    near = (most[:, ~beaten] <= tolerance + slack).any(axis=1)
    return [int(i) for i in known[near]]


def pareto(points: ArrayLike) -> list[tuple[float, float]]:
    """Return the points that no other point beats, each once, by rising first coordinate.

    Args:
        points: float [n, 2], (new, prior); points with NaN are never on it.
    """
    best: list[tuple[float, float]] = []
    for new, prior in sorted(map(tuple, _points(points).tolist()), reverse=True):
        if not best or prior > best[-1][1]:
            best.append((new, prior))
    return best[::-1]


def area_under_curve(x: ArrayLike, y: ArrayLike) -> float:
    """Return the mean height of a curve: its area by trapezoids, over the range of x.

    Args:
        x: float [T], rising, e.g. environment steps.
        y: float [T], e.g. success at the same steps.

    Returns:
        The area; NaN if x has no range.
    """
    heights = np.asarray(y, dtype=np.float64)
    if heights.ndim != 1:
        raise ValueError(f"expected one y per x, got shape {heights.shape}")
    return float(areas_under_curves(x, heights[:, None])[0])


def areas_under_curves(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return the mean height of several curves over the same x, as `area_under_curve` does.

    The success curve of a run is the mean of one 0-or-1 curve per start state. Pass the areas of
    those to `bootstrap_mean` or, for two runs over the same start states, to `paired_bootstrap`.

    Args:
        x: float [T], rising.
        y: float [T, n], one curve per column.

    Returns:
        float [n]; NaN if x has no range.
    """
    steps, heights = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if heights.ndim != 2 or steps.shape != heights.shape[:1]:
        raise ValueError(f"expected one y per x, got shapes {steps.shape}, {heights.shape}")
    widths = np.diff(steps)
    if (widths < 0).any():
        raise ValueError("the x of a curve must rise")
    if widths.sum() == 0:
        return np.full(heights.shape[1], math.nan)
    areas: NDArray[np.float64] = widths @ (heights[1:] + heights[:-1]) / 2 / widths.sum()
    return areas


def isotonic(values: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the closest curve that never falls: weighted least squares, pool adjacent violators.

    Later values below earlier ones are averaged with them, so a single lucky value does not count.
    Barlow, Bartholomew, Bremner and Brunk (1972), Statistical Inference under Order Restrictions.

    Args:
        values: float [T], e.g. success rates along a run.
        weights: float [T], > 0, e.g. the episodes behind each.

    Returns:
        float [T], rising.
    """
    heights, sizes = (np.asarray(x, dtype=np.float64) for x in (values, weights))
    if heights.shape != sizes.shape or heights.ndim != 1:
        raise ValueError(f"expected one weight per value, got {heights.shape} and {sizes.shape}")
    if not (sizes > 0).all():
        raise ValueError("the weights of a curve must be above 0")
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(heights, weights=sizes).x)


def interpolate_at(
    level: float, x: Sequence[float], y: Sequence[float]
) -> tuple[float, bool] | None:
    """Return y where x first reaches `level` along a run, by linear interpolation.

    Args:
        level: The value of x to reach.
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


def _points(points: ArrayLike) -> NDArray[np.float64]:
    """Return float [n, 2] without those that hold NaN."""
    data = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return data[np.isfinite(data).all(axis=1)]
