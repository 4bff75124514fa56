"""What saves memory and time changes nothing else: kept prefixes, checkpointing, bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_vla
import torch
from toy_env import ToyVectorEnv
from toy_policy import NEW

from robo_razor.core.settings.config import FinetuneConfig, FlowConfig
from robo_razor.core.types import make_rows
from robo_razor.policies.flow.adapter import PREFIX
from robo_razor.policies.load import load_policy
from robo_razor.rollout.actors import PolicyActor
from robo_razor.rollout.episodes import run_actor, run_episodes
from robo_razor.training.learner import Context
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.regularisers import Penalties
from robo_razor.training.regularisers.kl import KL
from robo_razor.training.update import autocast

EXPERT = FlowConfig(train="expert")


@pytest.fixture(scope="module", params=tiny_vla.KINDS)
def folder(request, tmp_path_factory):
    with tiny_vla.saved(request.param, tmp_path_factory.mktemp("flow") / "policy") as saved:
        yield saved


@pytest.fixture
def handle(folder):
    policy = load_policy(folder)
    policy.configure(EXPERT)
    return policy


def env(num_envs=6):
    return ToyVectorEnv(
        num_envs, image_size=16, task=NEW, chunk_size=tiny_vla.CHUNK, max_episode_steps=12
    )


def collect(handle, gib):
    handle.configure(FlowConfig(train=handle.flow.train, prefix_gib=gib))
    return run_episodes(env(), handle, make_rows(NEW, range(7)), "sample", True).record


def test_kept_prefixes_are_what_encoding_anew_gives(handle):
    plain, cached = collect(handle, 0.0), collect(handle, 1.0)
    assert all(key.startswith(PREFIX) for key in cached.inputs)
    assert not any(key.startswith(PREFIX) for key in plain.inputs)
    for name in ("actions", "log_prob", "value", "final_value"):
        assert torch.equal(getattr(plain, name), getattr(cached, name)), name
    with torch.no_grad():
        base = handle.frozen_copy()
        base.module.model.action_out_proj.weight.add_(0.02)
        results = []
        for record in (plain, cached):
            distribution, value = handle.distribution_and_value(record.inputs)
            results.append(
                [
                    distribution.log_prob_steps(record.actions),
                    base.distribution(record.inputs).kl(distribution),
                    distribution.mode(),
                    value,
                ]
            )
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_gradients_with_kept_prefixes_are_the_same(handle):
    gradients = []
    for gib in (0.0, 1.0):
        record = collect(handle, gib)
        rows = slice(0, 8)
        inputs = {key: value[rows] for key, value in record.inputs.items()}
        gradients.append(_gradients(handle, inputs, record.actions[rows]))
    _assert_close(*gradients)


def test_nothing_is_kept_where_training_changes_it(folder):
    handle = load_policy(folder)
    handle.configure(FlowConfig(train="all", prefix_gib=1.0))
    assert handle.prefix_bytes == 0
    record = run_episodes(env(), handle, make_rows(NEW, range(2)), "sample", True).record
    assert not any(key.startswith(PREFIX) for key in record.inputs)


def test_too_little_memory_keeps_none(handle):
    """All or none: a record has one kind of inputs."""
    one = collect(handle, 1.0)
    need = sum(tensor.nbytes for tensor in one.inputs.values())
    handle.configure(FlowConfig(train="expert", prefix_gib=0.5 * need / 2**30))
    actor = PolicyActor(handle, "sample", record=True)
    record = run_actor(env(), actor, make_rows(NEW, range(7)), record=True).record
    assert not any(key.startswith(PREFIX) for key in record.inputs)
    assert torch.equal(record.log_prob, one.log_prob)


@pytest.mark.parametrize("train", ["expert", "all"])
def test_checkpointing_gives_the_same_gradients(folder, train):
    handle, gradients = load_policy(folder), []
    observation, _ = ToyVectorEnv(3, image_size=16).reset(seed=0)
    for checkpointing in (False, True):
        handle.configure(FlowConfig(train=train, checkpointing=checkpointing))
        inputs = handle.prepare(observation, ["lift the red block"] * 3)
        with torch.no_grad():
            uniforms = torch.rand(3, *handle.noise_shape, generator=torch.manual_seed(0))
            path = handle.distribution(inputs).sample(uniforms.clamp(1e-4, 1 - 1e-4))
        gradients.append(_gradients(handle, inputs, path, penalty=handle.frozen_copy()))
    _assert_close(*gradients)


def test_checkpointing_keeps_less(folder):
    handle = load_policy(folder)
    observation, _ = ToyVectorEnv(3, image_size=16).reset(seed=0)
    kept = []
    for checkpointing in (False, True):
        handle.configure(FlowConfig(train="expert", checkpointing=checkpointing))
        inputs = handle.prepare(observation, ["go"] * 3)
        path = torch.zeros(3, *handle.distribution(inputs).path_shape)
        sizes: list[int] = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            handle.distribution(inputs).log_prob(path).sum()
        kept.append(sum(sizes))
    assert kept[1] < 0.2 * kept[0]


def test_cloning_with_checkpointing_has_the_same_loss(folder):
    """LeRobot's own: pi0 and pi0.5 have it, SmolVLA has not."""
    losses, norms = [], []
    observation, _ = ToyVectorEnv(3, image_size=16).reset(seed=0)
    for checkpointing in (False, True):
        handle = load_policy(folder)
        handle.configure(FlowConfig(checkpointing=checkpointing))
        handle.module.train()
        torch.manual_seed(0)
        targets = torch.zeros(3, tiny_vla.CHUNK, tiny_vla.A)
        is_pad = torch.zeros(3, tiny_vla.CHUNK, dtype=torch.bool)
        inputs = handle.prepare(observation, ["lift the red block"] * 3)
        loss, _ = handle.bc_loss({**inputs, "action": targets, "action_is_pad": is_pad})
        loss.backward()
        losses.append(loss.item())
        norms.append(float(handle.module.model.action_out_proj.weight.grad.norm()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_bfloat16_casts_products_and_nothing_else(folder):
    handle = load_policy(folder)
    observation, _ = ToyVectorEnv(4, image_size=16).reset(seed=0)
    inputs = handle.prepare(observation, ["lift the red block"] * 4)
    before = {name: p.dtype for name, p in handle.module.named_parameters()}
    with torch.no_grad():
        exact = handle.distribution(inputs)
        uniforms = torch.rand(4, *handle.noise_shape, generator=torch.manual_seed(0))
        path = exact.sample(uniforms.clamp(1e-4, 1 - 1e-4))
        expected, _ = exact.moments(path)
    with autocast("cpu", True):
        distribution, value = handle.distribution_and_value(inputs)
        mean, std = distribution.moments(path)
        log_prob = distribution.log_prob_steps(path)
    assert mean.dtype == std.dtype == log_prob.dtype == torch.float32
    assert 0.0 < float((mean.detach() - expected).abs().max()) < 0.1  # rounded, but no more
    (log_prob.sum() + value.float().sum()).backward()
    assert {name: p.dtype for name, p in handle.module.named_parameters()} == before
    gradient = handle.module.model.action_out_proj.weight.grad
    assert gradient.dtype == torch.float32
    assert torch.isfinite(gradient).all()


def test_ppo_updates_from_kept_prefixes(handle):
    """The whole update: targets, gradient steps, and the divergence from the base."""
    metrics = []
    for gib in (0.0, 1.0):
        policy = load_policy(handle.name)
        flow = FlowConfig(train="expert", prefix_gib=gib)
        policy.configure(flow)

        def rollout(rows, *, mode, record, sampling_seed, whole=False, policy=policy):
            batch = run_episodes(env(8), policy, rows, mode, record, sampling_seed=sampling_seed)
            assert batch.record is not None  # new policies hardly ever succeed
            reward = torch.linspace(-1.0, 1.0, len(batch.record))
            return replace(batch, record=replace(batch.record, reward=reward))

        ppo = PPO(
            num_updates=1, episodes_per_update=24, minibatch_size=64, update_epochs=1,
            learning_rate=1e-4, warmup_updates=0, value_warmup_updates=0,
            target_kl=None,
        )  # fmt: skip
        config = FinetuneConfig(task=NEW, method=ppo, flow=flow)
        context = Context(
            config=config,
            policy=policy,
            base=policy.frozen_copy(),
            rollout=rollout,
            demonstrations=lambda: None,
            penalties=Penalties([KL(weight=0.1)]),
        )
        method = ppo.learner(context)
        method.base_outcomes = (True,)
        metrics.append(method.update(1))
    recomputed, cached = metrics
    assert recomputed["rollout/decisions"] == cached["rollout/decisions"]
    for name in ("train/policy_loss", "train/value_loss", "train/kl_base_tuned"):
        assert recomputed[name] == pytest.approx(cached[name], rel=1e-3, abs=1e-5), name
    assert recomputed["train/kl_base_tuned"] > 0.0


def _gradients(handle, inputs, path, penalty=None):
    handle.module.zero_grad(set_to_none=True)
    distribution, value = handle.distribution_and_value(inputs)
    loss = distribution.log_prob(path).mean() + value.sum()
    if penalty is not None:
        with torch.no_grad():
            penalty.module.model.action_out_proj.weight.mul_(1.02)
            base = penalty.distribution(inputs)
        loss = loss + base.kl(distribution).mean()
    loss.backward()
    return {
        name: p.grad.clone() for name, p in handle.module.named_parameters() if p.grad is not None
    }


def _assert_close(first, second):
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        size = float(gradient.abs().max())
        assert torch.allclose(gradient, second[name], atol=1e-4 * size + 1e-6, rtol=1e-3), name
