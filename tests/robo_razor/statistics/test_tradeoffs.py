"""Frontiers and areas have the values that can be seen on paper."""

import math

import numpy as np
import pytest

from robo_razor.statistics import (
    area_under_curve,
    areas_under_curves,
    bootstrap_mean,
    frontier,
    hypervolume,
    interpolate_at,
    isotonic,
    paired_bootstrap,
    pareto,
)


def test_hypervolume_of_hand_made_points():
    assert hypervolume([(0.5, 0.4)]) == pytest.approx(0.2)
    assert hypervolume([(0.5, 0.8), (1.0, 0.2)]) == pytest.approx(0.4 + 0.1)
    assert hypervolume([(0.5, 0.8), (1.0, 0.2), (0.4, 0.1)]) == pytest.approx(0.5)  # dominated
    assert hypervolume([(0.5, 0.8), (0.5, 0.8), (0.5, 0.3)]) == pytest.approx(0.4)
    assert hypervolume([]) == 0.0
    assert hypervolume([(1.0, 1.0), (math.nan, 2.0)]) == 1.0
    assert hypervolume([(0.5, 0.4), (0.1, 0.9)], reference=(0.2, 0.3)) == pytest.approx(0.03)


def test_hypervolume_equals_counting():
    generator = np.random.default_rng(0)
    points = generator.random((7, 2))
    samples = generator.random((200_000, 2))
    dominated = (samples[:, None] <= points).all(axis=2).any(axis=1).mean()
    assert hypervolume(points) == pytest.approx(dominated, abs=5e-3)


def test_frontier_keeps_what_is_within_two_points():
    points = [(0.9, 0.5), (0.8, 0.7), (0.79, 0.685), (0.78, 0.67), (0.89, 0.2), (0.3, 0.9)]
    assert frontier(points) == [0, 1, 2, 5]
    assert frontier(points, tolerance=0.0) == [0, 1, 5]
    assert frontier(points, tolerance=0.03) == [0, 1, 2, 3, 5]
    assert frontier([(math.nan, 1.0), (0.2, 0.2)]) == [1]
    assert frontier([]) == []


def test_frontier_without_tolerance_is_what_nothing_beats():
    points = np.random.default_rng(1).random((40, 2))
    beaten = [any((other > point).all() for other in points) for point in points]
    assert frontier(points, tolerance=0.0) == [i for i, x in enumerate(beaten) if not x]


def test_a_checkpoint_worse_than_the_base_is_not_near_the_frontier():
    base, worse, nearly, learnt = (0.54, 1.0), (0.50, 1.0), (0.53, 0.99), (0.87, 0.99)
    assert frontier([base, worse, learnt]) == [0, 2]
    assert frontier([base, nearly, learnt]) == [0, 1, 2]  # within two points in both
    assert frontier([(0.5, 1.0), (0.9, 1.0)], tolerance=0.0) == [1]


def test_the_pareto_frontier_is_what_nothing_beats_each_point_once():
    points = [(0.9, 0.5), (0.8, 0.7), (0.8, 0.7), (0.9, 0.4), (0.3, 0.7), (0.2, 0.9)]
    assert pareto(points) == [(0.2, 0.9), (0.8, 0.7), (0.9, 0.5)]
    assert pareto([(math.nan, 1.0), (0.2, 0.2)]) == [(0.2, 0.2)]
    assert pareto([]) == []
    points = np.random.default_rng(2).random((40, 2))
    assert pareto(points) == sorted(tuple(points[i]) for i in frontier(points, tolerance=0.0))


def test_isotonic_curve_pools_what_falls():
    assert isotonic([0.2, 0.9, 0.875], [50, 50, 200]) == pytest.approx([0.2, 0.88, 0.88])
    assert isotonic([0.5, 0.4, 0.3], [1, 1, 2]) == pytest.approx([0.375] * 3)
    assert isotonic([0.1, 0.2, 0.9], [1, 1, 1]) == pytest.approx([0.1, 0.2, 0.9])
    assert isotonic([], []).tolist() == []
    with pytest.raises(ValueError, match="above 0"):
        isotonic([0.1], [0])
    with pytest.raises(ValueError, match="one weight per value"):
        isotonic([0.1], [1, 1])


def test_isotonic_curve_equals_the_min_max_formula():
    generator = np.random.default_rng(0)
    y, w = generator.random(12), generator.integers(1, 9, 12)

    def mean(a, b):
        return np.dot(y[a : b + 1], w[a : b + 1]) / w[a : b + 1].sum()

    expected = [max(min(mean(a, b) for b in range(t, 12)) for a in range(t + 1)) for t in range(12)]
    assert isotonic(y, w) == pytest.approx(expected)


def test_a_smoothed_curve_does_not_reach_what_is_not_held():
    """A run that stays at 85 %: raw looks of 50 episodes show 90 %, the more looks the more."""
    generator = np.random.default_rng(0)
    sizes = np.array([50] * 8 + [200])
    rates = generator.binomial(sizes, 0.85, size=(2000, 9)) / sizes
    raw = (rates >= 0.9).any(axis=1).mean()
    held = np.mean([isotonic(row, sizes)[-1] >= 0.9 for row in rates])
    assert raw > 0.75
    assert held < 0.1


def test_area_under_a_curve():
    assert area_under_curve([0, 10, 20], [0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert area_under_curve([0, 1, 9], [0.5, 0.5, 0.5]) == pytest.approx(0.5)
    x = np.sort(np.random.default_rng(0).random(9))
    expected = np.trapezoid(np.sin(x), x) / (x[-1] - x[0])
    assert area_under_curve(x, np.sin(x)) == pytest.approx(expected)
    assert math.isnan(area_under_curve([3], [0.5]))
    with pytest.raises(ValueError, match="must rise"):
        area_under_curve([0, 2, 1], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="one y per x"):
        area_under_curve([0, 1], [0.0, 0.0, 0.0])


def test_area_of_a_run_is_the_mean_of_its_start_states():
    generator = np.random.default_rng(0)
    steps, difficulty = [0, 50, 100, 400], generator.random(100)
    fast, slow = (
        np.array([difficulty < level for level in levels])
        for levels in ((0.2, 0.7, 0.9, 0.9), (0.2, 0.4, 0.8, 0.9))
    )
    areas = areas_under_curves(steps, fast)
    estimate = bootstrap_mean(areas)
    assert estimate.value == pytest.approx(area_under_curve(steps, fast.mean(axis=1)))
    difference = paired_bootstrap(areas, areas_under_curves(steps, slow))
    assert difference.low > 0  # the same start states: pairing sees it
    assert difference.high - difference.low < estimate.high - estimate.low


def test_interpolation_along_a_run():
    success, retention = [0.2, 0.6, 0.5, 0.9], [1.0, 0.8, 0.7, 0.5]
    assert interpolate_at(0.4, success, retention) == (pytest.approx(0.9), True)
    assert interpolate_at(0.9, success, retention) == (0.5, True)
    assert interpolate_at(0.7, success, retention) == (pytest.approx(0.6), True)
    assert interpolate_at(0.1, success, retention) == (1.0, False)
    assert interpolate_at(0.95, success, retention) is None
