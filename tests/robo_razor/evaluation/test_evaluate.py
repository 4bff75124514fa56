from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_policy import GREEN, NEW, RED, save_tiny_policy, tiny_policy

from robo_razor.cli.evaluate import run_evaluate
from robo_razor.cli.manifest import run_manifest
from robo_razor.cli.rollout import run_rollout
from robo_razor.core.errors import (
    ConfigError,
    ManifestError,
    PolicyEnvMismatchError,
    PolicyError,
    UnknownNameError,
)
from robo_razor.core.plain_text import skill_name
from robo_razor.core.settings.config import EnvConfig, EvaluateConfig, ManifestConfig, RolloutConfig
from robo_razor.evaluation.episode_log import EpisodeLog
from robo_razor.evaluation.evaluate import evaluate
from robo_razor.policies.load import load_policy
from robo_razor.rollout.environments import make_env, named_tasks, resolve_tasks, role_of
from robo_razor.rollout.episodes import run_episodes
from robo_razor.rollout.start_states import Manifest, held_out_rows
from robo_razor.rollout.video import Tile, compose, write_video
from robo_razor.statistics.intervals import wilson_interval
from robo_razor.statistics.stopping import SequentialInterval

TOY = {"image_size": 16, "env_packages": ("toy_env",)}
ENV = EnvConfig(num_envs=8, **TOY)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("base"))


def test_nothing_else_is_read_as_an_unfinished_evaluation(states, tmp_path):
    file = tmp_path / "x.unfinished"
    for text in ("{}\n{}\n", "nonsense\n{}\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"Delete it"):
            EpisodeLog(Manifest.load(states), path=file, resume=True)


def quiet():
    return Console(file=io.StringIO(), width=200)


def test_skills_are_named_by_role_name_or_id():
    assert resolve_tasks("prior", ["toy_env"]) == [RED, GREEN]
    assert resolve_tasks("new", ["toy_env"]) == [NEW]
    assert resolve_tasks("all", ["toy_env"]) == [RED, GREEN, NEW]
    assert resolve_tasks("none", ["toy_env"]) == []
    assert resolve_tasks(f"ReachGreen, {RED}", ["toy_env"]) == [GREEN, RED]
    assert resolve_tasks(f"prior, ReachBlue,{RED}", ["toy_env"]) == [RED, GREEN, NEW]
    assert resolve_tasks("ReachGreen,prior", ["toy_env"]) == [GREEN, RED]
    assert named_tasks("ReachGreen", ["toy_env"]) == {"ReachGreen": GREEN}
    assert (role_of(RED), role_of(NEW)) == ("prior", "new")
    assert skill_name("gym_razor/LiftCube-v0") == "LiftCube"
    with pytest.raises(UnknownNameError, match="Did you mean 'ReachRed'"):
        resolve_tasks("ReachRad", ["toy_env"])


def test_the_manifest_has_one_held_out_start_state_per_episode():
    rows = held_out_rows({"a": RED, "b": NEW}, {"a": 2, "b": 3})
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
        EvaluateConfig(policy=base, episodes=12, json=str(file), env=ENV, torch_threads=1), console
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


@pytest.mark.parametrize(
    ("skill", "num_envs", "threads"), [(RED, 8, 1), (RED, 1, 3), ("serial/ReachRed-v0", 8, 1)]
)
def test_cores_are_left_to_workers_that_move_while_the_policy_thinks(
    tmp_path, monkeypatch, skill, num_envs, threads
):
    monkeypatch.setattr("robo_razor.core.machine.cpu_count", lambda: 3)
    base = save_tiny_policy(tmp_path / "base", image_size=64)  # an ordinary environment's
    env = EnvConfig(num_envs=num_envs, image_size=64, env_packages=("toy_env",))
    file, before = tmp_path / "out.json", torch.get_num_threads()
    evaluated(base, file, skills=skill, episodes=1, env=env, torch_threads=None)
    assert json.loads(file.read_text())["environment"]["torch_threads"] == threads
    assert torch.get_num_threads() == before


def rows_of(file):
    return {entry["row"]: entry for entry in json.loads(file.read_text())["rows"]}


def evaluated(base, file, **settings):
    settings = {"skills": "all", "episodes": 6, "env": ENV, "torch_threads": 1} | settings
    return run_evaluate(EvaluateConfig(policy=base, json=str(file), **settings), quiet())


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A manifest of the toy's start states, six per skill."""
    file = tmp_path_factory.mktemp("manifest") / "toy.json"
    run_manifest(ManifestConfig(episodes=6, out=str(file), env=ENV))
    return file


def test_a_result_has_one_outcome_per_row_and_says_what_it_depends_on(base, states, tmp_path):
    file = tmp_path / "out.json"
    results = evaluated(base, file, manifest=str(states), episodes=None)
    data = json.loads(file.read_text())
    manifest = Manifest.load(states)
    assert data["manifest"] == {"name": str(states), "hash": manifest.hash}
    assert [entry["row"] for entry in data["rows"]] == list(range(18))
    for entry, row, state in zip(data["rows"], manifest.rows, manifest.start_states, strict=True):
        assert (entry["task"], entry["seed"], entry["instruction"], entry["start_state"]) == (
            *(row.task, row.seed, row.instruction),
            state,
        )
        assert entry["terminated"] != entry["truncated"]
    successes = [s for result in results.values() for s in result.successes]
    assert [entry["success"] for entry in data["rows"]] == successes
    assert len(data["environment"]["policy_hash"]) == 64
    assert data["environment"]["config"]["manifest"] == str(states)
    assert not (tmp_path / "out.json.unfinished").exists()


def test_seeds_and_the_manifest_of_the_same_seeds_give_the_same_result(base, states, tmp_path):
    evaluated(base, tmp_path / "seeds.json")
    evaluated(base, tmp_path / "manifest.json", manifest=str(states), episodes=None)
    by_seeds, by_manifest = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("seeds", "manifest")
    )
    assert by_seeds["rows"] == by_manifest["rows"]
    assert by_seeds["manifest"]["hash"] == by_manifest["manifest"]["hash"]


