"""The whole job with a SmolVLA that has skills: cloned on two, tuned on a third, reloaded."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import tiny_vla
from toy_policy import GREEN, RED
from toy_runs import finetune, interrupt_at, metrics, quiet, run_config, summary

from robo_razor.cli.collect import run_collect
from robo_razor.core.settings.config import (
    CollectConfig,
    EnvConfig,
    FlowConfig,
    TrackingConfig,
)
from robo_razor.training.learner import OnPolicyLearner
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.ppo import PPO

ENV = EnvConfig(num_envs=32, num_workers=1, image_size=16, env_packages=("toy_env",))
SKILLS = {"ReachRed", "ReachGreen"}
DEMONSTRATIONS = 100
EPISODES = 2


def settings(base, out, method):
    sections = {
        "bc": BC(
            demonstrations=str(out.parent / "demonstrations"),
            episodes=2 * DEMONSTRATIONS,
            epochs=8,
            batch_size=64,
            learning_rate=3e-3,
            warmup_steps=5,
        ),
        "ppo": PPO(
            num_updates=2,
            episodes_per_update=32,
            minibatch_size=256,
            update_epochs=1,
            warmup_updates=0,
            value_warmup_updates=0,
        ),
    }
    tracking = TrackingConfig(
        every=10**9 if method == "bc" else 1,
        episodes_new=1,
        episodes_new_sampled=1,
        episodes_prior=32,
        kl_states=8,
        final_episodes_new=1,
        max_share=1.0,
    )
    flow = FlowConfig(train="all")
    return run_config(base, out, method, sections, env=ENV, tracking=tracking, flow=flow)


@pytest.fixture(scope="module")
def skilled(tmp_path_factory):
    """The run that taught a new policy two skills."""
    folder = tmp_path_factory.mktemp("skilled")
    collect = CollectConfig(
        task=f"{RED},{GREEN}",
        episodes=DEMONSTRATIONS,
        out=str(folder / "demonstrations"),
        env=ENV,
    )
    run_collect(collect, quiet())
    new = tiny_vla.save_tiny_smolvla(folder / "new")
    finetune(settings(new, folder / "base", "bc"), quiet())
    return folder / "base"


@pytest.fixture(scope="module")
def tuned(skilled):
    """A run of PPO on a third skill, which was interrupted and went on."""
    config = settings(str(skilled), skilled.parent / "tuned", "ppo")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, OnPolicyLearner, 2, config)
    finetune(dataclasses.replace(config, resume=True), quiet())
    return skilled.parent / "tuned"


def test_cloning_taught_both_skills(skilled):
    last = max(line["step"] for line in metrics(skilled))
    before, after = (summary(skilled, step)["prior"] for step in (0, last))
    assert set(before) == set(after) == SKILLS
    for skill in SKILLS:
        assert after[skill]["success_rate"] > before[skill]["success_rate"] + 0.2


def test_what_is_left_of_learnt_skills_is_tracked(skilled, tuned):
    """Skills that the base has: only then does retention say anything."""
    taught = summary(skilled, max(line["step"] for line in metrics(skilled)))["prior"]
    first, *_, last = (summary(tuned, step) for step in (0, 1, 2))
    for skill in SKILLS:
        base, now = first["prior"][skill], last["prior"][skill]
        assert base["success_rate"] == taught[skill]["success_rate"]  # the same policy and starts
        assert base["retention"] == 1.0
        assert now["retention"] == pytest.approx(now["success_rate"] / base["success_rate"])
        assert now["n"] == 32
    assert last["kl_base_tuned"]["prior"] > 0.0 == first["kl_base_tuned"]["prior"]
    assert {line["step"] for line in metrics(tuned) if "train/policy_loss" in line} == {1, 2}


def test_lerobot_eval_runs_the_checkpoint_of_a_run(tuned, tmp_path, monkeypatch):
    """What the command `lerobot-eval` does, in this process."""
    from lerobot.scripts import lerobot_eval

    arguments = {
        "policy.path": tuned / "checkpoints" / "last" / "pretrained_model",
        "env.discover_packages_path": "robo_razor.lerobot_env",
        "env.type": "razor",
        "env.task": "PressButton",
        "env.image_size": 16,
        "env.episode_length": 8,
        "eval.n_episodes": EPISODES,
        "eval.batch_size": EPISODES,
        "eval.use_async_envs": "false",
        "policy.device": "cpu",
        "output_dir": tmp_path / "out",
    }
    command = ["lerobot-eval", *(f"--{name}={value}" for name, value in arguments.items())]
    monkeypatch.setattr(sys, "argv", command)
    lerobot_eval.main()
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == EPISODES
    assert 0.0 <= info["overall"]["pc_success"] <= 100.0
    assert list(info["per_group"]) == ["razor"]
