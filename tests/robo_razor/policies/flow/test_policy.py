"""The distribution and the handle of a flow policy, on a tiny SmolVLA."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import tiny_vla
import torch
from safetensors.torch import load_file
from toy_env import ToyVectorEnv
from toy_policy import NEW

from robo_razor.core.errors import ConfigError, PolicyError
from robo_razor.core.settings.config import FlowConfig
from robo_razor.core.types import make_rows
from robo_razor.evaluation.divergences import compare
from robo_razor.evaluation.forgetting import measure_probe
from robo_razor.evaluation.probes import ProbeSet
from robo_razor.policies.flow.policy import FlowPolicy
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Loaded
from robo_razor.rollout.actors import PolicyActor
from robo_razor.rollout.episodes import run_episodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vla.save_tiny_smolvla(tmp_path_factory.mktemp("flow") / "policy")


@pytest.fixture
def handle(folder):
    return load_policy(folder)


@pytest.fixture(scope="module")
def observed():
    observation, _ = ToyVectorEnv(5, image_size=16).reset(seed=0)
    return observation, ["lift the blue block"] * 5


def noise(handle, rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *handle.noise_shape, generator=generator).clamp(1e-6, 1 - 1e-6)


def moved(handle, scale=0.05):
    """Return a copy of which the action expert's weights are moved at random."""
    copy = handle.frozen_copy()
    torch.manual_seed(1)
    with torch.no_grad():
        for module in copy.adapter.expert_modules():
            for parameter in module.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
    return copy


# Distribution -------------------------------------------------------------------------------------


@torch.no_grad()
def test_equal_weights_are_no_distance_apart(handle, observed):
    batch = handle.prepare(*observed)
    base, copy = handle.distribution(batch), handle.frozen_copy().distribution(batch)
    assert torch.equal(base.kl(copy), torch.zeros(5))
    assert torch.equal(copy.kl(base), torch.zeros(5))
    measures = compare(base, copy)
    assert set(measures) == {
        "kl_base_tuned",
        "kl_tuned_base",
        "greedy_disagreement",
        "greedy_disagreement_chunk",
    }
    assert not measures["greedy_disagreement"].any()


@torch.no_grad()
def test_the_divergence_is_the_expected_log_ratio(handle, observed):
    handle.configure(FlowConfig(noise=0.7, kl_paths=32))
    tuned = moved(handle, 0.02)
    batch = {key: value[:2] for key, value in handle.prepare(*observed).items()}
    base, changed = handle.distribution(batch), tuned.distribution(batch)
    ratios = []
    for seed in range(60):
        path = base.sample(noise(handle, 2, seed))
        ratios.append(base.log_prob(path) - changed.log_prob(path))
    ratio = torch.stack(ratios)
    error = ratio.std(0) / 60**0.5 + base.kl_standard_error(changed)
    assert (base.kl(changed) > 0.1).all()
    assert ((ratio.mean(0) - base.kl(changed)).abs() < 4 * error).all()
    assert (base.kl_standard_error(changed) < 0.3 * base.kl(changed)).all()
    assert torch.equal(base.kl(changed), base.kl(changed))


@torch.no_grad()
def test_divergence_grows_with_the_change_and_falls_with_the_noise(handle, observed):
    batch = handle.prepare(*observed)
    near, far = (moved(handle, scale) for scale in (0.01, 0.05))
    base = handle.distribution(batch)
    assert base.kl(near.distribution(batch)).mean() < base.kl(far.distribution(batch)).mean()
    values = []
    for level in (0.3, 0.6):
        for policy in (handle, far):
            policy.configure(FlowConfig(noise=level))
        values.append(handle.distribution(batch).kl(far.distribution(batch)).mean())
    assert values[1] < values[0]


