"""Pretraining: labelled states, the weight average, and a tiny run from end to end."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from robo_razor.core.errors import RunDirectoryError, UnknownNameError
from robo_razor.core.settings.config import EnvConfig, PretrainConfig
from robo_razor.core.types import EpisodeRow
from robo_razor.policies.load import create_policy, load_policy
from robo_razor.rollout.actors import Disturbance, ExpertActor, NoisyActor, PolicyActor, disturb
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.expert_labels import collect_labelled, join
from robo_razor.training.pretrain import MovingAverage, Pretraining, pretrain

TINY = {
    "tasks": "PressButton,LiftCube",
    "episodes": 2,
    "perception_epochs": 1.0,
    "epochs": 1.0,
    "correction_rounds": 1,
    "correction_episodes": 1,
    "final_epochs": 1.0,
    "batch_size": 16,
    "env": EnvConfig(num_envs=2, num_workers=1),
}


def test_the_average_follows_and_warms_up():
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
    average = MovingAverage(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average.update(module)
    first = 1 - 2 / 11  # the decay starts at (1 + 1) / (10 + 1)
    assert average.shadow["weight"].item() == pytest.approx(first)
    for _ in range(200):
        average.update(module)
    average.copy_to(module)
    assert module.weight.item() == pytest.approx(1.0, abs=1e-6)


def test_disturbances_stay_in_range_and_leave_the_label_alone():
    rng = np.random.default_rng(0)
    label = np.full((4, 5), 0.9, dtype=np.float32)
    executed = np.stack([disturb(label, rng, probability=1.0, noise=0.5) for _ in range(200)])
    assert (label == np.float32(0.9)).all()
    assert np.abs(executed).max() <= 1.0
    assert executed[..., :4].std() > 0.2
    flipped = (executed[..., 4] < 0).all(-1).mean()
    assert 0.05 < flipped < 0.25
    calm = disturb(label, rng, probability=0.0, noise=0.0)
    np.testing.assert_array_equal(calm, label)


def test_every_visited_state_is_labelled_whoever_acts():
    policy = create_policy([0.0] * 7, [1.0] * 7, dim_model=32, n_layers=1)
    env = make_env("gym_razor/PressButton-v0", EnvConfig(num_envs=2, num_workers=1), chunk_size=4)
    rows = [EpisodeRow("gym_razor/PressButton-v0", seed) for seed in range(3)]
    try:
        expert = collect_labelled(env, policy, ExpertActor("a"), rows, style="a")
        learner = collect_labelled(env, policy, PolicyActor(policy, "sample"), rows, style="a")
    finally:
        env.close()
    assert expert.success == {"PressButton": 1.0}
    assert learner.success == {"PressButton": 0.0}
    assert len(learner) == 3 * 10  # 40 control steps in chunks of 4
    both = join([expert, learner])
    assert len(both) == len(expert) + len(learner)
    batch = both.batch(torch.tensor([0, len(both) - 1]))
    assert batch["action"].shape == (2, 4, 5)
    assert batch["observation.landmarks"].shape == (2, 8, 3)
    loss, _ = policy.module(batch)
    assert torch.isfinite(loss)


def test_labels_do_not_depend_on_the_number_of_environments():
    policy = create_policy([0.0] * 7, [1.0] * 7, dim_model=32, n_layers=1)
    rows = [EpisodeRow("gym_razor/PressButton-v0", seed) for seed in range(4)]
    actor = NoisyActor(ExpertActor("a"), Disturbance(probability=0.5, noise=0.5, seed=3))
    collected = []
    for num_envs, num_workers in ((1, 1), (3, 2)):
        config = EnvConfig(num_envs=num_envs, num_workers=num_workers)
        env = make_env("gym_razor/PressButton-v0", config, chunk_size=4)
        try:
            collected.append(collect_labelled(env, policy, actor, rows, style="a"))
        finally:
            env.close()
    one, many = collected
    assert torch.equal(one.actions, many.actions)
    assert torch.equal(one.landmarks, many.landmarks)
    for key, value in one.inputs.items():
        assert torch.equal(value, many.inputs[key]), key


def test_skills_that_failed_get_more_corrections(tmp_path):
    names = "gym_razor/LiftCan-v0,gym_razor/PressButton-v0"
    pretraining = Pretraining(PretrainConfig(out=str(tmp_path), tasks=names), Console(quiet=True))
    even = pretraining.rows(10, 1)
    assert len(even) == 20
    pretraining.history.append({"round": 1, "success": {"LiftCan": 0.5, "PressButton": 1.0}})
    tasks = [row.task for row in pretraining.rows(10, 2)]
    assert tasks.count("gym_razor/LiftCan-v0") == 15  # (0.25 + 0.5) / (0.25 + 0.0) = 3
    assert tasks.count("gym_razor/PressButton-v0") == 5


def test_a_tiny_run_leaves_a_policy_that_loads(tmp_path):
    config = PretrainConfig(out=str(tmp_path / "run"), **TINY)
    pretrain(config, Console(quiet=True))
    policy = load_policy(tmp_path / "run")
    assert policy.chunk_size == 4
    assert policy.config.landmark_names[0] == "cube"
    record = json.loads((tmp_path / "run/checkpoints/last/pretraining.json").read_text())
    assert [entry.get("phase", entry.get("round")) for entry in record["history"]] == [
        0,
        "perception",
        "cloning",
        1,
        "corrections 1",
    ]
    with pytest.raises(RunDirectoryError):
        pretrain(config, Console(quiet=True))


def test_unknown_skills_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(UnknownNameError, match="LiftCube"):
        pretrain(PretrainConfig(out=str(tmp_path / "run"), tasks="LiftCub"), Console(quiet=True))
    assert not (tmp_path / "run").exists()
