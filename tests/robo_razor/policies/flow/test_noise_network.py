"""Learnt noise: a network that gives the standard deviation of every denoising step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tiny_vla
import torch
from toy_env import ToyVectorEnv
from toy_runs import finetune, quiet, run_config, summary

from robo_razor.core.errors import ConfigError, PolicyError
from robo_razor.core.settings.config import EnvConfig, FlowConfig, TrackingConfig
from robo_razor.policies.flow.kernels import gaussian_kl
from robo_razor.policies.load import load_policy
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.ppo import PPO

LEARNT = FlowConfig(kernel="learnt", noise=0.4, noise_low=0.1, noise_high=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vla.save_tiny_smolvla(tmp_path_factory.mktemp("flow") / "policy")


@pytest.fixture
def handle(folder):
    policy = load_policy(folder)
    policy.configure(LEARNT)
    return policy


@pytest.fixture
def batch(handle):
    observation, _ = ToyVectorEnv(5, image_size=16).reset(seed=0)
    return handle.prepare(observation, ["lift the blue block"] * 5)


def noise(handle, rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *handle.noise_shape, generator=generator).clamp(1e-6, 1 - 1e-6)


def stir(policy, scale=1.0):
    """Move the noise network at random, so that its level differs everywhere."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in policy.noise_network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return policy


@torch.no_grad()
def test_a_new_network_is_injected_noise(handle, batch):
    other = handle.frozen_copy()
    other.configure(FlowConfig(kernel="inject", noise=0.4))
    assert other.noise_network is None
    numbers = noise(handle)
    paths, log_probs = [], []
    for policy in (handle, other):
        distribution = policy.distribution(batch)
        path = distribution.sample(numbers)
        paths.append(path)
        log_probs.append(distribution.log_prob(path))
    assert torch.allclose(*paths, atol=1e-5)
    assert torch.allclose(*log_probs, rtol=1e-4)


@torch.no_grad()
def test_levels_are_bounded_and_differ(handle, batch):
    network = stir(handle, 3.0).noise_network
    prefix = handle.adapter.encode({k: v for k, v in _floats(batch).items()})
    level = network(prefix.features, torch.tensor([1.0, 0.75, 0.5, 0.25]))
    assert level.shape == (5, 4, 1, tiny_vla.A)
    assert float(level.min()) >= 0.1 - 1e-6
    assert float(level.max()) <= 0.8 + 1e-6
    for axis in (0, 1, 3):  # observations, steps, dimensions
        assert float(level.std(axis).max()) > 1e-3
    distribution = handle.distribution(batch)
    _, std = distribution.moments(distribution.sample(noise(handle)))
    assert torch.allclose(std, level * math.sqrt(1 / 4), atol=1e-6)


def _floats(batch):
    from robo_razor.policies.flow.encoding import policy_batch

    return policy_batch(batch)


def test_ratios_are_one_and_divergences_zero_at_equal_weights(handle, batch):
    stir(handle)
    copy = handle.frozen_copy()
    with torch.no_grad():
        distribution = handle.distribution(batch)
        path = distribution.sample(noise(handle))
        collected = distribution.log_prob_steps(path)
        original, copied = handle.distribution(batch), copy.distribution(batch)
        assert torch.equal(original.kl(copied), torch.zeros(5))
        assert torch.equal(copied.kl(original), torch.zeros(5))
    replayed = handle.distribution(batch).log_prob_steps(path)
    assert float((replayed.detach() - collected).exp().sub(1).abs().max()) <= 1e-4
    replayed.sum().backward()
    for parameter in handle.noise_network.output.parameters():
        assert float(parameter.grad.abs().sum()) > 0.0
    assert handle.module.model.action_out_proj.weight.grad is not None


@torch.no_grad()
def test_densities_and_entropy_are_those_of_the_drawn_normals(handle, batch):
    distribution = stir(handle).distribution(batch)
    path = distribution.sample(noise(handle))
    mean, std = distribution.moments(path)
    real = path[..., : tiny_vla.A]
    normal = torch.distributions.Normal(mean, std.expand_as(mean))
    expected = normal.log_prob(real[:, 1:]).sum((-2, -1))
    assert torch.allclose(distribution.log_prob_steps(path), expected, atol=1e-3)
    entropy = normal.entropy().sum((1, 2, 3))
    assert torch.allclose(distribution.entropy(), entropy, rtol=1e-5)
    assert float(entropy.std()) > 1e-3  # it depends on the observation now


