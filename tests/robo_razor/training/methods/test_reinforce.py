from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from bandit import make_learner

from robo_razor.core.errors import TrainingError
from robo_razor.training.methods.reinforce import Reinforce, outcome_advantages, reinforce_loss


def make_bandit(**settings):
    defaults = {
        "num_updates": 60,
        "episodes_per_update": 64,
        "learning_rate": 0.1,
        "warmup_updates": 0,
        "temperature": 1.0,
    }
    learner = make_learner(Reinforce(**(defaults | settings)))
    return learner, learner.policy


def test_normalised_advantages_have_no_mean_and_unit_deviation():
    advantages = outcome_advantages(torch.tensor([True, False, False, False]), "normalised")
    np.testing.assert_allclose(advantages, [np.sqrt(3), *[-1 / np.sqrt(3)] * 3], rtol=1e-6)
    assert outcome_advantages(torch.ones(4, dtype=torch.bool), "normalised").tolist() == [0.0] * 4
    assert outcome_advantages(torch.tensor([True, False]), "one_zero").tolist() == [1.0, 0.0]


def test_long_failures_do_not_make_the_mean_negative():
    """A mostly negative loss has no minimum: it lowers the probability of all that was done."""
    method, _ = make_bandit(num_minibatches=1)
    batch = method._collect(1)
    lengths = np.where(batch.success, 1, 3)
    record = dataclasses.replace(
        batch.record, offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    )
    targets = method.method.targets(dataclasses.replace(batch, record=record))
    assert 0 < batch.success.sum() < len(batch)
    assert len(targets.advantages) == lengths.sum()
    assert abs(float(targets.advantages.mean())) < 1e-6


def test_the_gradient_is_that_of_the_score_function():
    logits = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    log_prob = torch.log_softmax(logits, -1)[:, 1]
    reinforce_loss(log_prob, torch.tensor([2.0])).backward()
    expected = 2.0 * (torch.softmax(logits.detach(), -1) - torch.tensor([[0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(logits.grad, expected, atol=1e-6)


@pytest.mark.parametrize("advantage", ["normalised", "one_zero"])
def test_learns_a_contextual_bandit(advantage):
    method, _ = make_bandit(advantage=advantage)
    success = [method.update(k)["rollout/success_rate"] for k in range(1, 61)]
    assert success[0] < 0.45
    assert np.mean(success[-5:]) > 0.9


def test_one_zero_learns_from_successes_only():
    method, _ = make_bandit(advantage="one_zero", num_minibatches=2)
    batch = method._collect(1)
    targets = method.method.targets(batch)
    rows = torch.cat([part.rows for part in method._minibatches(batch, targets, 1)])
    assert sorted(rows.tolist()) == np.flatnonzero(batch.success).tolist()


def test_failures_alone_are_refused():
    method, policy = make_bandit()
    with torch.no_grad():  # never the right action: action 4 is right in no context
        policy.module["policy"].bias.copy_(torch.tensor([-50.0] * 4 + [50.0]))
    with pytest.raises(TrainingError, match="reinforce learns nothing from failures alone"):
        method.update(1)


def test_the_rate_warms_up_and_the_state_goes_on_elsewhere():
    method, policy = make_bandit(warmup_updates=4)
    rates = [method.update(k)["train/learning_rate"] for k in range(1, 6)]
    np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, 0.1, 0.1])
    other, twin = make_bandit(warmup_updates=4)
    twin.module.load_state_dict(policy.module.state_dict())
    other.load_state(copy.deepcopy(method.state()))
    method.update(6), other.update(6)
    for a, b in zip(policy.policy_parameters(), twin.policy_parameters(), strict=True):
        assert torch.equal(a, b)
