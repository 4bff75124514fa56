"""Policies in bfloat16: what is trained is float32, in memory and in the file."""

from __future__ import annotations

import re

import pytest
import tiny_vla
import torch
from flow_bandit import make_ppo, observations
from safetensors import safe_open
from torch import nn

from robo_razor.core.errors import PolicyError
from robo_razor.core.settings.config import FlowConfig
from robo_razor.core.types import make_rows
from robo_razor.policies.flow import precision
from robo_razor.policies.flow.adapter import parameters_of
from robo_razor.policies.flow.precision import has_low_precision
from robo_razor.policies.load import load_policy
from robo_razor.policies.lora import add_lora, merge_lora

SMALL = {"update_epochs": 1, "learning_rate": 1e-6, "num_updates": 1}
"""One gradient step, of which a bfloat16 weight of ordinary size would keep nothing."""
KINDS = {"smolvla": {}, "pi0": {"dtype": "bfloat16"}, "pi05": {"dtype": "bfloat16"}}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """The folder of a tiny policy that LeRobot builds in bfloat16; SmolVLA's is cast later."""
    place = tmp_path_factory.mktemp("bf16") / "policy"
    with tiny_vla.saved(request.param, place, **KINDS[request.param]) as saved:
        yield saved


def cast(policy):
    """Do what LeRobot does to SmolVLA when it loads the backbone's weights."""
    if policy.config.type == "smolvla":
        policy.module.model.vlm_with_expert.to(torch.bfloat16)
    assert has_low_precision(policy.module)


def expert(policy):
    return parameters_of(policy.adapter.expert_modules())


def seen(policy):
    return observations(make_rows("bandit", range(6)), policy)


@pytest.mark.parametrize("train", ["own", "expert", "all"])
def test_a_small_step_moves_all_that_is_trained(folder, train):
    method = make_ppo(folder, FlowConfig(train=train), cast, **SMALL)
    policy, base = method.policy, method.base
    assert {p.dtype for p in method.policy_parameters} == {torch.float32}
    precision = {n: p.dtype for n, p in base.module.named_parameters()}
    assert precision == {n: p.dtype for n, p in policy.module.named_parameters()}
    with torch.no_grad():
        of_base, of_policy = (each.distribution(seen(policy)) for each in (base, policy))
        assert torch.equal(of_base.kl(of_policy), torch.zeros(6))
    before = [p.detach().clone() for p in method.policy_parameters]
    metrics = method.update(1)
    assert abs(metrics["train/ratio_max"] - 1.0) <= 1e-4
    assert metrics["train/kl_base_tuned"] > 0.0
    for old, new in zip(before, method.policy_parameters, strict=True):
        if new.grad is not None and bool(new.grad.abs().gt(1e-4).any()):
            stepped = new.grad.abs() > 1e-4
            assert float((old != new)[stepped].float().mean()) > 0.95


def test_only_what_is_trained_is_raised(folder):
    method = make_ppo(folder, FlowConfig(train="expert"), cast, **SMALL)
    assert has_low_precision(method.policy.module)  # the language model stays what it was
    assert not any(p.dtype != torch.float32 for p in expert(method.policy))
    frozen = [n for n, p in method.policy.module.named_parameters() if not p.requires_grad]
    base_weights = dict(method.base.module.named_parameters())
    tuned_weights = dict(method.policy.module.named_parameters())
    assert frozen
    assert all(tuned_weights[n].data_ptr() == base_weights[n].data_ptr() for n in frozen)


def test_what_float32_costs_is_told_once_with_a_remedy(folder, caplog, monkeypatch):
    monkeypatch.setattr(precision, "GIB", 1000)  # so that a tiny policy has some
    method = make_ppo(folder, FlowConfig(train="all"), cast, **SMALL)
    (record,) = (r for r in caplog.records if r.name == "robo_razor.policies.flow.precision")
    message = record.getMessage()
    tuned_weights, base_weights = (
        dict(p.module.named_parameters()) for p in (method.policy, method.base)
    )
    unshared = [
        name
        for name in tuned_weights
        if tuned_weights[name].data_ptr() != base_weights[name].data_ptr()
    ]
    after = sum(p.nbytes for p in tuned_weights.values()) + sum(
        base_weights[name].nbytes for name in unshared
    )
    low = load_policy(folder)
    cast(low)
    once = sum(p.nbytes for p in low.module.parameters())
    before = once + sum(dict(low.module.named_parameters())[name].nbytes for name in unshared)
    expected = rf"take {after / 1000:.2f} GiB instead of {before / 1000:.2f}\."
    assert re.search(expected, message), (expected, message)
    assert "`--flow.train expert`" in message
    caplog.clear()
    make_ppo(folder, FlowConfig(train="expert"), cast, **SMALL)
    make_ppo(folder, FlowConfig(), cast, **SMALL, lora_rank=2)
    assert "GiB" not in caplog.text


