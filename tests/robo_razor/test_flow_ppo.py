"""PPO on denoising paths: that it learns, and what its ratios are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_vla
import torch

from robo_razor.config import FinetuneConfig, FlowConfig, PPOConfig
from robo_razor.methods import Services
from robo_razor.methods.ppo import PPO, ppo_policy_loss
from robo_razor.policies import load_policy
from robo_razor.types import DecisionRecord, EpisodeBatch

EPISODES = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vla.save_tiny_smolvla(tmp_path_factory.mktemp("flow") / "policy")


def observations(rows, policy):
    n = len(rows)
    state = np.zeros((n, tiny_vla.STATE), np.float32)
    state[:, 0] = [1.0 if row.seed % 2 else -1.0 for row in rows]
    image = np.zeros((n, 16, 16, 3), np.uint8)
    seen = {"pixels": {"front": image, "wrist": image}, "agent_pos": state}
    return policy.prepare(seen, ["go"] * n)


def forwards(policy):
    """Return a service with episodes of one decision: go forwards along the first dimension."""

    def rollout(rows, *, mode, record, sampling_seed):
        inputs = observations(rows, policy)
        n = len(rows)
        with torch.no_grad():
            distribution, value = policy.distribution_and_value(inputs)
            numbers = np.random.default_rng(sampling_seed).random((n, *policy.noise_shape))
            path = distribution.sample(torch.from_numpy(numbers.clip(1e-6, 1 - 1e-6)))
            log_prob = distribution.log_prob_steps(path)
        success = policy.to_actions(path)[..., 0].mean(1) > 0.5
        ones = np.ones(n, dtype=np.int64)
        return EpisodeBatch(
            rows=tuple(rows),
            instructions=("go",) * n,
            success=success,
            decisions=ones,
            control_steps=ones,
            episode_return=success.astype(float),
            terminated=ones.astype(bool),
            truncated=~ones.astype(bool),
            record=DecisionRecord(
                inputs,
                path,
                log_prob,
                value,
                torch.from_numpy(success).float(),
                np.arange(n + 1),
                torch.zeros(n),
            ),
        )

    return rollout


def make_ppo(folder, flow=None, **settings):
    ppo = {
        "episodes_per_update": EPISODES,
        "num_updates": 8,
        "minibatch_size": EPISODES,
        "update_epochs": 3,
        "learning_rate": 4e-3,
        "value_learning_rate": 3e-3,
        "warmup_updates": 0,
        "value_warmup_updates": 0,
        "target_kl": None,
    }
    config = FinetuneConfig(ppo=PPOConfig(**(ppo | settings)), flow=flow or FlowConfig())
    policy = load_policy(folder)
    policy.configure(config.flow)
    base = policy.frozen_copy()
    return PPO(config, policy, base, Services(forwards(policy), lambda: None))


@pytest.mark.parametrize("ratio", ["step", "chunk"])
def test_ppo_learns_from_outcomes_and_the_divergence_grows(folder, ratio):
    method = make_ppo(folder, ratio=ratio)
    found = [method.update(update) for update in range(1, 9)]
    success = [metrics["rollout/success_rate"] for metrics in found]
    assert success[-1] > success[0] + 0.5, success
    divergence = [metrics["train/kl_base_tuned"] for metrics in found]
    assert divergence[-1] > divergence[2] > divergence[0] > 0.0
    assert method.base.name == method.policy.name


def test_steps_are_clipped_one_by_one():
    """A step that went too far loses its gradient, and the others keep theirs."""
    log_prob = torch.tensor([[0.0, 0.5], [0.0, 0.1]], requires_grad=True)
    loss, found = ppo_policy_loss(
        log_prob, torch.zeros(2, 2), torch.tensor([1.0, -2.0]), clip_low=0.2, clip_high=0.2
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(1.0 + 1.2 - 2.0 - 2.0 * math.exp(0.1)) / 2)
    expected = [[-0.5, 0.0], [1.0, math.exp(0.1)]]
    assert torch.allclose(log_prob.grad, torch.tensor(expected))
    # Per decision, as the divergence of whole paths.
    terms = [math.exp(0.5) - 1.5, math.exp(0.1) - 1.1]
    assert found["approx_kl"].item() == pytest.approx(sum(terms) / 2)
    assert found["clip_fraction"].item() == pytest.approx(0.25)


def test_a_single_step_is_the_chunk():
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 8)
    given = {"clip_low": 0.2, "clip_high": 0.28}
    one, found = ppo_policy_loss(new, old, advantages, **given)
    two, same = ppo_policy_loss(new[:, None], old[:, None], advantages, **given)
    assert torch.equal(one, two)
    assert found == same


def test_small_parts_add_up_to_the_same_gradient(folder):
    gradients = []
    for size in (None, 40):
        method = make_ppo(folder, micro_batch_size=size, update_epochs=1, max_grad_norm=1e9)
        method.update(1)
        gradients.append([p.grad.clone() for p in method.policy_parameters if p.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, atol=1e-4 * float(whole.abs().max()) + 1e-7)


def test_a_penalty_keeps_the_policy_near_its_base(folder):
    free, held = (
        make_ppo(folder, kl_coef=weight, num_updates=2, update_epochs=4) for weight in (0.0, 3.0)
    )
    for update in (1, 2):
        far, near = free.update(update), held.update(update)
    assert near["train/kl_base_tuned"] < 0.7 * far["train/kl_base_tuned"]
