"""Resampling agrees with scipy, keeps clusters together, and covers at the edges."""

import math

import numpy as np
import pytest
from scipy import stats

from robo_razor.statistics import (
    bootstrap_mean,
    clustered_bootstrap,
    mean_rate_interval,
    mean_retention_interval,
    nbt_interval,
    retention_interval,
    seed_interval,
)


def width(estimate):
    return estimate.high - estimate.low


def test_clusters_of_one_are_the_plain_bootstrap():
    values = np.random.default_rng(0).random(80)
    clustered = clustered_bootstrap(values, np.arange(80), resamples=20_000)
    expected = stats.bootstrap((values,), np.mean, rng=1, n_resamples=20_000)
    t = stats.t.ppf(0.975, 79) * np.sqrt(80 / 79)
    assert clustered.value == pytest.approx(values.mean())
    assert width(clustered) == pytest.approx(2 * t * expected.standard_error, rel=0.02)


def test_clusters_of_alike_values_are_as_many_as_clusters():
    means = np.random.default_rng(0).random(12)
    values, clusters = np.repeat(means, 50), np.repeat([f"run {i}" for i in range(12)], 50)
    clustered = clustered_bootstrap(values, clusters, resamples=10_000)
    alone = clustered_bootstrap(means, np.arange(12), resamples=10_000)
    assert clustered.interval == pytest.approx(alone.interval, abs=1e-2)
    assert width(clustered) > 4 * width(bootstrap_mean(values))


def test_any_statistic_of_rows():
    generator = np.random.default_rng(0)
    rows, clusters = generator.random((60, 2)), np.arange(60) % 10
    values = rows[:, 0]
    slow = clustered_bootstrap(values, clusters, lambda sample: float(np.mean(sample)))
    assert slow.interval == pytest.approx(clustered_bootstrap(values, clusters).interval)
    ratio = clustered_bootstrap(rows, clusters, lambda r: float(r[:, 0].mean() / r[:, 1].mean()))
    assert ratio.low < ratio.value < ratio.high


def test_uneven_clusters_weigh_by_their_rows():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    assert clustered_bootstrap(values, ["a", "a", "a", "b"]).value == 0.75


def test_one_cluster_says_nothing():
    estimate = clustered_bootstrap([0.1, 0.2], ["a", "a"])
    assert estimate.value == pytest.approx(0.15)
    assert math.isnan(estimate.low)
    with pytest.raises(ValueError, match="as many clusters"):
        clustered_bootstrap([0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="confidence"):
        clustered_bootstrap([0.1, 0.2], ["a", "b"], confidence=95)


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [3, 5, 10])
def test_few_clusters_cover(clusters):
    generator = np.random.default_rng(0)
    owner, covered, percentiles = np.repeat(np.arange(clusters), 4), 0, 0
    for _ in range(600):
        values = generator.normal(size=clusters)[owner] + 0.3 * generator.normal(size=len(owner))
        estimate = clustered_bootstrap(values, owner, resamples=500)
        covered += estimate.low <= 0 <= estimate.high
        means = values.reshape(clusters, 4).mean(axis=1)
        low, high = bootstrap_mean(means, resamples=500).interval
        percentiles += low <= 0 <= high
    assert covered / 600 == pytest.approx(0.95, abs=0.025)
    assert percentiles / 600 == pytest.approx({3: 0.74, 5: 0.84, 10: 0.90}[clusters], abs=0.04)


@pytest.mark.parametrize("clusters", [2, 3, 12])
def test_equal_clusters_are_the_interval_over_seeds(clusters):
    values = np.random.default_rng(clusters).random((clusters, 30))
    owner = np.repeat(np.arange(clusters), 30)
    clustered = clustered_bootstrap(values.ravel(), owner, resamples=100_000)
    over_seeds = seed_interval(values.mean(axis=1))
    assert clustered.value == pytest.approx(over_seeds.value)
    assert width(clustered) == pytest.approx(width(over_seeds), rel=0.01)


def test_clustered_interval_can_be_cut_to_what_is_possible():
    values, owner = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0], [0, 0, 1, 1, 2, 2]
    assert clustered_bootstrap(values, owner).high > 1
    assert clustered_bootstrap(values, owner, bounds=(0, 1)).high == 1


def test_retention_of_the_same_policy_is_one_and_of_a_destroyed_one_is_zero():
    base = np.array([True] * 18 + [False] * 2)
    same, destroyed = retention_interval(base, base), retention_interval(base, np.zeros(20))
    assert same.value == 1.0
    assert same.low < 1 < same.high  # 20 start states do not prove that nothing changed
    assert destroyed.value == destroyed.low == 0.0
    assert 0 < destroyed.high < 0.25
    assert math.isnan(retention_interval(np.zeros(20), base).value)


