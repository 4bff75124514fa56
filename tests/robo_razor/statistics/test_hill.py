"""The Hill curve finds the distance at which half is gone, and says where there is none."""

import numpy as np
import pytest
from scipy import optimize

from robo_razor.core.errors import ReportError
from robo_razor.statistics import LawPoint, fit_falloff, fit_law
from robo_razor.statistics.law import PREDICTOR, _Fit


def hill(x, top=0.95, half=25.0, steepness=3.0):
    return top / (1 + (x / half) ** steepness)


def make_points(runs=10, noise=0.0, alike=0.0, seed=0, curve=hill, reach=80.0):
    generator = np.random.default_rng(seed)
    points = []
    for run in range(runs):
        shift, furthest = alike * generator.normal(), reach * generator.uniform(0.2, 1.0)
        for step, x in enumerate(np.linspace(0, furthest, 8)[1:], start=1):
            prior = curve(x) + shift + noise * generator.normal()
            points.append(LawPoint(f"run {run}", step, prior, {PREDICTOR: x}, f"arm {run % 3}"))
    return points


def test_recovers_a_known_curve():
    points = make_points()
    curve = fit_falloff(points)
    assert curve.top == pytest.approx(0.95, abs=1e-3)
    assert curve.half == pytest.approx(25.0, rel=1e-3)
    assert curve.steepness == pytest.approx(3.0, rel=2e-3)
    assert curve.r2 == pytest.approx(1.0, abs=1e-5)
    assert curve.predict([0.0, 25.0]) == pytest.approx([0.95, 0.475], abs=1e-3)
    assert curve.minus_parabola.value == pytest.approx(curve.r2 - fit_law(points).r2)
    assert curve.minus_parabola.low > 0
    assert curve.leave_one_run_out_rmse < 0.01
    assert curve.leave_one_arm_out_rmse < 0.01


def test_the_parabola_is_fitted_once(monkeypatch):
    fits = []
    of = _Fit.of

    def counted(x, y, groups):
        fits.append(groups)
        return of(x, y, groups)

    monkeypatch.setattr(_Fit, "of", counted)
    points = make_points(noise=0.04)
    fit_falloff(points)
    assert fits == [[p.run for p in points], [p.arm for p in points]]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_equals_scipys_least_squares_in_any_unit(scale):
    points = [
        LawPoint(p.run, p.step, p.prior, {PREDICTOR: scale * p.predictors[PREDICTOR]}, p.arm)
        for p in make_points(noise=0.04, seed=3)
    ]
    x = np.array([p.predictors[PREDICTOR] for p in points])
    y = np.array([p.prior for p in points])
    (top, half, steepness), _ = optimize.curve_fit(hill, x, y, p0=(1.0, 20.0 * scale, 2.0))
    curve = fit_falloff(points)
    assert curve.half == pytest.approx(half, rel=1e-6)
    assert curve.top == pytest.approx(top, rel=1e-6)
    assert curve.steepness == pytest.approx(steepness, rel=1e-6)


def random_case(generator):
    """Return x and y of runs on a random curve, some of them steep, noisy or hardly falling."""
    half, steepness = np.exp(2 * generator.normal()), np.exp(generator.uniform(-1, 3.7))
    reach, noise = half * np.exp(generator.uniform(0.2, 2)), generator.choice([0.0, 0.02, 0.1])
    furthest = reach * generator.uniform(0.2, 1, size=(generator.integers(3, 15), 1))
    x = (furthest * np.linspace(0, 1, 7)[1:]).ravel()
    return x, hill(x, 0.9, half, steepness) + noise * generator.normal(size=len(x))


@pytest.mark.slow
def test_no_cell_of_a_finer_grid_is_better():
    generator = np.random.default_rng(0)
    checked = 0
    for _ in range(25):
        x, y = random_case(generator)
        points = [LawPoint(str(i), 1, y[i], {PREDICTOR: x[i]}) for i in range(len(x))]
        curve = fit_falloff(points, resamples=2)
        if curve.half is None:
            continue
        halves = np.geomspace(x.max() / 100, x.max() * 2, 300)[:, None, None]
        shape = 1 / (1 + (x / halves) ** np.geomspace(0.3, 30, 60)[:, None])
        top = (shape * y).sum(-1) / np.square(shape).sum(-1)
        best = np.square(y - top[..., None] * shape).sum(-1).min()
        assert np.square(y - curve.predict(x)).sum() <= best * (1 + 1e-6) + 1e-12
        checked += 1
    assert checked > 10


@pytest.mark.slow
def test_the_interval_of_half_covers_it():
    covered = 0
    for seed in range(40):
        points = make_points(runs=12, noise=0.03, alike=0.05, seed=seed)
        low, high = fit_falloff(points, resamples=200).half_interval
        covered += low <= 25.0 <= high
        assert 1.0 < high / low < 2.0
    assert covered >= 34  # 40 tries at 95 %: fewer has a probability of 1 in 1000


def test_says_why_there_is_no_curve():
    level = fit_falloff(make_points(curve=lambda x: 0.9 - 0.004 * x))
    assert level.half is None
    assert "no checkpoint has lost half" in level.reason
    with pytest.raises(ReportError, match="lost half"):
        level.predict(1.0)
    signed = [
        LawPoint(p.run, p.step, p.prior, {PREDICTOR: p.predictors[PREDICTOR] - 10.0}, p.arm)
        for p in make_points()
    ]
    assert "not a distance" in fit_falloff(signed).reason
    heaps = [p for p in make_points() if not 15 < p.predictors[PREDICTOR] < 60]
    assert "no checkpoint lies between" in fit_falloff(heaps).reason
    assert "too few" in fit_falloff(make_points()[:3]).reason
