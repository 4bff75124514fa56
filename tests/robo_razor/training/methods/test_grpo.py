from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from bandit import make_learner

from robo_razor.core.errors import ConfigError
from robo_razor.core.types import make_rows
from robo_razor.training.methods.grpo import GRPO, group_advantages


def make_bandit(**settings):
    defaults = {
        "num_updates": 40,
        "episodes_per_update": 64,
        "minibatch_size": 32,
        "learning_rate": 0.1,
        "warmup_updates": 0,
        "temperature": 1.0,
        "target_kl": None,
    }
    return make_learner(GRPO(**(defaults | settings)))


def test_advantages_are_those_of_the_papers():
    """Of n binary outcomes with k ones: (r - k/n) / sqrt(k/n (1 - k/n)), or without division."""
    outcomes = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    quarter, three = np.sqrt(1 / 4 * 3 / 4), np.sqrt(3 / 4 * 1 / 4)
    divided = [0.75 / quarter, *[-0.25 / quarter] * 3, *[0.25 / three] * 3, -0.75 / three]
    np.testing.assert_allclose(group_advantages(outcomes, 4), divided, rtol=1e-6)
    plain = [0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75]
    np.testing.assert_allclose(group_advantages(outcomes, 4, divide_by_std=False), plain)


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("length", range(1, 41))
def test_groups_that_ended_alike_have_no_advantage_at_all(length, divide):
    """What rounding leaves would count as a useful decision, and be scaled up to full size."""
    returns = torch.full((8,), 0.99, dtype=torch.float32) ** length
    assert torch.count_nonzero(group_advantages(returns, 8, divide)) == 0


@pytest.mark.parametrize("divide", [True, False])
def test_learns_a_contextual_bandit(divide):
    learner = make_bandit(group_size=8, divide_by_std=divide)
    success = [learner.update(k)["rollout/success_rate"] for k in range(1, 41)]
    assert success[0] < 0.45
    assert np.mean(success[-5:]) > 0.9


def test_groups_that_all_ended_alike_teach_nothing():
    learner = make_bandit(group_size=4)
    batch = learner.context.rollout(
        make_rows("bandit", range(8)), mode="sample", record=True, sampling_seed=0
    )
    reward = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    batch = dataclasses.replace(batch, episode_return=reward)
    targets = learner.method.targets(batch)
    assert targets.advantages[:4].tolist() == [0.0] * 4
    assert targets.advantages[4:].sign().tolist() == [1.0, -1.0, -1.0, 1.0]
    assert targets.learnt_from.tolist() == [4, 5, 6, 7]


def test_episodes_of_a_group_share_a_start_state_and_differ_in_their_noise():
    rows = make_bandit(group_size=8)._collect(1).rows
    assert len({row.seed for row in rows[:8]}) == 1
    assert [row.sample for row in rows[:8]] == list(range(8))
    assert len({row.seed for row in rows}) == 8


def test_groups_must_divide_the_episodes():
    with pytest.raises(ConfigError, match=r"grpo\.episodes_per_update = 64 is not a multiple"):
        GRPO(group_size=5, episodes_per_update=64)


def test_the_value_head_stays_as_it_was():
    learner = make_bandit(group_size=8)
    before = [p.clone() for p in learner.policy.value_parameters()]
    learner.update(1)
    after = learner.policy.value_parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
