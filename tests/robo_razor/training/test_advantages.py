from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from robo_razor.training.advantages import (
    episode_gae,
    explained_variance,
    gae,
    normalise,
)

GAMMA, LAMBDA = 0.9, 0.8


def naive_gae(rewards, values, final_value, terminated):
    """Return the sum over future deltas, written out."""
    n = len(rewards)
    following = [*values[1:], 0.0 if terminated else final_value]
    delta = [r + GAMMA * v2 - v for r, v, v2 in zip(rewards, values, following, strict=True)]
    return [sum((GAMMA * LAMBDA) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]


def test_gae_of_ragged_episodes_is_the_written_out_sum():
    rng = np.random.default_rng(0)
    lengths, ends = [3, 1, 5, 2], [True, False, False, True]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rewards, values = rng.normal(size=11), rng.normal(size=11)
    finals = rng.normal(size=4)
    advantages, targets = episode_gae(
        torch.from_numpy(rewards),
        torch.from_numpy(values),
        torch.from_numpy(finals),
        torch.tensor(ends),
        offsets,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
    )
    expected = np.concatenate(
        [
            naive_gae(rewards[a:b], values[a:b].tolist(), finals[e], ends[e])
            for e, (a, b) in enumerate(itertools.pairwise(offsets))
        ]
    )
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(targets.numpy(), expected + values, atol=1e-12)


def test_lambda_one_gives_discounted_returns_minus_the_value():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.3, 0.1, 0.5])
    offsets = np.array([0, 3])
    advantages, targets = episode_gae(
        rewards,
        values,
        torch.zeros(1),
        torch.tensor([True]),
        offsets,
        gamma=GAMMA,
        gae_lambda=1.0,
    )
    returns = torch.tensor([GAMMA**2, GAMMA, 1.0])
    torch.testing.assert_close(targets, returns)
    torch.testing.assert_close(advantages, returns - values)


def test_a_constant_reward_cut_off_by_the_time_limit_is_worth_one_over_one_minus_gamma():
    worth = 1.0 / (1.0 - GAMMA)
    advantages, targets = episode_gae(
        torch.ones(20),
        torch.full((20,), worth),
        torch.tensor([worth]),
        torch.tensor([False]),
        np.array([0, 20]),
        gamma=GAMMA,
        gae_lambda=LAMBDA,
    )
    torch.testing.assert_close(advantages, torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets, torch.full((20,), worth))


def test_a_termination_ignores_the_final_value_and_a_truncation_does_not():
    def last_target(terminated):
        _, targets = episode_gae(
            torch.zeros(2),
            torch.zeros(2),
            torch.tensor([7.0]),
            torch.tensor([terminated]),
            np.array([0, 2]),
            gamma=GAMMA,
            gae_lambda=LAMBDA,
        )
        return float(targets[-1])

    assert last_target(True) == 0.0
    assert last_target(False) == pytest.approx(GAMMA * 7.0)


def test_gae_over_streams_does_not_leak_across_the_end_of_an_episode():
    rewards = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    zeros = torch.zeros(4, 1)
    cut = torch.tensor([[False], [True], [False], [False]])
    none = torch.zeros(4, 1, dtype=torch.bool)
    for terminated, truncated in ((cut, none), (none, cut)):
        advantages, _ = gae(
            rewards, zeros, zeros, terminated, truncated, gamma=GAMMA, gae_lambda=LAMBDA
        )
        assert advantages[0] == advantages[1] == 0.0
        assert advantages[2] > 5.0


def test_normalise_gives_mean_zero_and_deviation_one():
    advantages = normalise(torch.tensor([1.0, 2.0, 6.0]))
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(advantages.square().mean()) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(normalise(torch.full((4,), 3.0)), torch.zeros(4))


def test_explained_variance():
    targets = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(targets + 3.0, targets) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(3), targets) == pytest.approx(0.0)
    assert math.isnan(explained_variance(targets, torch.ones(3)))
