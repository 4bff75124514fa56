"""A tuned SmolVLA in LeRobot's own evaluation, in our environments."""

from __future__ import annotations

import json
import sys

import pytest
import tiny_vla
from toy_runs import quiet, run_config

from robo_razor.config import BCConfig, EnvConfig, TrackingConfig
from robo_razor.trainer import finetune

EPISODES = 2


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The last checkpoint of a run."""
    folder = tmp_path_factory.mktemp("lerobot")
    config = run_config(
        tiny_vla.save_tiny_smolvla(folder / "policy"),
        folder / "run",
        "bc",
        {"bc": BCConfig(episodes=2, epochs=1, batch_size=8, warmup_steps=0)},
        env=EnvConfig(num_envs=4, num_workers=1, image_size=16, env_packages=("toy_env",)),
        tracking=TrackingConfig(
            every=1.0,
            episodes_new=1,
            episodes_new_sampled=0,
            episodes_prior=0,
            kl_states=2,
            final_episodes_new=1,
        ),
    )
    finetune(config, quiet())
    return folder / "run" / "checkpoints" / "last" / "pretrained_model"


def test_lerobot_eval_runs_the_checkpoint_of_a_run(tuned, tmp_path, monkeypatch):
    """What the command `lerobot-eval` does, in this process."""
    from lerobot.scripts import lerobot_eval

    arguments = {
        "policy.path": tuned,
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
    found = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == EPISODES
    assert 0.0 <= found["overall"]["pc_success"] <= 100.0
    assert list(found["per_group"]) == ["razor"]
