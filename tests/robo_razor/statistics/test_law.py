"""The law finds a parabola that is there, and says plainly when nothing can be found."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from robo_razor.core.errors import ReportError
from robo_razor.core.metrics import FORWARD_KL
from robo_razor.statistics import LawPoint, fit_law, predictor_table, r2_difference
from robo_razor.statistics.law import PREDICTOR


def make_points(runs=8, steps=6, noise=0.0, alike=0.0, seed=0, curve=lambda x: 0.9 - 0.1 * x):
    """Checkpoints whose KL grows along each run; `alike` shifts whole runs up or down."""
    generator = np.random.default_rng(seed)
    points = []
    for run in range(runs):
        shift, speed = alike * generator.normal(), generator.uniform(0.3, 1.2)
        for step in range(1, steps + 1):
            x = speed * step
            prior = curve(x) + shift + noise * generator.normal()
            points.append(LawPoint(f"run {run}", step, prior, {PREDICTOR: x}))
    return points


def residuals(law):
    return np.subtract(law.y, law.fitted)


def parabola(x):
    return 0.9 - 0.15 * x + 0.01 * x**2


def test_the_papers_predictor_is_called_as_in_the_tables():
    assert PREDICTOR == FORWARD_KL


def test_recovers_a_known_parabola():
    result = fit_law(make_points(curve=parabola))
    assert result.coefficients == pytest.approx((0.9, -0.15, 0.01))
    assert result.r2 == pytest.approx(1.0)
    assert result.r2_interval == pytest.approx((1.0, 1.0))
    assert result.leave_one_run_out_rmse == pytest.approx(0.0, abs=1e-6)
    assert result.predict([0.0, 2.0]) == pytest.approx([0.9, 0.64])
    assert float(result.predict(2.0)) == pytest.approx(0.64)
    assert result.fitted == pytest.approx(result.y)
    assert residuals(result) == pytest.approx([0.0] * 48, abs=1e-9)
    assert (result.n_points, result.n_runs, result.reason) == (48, 8, None)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_equals_statsmodels_in_any_unit(scale):
    points = [
        LawPoint(p.run, p.step, p.prior, {PREDICTOR: scale * p.predictors[PREDICTOR]})
        for p in make_points(noise=0.05, curve=parabola)
    ]
    result = fit_law(points)
    x = np.array(result.x) / scale
    expected = sm.OLS(result.y, np.stack([np.ones_like(x), x, x**2], axis=1)).fit()
    c0, c1, c2 = expected.params
    assert result.coefficients == pytest.approx((c0, c1 / scale, c2 / scale**2))
    assert result.r2 == pytest.approx(expected.rsquared)
    assert residuals(result) == pytest.approx(expected.resid, abs=1e-9)
    low, high = result.r2_interval
    assert 0 < low < result.r2 < high < 1


def test_leave_one_run_out_equals_refitting():
    points = make_points(noise=0.05, alike=0.05, curve=parabola)
    result = fit_law(points)
    errors = []
    for run in {point.run for point in points}:
        rest = fit_law([point for point in points if point.run != run], resamples=1)
        own = [point for point in points if point.run == run]
        predicted = rest.predict([point.predictors[PREDICTOR] for point in own])
        errors += list(np.array([point.prior for point in own]) - predicted)
    assert result.leave_one_run_out_rmse == pytest.approx(math.sqrt(np.mean(np.square(errors))))
    assert result.leave_one_run_out_rmse > np.std(residuals(result))  # unseen is harder than seen


def test_interval_equals_refitting_resampled_runs():
    result = fit_law(make_points(runs=5, noise=0.1), resamples=200, seed=3)
    drawn = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=200)
    x, y = np.reshape(result.x, (5, -1)), np.reshape(result.y, (5, -1))
    r2 = []
    for counts in drawn:
        rows = np.repeat(np.arange(5), counts)
        a, b = x[rows].ravel(), y[rows].ravel()
        r2.append(1 - np.var(b - np.polyval(np.polyfit(a, b, 2), a)) / np.var(b))
    unexplained = np.log(1 - np.array(r2))
    half = stats.t.ppf(0.975, 4) * math.sqrt(5 / 4) * unexplained.std(ddof=1)
    centre = math.log(1 - result.r2)
    expected = max(0.0, 1 - math.exp(centre + half)), 1 - math.exp(centre - half)
    assert result.r2_interval == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [4, 12])
@pytest.mark.parametrize(("noise", "alike"), [(0.05, 0.05), (0.03, 0.15)])
def test_interval_covers_for_as_few_runs_as_there_are(runs, noise, alike):
    def draw(n, seed):
        return make_points(runs=n, noise=noise, alike=alike, seed=seed, curve=parabola)

    truth, covered, repeats = fit_law(draw(3000, 99), resamples=2).r2, 0, 150
    for seed in range(repeats):
        low, high = fit_law(draw(runs, seed), resamples=200, seed=seed).r2_interval
        covered += low <= truth <= high
    assert covered / repeats > 0.86


def test_clustered_interval_is_wider_when_points_of_a_run_are_alike():
    points = make_points(runs=10, steps=12, noise=0.01, alike=0.15)
    naive = [LawPoint(str(i), p.step, p.prior, p.predictors) for i, p in enumerate(points)]
    clustered, alone = fit_law(points), fit_law(naive)
    assert clustered.r2 == pytest.approx(alone.r2)
    assert np.ptp(clustered.r2_interval) > 1.3 * np.ptp(alone.r2_interval)


def test_the_base_counts_once():
    points = make_points()
    base = [LawPoint(f"run {run}", 0, 0.9, {PREDICTOR: 0.0}) for run in range(8)]
    assert fit_law(points + base).n_points == len(points) + 1
    assert fit_law(points + base).n_runs == 8
    alone = fit_law([*points, LawPoint("base", 0, 0.9, {PREDICTOR: 0.0})])
    assert alone.n_runs == 8
    assert alone.r2 == pytest.approx(fit_law(points + base).r2)


def test_the_base_is_one_point_even_if_its_measurements_differ():
    points = make_points()
    base = [LawPoint(f"run {run}", 0, 0.8 + 0.02 * run, {PREDICTOR: 0.0}) for run in range(8)]
    result = fit_law(base + points)
    assert result.n_points == len(points) + 1
    assert (result.x[0], result.y[0]) == (0.0, pytest.approx(0.87))


def test_points_without_the_predictor_are_left_out():
    points = make_points()
    unknown = [
        LawPoint("run 0", 9, 0.5, {}),
        LawPoint("run 1", 9, 0.5, {PREDICTOR: math.nan}),
        LawPoint("run 2", 9, math.nan, {PREDICTOR: 1.0}),
    ]
    assert fit_law(points + unknown) == fit_law(points)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([], "too few points: 0 with this predictor, at least 6 are needed"),
        (make_points(runs=3, steps=1), "too few points: 3"),
        (make_points(runs=2, steps=20), "too few runs: 2, at least 3 are needed"),
        (
            make_points(curve=lambda x: 0.9 + 1e-3 * x),
            "only varies from 90.1% to 90.7%",
        ),
        (
            [LawPoint(p.run, p.step, p.prior, {PREDICTOR: 2.0}) for p in make_points()],
            "too little spread: the predictor is 2 everywhere",
        ),
        (
            [LawPoint(p.run, p.step, p.prior, {PREDICTOR: p.step % 2}) for p in make_points()],
            "too little spread: the predictor lies in 2 of 20 equal parts of its range 0 to 1",
        ),
    ],
)
def test_says_plainly_why_there_is_no_law(points, reason):
    result = fit_law(points)
    assert result.reason is not None
    assert reason in result.reason
    assert result.coefficients is result.r2 is result.r2_interval is None
    assert result.leave_one_run_out_rmse is None
    assert result.fitted == ()
    assert len(result.x) == len(result.y) == result.n_points
    with pytest.raises(ReportError, match="No law was fitted in kl_base_tuned"):
        result.predict(0.0)


def test_one_run_may_carry_all_of_the_spread():
    points = [
        LawPoint(p.run, p.step, p.prior, {PREDICTOR: p.predictors[PREDICTOR] * (p.run == "run 0")})
        for p in make_points()
    ]
    result = fit_law(points)
    assert result.r2 is not None
    assert result.leave_one_run_out_rmse is None  # without that run nothing is left to fit


def test_predictors_come_best_first_and_unfitted_last():
    generator = np.random.default_rng(0)
    points = [
        LawPoint(
            p.run,
            p.step,
            p.prior,
            {
                "noisy": p.predictors[PREDICTOR] + 2 * generator.normal(),
                "constant": 0.0,
                PREDICTOR: p.predictors[PREDICTOR],
                "none": generator.normal(),
            },
        )
        for p in make_points(noise=0.02)
    ]
    table = predictor_table(points, resamples=100)
    assert [one.predictor for one in table] == [PREDICTOR, "noisy", "none", "constant"]
    assert table[0].r2 > 0.9 > table[1].r2 > table[2].r2
    assert table[2].r2 < 0.2
    assert table[3].r2 is None
    assert predictor_table([]) == []


def test_difference_of_predictors_is_sharper_than_their_intervals():
    generator = np.random.default_rng(0)
    points = [
        LawPoint(
            p.run,
            p.step,
            p.prior,
            {
                **p.predictors,
                "twice": 2 * p.predictors[PREDICTOR],
                "noisy": p.predictors[PREDICTOR] + 0.3 * generator.normal(),
                "constant": 1.0,
            },
        )
        for p in make_points(runs=10, noise=0.02, alike=0.1)
    ]
    better, worse = fit_law(points), fit_law(points, "noisy")
    assert better.r2_interval[0] < worse.r2_interval[1]  # on their own they overlap
    difference = r2_difference(points, PREDICTOR, "noisy")
    assert difference.value == pytest.approx(better.r2 - worse.r2)
    assert difference.low > 0
    same = r2_difference(points, PREDICTOR, "twice")
    assert same.interval == pytest.approx((0, 0), abs=1e-9)
    assert math.isnan(r2_difference(points, PREDICTOR, "constant").value)
    assert math.isnan(r2_difference(points, PREDICTOR, "absent").value)


def heaps(seed=0):
    """Two arms far apart in KL, both random inside: PPO keeps everything, BC a third."""
    generator = np.random.default_rng(seed)
    return [
        LawPoint(
            f"{arm} {run}",
            step,
            prior + 0.03 * generator.normal(),
            {PREDICTOR: generator.uniform(low, high)},
            arm,
        )
        for arm, prior, low, high in (("ppo", 0.97, 0.3, 1.6), ("bc", 0.35, 60.0, 68.0))
        for run in range(3)
        for step in range(1, 7)
    ]


def test_two_heaps_are_no_law():
    result = fit_law(heaps())
    assert result.r2 > 0.98  # as good as it looks
    low, high = result.gap
    assert low < 1.6
    assert high > 60
    assert result.within_r2 < 0.3
    assert (result.n_arms, result.leave_one_arm_out_rmse > 0.3) == (2, True)


def test_a_law_within_and_across_arms():
    points = [
        LawPoint(p.run, p.step, p.prior, p.predictors, "ab"[int(p.run[-1]) % 2])
        for p in make_points(curve=parabola)
    ]
    result = fit_law(points)
    assert result.gap is None
    assert result.within_r2 == pytest.approx(1.0)
    assert result.leave_one_arm_out_rmse == pytest.approx(0.0, abs=1e-6)
    alone = fit_law(make_points(curve=parabola))
    assert alone.within_r2 is alone.leave_one_arm_out_rmse is None


def test_within_r2_equals_dummy_regression():
    points = [
        LawPoint(p.run, p.step, p.prior, p.predictors, "abc"[int(p.run[-1]) % 3])
        for p in make_points(noise=0.05, alike=0.1, curve=parabola)
    ]
    x = np.array([p.predictors[PREDICTOR] for p in points])
    y = np.array([p.prior for p in points])
    arms = np.array([[p.arm == a for a in "abc"] for p in points], dtype=float)
    full = sm.OLS(y, np.column_stack([arms, x, x**2])).fit()
    arms_only = sm.OLS(y, arms).fit()
    assert fit_law(points).within_r2 == pytest.approx(1 - full.ssr / arms_only.ssr)
