"""The squared distance to the base's weights."""

from __future__ import annotations

import torch
from bandit import BanditPolicy

from robo_razor.training.regularisers.l2 import squared_distance


def pair(rank=0):
    policy = BanditPolicy()
    base = policy.frozen_copy()
    if rank:
        policy.add_lora(rank)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in [*policy.policy_parameters(), *policy.value_parameters()]:
            parameter.add_(torch.randn_like(parameter))
    return policy, base


def test_it_is_the_sum_of_squares_of_what_is_trained_without_the_value_head():
    policy, base = pair()
    names = ("policy.weight", "policy.bias")
    tuned, before = policy.module.state_dict(), base.module.state_dict()
    expected = sum((tuned[name] - before[name]).square().sum() for name in names)
    distance = squared_distance(policy, base)
    torch.testing.assert_close(distance, expected)
    distance.backward()
    weight = policy.module["policy"].weight
    torch.testing.assert_close(weight.grad, 2 * (weight - base.module["policy"].weight))
    assert all(p.grad is None for p in policy.value_parameters())


def test_low_rank_updates_count_by_what_they_add_to_the_weights():
    policy, base = pair(rank=2)
    merged = policy.frozen_copy().module["policy"].weight
    expected = (merged - base.module["policy"].weight).square().sum()
    distance = squared_distance(policy, base)
    torch.testing.assert_close(distance, expected)
    distance.backward()
    assert policy.module["policy"].lora_up.grad.abs().sum() > 0


def test_a_policy_is_no_distance_from_itself():
    policy = BanditPolicy()
    assert float(squared_distance(policy, policy.frozen_copy()).detach()) == 0.0