@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_each_row_comes_out_the_same_for_any_envs_workers_and_order(base, states, tmp_path, mode):
    results = []
    for n, workers, last_first in ((1, 1, False), (16, 4, True)):
        manifest = Manifest.load(states)
        if last_first:
            manifest = replace(
                manifest, rows=manifest.rows[::-1], start_states=manifest.start_states[::-1]
            )
        env = make_env(
            RED,
            EnvConfig(num_envs=n, num_workers=workers, **TOY),
            chunk_size=4,
            last_in_first_out=last_first,
        )
        ledger = EpisodeLog(manifest)
        rows = ledger.begin(manifest.rows)
        run_episodes(env, load_policy(base), rows, mode, observer=ledger)
        results.append(ledger.entries)
    assert results[0] == results[1]
    assert len(results[0]) == 18


def test_a_manifest_is_selected_from_by_skill_and_number(base, states, tmp_path):
    file = tmp_path / "out.json"
    evaluated(base, file, manifest=str(states), skills="ReachBlue,ReachRed", episodes=2)
    assert sorted(rows_of(file)) == [0, 1, 12, 13]
    assert {entry["task"] for entry in rows_of(file).values()} == {RED, NEW}
    few = tmp_path / "few.json"
    Manifest.of_entries([{"row": 0, "task": RED, "seed": 3}]).save(few)
    with pytest.raises(ConfigError, match=r"has no rows of toy/ReachBlue-v0. Allowed: ReachRed"):
        evaluated(base, file, manifest=str(few), skills="ReachBlue")
    with pytest.raises(ConfigError, match="`seed_offset` = 5 has no effect"):
        EvaluateConfig(manifest="razor", seed_offset=5)


def test_another_start_state_than_the_manifests_is_an_error(base, states, tmp_path):
    manifest = Manifest.load(states)
    changed = replace(manifest, start_states=("0" * 16, *manifest.start_states[1:]))
    changed.save(tmp_path / "changed.json")
    with pytest.raises(
        ManifestError, match=r"Row 0 .*ReachRed-v0, seed 1000000.* 0000000000000000"
    ):
        evaluated(base, tmp_path / "o.json", manifest=str(tmp_path / "changed.json"), episodes=None)
    assert [file.name for file in tmp_path.iterdir()] == ["changed.json"]
    with pytest.raises(ManifestError, match="reports no hash of start states"):
        changed.check_start_state(0, None)


class Interrupted:
    """Raises KeyboardInterrupt after some rows, as Ctrl-C does."""

    def __init__(self, monkeypatch, after):
        self.left = after
        add = EpisodeLog._add

        def counted(ledger, entry):
            add(ledger, entry)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(EpisodeLog, "_add", counted)


def test_an_interrupted_evaluation_goes_on(base, states, tmp_path, monkeypatch):
    settings = {"manifest": str(states), "episodes": None, "mode": "sample"}
    evaluated(base, tmp_path / "whole.json", **settings)
    file, unfinished = tmp_path / "cut.json", tmp_path / "cut.json.unfinished"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Interrupted(patch, 7)
        evaluated(base, file, **settings)
    assert not file.exists()
    assert len(unfinished.read_text().splitlines()) == 8
    with unfinished.open("a") as stream:
        stream.write('{"row": 17, "task": "cut o')
    with pytest.raises(ConfigError, match=r"holds 7 episodes .*`--resume`"):
        evaluated(base, file, **settings)
    with pytest.raises(ConfigError, match="with other settings .mode: sample before, greedy"):
        evaluated(base, file, **(settings | {"mode": "greedy", "resume": True}))
    ran = []
    with monkeypatch.context() as patch:
        add = EpisodeLog._add
        patch.setattr(EpisodeLog, "_add", lambda s, e: (ran.append(e["row"]), add(s, e)))
        evaluated(base, file, resume=True, **settings)
    assert len(ran) == 18 - 7
    uninterrupted, resumed = (json.loads(f.read_text()) for f in (tmp_path / "whole.json", file))
    assert resumed["rows"] == uninterrupted["rows"]
    assert resumed["skills"] == uninterrupted["skills"]
    assert not unfinished.exists()


