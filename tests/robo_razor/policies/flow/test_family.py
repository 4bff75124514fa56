from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest
import tiny_vla
import torch
from toy_env import ToyVectorEnv

from robo_razor.core.errors import CheckpointError, PolicyError
from robo_razor.policies.flow.adapter import parameters_of
from robo_razor.policies.flow.encoding import policy_batch
from robo_razor.policies.flow.policy import FlowPolicy
from robo_razor.policies.load import load_policy


@pytest.fixture(scope="module", params=tiny_vla.KINDS)
def handle(request, tmp_path_factory):
    """A tiny policy of every family, loaded from a folder."""
    with tiny_vla.saved(request.param, tmp_path_factory.mktemp("flow") / "policy") as folder:
        yield load_policy(folder)


@pytest.fixture(scope="module")
def observed():
    observation, _ = ToyVectorEnv(6, image_size=16).reset(seed=0)
    return observation, ["lift the red block", "go"] * 3


@pytest.fixture
def batch(handle, observed):
    return handle.prepare(*observed)


def noise(handle, rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *handle.noise_shape, generator=generator).clamp(1e-6, 1 - 1e-6)


def test_every_family_gets_a_density(handle, batch):
    assert isinstance(handle, FlowPolicy)
    assert handle.has_density
    assert handle.noise_shape == (5, tiny_vla.CHUNK, 8)
    assert batch["observation.images.front"].dtype == torch.uint8
    assert handle.distribution(batch).kl_kind == "upper bound"


def test_without_noise_it_is_lerobots_own_sampler(handle, batch):
    start = torch.randn(6, tiny_vla.CHUNK, 8, generator=torch.Generator().manual_seed(1))
    expected = handle.module.predict_action_chunk(policy_batch(batch), noise=start)
    chunks = handle.distribution(batch).integrate(start)
    assert float((chunks - expected).abs().max()) < 1e-5
    assert float(expected.abs().max()) > 0.1


