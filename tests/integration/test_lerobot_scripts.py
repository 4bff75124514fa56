"""LeRobot's scripts on our tasks, policy and data, and our trainer on data that is not ours."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset

from robo_razor.core.settings.config import EnvConfig, FinetuneConfig, TrackingConfig, from_dict
from robo_razor.core.types import DemonstrationSet
from robo_razor.policies.load import create_policy, load_policy
from robo_razor.rollout.dataset.dataset import load_demonstrations, save_demonstrations
from robo_razor.rollout.demonstrations import demonstrations_for

# What LeRobot warns of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "dim_model": 32,
    "n_layers": 1,
    "n_heads": 2,
    "dim_feedforward": 32,
    "dim_head": 32,
    "stem_channels": (4, 4, 8),
    "num_landmarks": 0,
    "num_bins": 7,
}
SUITE = [
    "--env.discover_packages_path=robo_razor.lerobot_env",
    "--env.type=razor",
    "--env.episode_length=3",
    "--eval.use_async_envs=false",
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy")
    create_policy([0.0] * 7, [1.0] * 7, **SIZES).save(folder)
    return folder


def run(module, words, monkeypatch):
    """Run one of LeRobot's scripts as its command line does."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    module.main()


def test_lerobot_eval_runs_our_policy_on_our_tasks(policy, tmp_path, monkeypatch):
    from lerobot.scripts import lerobot_eval

    words = [
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--env.task=PressButton,LiftCube",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        f"--output_dir={tmp_path / 'out'}",
    ]
    run(lerobot_eval, SUITE + words, monkeypatch)
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert [entry["task_group"] for entry in info["per_task"]] == ["razor", "razor"]
    assert [len(entry["metrics"]["successes"]) for entry in info["per_task"]] == [2, 2]
    assert info["overall"]["n_episodes"] == 4


def demonstrations(frames=12):
    rng = np.random.default_rng(0)
    return DemonstrationSet(
        images={
            name: rng.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)
            for name in ("front", "wrist")
        },
        state=rng.normal(size=(frames, 7)).astype(np.float32),
        actions=rng.uniform(-1, 1, (frames, 5)).astype(np.float32),
        offsets=np.array([0, frames // 2, frames]),
        instructions=("press the button", "lift the cube"),
        rewards=np.zeros(frames, np.float32),
        success=np.zeros(frames, bool),
    )


def test_lerobot_train_learns_from_our_data_and_evaluates_on_our_tasks(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    from lerobot.scripts import lerobot_train

    save_demonstrations(demonstrations(), tmp_path / "data")
    out = tmp_path / "out"
    words = [
        "--dataset.repo_id=local/data",
        f"--dataset.root={tmp_path / 'data'}",
        "--policy.discover_packages_path=lerobot_policy_razor",
        "--policy.type=razor",
        "--policy.push_to_hub=false",
        "--policy.device=cpu",
        *[f"--policy.{key}={list(v) if isinstance(v, tuple) else v}" for key, v in SIZES.items()],
        "--env.task=PressButton",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--steps=2",
        "--batch_size=4",
        "--num_workers=0",
        "--env_eval_freq=2",
        "--log_freq=1",
        "--wandb.enable=false",
        f"--output_dir={out}",
    ]
    run(lerobot_train, SUITE + words, monkeypatch)
    assert list((out / "eval").glob("**/*.mp4")), "it was evaluated in our environment"
    trained = load_policy(out / "checkpoints" / "last" / "pretrained_model")
    assert trained.has_density
    assert trained.camera_names == ["front", "wrist"]


@pytest.fixture(params=["image", "video"])
def foreign(request, tmp_path):
    """Write a data set as somebody else would: other names, another size, an oblong picture."""
    kind = request.param
    root = tmp_path / "foreign"
    picture = {"dtype": kind, "shape": (48, 96, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.top": picture,
        "observation.images.hand": dict(picture),
        "observation.state": {"dtype": "float32", "shape": (7,), "names": list("abcdefg")},
        "action": {"dtype": "float32", "shape": (5,), "names": list("abcde")},
    }
    dataset = LeRobotDataset.create(
        "somebody/else", 10, features, root=root, use_videos=kind == "video"
    )
    rng = np.random.default_rng(0)
    for episode, length in enumerate((5, 7)):
        for i in range(length):
            shade = np.full((48, 96, 3), 30 * episode + 15 * i, np.uint8)
            dataset.add_frame(
                {
                    "observation.images.top": shade,
                    "observation.images.hand": 255 - shade,
                    "observation.state": rng.normal(size=7).astype(np.float32),
                    "action": rng.uniform(-1, 1, 5).astype(np.float32),
                    "task": f"do thing {episode}",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


RENAME = "{observation.images.top: observation.images.front, hand: wrist}"


def test_a_foreign_data_set_is_read_frame_by_frame(foreign):
    demos = load_demonstrations(foreign, image_shape=(32, 32))
    assert demos.offsets.tolist() == [0, 5, 12]
    assert demos.instructions == ("do thing 0", "do thing 1")
    shades = [15 * i for i in range(5)] + [30 + 15 * i for i in range(7)]
    assert demos.images["top"].shape == (12, 32, 32, 3)
    np.testing.assert_allclose(demos.images["top"].mean((1, 2, 3)), shades, atol=4)
    np.testing.assert_allclose(demos.images["hand"].mean((1, 2, 3)), 255 - np.array(shades), atol=4)
    own = load_demonstrations(foreign, 1)
    assert own.images["top"].shape == (5, 48, 96, 3)
    item = LeRobotDataset("somebody/else", root=foreign)[6]
    np.testing.assert_allclose(item["action"], demos.actions[6])
    np.testing.assert_allclose(item["observation.state"], demos.state[6])


def test_bc_trains_on_a_foreign_data_set(foreign, policy, tmp_path):
    from robo_razor.core.errors import DemonstrationError
    from robo_razor.training.methods.bc import demonstration_source
    from robo_razor.training.trainer import finetune

    tracking = {"episodes_new": 1, "episodes_prior": 0, "final_episodes_new": 1}
    data = {
        "method": "bc",
        "policy": str(policy),
        "task": "gym_razor/PressButton-v0",
        "prior_tasks": "none",
        "out": str(tmp_path / "run"),
        "torch_threads": 1,
        "rename": {"observation.images.top": "observation.images.front", "hand": "wrist"},
        "env": {"num_envs": 1, "num_workers": 1, "max_episode_steps": 4},
        "tracking": {**tracking, "episodes_new_sampled": 1, "kl_states": 2},
        "bc": {"demonstrations": str(foreign), "epochs": 1, "batch_size": 4, "warmup_steps": 0},
    }
    config = from_dict(FinetuneConfig, data)
    assert from_dict(FinetuneConfig, {**data, "rename": RENAME}).rename
    assert isinstance(config.env, EnvConfig)
    assert isinstance(config.tracking, TrackingConfig)
    result = finetune(config)
    before, after = load_policy(policy), load_policy(result.run)
    pairs = zip(before.module.parameters(), after.module.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    # The checkpoint keeps the names, and still knows those of its own environment.
    assert after.sources.camera("observation.images.front", {"top"}) == "top"
    assert after.sources.camera("observation.images.front", {"front"}) == "front"

    with pytest.raises(DemonstrationError) as caught:
        config = from_dict(FinetuneConfig, {**data, "rename": ""})
        demonstrations_for(demonstration_source(config), before)
    have, _, want = str(caught.value).partition("the policy wants")
    assert "observation.images.top 64x64 px" in have
    assert "observation.images.front 64x64 px" in want