@torch.no_grad()
def test_the_divergence_sees_both_deviations(handle, batch):
    """Of equal means it is the closed form for two standard deviations, and no symmetric one."""
    other = stir(handle.frozen_copy())
    first, second = handle.distribution(batch), other.distribution(batch)
    assert (first.kl(second) > 0.01).all()
    assert not torch.allclose(first.kl(second), second.kl(first), rtol=1e-3)
    path = first.sample(noise(handle))
    (mean, std), (other_mean, other_std) = first.moments(path), second.moments(path)
    assert torch.allclose(mean, other_mean, atol=1e-6)
    zero = torch.zeros_like(mean)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(zero, std.expand_as(zero)),
        torch.distributions.Normal(zero, other_std.expand_as(zero)),
    ).sum((1, 2, 3))
    assert torch.allclose(gaussian_kl(mean, std, mean, other_std).sum(-1), expected, rtol=1e-4)
    assert torch.allclose(first.kl(second), expected, rtol=1e-3)


@torch.no_grad()
def test_greedy_actions_have_no_noise(handle, folder, batch):
    before = load_policy(folder).distribution(batch).mode()
    assert torch.equal(stir(handle, 3.0).distribution(batch).mode(), before)


def test_cloning_leaves_it_alone(handle, batch):
    targets = torch.rand(5, tiny_vla.CHUNK, tiny_vla.A)
    is_pad = torch.zeros(5, tiny_vla.CHUNK, dtype=torch.bool)
    loss, _ = handle.bc_loss({**batch, "action": targets, "action_is_pad": is_pad})
    loss.backward()
    assert all(parameter.grad is None for parameter in handle.noise_network.parameters())


def test_it_is_trained_beside_low_rank_updates(handle):
    added = handle.add_lora(2)
    of_network = {id(parameter) for parameter in handle.noise_network.parameters()}
    assert of_network <= {id(parameter) for parameter in added}
    assert {id(p) for p in added} == {id(p) for p in handle.policy_parameters()}


@torch.no_grad()
def test_it_is_saved_beside_the_policy(handle, batch, tmp_path):
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    stir(handle).save(tmp_path)
    SmolVLAPolicy.from_pretrained(tmp_path, strict=True)  # LeRobot's file has nothing of it
    again = load_policy(tmp_path)
    assert again.flow == LEARNT
    numbers = noise(handle)
    paths = [policy.distribution(batch).sample(numbers) for policy in (handle, again)]
    assert torch.equal(*paths)
    again.configure(FlowConfig())
    again.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "noise_network.safetensors").exists()


def test_settings_that_cannot_be_are_refused(handle, batch):
    with pytest.raises(ConfigError, match="does not lie between") as error:
        dataclasses.replace(LEARNT, noise=0.9)
    assert "flow.noise_high" in str(error.value)
    other = handle.frozen_copy()
    other.configure(FlowConfig(kernel="inject", noise=1.0))
    with pytest.raises(PolicyError, match="different samplers"), torch.no_grad():
        handle.distribution(batch).kl(other.distribution(batch))


def test_a_run_trains_saves_and_resumes_it(folder, tmp_path):
    ppo = PPO(
        num_updates=1, episodes_per_update=24, minibatch_size=64, update_epochs=1,
        learning_rate=3e-3, warmup_updates=0, value_warmup_updates=0, target_kl=None,
        ent_coef=0.01,
    )  # fmt: skip
    tracking = TrackingConfig(
        every=1.0, episodes_new=1, episodes_new_sampled=4, episodes_prior=0, kl_states=4,
        final_episodes_new=1, max_share=1.0,
    )  # fmt: skip
    env = EnvConfig(num_envs=16, num_workers=1, image_size=16, env_packages=("toy_env",))
    sections = {"ppo": ppo, "bc": BC()}
    config = run_config(
        folder, tmp_path / "run", "ppo", sections, env=env, tracking=tracking, flow=LEARNT
    )
    finetune(config, quiet())
    assert summary(tmp_path / "run", 1)["kl_base_tuned"]["new_base_visited"] > 0.0
    tuned = load_policy(str(tmp_path / "run"))
    assert tuned.flow == LEARNT
    assert float(tuned.noise_network.output.weight.detach().abs().max()) > 0.0
    observation, _ = ToyVectorEnv(2, image_size=16).reset(seed=0)
    assert np.isfinite(tuned.act(observation, ["go"] * 2)).all()