def test_retention_equals_the_plain_bootstrap_far_from_the_edges():
    generator = np.random.default_rng(0)
    difficulty = generator.random(400)
    base, tuned = difficulty < 0.7, (difficulty < 0.5) ^ (generator.random(400) < 0.1)
    result = retention_interval(base, tuned, resamples=10_000)
    expected = stats.bootstrap(
        (base.astype(float), tuned.astype(float)),
        lambda before, after, axis: after.mean(axis) / before.mean(axis),
        paired=True,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert result.value == pytest.approx(tuned.mean() / base.mean())
    assert result.interval == pytest.approx((expected.low, expected.high), abs=1e-2)
    assert result == retention_interval(base, tuned, resamples=10_000)


def test_pairing_narrows_retention():
    difficulty = np.random.default_rng(0).random(200)
    base, tuned = difficulty < 0.7, difficulty < 0.6
    shuffled = np.random.default_rng(1).permutation(tuned)
    assert width(retention_interval(base, tuned)) < width(retention_interval(base, shuffled))


def test_nbt_and_mean_retention_of_hand_made_skills():
    base = {"reach": [1, 1, 1, 1], "push": [1, 1, 0, 0]}
    tuned = {"reach": [1, 1, 0, 0], "push": [1, 1, 1, 0]}
    assert nbt_interval(base, tuned).value == pytest.approx((0.5 - 0.25) / 2)
    assert mean_retention_interval(base, tuned).value == pytest.approx((0.5 + 1.5) / 2)
    never = {**base, "stack": [0, 0, 0, 0]}, {**tuned, "stack": [0, 0, 0, 1]}
    assert mean_retention_interval(*never).value == pytest.approx(1.0)
    assert nbt_interval(*never).value == pytest.approx(0.0)


def test_nbt_is_stratified_by_skill():
    skills = [f"skill {i}" for i in range(5)]
    base = {skill: np.ones(50) for skill in skills}
    tuned = {skill: np.arange(50) < 10 * i for i, skill in enumerate(skills)}
    result = nbt_interval(base, tuned)
    errors = [np.std(tuned[skill]) / math.sqrt(50) for skill in skills]
    expected = 2 * 1.96 * math.sqrt(np.square(errors).sum()) / 5  # skills do not add spread
    assert width(result) == pytest.approx(expected, rel=0.1)
    assert width(result) < width(seed_interval([tuned[skill].mean() for skill in skills])) / 2


def test_outcomes_must_fit():
    with pytest.raises(ValueError, match="same skills"):
        nbt_interval({"reach": [1]}, {"push": [1]})
    with pytest.raises(ValueError, match="same skills"):
        nbt_interval({}, {})
    with pytest.raises(ValueError, match="equally long"):
        retention_interval([1, 0], [1])
    with pytest.raises(ValueError, match="success or failure"):
        retention_interval([0.5], [1])


@pytest.mark.slow
@pytest.mark.parametrize("skills", [1, 8])
@pytest.mark.parametrize(("before", "after"), [(0.97, 0.9), (0.9, 0.5), (0.95, 0.02)])
def test_retention_and_nbt_cover_near_the_edges(skills, before, after):
    generator, n, repeats = np.random.default_rng(0), 30, 150
    names = [str(i) for i in range(skills)]
    retention, nbt = 0, 0
    for seed in range(repeats):
        base = {name: generator.random(n) < before for name in names}
        tuned = {name: generator.random(n) < after for name in names}
        ratio = mean_retention_interval(base, tuned, resamples=500, seed=seed)
        drop = nbt_interval(base, tuned, resamples=500, seed=seed)
        retention += ratio.low <= after / before <= ratio.high
        nbt += drop.low <= before - after <= drop.high
    assert retention / repeats > 0.9
    assert nbt / repeats > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "rates", [[0.98] * 12, [1.0] * 11 + [0.5], [0.5, 0.9, 0.99, 0.7], [0.97] * 4]
)
def test_mean_of_rates_covers(rates):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        wins = generator.binomial(10, rates)
        estimate = mean_rate_interval(wins, [10] * len(rates), resamples=400)
        covered += estimate.low <= np.mean(rates) <= estimate.high
    assert covered / 400 > 0.9


def test_mean_of_rates_at_the_edges():
    full = mean_rate_interval([10] * 12, [10] * 12)
    assert full.value == full.high == 1.0
    assert 0.94 < full.low < 0.99
    assert math.isnan(mean_rate_interval([], []).value)
    with pytest.raises(ValueError, match="not possible"):
        mean_rate_interval([11], [10])
