from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from bandit import BINS, CONTEXTS, make_learner
from toy_policy import NEW, tiny_policy

from robo_razor.core.errors import ConfigError, TrainingError
from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
from robo_razor.core.types import make_rows
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.episodes import run_episodes
from robo_razor.training.learner import Context
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.on_policy import clipped_surrogate
from robo_razor.training.regularisers.kl import KL


def make_bandit(regularise=(), **settings):
    defaults = {
        "num_updates": 40,
        "episodes_per_update": 64,
        "minibatch_size": 32,
        "learning_rate": 0.1,
        "value_learning_rate": 0.1,
        "value_warmup_updates": 0,
        "warmup_updates": 0,
        "temperature": 1.0,
        "target_kl": None,
    }
    learner = make_learner(PPO(**(defaults | settings)), regularise)
    return learner, learner.policy


def weights(policy):
    return {k: v.clone() for k, v in policy.module.state_dict().items()}


def test_a_ratio_per_token_is_clipped_where_the_ratio_of_the_chunk_is_not():
    """Two tokens of a chunk that move apart: the chunk's ratio stays 1, each token's does not."""
    log_prob = torch.tensor([[0.5, -0.5]], requires_grad=True)
    old, advantages = torch.zeros(1, 2), torch.ones(1)
    clip = {"clip_low": 0.2, "clip_high": 0.3}
    for ratio, wanted in (("step", [0.0, -np.exp(-0.5)]), ("chunk", [-1.0, -1.0])):
        method = PPO(ratio=ratio)
        loss, diagnostics = clipped_surrogate(
            method.by_ratio(log_prob), method.by_ratio(old), advantages, **clip
        )
        (gradient,) = torch.autograd.grad(loss, log_prob)
        assert gradient[0].tolist() == pytest.approx(wanted)
    assert float(diagnostics["clip_fraction"]) == 0.0


def test_learns_a_contextual_bandit():
    method, _ = make_bandit()
    success = [method.update(k)["rollout/success_rate"] for k in range(1, 41)]
    assert success[0] < 0.45
    assert np.mean(success[-5:]) > 0.9


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_kl_penalty_keeps_the_policy_near_the_base(direction):
    def divergence(weight):
        method, _ = make_bandit([KL(weight=weight, direction=direction)])
        return [method.update(k)["train/kl_base_tuned"] for k in range(1, 25)][-1]

    assert divergence(1.0) < 0.3 * divergence(0.0)


def test_ratio_is_one_and_loss_is_minus_the_mean_advantage_at_equal_weights():
    log_prob = torch.randn(16)
    advantages = torch.randn(16)
    loss, diagnostics = clipped_surrogate(
        log_prob, log_prob.clone(), advantages, clip_low=0.2, clip_high=0.2
    )
    assert float(loss) == pytest.approx(-float(advantages.mean()), abs=1e-6)
    assert float(diagnostics["approx_kl"]) == 0.0
    assert float(diagnostics["clip_fraction"]) == 0.0
    assert float(diagnostics["ratio_max"]) == 1.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "has_gradient"),
    [(1.4, 1.0, False), (1.2, 1.0, True), (1.4, -1.0, True), (0.7, -1.0, False), (0.7, 1.0, True)],
)
def test_clipping_stops_the_gradient_only_where_it_would_go_further(ratio, advantage, has_gradient):
    log_prob = torch.tensor([np.log(ratio)], dtype=torch.float32, requires_grad=True)
    loss, diagnostics = clipped_surrogate(
        log_prob, torch.zeros(1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.3
    )
    loss.backward()
    assert bool(log_prob.grad.abs() > 0) == has_gradient
    assert float(diagnostics["approx_kl"]) >= 0.0


def test_the_value_warm_up_moves_the_value_only():
    method, policy = make_bandit(value_warmup_updates=2, detach_value=False)
    before = weights(policy)
    method.update(1)
    after = weights(policy)
    assert torch.equal(before["policy.weight"], after["policy.weight"])
    assert not torch.equal(before["value.weight"], after["value.weight"])
    method.update(3)
    assert not torch.equal(after["policy.weight"], weights(policy)["policy.weight"])


def test_an_update_stops_at_the_target_kl():
    method, _ = make_bandit(target_kl=1e-4, update_epochs=10, learning_rate=0.3)
    metrics = method.update(1)
    assert metrics["train/stopped_by_target_kl"] == 1.0
    assert metrics["train/gradient_steps"] < 20
    assert metrics["train/approx_kl"] > 1e-4


def test_the_same_seed_gives_the_same_update():
    results = []
    for _ in range(2):
        method, policy = make_bandit()
        method.update(1)
        results.append(weights(policy))
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


def test_the_learning_rate_is_annealed_to_zero():
    method, _ = make_bandit(anneal_lr=True, num_updates=4)
    rates = [method.update(k)["train/learning_rate"] for k in range(1, 5)]
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025])


def test_the_rate_warms_up_once_the_policy_is_trained():
    method, _ = make_bandit(value_warmup_updates=1, warmup_updates=2)
    rates = [method.update(k)["train/learning_rate"] for k in range(1, 5)]
    np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.1])