@pytest.mark.parametrize("train", ["expert", "all"])
def test_cloning_works_in_what_is_left_in_bfloat16(folder, train):
    method = make_ppo(folder, FlowConfig(train=train), cast, **SMALL)
    policy = method.policy
    targets = {
        "action": torch.rand(6, tiny_vla.CHUNK, tiny_vla.A),
        "action_is_pad": torch.zeros(6, tiny_vla.CHUNK, dtype=torch.bool),
    }
    loss, _ = policy.bc_loss(seen(policy) | targets)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for p in expert(policy) if p.grad is not None]
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("train", ["expert", "all"])
def test_the_file_keeps_a_small_step(folder, train, tmp_path):
    """Read back in float32, though LeRobot builds the policy in bfloat16 again."""
    method = make_ppo(folder, FlowConfig(train=train), cast, **SMALL)
    policy = method.policy
    if policy.config.type == "smolvla":
        policy.config.load_vlm_weights = True  # so LeRobot has the backbone in bfloat16
    method.update(1)
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    weights, reloaded = (dict(p.module.named_parameters()) for p in (policy, again))
    assert weights.keys() == reloaded.keys()
    for name, parameter in weights.items():
        assert parameter.dtype == reloaded[name].dtype, name
        assert torch.equal(parameter, reloaded[name]), name
    with torch.no_grad():
        chunks = [p.distribution(seen(policy)).mode() for p in (policy, again)]
    assert torch.equal(*chunks)


def test_low_rank_updates_of_a_small_step_are_seen_and_kept(folder, tmp_path):
    method = make_ppo(folder, FlowConfig(), cast, **(SMALL | {"learning_rate": 1e-5}), lora_rank=2)
    policy, base = method.policy, method.base
    with torch.no_grad():
        one, two = (each.distribution(seen(policy)) for each in (base, policy))
        assert torch.equal(one.kl(two), torch.zeros(6))
    tuned_weights, base_weights = (dict(p.module.named_parameters()) for p in (policy, base))
    assert all(
        p.data_ptr() == tuned_weights[n].data_ptr()
        for n, p in base_weights.items()
        if "model." in n
    )
    metrics = method.update(1)
    assert abs(metrics["train/ratio_max"] - 1.0) <= 1e-4
    assert metrics["train/kl_base_tuned"] > 0.0
    if policy.config.type == "smolvla":
        policy.config.load_vlm_weights = True  # so LeRobot has the backbone in bfloat16
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    with torch.no_grad():
        start, tuned, read = (p.distribution(seen(policy)).mode() for p in (base, policy, again))
    assert not torch.equal(start, tuned)
    assert torch.equal(read, tuned)


def test_collected_log_probabilities_are_computed_anew(folder):
    """Rounding depends on the batch, so those of the rollout are not those of the update."""
    method = make_ppo(folder, FlowConfig(train="expert"), cast, **SMALL)
    collect = method._collect

    def wrong(update):
        batch = collect(update)
        batch.record.log_prob.add_(1.0)
        return batch

    method._collect = wrong
    assert abs(method.update(1)["train/ratio_max"] - 1.0) <= 1e-4


def test_smolvlas_expert_is_float32_whatever_lerobot_builds(tmp_path, monkeypatch):
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    folder = tiny_vla.save_tiny_smolvla(tmp_path / "policy")
    original = SmolVLAPolicy.__init__

    def build(self, config, **arguments):
        original(self, config, **arguments)
        self.model.vlm_with_expert.to(torch.bfloat16)  # as with `load_vlm_weights`

    expected = {n: p for n, p in load_policy(folder).module.named_parameters()}
    monkeypatch.setattr(SmolVLAPolicy, "__init__", build)
    policy = load_policy(folder)
    assert not any(p.dtype != torch.float32 for p in expert(policy))
    assert has_low_precision(policy.module.model.vlm_with_expert.vlm)
    of_expert = {id(p) for p in expert(policy)}
    for name, parameter in policy.module.named_parameters():
        if id(parameter) in of_expert:
            assert torch.equal(parameter, expected[name]), name


def test_other_files_are_not_read_in_more_than_their_configuration_says(tmp_path):
    """A float32 file of pi0 with `dtype: bfloat16` is meant to be bfloat16."""
    with tiny_vla.small_pi("pi0"):
        folder = tiny_vla.save_tiny_pi(tmp_path / "policy", "pi0")
        config = tmp_path / "policy" / "config.json"
        config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
        policy = load_policy(folder)
        with safe_open(tmp_path / "policy" / "model.safetensors", framework="pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118
        assert all(has_low_precision(m) for m in (policy.module.model.paligemma_with_expert,))
        policy.save(tmp_path / "again")
        assert (tmp_path / "again" / "model.safetensors").stat().st_size < (
            tmp_path / "policy" / "model.safetensors"
        ).stat().st_size


def test_methods_refuse_to_train_in_bfloat16(folder):
    from robo_razor.training.update import trained_parameters

    policy = load_policy(folder)
    policy.configure(FlowConfig(train="all"))
    cast(policy)
    with pytest.raises(PolicyError, match=r"to train in bfloat16") as error:
        trained_parameters(policy)
    assert "share_frozen" in str(error.value)


def test_an_update_of_a_bfloat16_layer_is_added_to_its_output():
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).to(torch.bfloat16)
    x = torch.randn(200, 64, dtype=torch.bfloat16)
    before = layer(x)
    (down, up) = add_lora([layer], rank=2)
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        up.add_(5e-3)
    tuned = layer(x)
    assert tuned.dtype == torch.bfloat16
    with torch.no_grad():
        change = nn.functional.linear(x.float(), up @ down)
        share = ((tuned.float() - before.float()) * change).sum() / change.square().sum()
    assert float(share) == pytest.approx(1.0, abs=0.1)
    tuned.float().square().sum().backward()
    assert float(up.grad.abs().sum()) > 0.0
    merge_lora(layer)
    assert layer.weight.dtype == torch.bfloat16
