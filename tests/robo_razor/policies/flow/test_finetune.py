"""The whole main job with tiny flow policies: tune, measure, resume, save, reload."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny_vla
import torch
from toy_runs import (
    assert_same_weights,
    finetune,
    interrupt_at,
    metrics,
    quiet,
    run_config,
    summary,
    weights,
)

from robo_razor.core.settings.config import (
    EnvConfig,
    FlowConfig,
    TrackingConfig,
)
from robo_razor.policies.load import load_policy
from robo_razor.training.learner import OnPolicyLearner
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.ppo import PPO

ENV = EnvConfig(num_envs=16, num_workers=1, image_size=16, env_packages=("toy_env",))
TRACKING = TrackingConfig(
    every=2,
    episodes_new=4,
    episodes_new_sampled=4,
    episodes_prior=2,
    kl_states=8,
    final_episodes_new=4,
    max_share=1.0,
)


@pytest.fixture(scope="module", params=tiny_vla.KINDS)
def base(request, tmp_path_factory):
    with tiny_vla.saved(request.param, tmp_path_factory.mktemp("base") / "policy") as folder:
        yield folder


@pytest.fixture(scope="module")
def smolvla(tmp_path_factory):
    return tiny_vla.save_tiny_smolvla(tmp_path_factory.mktemp("smolvla") / "policy")


def settings(base, out, method="ppo", **changes):
    ppo = PPO(
        num_updates=2,
        episodes_per_update=16,
        minibatch_size=256,  # one gradient step per update
        update_epochs=1,
        learning_rate=1e-3,
        warmup_updates=0,
        value_warmup_updates=0,
    )
    bc = BC(episodes=4, epochs=1, batch_size=8, learning_rate=1e-3, warmup_steps=0)
    flow = FlowConfig(noise=0.8)  # new policies succeed by chance
    changes = {"env": ENV, "tracking": TRACKING, "flow": flow} | changes
    return run_config(base, out, method, {"ppo": ppo, "bc": bc}, **changes)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    finetune(settings(base, out), quiet())
    return out


def test_ppo_tracks_both_divergences_as_bounds(finished):
    first, last = summary(finished, 0), summary(finished, 2)
    for measured in (first, last):
        assert measured["kl_kind"] == "upper bound"
        assert set(measured["prior"]) == {"ReachRed", "ReachGreen"}
        assert all("retention" in entry for entry in measured["prior"].values())
        assert (
            measured["new"]["ReachBlue"]["n"] == measured["new"]["ReachBlue"]["sampled"]["n"] == 4
        )
    for direction in ("kl_base_tuned", "kl_tuned_base"):
        assert set(first[direction].values()) == {0.0}
        assert all(value > 0.0 for value in last[direction].values())
        assert all(value >= 0.0 for value in last[f"{direction}_standard_error"].values())
    entry = json.loads((finished / "eval" / "000002" / "action_kl.json").read_text())
    assert entry["prior"]["kl_base_tuned"]["kind"] == "upper bound"


def test_the_first_ratios_are_one(finished):
    for line in metrics(finished):
        if "train/learning_rate" in line:
            assert line["train/gradient_steps"] == 1
            assert abs(line["train/ratio_max"] - 1.0) <= 1e-4
            assert line["train/kl_base_tuned"] > 0.0
            assert line["train/value_loss"] > 0.0


def test_a_resumed_run_equals_the_uninterrupted_one(base, finished, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, OnPolicyLearner, 2, settings(base, tmp_path / "run"))
    finetune(settings(base, tmp_path / "run", resume=True), quiet())
    one = weights(finished, 2)
    assert_same_weights(one, weights(tmp_path / "run", 2))
    start = weights(finished, 0)
    moved = {name for name in one if not torch.equal(one[name], start[name])}
    assert moved >= {"model.action_out_proj.weight", "value_head.layers.5.weight"}
    # Only what the policy's own settings train has changed.
    trained = {n for n, p in load_policy(base).module.named_parameters() if p.requires_grad}
    assert moved <= trained


def test_cloning_tracks_the_same(base, tmp_path):
    result = finetune(settings(base, tmp_path / "run", "bc"), quiet())
    assert result.summary["kl_kind"] == "upper bound"
    assert result.summary["kl_base_tuned"]["new_base_visited"] > 0.0
    probes = json.loads((tmp_path / "run" / "eval" / "000000" / "action_kl.json").read_text())
    assert "demonstrations" in probes


def test_low_rank_updates_with_a_penalty_in_small_parts(smolvla, tmp_path):
    """LoRA, gradient accumulation, the chunk's ratio and a KL penalty together."""
    config = settings(
        smolvla,
        tmp_path / "run",
        flow=FlowConfig(train="expert", noise=0.7),
        tracking=dataclasses.replace(
            TRACKING,
            episodes_new=2,
            episodes_new_sampled=2,
            episodes_prior=1,
            kl_states=4,
            final_episodes_new=2,
        ),
    )
    ppo = PPO(
        num_updates=1, episodes_per_update=24, minibatch_size=256, micro_batch_size=60,
        update_epochs=2, learning_rate=1e-4, warmup_updates=0, value_warmup_updates=0,
        lora_rank=2, ratio="chunk", bf16=True, target_kl=None,
    )  # fmt: skip
    result = finetune(dataclasses.replace(config, method=ppo), quiet())
    assert result.summary["kl_base_tuned"]["prior"] > 0.0
    changed = load_policy(str(tmp_path / "run"))
    assert changed.flow == FlowConfig(train="expert", noise=0.7)
    start = load_policy(smolvla)
    old, new = (dict(p.module.named_parameters()) for p in (start, changed))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert any(".lm_expert." in name for name in moved)
    assert not [name for name in moved if ".vlm." in name or "state_proj" in name]