def test_velocity_is_what_cloning_trains(handle, batch):
    """The loss by way of the adapter equals the policy's own for the same noise and time."""
    adapter = handle.adapter
    rows = policy_batch(batch)
    actions = torch.randn(6, tiny_vla.CHUNK, 8, generator=torch.Generator().manual_seed(2))
    actions[..., tiny_vla.A :] = 0.0
    start = torch.randn(actions.shape, generator=torch.Generator().manual_seed(3))
    time = torch.linspace(0.1, 0.9, 6)
    arguments = {"noise": start, "time": time}
    model = handle.module.model
    with (
        torch.no_grad(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(model, "sample_noise", lambda *_: arguments["noise"])
        patch.setattr(model, "sample_time", lambda *_: arguments["time"])
        expected, _ = handle.module.forward({**rows, "action": actions[..., : tiny_vla.A]})
        mixed = time[:, None, None] * start + (1 - time[:, None, None]) * actions
        velocity = adapter.velocity(adapter.encode(rows), mixed, time)
    loss = (start - actions - velocity)[..., : tiny_vla.A].square().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_at_equal_weights_every_ratio_is_one(handle, batch):
    with torch.no_grad():
        distribution = handle.distribution(batch)
        path = distribution.sample(noise(handle))
        collected = distribution.log_prob_steps(path)  # step by step, while sampling
        blocks = handle.distribution(batch).log_prob_steps(path)  # replayed in one call
    replayed = handle.distribution(batch).log_prob_steps(path).detach()
    assert collected.shape == (6, 4)
    for other in (blocks, replayed):
        assert float((other - collected).exp().sub(1).abs().max()) <= 1e-4
    assert torch.allclose(distribution.log_prob(path), collected.sum(-1))


def test_every_trained_parameter_gets_a_gradient(handle, batch):
    with torch.no_grad():
        path = handle.distribution(batch).sample(noise(handle))
    handle.module.zero_grad(set_to_none=True)
    distribution, value = handle.distribution_and_value(batch)
    (distribution.log_prob(path).sum() + value.sum()).backward()
    expert = parameters_of(handle.adapter.expert_modules())
    missing = [p for p in expert if p.requires_grad and p.grad is None]
    assert sum(p.numel() for p in missing) <= 320 * 24  # pi's unused vocabulary, if any
    assert all(
        torch.isfinite(p.grad).all() for p in handle.module.parameters() if p.grad is not None
    )
    handle.module.zero_grad(set_to_none=True)


def test_padding_follows_the_law_of_training(handle, batch):
    with torch.no_grad():
        path = handle.distribution(batch).sample(noise(handle))
    first = path[:, 0, :, tiny_vla.A :]
    for k, t in enumerate((1.0, 0.75, 0.5, 0.25, 0.0)):
        assert torch.allclose(path[:, k, :, tiny_vla.A :], t * first)


def test_the_prefix_can_be_used_twice(handle, batch):
    """Denoising changes the cache that it is given, so everyone gets its own."""
    adapter, rows = handle.adapter, policy_batch(batch)
    with torch.no_grad():
        prefix = adapter.encode(rows)
        x, t = torch.randn(6, tiny_vla.CHUNK, 8), torch.full((6,), 0.5)
        first = adapter.velocity(prefix, x, t)
        assert torch.equal(adapter.velocity(prefix, x, t), first)
        repeated = adapter.velocity(
            prefix.repeat(3), x.repeat_interleave(3, 0), t.repeat_interleave(3)
        )
    assert torch.allclose(repeated.view(6, 3, tiny_vla.CHUNK, 8)[:, 1], first, atol=1e-5)


def test_training_the_expert_alone_leaves_the_prefix(handle):
    from robo_razor.core.settings.config import FlowConfig

    copy = handle.frozen_copy()
    with contextlib.ExitStack() as stack:
        stack.callback(handle.configure, FlowConfig())
        handle.configure(FlowConfig(train="expert"))
        prefix = {id(p) for p in parameters_of(handle.adapter.prefix_modules())}
        assert not any(p.requires_grad for p in handle.module.parameters() if id(p) in prefix)
        assert handle.policy_parameters()
        handle.configure(FlowConfig(train="all"))
        assert all(p.requires_grad for p in handle.module.parameters())
    assert not any(p.requires_grad for p in copy.module.parameters())


def test_saving_and_loading_gives_the_same_policy(handle, batch, tmp_path):
    with torch.no_grad():
        for parameter in handle.value_parameters():
            parameter.add_(0.01)
    handle.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    paths, values = [], []
    for policy in (handle, again):
        with torch.no_grad():
            distribution, value = policy.distribution_and_value(batch)
            paths.append(distribution.sample(noise(policy)))
            values.append(value)
    assert torch.equal(*paths)
    assert torch.equal(*values)
    assert float(values[0].abs().max()) > 0.0
    (greedy,) = {handle.to_actions(p.distribution(batch).mode()).tobytes() for p in (handle, again)}
    assert greedy


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_the_tokenizer_in_the_hubs_cache_is_read_and_kept(kind, observed, tmp_path, monkeypatch):
    """PaliGemma's, which only LeRobot's code names: laid out as the hub's client does it."""
    from huggingface_hub import constants

    policy = tmp_path / "policy"
    store = tmp_path / "home" / "hub" / "models--google--paligemma-3b-pt-224"
    snapshot = store / "snapshots" / "abc"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with tiny_vla.small_pi(kind):
        tiny_vla.save_tiny_pi(policy, kind)
        file = policy / "policy_preprocessor.json"
        words = str(tmp_path / "policy-words")
        file.write_text(file.read_text().replace(words, "google/paligemma-3b-pt-224"))
        with pytest.raises(PolicyError, match="tokenizer of 'google/paligemma-3b-pt-224'") as error:
            load_policy(policy)
        assert str(policy / "vlm") in str(error.value)
        shutil.move(words, store / "blobs")
        (store / "blobs" / "config.json").write_text('{"model_type": "paligemma"}')
        (store / "refs").mkdir()
        (store / "refs" / "main").write_text("abc")
        snapshot.mkdir(parents=True)
        names = {blob.name for blob in (store / "blobs").iterdir()}
        for name in names:
            (snapshot / name).symlink_to(f"../../blobs/{name}")
        first = load_policy(policy)
        first.save(tmp_path / "saved")
        assert {kept.name for kept in (tmp_path / "saved" / "vlm").iterdir()} == names
        shutil.rmtree(store)
        again = load_policy(tmp_path / "saved")
        assert np.array_equal(again.act(*observed), first.act(*observed))
    assert "google/paligemma-3b-pt-224" in (tmp_path / "saved" / file.name).read_text()


def test_weights_that_do_not_fit_are_no_policy(tmp_path):
    """LeRobot prints that it could not load them, and goes on with random ones."""
    with tiny_vla.small_pi("pi0"):
        folder = tiny_vla.save_tiny_pi(tmp_path / "policy", "pi0")
        config = tmp_path / "policy" / "config.json"
        text = config.read_text().replace('"max_action_dim": 8', '"max_action_dim": 9')
        config.write_text(text)
        with pytest.raises(CheckpointError, match="weights in .* do not fit"):
            load_policy(folder)
