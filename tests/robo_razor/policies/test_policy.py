"""The contract that everything calls: what a policy has by default, and what a small one adds."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch import nn

from robo_razor.core.errors import PolicyError
from robo_razor.policies.distributions import GaussianChunkDistribution
from robo_razor.policies.policy import Policy


class Constant(Policy):
    """A made-up policy: three methods, and no LeRobot policy in it."""

    name, has_density, action_dim = "constant", True, 2

    def __init__(self):
        self.module = nn.Linear(1, 2)

    def prepare(self, observation, instructions):
        return {"seen": torch.as_tensor(observation["agent_pos"])}

    def distribution(self, batch):
        return GaussianChunkDistribution(self.module(batch["seen"])[:, None], torch.tensor(0.0))


def test_a_small_policy_of_ones_own_is_a_policy():
    policy = Constant()
    observation = {"agent_pos": np.ones((3, 1), np.float32)}
    assert policy.act(observation, [""] * 3).shape == (3, 1, 2)
    numbers = np.full((3, *policy.noise_shape), 0.5)
    sampled = policy.act(observation, [""] * 3, mode="sample", uniforms=numbers)
    assert np.allclose(sampled, policy.act(observation, [""] * 3))
    assert len(policy.policy_parameters()) == 2
    assert policy.value_parameters() == []
    copy = policy.frozen_copy()
    assert copy.module is not policy.module
    assert not any(p.requires_grad for p in copy.module.parameters())


def test_what_a_policy_is_by_default():
    policy = Policy.__new__(Policy)
    assert (policy.chunk_size, policy.action_dim, policy.state_dim) == (1, 1, 0)
    assert (policy.temperature, policy.reads_temperature) == (1.0, True)
    assert not policy.has_density
    assert not policy.vision_frozen
    assert policy.prefix_bytes == 0
    assert policy.action_bins is None
    batch = {"seen": torch.ones(2)}
    assert policy.encode(batch) is batch
    assert policy.encode_prefix(batch) is batch


def test_a_policy_predicts_what_its_settings_say():
    policy = Policy.__new__(Policy)
    for settings, actions in (
        ({}, 1),
        ({"chunk_size": 7}, 7),
        ({"chunk_size": 7, "action_delta_indices": [0, 1, 2]}, 3),
    ):
        policy.module = types.SimpleNamespace(config=types.SimpleNamespace(**settings))
        assert policy.predicted_actions == actions


def test_sampling_wants_uniform_numbers():
    with pytest.raises(PolicyError, match="needs `uniforms`"):
        Constant().act({"agent_pos": np.ones((1, 1), np.float32)}, [""], mode="sample")


def test_numbers_that_are_not_finite_are_refused():
    policy = Constant()
    policy.check_finite("actions", torch.ones(3))
    with pytest.raises(PolicyError, match=r"computed actions of which 1 of 2 are NaN or infinite"):
        policy.check_finite("actions", torch.tensor([1.0, torch.nan]))
    with pytest.raises(PolicyError, match="was given NaN or infinity as 'seen'"):
        policy.check_finite(
            "actions", torch.tensor([torch.inf]), inputs={"seen": torch.tensor([torch.nan])}
        )