@torch.no_grad()
def test_divergences_of_an_observation_do_not_depend_on_the_others(handle, observed):
    """The noise of its paths is that of the observation, kept in place of the encoded one too."""
    batch = handle.prepare(*observed)
    part = {key: value[[3, 1]] for key, value in batch.items()}
    tuned = moved(handle, 0.02)
    handle.configure(FlowConfig(kl_paths=3))
    tuned.configure(FlowConfig(kl_paths=3))
    complete, some = (
        handle.distribution(rows).kl_of_paths(tuned.distribution(rows)) for rows in (batch, part)
    )
    assert torch.allclose(some, complete[[3, 1]], rtol=1e-3)
    assert float(complete.std(0).min()) > 1e-3  # every observation has paths of its own
    assert float(complete.std(1).min()) > 1e-3
    keys = handle.distribution(batch).observations.keys
    assert len(set(keys)) == len(keys) == 5
    encoded = {key: value[[3, 1]] for key, value in handle.encode_prefix(batch).items()}
    assert handle.distribution(encoded).observations.keys == [keys[3], keys[1]]
    encoded_kl = handle.distribution(encoded).kl_of_paths(tuned.distribution(part))
    assert torch.allclose(encoded_kl, complete[[3, 1]], rtol=1e-3)


def test_a_penalty_has_a_gradient(handle, observed):
    batch, base = handle.prepare(*observed), handle.frozen_copy()
    tuned = load_policy(handle.name)
    with torch.no_grad():
        tuned.module.model.action_out_proj.weight.add_(0.05)
    for direction in ("forward", "reverse"):
        distribution = tuned.distribution(batch)
        with torch.no_grad():
            before = base.distribution(batch)
        pair = (before, distribution) if direction == "forward" else (distribution, before)
        penalty = pair[0].kl(pair[1]).mean()
        tuned.module.zero_grad(set_to_none=True)
        penalty.backward()
        assert float(tuned.module.model.action_out_proj.weight.grad.abs().sum()) > 0.0
    assert all(p.grad is None for p in base.module.parameters())


@torch.no_grad()
def test_entropy_and_modes_of_a_path(handle, observed):
    distribution = handle.distribution(handle.prepare(*observed))
    std = torch.tensor(distribution.schedule.std)
    each = 0.5 * (1 + np.log(2 * np.pi)) + std.log()
    expected = float(each.sum()) * tiny_vla.CHUNK * tiny_vla.A
    assert distribution.entropy().tolist() == pytest.approx([expected] * 5)
    # The statistics of tiny_vla: actions are 0.1 + 0.8 x.
    path = distribution.sample(noise(handle))
    chunk = path[:, -1, :, : tiny_vla.A].numpy()
    np.testing.assert_allclose(handle.to_actions(path), 0.1 + 0.8 * chunk, rtol=1e-5)
    zero = distribution.integrate(torch.zeros(5, tiny_vla.CHUNK, 8)).numpy()
    np.testing.assert_allclose(handle.to_actions(distribution.mode()), 0.1 + 0.8 * zero, rtol=1e-5)


def test_other_samplers_are_no_comparison(handle, observed):
    batch, other = handle.prepare(*observed), handle.frozen_copy()
    other.configure(FlowConfig(noise=0.3))
    with pytest.raises(PolicyError, match="different samplers"):
        handle.distribution(batch).kl(other.distribution(batch))
    with pytest.raises(PolicyError, match="denoising paths of shape"):
        handle.distribution(batch).log_prob(torch.zeros(5, 4, 5))
    with pytest.raises(ConfigError, match=r"flow.noise"):
        handle.configure(FlowConfig(kernel="cps", noise=1.5))


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sde", "cps", "inject"])
def test_every_kernel_replays_what_it_sampled(handle, observed, kernel):
    handle.configure(FlowConfig(kernel=kernel, noise=0.4, num_steps=6))
    batch = handle.prepare(*observed)
    distribution = handle.distribution(batch)
    path = distribution.sample(noise(handle))
    collected = distribution.log_prob_steps(path)
    assert path.shape == (5, 7, tiny_vla.CHUNK, 8)
    assert collected.shape == (5, 5 if kernel == "cps" else 6)
    with torch.enable_grad():
        replayed = handle.distribution(batch).log_prob_steps(path)
    assert float((replayed - collected).exp().sub(1).abs().max()) <= 1e-4
    assert not torch.allclose(path[0], path[1])