def test_the_rate_is_adapted_to_the_target_kl_and_kept():
    method, _ = make_bandit(adapt_lr=True, target_kl=0.2, learning_rate=1e-4, update_epochs=1)
    rates = [method.update(k)["train/learning_rate"] for k in range(1, 5)]
    np.testing.assert_allclose(rates, [1e-4 * 1.5**k for k in range(4)])
    other, _ = make_bandit(adapt_lr=True, target_kl=0.2, learning_rate=1e-4)
    other.load_state(method.state())
    assert other.rate_factor == pytest.approx(1.5**4)
    method, _ = make_bandit(adapt_lr=True, target_kl=1e-5)
    rates = [method.update(k)["train/learning_rate"] for k in range(1, 9)]
    assert rates[-1] == pytest.approx(0.01)
    config = FinetuneConfig(method=PPO(adapt_lr=True, target_kl=None))
    with pytest.raises(ConfigError, match="target_kl"):
        config.method.validate(config)


def test_a_temperature_sharpens_what_is_sampled_and_trained_but_not_the_policy():
    method, policy = make_bandit(temperature=0.25)
    seen = []
    rollout = method.context.rollout

    def watch(rows, **settings):
        seen.append(policy.temperature)
        return rollout(rows, **settings)

    method.context = dataclasses.replace(method.context, rollout=watch)
    with torch.no_grad():
        policy.module["policy"].weight.copy_(torch.eye(BINS, CONTEXTS))
    metrics = method.update(1)
    assert seen == [0.25]
    assert policy.temperature == 1.0
    entropy = policy.distribution({"context": torch.eye(CONTEXTS)}).entropy().mean()
    assert metrics["train/entropy"] < entropy.item()


def test_the_optimizer_state_goes_on_elsewhere():
    method, policy = make_bandit()
    for k in (1, 2):
        method.update(k)
    other, twin = make_bandit()
    twin.module.load_state_dict(policy.module.state_dict())
    other.load_state(copy.deepcopy(method.state()))  # a checkpoint shares no tensors
    method.update(3)
    other.update(3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(policy.module.parameters(), twin.module.parameters(), strict=True)
    )


def test_no_success_at_all_is_refused_with_advice():
    method, policy = make_bandit()
    with torch.no_grad():  # action 4 is right in no context
        policy.module["policy"].bias[:] = torch.tensor([0.0, 0.0, 0.0, 0.0, 80.0])
    method.check_start([False] * 50)
    with pytest.raises(TrainingError, match=r"0 of 114 sampled episodes.*--method bc"):
        method.update(1)


def test_a_base_that_succeeded_at_step_zero_is_not_refused():
    method, policy = make_bandit()
    with torch.no_grad():
        policy.module["policy"].bias[:] = torch.tensor([0.0, 0.0, 0.0, 0.0, 80.0])
    method.check_start([False] * 49 + [True])
    method.update(1)


def test_recorded_log_probabilities_are_those_that_the_update_computes():
    policy = tiny_policy()
    env = make_env(
        NEW, EnvConfig(num_envs=8, image_size=16, env_packages=("toy_env",)), chunk_size=4
    )
    batch = run_episodes(env, policy, make_rows(NEW, range(8)), "sample", record=True)
    record = batch.record
    distribution, value = policy.distribution_and_value(record.inputs)
    torch.testing.assert_close(
        distribution.log_prob_steps(record.actions), record.log_prob, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(value, record.value, atol=1e-4, rtol=0)


def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not():
    method, _ = make_bandit()
    rows = make_rows("bandit", range(4))
    batch = method.context.rollout(rows, mode="sample", record=True, sampling_seed=0)
    record = dataclasses.replace(
        batch.record, final_value=torch.ones(4), reward=torch.zeros(4), value=torch.zeros(4)
    )
    ended = dataclasses.replace(batch, record=record)
    cut = dataclasses.replace(ended, terminated=batch.truncated, truncated=batch.terminated)
    assert method.method.targets(ended).returns.tolist() == [0.0] * 4
    assert method.method.targets(cut).returns.tolist() == pytest.approx([0.99] * 4)


def test_bf16_holds_in_rollouts_and_updates_start_at_ratio_one():
    in_bf16 = []
    policy, base = tiny_policy(), tiny_policy()
    env = make_env(
        NEW, EnvConfig(num_envs=8, image_size=16, env_packages=("toy_env",)), chunk_size=4
    )

    def rollout(rows, *, mode, record, sampling_seed, whole=False):
        in_bf16.append(torch.is_autocast_enabled("cpu"))
        return run_episodes(env, policy, rows, mode, record, sampling_seed=sampling_seed)

    config = FinetuneConfig(
        task=NEW,
        method=PPO(
            bf16=True,
            episodes_per_update=8,
            minibatch_size=4096,
            update_epochs=1,
            value_warmup_updates=0,
        ),
    )
    method = config.method.learner(
        Context(
            config=config, policy=policy, base=base, rollout=rollout, demonstrations=lambda: None
        )
    )
    method.check_start([True])
    metrics = method.update(1)
    assert in_bf16 == [True]
    assert not torch.is_autocast_enabled("cpu")  # nothing else of the run is to be in bfloat16
    # Batches of another size round differently in bfloat16, so not exactly one.
    assert metrics["train/ratio_max"] == pytest.approx(1.0, abs=0.05)
