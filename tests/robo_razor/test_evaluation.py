from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from toy_policy import GREEN, NEW, RED, save_tiny_policy, tiny_policy

from robo_razor.config import EnvConfig, EvaluateConfig, RolloutConfig
from robo_razor.environment import named_tasks, resolve_tasks, role_of, skill_name
from robo_razor.errors import ConfigError, PolicyEnvMismatchError, PolicyError, UnknownNameError
from robo_razor.evaluation import evaluate, manifest, run_evaluate
from robo_razor.rollout import make_env
from robo_razor.statistics import wilson_interval
from robo_razor.video import Tile, compose, run_rollout, write_video

TOY = {"image_size": 16, "env_packages": ("toy_env",)}
ENV = EnvConfig(num_envs=8, **TOY)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("base"))


def quiet():
    return Console(file=io.StringIO(), width=200)


def test_skills_are_named_by_role_name_or_id():
    assert resolve_tasks("prior", ["toy_env"]) == [RED, GREEN]
    assert resolve_tasks("new", ["toy_env"]) == [NEW]
    assert resolve_tasks("all", ["toy_env"]) == [RED, GREEN, NEW]
    assert resolve_tasks("none", ["toy_env"]) == []
    assert resolve_tasks(f"ReachGreen, {RED}", ["toy_env"]) == [GREEN, RED]
    assert named_tasks("ReachGreen", ["toy_env"]) == {"ReachGreen": GREEN}
    assert (role_of(RED), role_of(NEW)) == ("prior", "new")
    assert skill_name("gym_razor/LiftCube-v0") == "LiftCube"
    with pytest.raises(UnknownNameError, match="Did you mean 'ReachRed'"):
        resolve_tasks("ReachRad", ["toy_env"])


def test_the_manifest_has_one_held_out_start_state_per_episode():
    rows = manifest({"a": RED, "b": NEW}, {"a": 2, "b": 3})
    assert [(row.task, row.seed) for row in rows] == [
        (RED, 1_000_000),
        (RED, 1_000_001),
        (NEW, 1_000_000),
        (NEW, 1_000_001),
        (NEW, 1_000_002),
    ]
    assert [row.row_id for row in rows] == list(range(5))


@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_the_score_is_the_same_whatever_the_number_of_envs_or_workers(mode):
    policy = tiny_policy()
    tasks = {"red": RED, "blue": NEW}
    scores = [
        evaluate(
            policy,
            make_env(RED, EnvConfig(num_envs=n, num_workers=w, **TOY), chunk_size=4),
            tasks,
            15,
            mode=mode,
        )
        for n, w in ((1, 1), (7, 3), (40, 2))
    ]
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]["red"].n == 15


def test_evaluate_writes_what_the_issue_asks_for(base, tmp_path):
    file = tmp_path / "out.json"
    console = quiet()
    results = run_evaluate(
        EvaluateConfig(policy=base, skills="all", episodes=12, json=str(file), env=ENV), console
    )
    skills = json.loads(file.read_text())["skills"]
    assert set(skills) == {"ReachRed", "ReachGreen", "ReachBlue"}
    for name, entry in skills.items():
        result = results[name]
        assert entry["role"] == ("new" if name == "ReachBlue" else "prior")
        assert entry["n"] == 12
        assert entry["success_rate"] == result.success_rate
        assert tuple(entry["interval"]) == wilson_interval(sum(result.successes), 12)
    assert "95 % interval" in console.file.getvalue()
    assert "ReachGreen" in console.file.getvalue()


def test_evaluate_refuses_what_does_not_fit(base):
    with pytest.raises(PolicyEnvMismatchError, match="16x16"):
        run_evaluate(EvaluateConfig(policy=base, env=EnvConfig(env_packages=("toy_env",))), quiet())
    with pytest.raises(ConfigError, match="names no skill"):
        run_evaluate(EvaluateConfig(policy=base, skills="none", env=ENV), quiet())


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_rollout_films_the_episodes_it_counts(base, tmp_path, suffix):
    file = tmp_path / f"video{suffix}"
    console = quiet()
    config = RolloutConfig(
        policy=base,
        task=RED,
        episodes=5,
        video=str(file),
        video_size=48,
        instruction="press the red button",
        mode="sample",
        env=ENV,
    )
    filmed = run_rollout(config, console)
    assert file.stat().st_size > 1000
    assert "of 5 episodes succeeded" in console.file.getvalue()
    assert "press the red button" in console.file.getvalue()
    import dataclasses

    plain = run_rollout(dataclasses.replace(config, video=None), quiet())
    assert np.array_equal(plain.success, filmed.success)
    assert np.array_equal(plain.control_steps, filmed.control_steps)


def test_without_ffmpeg_an_mp4_becomes_a_gif(tmp_path, monkeypatch):
    monkeypatch.setattr("robo_razor.video._has_ffmpeg", lambda: False)
    tile = Tile([np.zeros((40, 40, 3), np.uint8)] * 3, "lift the cube", True)
    written = write_video(tmp_path / "v.mp4", compose([tile], fps=10), fps=10)
    assert written == tmp_path / "v.gif"
    assert written.read_bytes()[:3] == b"GIF"


def test_the_outcome_is_drawn_when_an_episode_is_over():
    frames = [np.zeros((40, 40, 3), np.uint8)]
    tiles = [Tile(frames * 2, "a", True), Tile(frames * 6, "b", False)]
    pictures = list(compose(tiles, fps=2))
    assert all(picture.shape == pictures[0].shape for picture in pictures)
    assert pictures[0].shape[0] % 2 == pictures[0].shape[1] % 2 == 0
    early, late = pictures[3][45, 2], pictures[3][45, 44]
    assert early[1] > early[0]  # green: over, success
    assert late.max() < 60  # dark: still running
    end = pictures[-1][45, 44]
    assert end[0] > end[1]  # red: over, failure


def test_an_instruction_without_a_known_word_is_refused(base):
    config = RolloutConfig(policy=base, task=RED, instruction="xyzzy plugh", env=ENV)
    with pytest.raises(PolicyError, match="knows no word"):
        run_rollout(config, quiet())


def test_a_video_needs_a_name_that_says_its_kind(base):
    with pytest.raises(ConfigError, match=r"\.mp4, \.gif"):
        run_rollout(RolloutConfig(policy=base, task=RED, video="film.avi", env=ENV), quiet())


def test_the_expert_can_be_filmed(tmp_path):
    config = RolloutConfig(
        policy="expert", task=RED, episodes=2, video=str(tmp_path / "v.gif"), video_size=32, env=ENV
    )
    assert run_rollout(config, quiet()).success.all()
