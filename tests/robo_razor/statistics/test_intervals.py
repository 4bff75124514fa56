"""Intervals and tests agree with scipy and statsmodels, and with closed forms at the edges."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
    proportion_confint,
    proportion_effectsize,
)

from robo_razor.statistics import (
    bootstrap_mean,
    detectable_difference,
    mcnemar_exact,
    newcombe_difference,
    paired_bootstrap,
    standard_error,
    wilson_interval,
)

COUNTS = [(0, 5), (5, 5), (1, 2), (36, 100), (199, 200), (1000, 3000)]


@pytest.mark.parametrize(("successes", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_statsmodels(successes, n, confidence):
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_holds_the_rate_and_knows_nothing_without_trials():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in (1, 7, 200):
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0
    with pytest.raises(ValueError, match="6 successes in 5 trials"):
        wilson_interval(6, 5)


def test_wilson_covers_95_percent():
    rate, n = 0.36, 100
    weights = stats.binom.pmf(np.arange(n + 1), n, rate)
    covered = [low <= rate <= high for low, high in (wilson_interval(k, n) for k in range(n + 1))]
    assert np.dot(weights, covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("a", "b"), [((56, 70), (48, 80)), ((0, 10), (0, 20)), ((10, 10), (0, 9))])
def test_newcombe_equals_statsmodels(a, b):
    expected = confint_proportions_2indep(*a, *b, method="newcomb", compare="diff")
    result = newcombe_difference(*a, *b)
    assert result.interval == pytest.approx(expected, abs=1e-12)
    assert result.low <= result.value <= result.high


def test_newcombes_own_example():
    result = newcombe_difference(56, 70, 48, 80)  # table II, method 10, column a
    assert result.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_equals_statsmodels(seed):
    generator = np.random.default_rng(seed)
    first, second = generator.random(60) < 0.7, generator.random(60) < 0.5
    table = [
        [np.sum(first & second), np.sum(first & ~second)],
        [np.sum(~first & second), np.sum(~first & ~second)],
    ]
    result = mcnemar_exact(first, second)
    assert result.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (result.only_first, result.only_second) == (table[0][1], table[1][0])


def test_mcnemar_of_equal_arms_is_one():
    assert mcnemar_exact([True, False], [True, False]).p_value == 1.0
    assert mcnemar_exact([], []).p_value == 1.0


def test_mcnemar_of_many_pairs_does_not_overflow():
    assert 0 <= mcnemar_exact([True] * 5000, [False] * 5000).p_value < 1e-300


def test_pairs_must_be_equally_long():
    with pytest.raises(ValueError, match="equally long"):
        mcnemar_exact([True], [True, False])


def test_paired_bootstrap_equals_scipy():
    generator = np.random.default_rng(0)
    first = generator.random(80)
    second = first - 0.1 + 0.05 * generator.normal(size=80)
    result = paired_bootstrap(first, second)
    expected = stats.bootstrap(
        (first - second,), np.mean, method="percentile", rng=1, n_resamples=10_000
    ).confidence_interval
    assert result.value == pytest.approx(float(np.mean(first - second)))
    assert result.interval == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_pairing_narrows_the_interval():
    generator = np.random.default_rng(0)
    difficulty = generator.random(200)
    first, second = difficulty < 0.7, difficulty < 0.6
    paired = paired_bootstrap(first, second)
    alone = newcombe_difference(int(first.sum()), 200, int(second.sum()), 200)
    assert paired.high - paired.low < alone.high - alone.low


def test_bootstrap_is_the_same_in_blocks_and_for_the_same_seed():
    values = np.arange(30_000) % 7
    assert bootstrap_mean(values, resamples=100) == bootstrap_mean(values, resamples=100)
    assert bootstrap_mean([1.0, 1.0]).interval == (1.0, 1.0)


def test_standard_error_equals_scipy():
    values = np.random.default_rng(0).normal(size=50)
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert math.isnan(standard_error([1.0]))


@pytest.mark.parametrize(("rate", "n"), [(0.36, 100), (0.9, 200), (0.0, 50), (1.0, 50)])
def test_detectable_difference_inverts_statsmodels_power(rate, n):
    difference = detectable_difference(rate, n)
    needed = [
        NormalIndPower().solve_power(abs(proportion_effectsize(rate, other)), power=0.8, alpha=0.05)
        for other in (rate + difference, rate - difference)
        if 0 <= other <= 1
    ]
    assert needed
    assert any(episodes == pytest.approx(n, rel=1e-3) for episodes in needed)
    assert math.isnan(detectable_difference(0.5, 0))


def test_more_episodes_detect_smaller_differences():
    assert detectable_difference(0.5, 400) < detectable_difference(0.5, 100)