@pytest.mark.parametrize("kernel", ["sde", "inject", "learnt"])
def test_one_step_with_noise_is_enough(handle, observed, kernel):
    handle.configure(FlowConfig(kernel=kernel, num_steps=1))
    distribution = handle.distribution(handle.prepare(*observed))
    with torch.no_grad():
        assert distribution.log_prob_steps(distribution.sample(noise(handle))).shape == (5, 1)
    assert distribution.kl_kind == "upper bound"


def test_a_sampler_without_noise_is_refused(handle):
    before = handle.flow
    with pytest.raises(ConfigError, match=r"flow.kernel: cps.*flow.num_steps` = 1") as error:
        handle.configure(FlowConfig(kernel="cps", num_steps=1))
    assert ">= 2 with cps" in str(error.value)
    assert handle.flow == before
    handle.config.num_steps = 1  # the policy's own
    with pytest.raises(ConfigError, match="no noise in its last step"):
        handle.configure(FlowConfig(kernel="cps"))
    handle.configure(FlowConfig(kernel="cps", num_steps=2))


def test_a_divergence_is_called_a_bound_where_it_is_one(handle, observed):
    batch, kinds = handle.prepare(*observed), {}
    for kernel in ("sde", "inject", "learnt", "cps"):
        handle.configure(FlowConfig(kernel=kernel))
        kinds[kernel] = handle.distribution(batch).kl_kind
    assert kinds.pop("cps") == "path divergence"
    assert set(kinds.values()) == {"upper bound"}


# Acting -------------------------------------------------------------------------------------------


def test_outcomes_do_not_depend_on_the_number_of_environments(handle):
    rows = make_rows(NEW, range(6))
    batches = []
    for num_envs in (2, 6):
        env = ToyVectorEnv(num_envs, image_size=16, task=NEW, chunk_size=tiny_vla.CHUNK)
        batches.append(run_episodes(env, handle, rows, "sample", True, sampling_seed=3))
    one, two = (batch.record for batch in batches)
    assert one.actions.shape[1:] == (5, tiny_vla.CHUNK, 8)
    assert one.log_prob.shape == (len(one), 4)
    assert torch.equal(one.actions, two.actions)
    assert torch.equal(one.log_prob, two.log_prob)
    assert torch.equal(one.value, two.value)


def test_greedy_and_sampled_actions(handle, observed):
    greedy = handle.act(*observed)
    assert greedy.shape == (5, tiny_vla.CHUNK, tiny_vla.A)
    assert np.array_equal(greedy, handle.act(*observed))
    sampled = [handle.act(*observed, "sample", noise(handle, seed=s)) for s in (0, 0, 1)]
    assert np.array_equal(sampled[0], sampled[1])
    assert not np.allclose(sampled[0], sampled[2])
    with pytest.raises(PolicyError, match="needs `uniforms`"):
        handle.act(*observed, "sample")


def test_instructions_of_any_length_fit_together(handle, observed):
    short = handle.prepare(observed[0], ["go"] * 5)
    long = handle.prepare(*observed)
    for key in ("observation.language.tokens", "observation.language.attention_mask"):
        assert short[key].shape == long[key].shape == (5, 16)


# Training -----------------------------------------------------------------------------------------


