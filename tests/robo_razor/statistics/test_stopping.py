"""Stopping when the interval is narrow keeps its coverage: counted exactly, and simulated."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from robo_razor.statistics import SequentialInterval
from robo_razor.statistics.stopping import _calibrated, corrected_wilson

RULES = (
    SequentialInterval(0.1, look_every=20, max_n=400),
    SequentialInterval(0.2, look_every=1, max_n=100),
    SequentialInterval(0.05, look_every=50, max_n=2000),
    SequentialInterval(0.05, look_every=30, max_n=100),
    SequentialInterval(0.3, 0.9, look_every=7, max_n=50),
)
RATES = (0.0, 0.003, 0.02, 0.1, 0.36, 0.5, 0.8, 0.97, 1.0)


def coverage(rule, rate):
    """Return the exact probability that the interval at the stop holds a true rate."""
    stops = _calibrated(rule)[1]
    inside = (stops.low <= rate) & (rate <= stops.high)
    return float(stops.probabilities(np.array([rate]))[inside].sum())


def expected_episodes(rule, rate):
    """Return the mean number of episodes at the stop, exactly, for a true rate."""
    stops = _calibrated(rule)[1]
    return float(stops.n @ stops.probabilities(np.array([rate]))[:, 0])


def stop(rule, outcomes):
    """Return after how many episodes a rule stops."""
    return next(n for n in rule.looks if rule.update(sum(outcomes[:n]), n))


def simulate(rule, rate, runs, interval, seed=0):
    """Return (n, low, high) of evaluations stopped when `interval` is narrow enough."""
    generator = np.random.default_rng(seed)
    looks = np.array(rule.looks)
    blocks = generator.binomial(np.diff(looks, prepend=0), rate, size=(runs, len(looks)))
    successes = blocks.cumsum(axis=1)
    low, high = interval(successes, np.broadcast_to(looks, successes.shape))
    narrow = (high - low <= rule.width + 1e-12) | (looks == rule.max_n)
    first = narrow.argmax(axis=1)
    every = np.arange(runs)
    return looks[first], low[every, first], high[every, first]


@pytest.mark.parametrize(("s", "n"), [(0, 10), (1, 10), (10, 10), (36, 100), (199, 200), (1, 1)])
def test_interval_equals_scipy(s, n):
    z = stats.norm.ppf(0.975)
    expected = stats.binomtest(s, n).proportion_ci(0.95, method="wilsoncc")
    assert np.array(corrected_wilson(s, n, z)) == pytest.approx((expected.low, expected.high))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rate", RATES)
def test_simulated_coverage_and_length_are_those_counted(rule, rate):
    runs = 4000
    n, low, high = simulate(rule, rate, runs, lambda s, n: corrected_wilson(s, n, rule.z))
    covered = float(np.mean((low <= rate) & (rate <= high)))
    error = 4 * np.sqrt(0.25 / runs) if 0 < rate < 1 else 0
    assert covered >= rule.confidence - error / 2
    assert covered == pytest.approx(coverage(rule, rate), abs=error)
    assert n.mean() == pytest.approx(expected_episodes(rule, rate), rel=0.03)
    assert (high - low)[n < rule.max_n].max(initial=0) <= rule.width + 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_exact_coverage_holds_at_every_rate(rule):
    rates = np.linspace(0, 1, 201)
    covered = np.array([coverage(rule, rate) for rate in rates])
    assert covered.min() >= rule.confidence
    assert covered == pytest.approx(covered[::-1], abs=1e-9)
    assert rule.z == pytest.approx(stats.norm.ppf(0.5 + rule.confidence / 2), abs=0.15)


def test_exact_coverage_equals_that_of_all_sequences():
    rule = SequentialInterval(0.6, look_every=2, max_n=9)
    sequences = [[bool(code >> i & 1) for i in range(9)] for code in range(2**9)]
    stops = [stop(rule, outcomes) for outcomes in sequences]
    ends = [rule.interval(sum(o[:n]), n) for o, n in zip(sequences, stops, strict=True)]
    won, n = np.sum(sequences, axis=1), np.array(stops)
    low, high = np.array(ends).T
    assert len(set(stops)) > 1
    for rate in (0.2, 0.5, 0.9):
        probability = rate**won * (1 - rate) ** (9 - won)
        covered = probability[(low <= rate) & (rate <= high)].sum()
        assert coverage(rule, rate) == pytest.approx(covered)
        assert expected_episodes(rule, rate) == pytest.approx(probability @ n)


def test_stopping_on_ordinary_intervals_loses_coverage():
    rule, rate = SequentialInterval(0.1, look_every=1, max_n=400), 0.0034
    n, low, high = simulate(
        rule, rate, 2000, lambda s, n: np.array(proportion_confint(s, n, method="wilson"))
    )
    assert np.mean((low <= rate) & (rate <= high)) < 0.91
    assert n.mean() < expected_episodes(rule, rate)  # it stops too early
    assert coverage(rule, rate) > 0.95


def test_looks_and_stops():
    rule = SequentialInterval(0.25, look_every=10, max_n=45)
    assert rule.looks == (10, 20, 30, 40, 45)
    assert not rule.update(0, 0)
    assert not rule.update(10, 10)
    assert not rule.update(25, 25)  # narrow enough, but no look
    assert rule.update(20, 20)
    assert not rule.update(15, 30)
    assert rule.update(22, 45)  # the end, whatever the width
    assert rule.interval(0, 0) == (0.0, 1.0)
    assert SequentialInterval(0.25, look_every=50, max_n=12).looks == (12,)


def test_sure_skills_need_far_fewer_episodes():
    rule = SequentialInterval(0.1, look_every=20, max_n=400)
    assert expected_episodes(rule, 0.98) < 90
    assert 350 < expected_episodes(rule, 0.5) <= 400  # as many as a fixed n would need, 381
    assert rule.update(200, 400)
    low, high = rule.interval(200, 400)
    assert high - low < 0.105


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 1.1}, r"width = 1.1 must lie in \(0, 1\]"),
        ({"width": 0.0}, r"width = 0.0 must lie in \(0, 1\]"),
        ({"width": 5}, r"width = 5 must lie in"),
        ({"width": 0.1, "confidence": 95}, "confidence = 95"),
        ({"width": 0.1, "look_every": 0}, "look_every = 0"),
        ({"width": 0.1, "max_n": 0}, "max_n = 0"),
    ],
)
def test_impossible_rules(settings, message):
    with pytest.raises(ValueError, match=message):
        SequentialInterval(**settings)
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        SequentialInterval(0.1).interval(3, 2)
