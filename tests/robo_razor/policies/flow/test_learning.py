"""That PPO on denoising paths learns a task, from a policy that our own cloning made."""

from __future__ import annotations

import pytest
import tiny_vla
from toy_runs import finetune, metrics, quiet, run_config, summary

from robo_razor.core.settings.config import EnvConfig, FlowConfig, TrackingConfig
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.ppo import PPO

UPDATES = 10


@pytest.mark.slow
def test_ppo_improves_a_cloned_smolvla_and_its_divergence_grows(tmp_path):
    new = tiny_vla.save_tiny_smolvla(tmp_path / "new")
    bc = BC(episodes=60, epochs=4, batch_size=64, learning_rate=3e-3, warmup_steps=5)
    ppo = PPO(
        num_updates=UPDATES,
        episodes_per_update=96,
        minibatch_size=256,
        learning_rate=5e-4,
        value_learning_rate=3e-3,
        warmup_updates=1,
        value_warmup_updates=1,
        target_kl=None,
    )
    settings = {
        "env": EnvConfig(num_envs=32, num_workers=1, image_size=16, env_packages=("toy_env",)),
        "flow": FlowConfig(train="all"),
        "tracking": TrackingConfig(
            every=0.5,
            early=0,
            episodes_new=32,
            episodes_new_sampled=64,
            episodes_prior=8,
            kl_states=32,
            final_episodes_new=32,
            max_share=1.0,
        ),
    }
    sections = {"bc": bc, "ppo": ppo}
    finetune(run_config(new, tmp_path / "bc", "bc", sections, **settings), quiet())
    base = str(tmp_path / "bc")
    finetune(run_config(base, tmp_path / "ppo", "ppo", sections, **settings), quiet())
    before, half, after = (summary(tmp_path / "ppo", step) for step in (0, UPDATES // 2, UPDATES))
    sampled = [entry["new"]["ReachBlue"]["sampled"]["success_rate"] for entry in (before, after)]
    assert sampled[1] > sampled[0] + 0.2, sampled
    rollouts = [
        line["rollout/success_rate"]
        for line in metrics(tmp_path / "ppo")
        if "rollout/success_rate" in line
    ]
    assert sum(rollouts[-3:]) / 3 > sum(rollouts[:3]) / 3 + 0.1, rollouts
    for states in ("new_base_visited", "prior"):
        divergence = [entry["kl_base_tuned"][states] for entry in (before, half, after)]
        assert divergence[0] == 0.0 < divergence[1] < divergence[2], divergence
