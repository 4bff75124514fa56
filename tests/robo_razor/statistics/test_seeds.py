"""Intervals over seeds equal scipy's and statsmodels', and cover what they promise."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from robo_razor.statistics import seed_difference, seed_interval, wilson_interval
from robo_razor.statistics.seeds import student_quantile


@pytest.mark.parametrize("freedom", [0.5, 1, 1.3, 2, 2.7, 5, 17.3, 100, 1e5])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantile_equals_scipy(freedom, confidence):
    expected = stats.t.ppf(0.5 + confidence / 2, freedom)
    assert student_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("confidence", "freedom"), [(1.0, 3), (0.0, 3), (0.95, 0)])
def test_quantile_refuses_what_has_none(confidence, freedom):
    with pytest.raises(ValueError, match=r"must (lie in|be above)"):
        student_quantile(confidence, freedom)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_seed_interval_equals_scipy_and_statsmodels(n):
    values = np.random.default_rng(n).random(n)
    result = seed_interval(values, 0.9)
    expected = stats.t.interval(0.9, n - 1, values.mean(), stats.sem(values))
    assert result.interval == pytest.approx(expected)
    assert result.interval == pytest.approx(DescrStatsW(values).tconfint_mean(alpha=0.1))
    assert result.value == pytest.approx(values.mean())


def test_seed_interval_knows_when_it_knows_nothing():
    alone = seed_interval([0.7])
    assert alone.value == 0.7
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert math.isnan(seed_interval([]).value)
    assert seed_interval([0.5, 0.5]).interval == (0.5, 0.5)
    with pytest.raises(ValueError, match="list of numbers"):
        seed_interval([[0.5, 0.5]])
    with pytest.raises(ValueError, match="confidence"):
        seed_interval([0.7], confidence=95)


def test_seed_interval_can_be_cut_to_what_is_possible():
    values = [0.85, 1.0, 1.0]
    assert seed_interval(values).high > 1
    assert seed_interval(values, bounds=(0.0, 1.0)).high == 1.0
    assert seed_interval(values, bounds=(0.0, 1.0)).low == seed_interval(values).low


def test_seeds_that_agree_are_no_better_known_than_their_episodes():
    within = [wilson_interval(10, 10)] * 3
    low = within[0][0]
    assert seed_interval([1.0] * 3).interval == (1.0, 1.0)  # what nothing but the seeds can say
    estimate = seed_interval([1.0] * 3, within=within, bounds=(0.0, 1.0))
    assert estimate.interval == (pytest.approx(low), 1.0)
    spread = seed_interval([0.2, 0.9, 0.5], within=[(0.1, 0.3), (0.8, 1.0), (0.4, 0.6)])
    assert spread == seed_interval([0.2, 0.9, 0.5])  # where seeds differ, Student's is wider
    assert seed_interval([1.0] * 2, within=[(math.nan, math.nan)] * 2).interval == (1.0, 1.0)
    with pytest.raises(ValueError, match="low and high of 3 values"):
        seed_interval([1.0] * 3, within=[0.5, 1.0])


def test_a_difference_of_seeds_that_agree_has_a_width():
    sure, unsure = [(0.99, 1.0)] * 3, [(0.4, 0.8)] * 3
    estimate = seed_difference(
        [1.0] * 3, [0.6] * 3, first_within=sure, second_within=unsure, bounds=(-1.0, 1.0)
    )
    assert estimate.value == pytest.approx(0.4)
    assert estimate.low == pytest.approx(0.4 - math.hypot(0.01, 0.2))
    assert estimate.high == pytest.approx(0.4 + 0.2)


@pytest.mark.parametrize("shared", [False, True])
def test_interval_over_seeds_covers_near_the_ceiling(shared):
    """Three equally good seeds at 97 %, 40 episodes each: they often agree by luck.

    With `shared` start states the seeds fail on the same ones, and agree even more often.
    """
    generator = np.random.default_rng(0)
    alone = combined = 0
    for _ in range(1000):
        luck = generator.random((1 if shared else 3, 40))
        success = np.broadcast_to(luck < 0.97, (3, 40)).sum(axis=1)
        within = [wilson_interval(int(k), 40) for k in success]
        estimate = seed_interval(success / 40)
        alone += estimate.low <= 0.97 <= estimate.high
        estimate = seed_interval(success / 40, within=within, bounds=(0.0, 1.0))
        combined += estimate.low <= 0.97 <= estimate.high
    assert alone / 1000 < 0.9
    assert combined / 1000 > 0.94


def test_interval_over_seeds_covers_where_pooled_episodes_do_not():
    generator = np.random.default_rng(0)
    rates = np.clip(0.6 + 0.1 * generator.normal(size=(1000, 3)), 0, 1)  # runs differ
    success = generator.binomial(100, rates)
    over_seeds, pooled = 0, 0
    for row in success:
        estimate = seed_interval(row / 100)
        over_seeds += estimate.low <= 0.6 <= estimate.high
        low, high = wilson_interval(int(row.sum()), 300)
        pooled += low <= 0.6 <= high
    assert over_seeds / 1000 == pytest.approx(0.95, abs=0.02)
    assert pooled / 1000 < 0.75


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (3, 12)])
def test_seed_difference_equals_welch(n, m):
    generator = np.random.default_rng(n + m)
    first, second = generator.random(n), 3 * generator.random(m)
    result = seed_difference(first, second)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert result.interval == pytest.approx((expected.low, expected.high))
    again = CompareMeans.from_data(first, second).tconfint_diff(usevar="unequal")
    assert result.interval == pytest.approx(again)


def test_seed_difference_at_the_edges():
    assert seed_difference([0.5, 0.5], [0.25, 0.25]).interval == (0.25, 0.25)
    assert math.isnan(seed_difference([0.5], [0.1, 0.2]).low)
    with pytest.raises(ValueError, match="at least one seed"):
        seed_difference([], [0.1])
    one_constant = seed_difference([0.5, 0.5, 0.5], [0.1, 0.2])  # Welch: one degree of freedom
    assert one_constant.high == pytest.approx(0.35 + stats.t.ppf(0.975, 1) * 0.05)