@pytest.fixture
def short_looks(monkeypatch):
    monkeypatch.setattr("robo_razor.evaluation.evaluate.LOOK_EVERY", 8)


def test_an_evaluation_stops_when_its_interval_is_narrow_enough(base, tmp_path, short_looks):
    file, width, at_most = tmp_path / "out.json", 0.52, 44
    results = []
    for n, workers in ((3, 1), (16, 4)):
        env = EnvConfig(num_envs=n, num_workers=workers, **TOY)
        settings = {"until_width": width, "episodes": at_most, "skills": "prior", "env": env}
        results.append(evaluated(base, file, **settings))
    assert results[0] == results[1]
    data = json.loads(file.read_text())
    assert (data["interval"], data["until_width"]) == ("sequential", width)
    uninterrupted = evaluated(base, tmp_path / "whole.json", episodes=at_most, skills="prior")
    rule = SequentialInterval(width, look_every=8, max_n=at_most)
    for skill, result in results[0].items():
        won = uninterrupted[skill].successes
        assert result.n == next(n for n in rule.looks if rule.update(sum(won[:n]), n))
        assert result.n < at_most
        assert result.successes == uninterrupted[skill].successes[: result.n]
        assert result.interval == rule.interval(sum(result.successes), result.n)
        assert sum(entry["task"] == result.task for entry in data["rows"]) == result.n


def test_an_interrupted_evaluation_that_stops_by_itself_goes_on(
    base, tmp_path, monkeypatch, short_looks
):
    settings = {"until_width": 0.52, "episodes": 44, "skills": "prior"}
    uninterrupted = evaluated(base, tmp_path / "whole.json", **settings)
    file = tmp_path / "cut.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Interrupted(patch, 21)
        evaluated(base, file, **settings)
    with pytest.raises(ConfigError, match=r"until_width: 0\.52 before, 0\.4 now"):
        evaluated(base, file, resume=True, **(settings | {"until_width": 0.4}))
    assert evaluated(base, file, resume=True, **settings) == uninterrupted


def test_too_few_episodes_for_the_width_are_told(base, short_looks):
    console = quiet()
    config = EvaluateConfig(
        policy=base, skills="ReachRed", episodes=9, until_width=0.05, torch_threads=1, env=ENV
    )
    (result,) = run_evaluate(config, console).values()
    assert result.n == 9
    assert "after 9 episodes the interval is" in console.file.getvalue()
    assert "more than 0.05" in console.file.getvalue()


def test_rows_of_the_shipped_manifest_come_out_the_same_for_any_envs_workers_and_order():
    """With the shipped base and the real simulator; whole chunks are compared, not only ends."""
    all_rows = Manifest.load("razor-quick")
    skills = [f"gym_razor/{name}-v0" for name in ("PressButton", "PlaceCanInBin", "OpenDrawer")]
    policy = load_policy("razor-base")
    results = []
    for num_envs, num_workers, backwards in ((1, 1, False), (16, 4, True)):
        manifest = all_rows.select(skills, 2)
        rows = list(manifest.rows[::-1] if backwards else manifest.rows)
        ledger = EpisodeLog(manifest)
        config = EnvConfig(num_envs=num_envs, num_workers=num_workers, max_episode_steps=20)
        env = make_env(skills[0], config, chunk_size=policy.chunk_size)
        batch = run_episodes(env, policy, ledger.begin(rows), "greedy", True, observer=ledger)
        env.close()
        ends = batch.record.offsets
        actions = {
            row.row_id: batch.record.actions[ends[e] : ends[e + 1]].tolist()
            for e, row in enumerate(rows)
        }
        results.append((ledger.entries, actions))
    assert results[0] == results[1]
    assert len(results[0][0]) == 6


def test_to_resume_needs_a_file():
    with pytest.raises(ConfigError, match="`resume` is set but `json` is not"):
        EvaluateConfig(resume=True)


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
        torch_threads=1,
    )
    filmed = run_rollout(config, console)
    assert file.stat().st_size > 1000
    assert "of 5 episodes succeeded" in console.file.getvalue()
    assert "press the red button" in console.file.getvalue()
    plain = run_rollout(replace(config, video=None), quiet())
    assert np.array_equal(plain.success, filmed.success)
    assert np.array_equal(plain.control_steps, filmed.control_steps)


def test_without_ffmpeg_an_mp4_becomes_a_gif(tmp_path, monkeypatch):
    monkeypatch.setattr("robo_razor.rollout.video._has_ffmpeg", lambda: False)
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