def test_cloning_uses_the_policys_own_loss_and_keeps_the_bases_statistics(
    handle, observed, folder, tmp_path
):
    batch = handle.prepare(*observed)
    actions = torch.rand(5, tiny_vla.CHUNK, tiny_vla.A) * 9.0  # unlike the statistics
    is_pad = torch.zeros(5, tiny_vla.CHUNK, dtype=torch.bool)
    torch.manual_seed(0)
    loss, parts = handle.bc_loss({**batch, "action": actions, "action_is_pad": is_pad})
    images = {k: v for k, v in batch.items() if "images" in k}
    floats = {k: v.permute(0, 3, 1, 2).float() / 255.0 for k, v in images.items()}
    torch.manual_seed(0)
    expected, _ = handle.module.forward(
        {**batch, **floats, "action": (actions - 0.1) / 0.8, "action_is_pad": is_pad}
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["loss"] == pytest.approx(loss.item())
    loss.backward()
    handle.save(tmp_path / "saved")
    for part in (
        "policy_preprocessor_step_5_normalizer",
        "policy_postprocessor_step_0_unnormalizer",
    ):
        before, after = (
            load_file(f"{place}/{part}_processor.safetensors")
            for place in (folder, tmp_path / "saved")
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_low_rank_updates_switched_off_are_the_base(handle, observed, tmp_path):
    base = handle.frozen_copy()
    added = handle.add_lora(2)
    handle.share_frozen(base)
    assert {id(p) for p in added} == {id(p) for p in handle.policy_parameters()}
    assert handle.value_parameters()
    tuned_weights, base_weights = (
        dict(handle.module.named_parameters()),
        dict(base.module.named_parameters()),
    )
    unshared = {
        n
        for n, p in tuned_weights.items()
        if n in base_weights and p.data_ptr() != base_weights[n].data_ptr()
    }
    assert all(name.startswith("value_head") for name in unshared)
    batch = handle.prepare(*observed)
    with torch.no_grad():
        assert torch.equal(base.distribution(batch).kl(handle.distribution(batch)), torch.zeros(5))
        before = base.distribution(batch).mode()
        for parameter in added:
            parameter.add_(0.05)
        moved_kl = base.distribution(batch).kl(handle.distribution(batch))
        assert (moved_kl > 0.0).all()
        merged = handle.frozen_copy()  # merging must not reach into the shared memory
        handle.save(tmp_path / "saved")
        assert torch.equal(base.distribution(batch).mode(), before)
        again = load_policy(tmp_path / "saved")
        expected = handle.distribution(batch).mode()
        for policy in (merged, again):
            assert torch.allclose(policy.distribution(batch).mode(), expected, atol=1e-5)


def test_the_critic_leaves_the_policy_alone(handle, observed):
    batch = handle.prepare(*observed)
    with torch.no_grad():
        for parameter in handle.value_parameters():
            parameter.add_(0.02)
    for detach in (True, False):
        handle.module.zero_grad(set_to_none=True)
        _, value = handle.distribution_and_value(batch, value_detach=detach)
        value.sum().backward()
        assert all(p.grad is not None for p in handle.value_parameters())
        assert all(p.grad is None for p in handle.policy_parameters()) == detach


def test_new_critics_are_alike_and_know_nothing(folder, observed):
    torch.manual_seed(5)
    one = load_policy(folder)
    torch.manual_seed(6)
    two = load_policy(folder)
    for a, b in zip(one.value_parameters(), two.value_parameters(), strict=True):
        assert torch.equal(a, b)
    _, value = one.distribution_and_value(one.prepare(*observed))
    assert torch.equal(value, torch.zeros(5))


def test_bfloat16_weights_give_the_same_ratio(handle, observed):
    handle.module.model.vlm_with_expert.to(torch.bfloat16)
    batch = handle.prepare(*observed)
    with torch.no_grad():
        distribution = handle.distribution(batch)
        path = distribution.sample(noise(handle))
        collected = distribution.log_prob_steps(path)
    replayed = handle.distribution(batch).log_prob_steps(path)
    assert replayed.dtype == torch.float32
    assert float((replayed.detach() - collected).exp().sub(1).abs().max()) <= 1e-4
    replayed.sum().backward()


# Files --------------------------------------------------------------------------------------------


def test_lerobot_loads_what_is_saved(handle, tmp_path):
    """Our files lie beside LeRobot's: its weights have no critic in them."""
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    with torch.no_grad():
        handle.module.model.action_out_proj.weight.add_(0.1)
    handle.save(tmp_path)
    assert not [k for k in load_file(tmp_path / "model.safetensors") if "value_head" in k]
    by_lerobot = SmolVLAPolicy.from_pretrained(tmp_path, strict=True)
    assert torch.equal(
        by_lerobot.model.action_out_proj.weight, handle.module.model.action_out_proj.weight
    )
    assert hasattr(handle.module, "value_head")


def test_a_saved_policy_needs_no_other_folder(tmp_path, observed):
    """The vision-language model's folder may be gone, and so may an earlier checkpoint."""
    first = load_policy(tiny_vla.save_tiny_smolvla(tmp_path / "policy"))
    first.configure(dataclasses.replace(first.flow, noise=0.3))
    first.save(tmp_path / "one")
    shutil.rmtree(tmp_path / "policy-vlm")
    second = load_policy(tmp_path / "one")
    assert second.flow.noise == 0.3
    shutil.rmtree(tmp_path / "one")
    second.save(tmp_path / "two")
    third = load_policy(tmp_path / "two")
    assert np.array_equal(third.act(*observed), first.act(*observed))
    with pytest.raises(PolicyError, match="cannot be fetched from the hub") as error:
        load_policy(tmp_path / "policy")
    assert "Copy that folder" in str(error.value)


def test_a_backbone_that_only_the_hub_has_is_named(tmp_path, observed):
    folder = tmp_path / "policy"
    tiny_vla.save_tiny_smolvla(folder)
    for name in ("config.json", "policy_preprocessor.json"):
        text = (folder / name).read_text().replace(str(tmp_path / "policy-vlm"), "owner/backbone")
        (folder / name).write_text(
            text.replace('"load_vlm_weights": false', '"load_vlm_weights": true')
        )
    with pytest.raises(PolicyError, match="tokenizer of 'owner/backbone'") as error:
        load_policy(folder)
    assert str(folder / "vlm") in str(error.value)
    shutil.copytree(tmp_path / "policy-vlm", folder / "vlm")
    handle = load_policy(folder)
    assert handle.act(*observed).shape == (5, tiny_vla.CHUNK, tiny_vla.A)
    assert handle.config.vlm_model_name == "owner/backbone"
    network = handle.module.model.vlm_with_expert
    assert next(network.vlm.parameters()).dtype == torch.bfloat16  # as LeRobot loads it


def test_what_the_hubs_cache_has_is_kept(tmp_path, observed, monkeypatch):
    """A backbone that came from the hub lies beside every checkpoint, which needs no hub then."""
    from huggingface_hub import constants

    folder, cache = tmp_path / "policy", tmp_path / "cache"
    tiny_vla.save_tiny_smolvla(folder)
    store = cache / "models--owner--backbone"
    shutil.move(tmp_path / "policy-vlm", store / "snapshots" / "abc")
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("abc")
    for name in ("config.json", "policy_preprocessor.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(str(tmp_path / "policy-vlm"), "owner/backbone"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    first = load_policy(folder)
    first.save(tmp_path / "saved")
    names = {file.name for file in (tmp_path / "saved" / "vlm").iterdir()}
    assert names >= {"config.json", "tokenizer.json", "tokenizer_config.json"}
    shutil.rmtree(cache)
    again = load_policy(tmp_path / "saved")
    assert np.array_equal(again.act(*observed), first.act(*observed))
    assert again.config.vlm_model_name == "owner/backbone"


def test_a_missing_package_is_named(folder, monkeypatch):
    import robo_razor.policies.load

    def build(*_):
        raise ImportError("'transformers' is required but not installed.")

    monkeypatch.setattr(robo_razor.policies.load, "_build", build)
    with pytest.raises(PolicyError, match="'transformers' is required") as error:
        load_policy(folder)
    assert "extra `vla`" in str(error.value)


def test_settings_that_change_actions_elsewhere_have_no_density(folder, tmp_path):
    policy = load_policy(folder)
    loaded = Loaded(
        policy.module, policy.preprocessor, policy.postprocessor, "x", "cpu", policy.family
    )
    assert isinstance(policy.family.wrap(loaded), FlowPolicy)
    policy.config.adapt_to_pi_aloha = True
    assert not isinstance(policy.family.wrap(loaded), FlowPolicy)


def test_probes_and_actors_work_with_it(handle, observed):
    batch = handle.prepare(*observed)
    probe = ProbeSet(batch, np.arange(5))
    measures = measure_probe(handle.frozen_copy(), moved(handle), probe).measures
    assert measures["kl_base_tuned"].kind == "upper bound"
    assert measures["kl_base_tuned"].standard_error > 0.0
    actor = PolicyActor(handle, "greedy")
    assert isinstance(actor.policy, FlowPolicy)
