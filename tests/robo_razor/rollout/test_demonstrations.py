from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console
from toy_policy import GREEN, NEW, RED, save_tiny_policy, tiny_policy

from robo_razor.cli.collect import run_collect
from robo_razor.core.errors import DemonstrationError, RunDirectoryError
from robo_razor.core.machine import available_bytes
from robo_razor.core.settings.config import CollectConfig, EnvConfig
from robo_razor.rollout import demonstrations
from robo_razor.rollout.actors import ExpertActor
from robo_razor.rollout.dataset import dataset as lerobot_dataset
from robo_razor.rollout.dataset import memory
from robo_razor.rollout.dataset.dataset import load_demonstrations, save_demonstrations
from robo_razor.rollout.dataset.metadata import picture_shape
from robo_razor.rollout.demonstrations import (
    DemonstrationSource,
    check_fit,
    collect_demonstrations,
    demonstrations_for,
)
from robo_razor.rollout.environments import make_env

ENV = EnvConfig(num_envs=8, image_size=16, env_packages=("toy_env",))


def quiet():
    return Console(file=io.StringIO())


def toy(num_envs=8):
    config = EnvConfig(num_envs=num_envs, image_size=16, env_packages=("toy_env",))
    return make_env(NEW, config, chunk_size=1)


def expert(episodes=6, style="a", num_envs=8):
    return collect_demonstrations(toy(num_envs), ExpertActor(style), NEW, episodes)


def same(first, second):
    assert first.instructions == second.instructions
    for name in ("state", "actions", "offsets", "rewards", "success"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.images.keys() == second.images.keys()
    for name, images in first.images.items():
        np.testing.assert_array_equal(images, second.images[name])


def test_demonstrations_hold_whole_successful_episodes():
    demos = expert()
    assert demos.num_episodes == 6
    ends = demos.offsets[1:] - 1
    assert demos.success[ends].all()
    assert not np.delete(demos.success, ends).any()
    assert demos.rewards.sum() == 6
    assert set(demos.instructions) == {"lift the blue block"}
    assert demos.images["front"].shape == (len(demos), 16, 16, 3)
    assert demos.landmarks.shape == (len(demos), 3, 3)


def test_an_observation_belongs_to_the_action_taken_there():
    demos = expert()
    # The state is the vector to the dots, so an action shortens it by a tenth of itself.
    for first, last in zip(demos.offsets[:-1], demos.offsets[1:], strict=True):
        to_blue = demos.state[first:last, 4:6]
        moved = to_blue[:-1] - to_blue[1:]
        np.testing.assert_allclose(moved, 0.1 * demos.actions[first : last - 1, :2], atol=1e-5)


def test_demonstrations_do_not_depend_on_the_number_of_envs():
    same(expert(num_envs=8), expert(num_envs=3))


def test_styles_differ():
    one, other = expert(style="a"), expert(style="b")
    assert (one.actions[:, 4] == -1).all()
    assert (other.actions[:, 4] == 1).all()


def test_a_dataset_comes_back_as_it_was_written(tmp_path):
    demos = expert()
    save_demonstrations(demos, tmp_path / "data")
    same(load_demonstrations(tmp_path / "data"), demos)
    assert load_demonstrations(tmp_path / "data", max_episodes=2).num_episodes == 2


def test_demonstrations_without_a_state_are_written_too(tmp_path):
    demos = expert(3)
    nothing = np.zeros((len(demos), 0), np.float32)
    save_demonstrations(dataclasses.replace(demos, state=nothing), tmp_path / "data")
    assert load_demonstrations(tmp_path / "data").state.shape == (len(demos), 0)


def test_lerobot_reads_what_was_written(tmp_path):
    from lerobot.datasets import LeRobotDataset

    demos = expert(3)
    save_demonstrations(demos, tmp_path / "data")
    dataset = LeRobotDataset("local/data", root=tmp_path / "data")
    assert len(dataset) == len(demos)
    item = dataset[len(demos) - 1]
    assert item["task"] == "lift the blue block"
    assert bool(item["next.success"])
    np.testing.assert_allclose(item["action"], demos.actions[-1])
    image = (item["observation.images.wrist"].permute(1, 2, 0) * 255).round().numpy()
    np.testing.assert_array_equal(image, demos.images["wrist"][-1])


def test_collect_writes_several_tasks_and_refuses_to_overwrite(tmp_path):
    config = CollectConfig(task="prior", episodes=3, out=str(tmp_path / "data"), noise=0.2, env=ENV)
    run_collect(config, quiet())
    demos = load_demonstrations(tmp_path / "data")
    assert demos.instructions == ("lift the red block",) * 3 + ("lift the green block",) * 3
    with pytest.raises(RunDirectoryError, match="in use"):
        run_collect(config, quiet())


def test_collect_takes_a_policy(tmp_path):
    base = save_tiny_policy(tmp_path / "base")
    config = CollectConfig(
        task=f"{RED},{GREEN}", policy=base, episodes=1, out=str(tmp_path / "data"), env=ENV
    )
    run_collect(config, quiet())
    assert load_demonstrations(tmp_path / "data").num_episodes == 2


def test_a_demonstrator_that_never_succeeds_is_given_up():
    class Idle:
        def decide(self, request):
            from robo_razor.rollout.actors import Decision

            return Decision(np.zeros((len(request.env_ids), 1, 5), np.float32))

    with pytest.raises(DemonstrationError, match=r"of \d+ episodes .* succeeded"):
        collect_demonstrations(toy(), Idle(), NEW, 5)


def test_bc_takes_the_expert_or_a_dataset(tmp_path):
    def of(source, seed=0):
        wanted = DemonstrationSource(source, episodes=4, task=NEW, env=ENV, seed=seed, noise=0.15)
        return demonstrations_for(wanted, tiny_policy(), quiet())

    save_demonstrations(of("expert"), tmp_path / "data")
    same(of("expert"), of(str(tmp_path / "data")))
    assert not np.array_equal(of("expert", seed=1).state[0], of("expert").state[0])


def test_more_pictures_than_memory_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    demos = expert(6)
    save_demonstrations(demos, tmp_path / "data")
    frame = 2 * 3 * 16 * 16  # two cameras

    def free(number):
        monkeypatch.setattr(memory, "available_bytes", lambda: number)

    def refused(match, **settings):
        with monkeypatch.context() as patch, pytest.raises(DemonstrationError, match=match):
            patch.setattr(lerobot_dataset, "_stack", None)  # nothing may be decoded
            load_demonstrations(tmp_path / "data", **settings)

    free(frame * len(demos))
    same(load_demonstrations(tmp_path / "data"), demos)
    free(frame * int(demos.offsets[4]))
    refused(
        rf"The 6 demonstrations .* {len(demos)} frames of observation.images.front 16x16 px, "
        r".*take 0.0 GiB, but 0.0 GiB are free.*`--bc.episodes 4` fits.*smaller pictures"
    )
    assert load_demonstrations(tmp_path / "data", max_episodes=4).num_episodes == 4
    small = load_demonstrations(tmp_path / "data", image_shape=(8, 8))
    assert small.images["front"].shape == (len(demos), 8, 8, 3)
    refused(r"32x32 px.*Use fewer[^,]*\.$", image_shape=(32, 32))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    refused(r"decoded by 2 ranks.*`--bc.episodes [12]` fits")
    free(None)  # a system that does not tell
    same(load_demonstrations(tmp_path / "data"), demos)


def test_more_pictures_than_memory_are_refused_while_they_are_played(monkeypatch):
    """The free memory shrinks by every picture, so only what is still to come must fit."""
    frame, steps = 2 * 3 * 16 * 16, []  # two cameras
    expected = expert(30)
    on_step = demonstrations._DemonstrationRecorder.on_step

    def watched(recorder, outcome):
        steps.append(len(outcome.episodes))
        on_step(recorder, outcome)

    def free(number):
        steps.clear()
        monkeypatch.setattr(memory, "available_bytes", lambda: number - frame * sum(steps))

    monkeypatch.setattr(demonstrations._DemonstrationRecorder, "on_step", watched)
    monkeypatch.setattr(demonstrations, "CHECK_EVERY_BYTES", 1)
    free(3 * frame * len(expected))  # while they are played, and joined, and two to spare
    same(expert(30), expected)
    played = sum(steps)
    for at_once in (demonstrations.MAX_EPISODES_AT_ONCE, 10):  # later rounds count as well
        monkeypatch.setattr(demonstrations, "MAX_EPISODES_AT_ONCE", at_once)
        free(frame * len(expected))
        with pytest.raises(
            DemonstrationError,
            match=r"30 demonstrations .*: judged by the \d+ so far, their pictures need 0.0 GiB "
            r"more, but 0.0 GiB are free.*`--bc.episodes`, or `--episodes` of `collect`.: at most "
            r"[12]\d fit",
        ):
            expert(30)
        assert sum(steps) < played / 2
    monkeypatch.setattr(memory, "available_bytes", lambda: None)  # a system without it
    same(expert(30), expected)


@pytest.mark.parametrize("shape", [(480, 640, 3), (3, 480, 640), (480, 640), (480, 640, 1)])
def test_the_size_of_pictures_is_read_from_the_metadata(shape):
    assert picture_shape({"shape": list(shape)}) == (480, 640)


def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  9 kB\nMemAvailable:       5 kB\n")
    assert available_bytes(info, tmp_path) == 5 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_bytes(info, tmp_path) == 5 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    assert available_bytes(info, tmp_path) == 2000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    assert available_bytes(info, tmp_path) == 2500
    assert available_bytes(tmp_path / "none", tmp_path / "none") is None


def test_a_policy_without_a_state_takes_demonstrations_that_have_one():
    policy = tiny_policy()
    policy.state_dim = 0
    check_fit(expert(1), policy, "data")
    policy.state_dim = 3
    with pytest.raises(DemonstrationError, match="state 7.*state 3"):
        check_fit(expert(1), policy, "data")


def test_what_does_not_fit_or_is_not_there_is_refused(tmp_path):
    with pytest.raises(DemonstrationError, match="robo-razor collect"):
        load_demonstrations(tmp_path / "none")
    with pytest.raises(DemonstrationError, match="64 px"):
        check_fit(expert(1), tiny_policy(image_size=64), "data")
    (tmp_path / "old" / "meta").mkdir(parents=True)
    (tmp_path / "old" / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    with pytest.raises(DemonstrationError, match="not v3"):
        load_demonstrations(tmp_path / "old")
    (tmp_path / "old" / "meta" / "info.json").write_text("{")
    with pytest.raises(DemonstrationError, match="no JSON"):
        load_demonstrations(tmp_path / "old")
    with pytest.raises(DemonstrationError, match="does not exist"):
        load_demonstrations(tmp_path / "old" / "meta" / "info.json")
    for text in ("[]", '{"codebase_version": "v3.0", "features": null}'):
        (tmp_path / "old" / "meta" / "info.json").write_text(text)
        with pytest.raises(DemonstrationError, match="has no `features`"):
            load_demonstrations(tmp_path / "old")


class Sick(ExpertActor):
    """Labels one decision with NaN, though a sound action is executed."""

    def decide(self, request):
        decision = super().decide(request)
        label = decision.actions.copy()
        label[request.steps == 2, 0, 1] = np.nan
        return dataclasses.replace(decision, label=label)


def test_nothing_that_is_not_finite_is_collected(tmp_path):
    with pytest.raises(
        DemonstrationError,
        match=r"The action of episode 0, frame 2 of the demonstrations of ReachBlue is not finite",
    ):
        collect_demonstrations(toy(), Sick("a"), NEW, 2)


def test_a_later_task_that_fails_leaves_a_readable_data_set(tmp_path, monkeypatch, caplog):
    collect = demonstrations.collect_demonstrations

    def failing(env, actor, task, *rest, **settings):
        if task == GREEN:
            raise DemonstrationError("Only 0 of 30 episodes succeeded")
        return collect(env, actor, task, *rest, **settings)

    monkeypatch.setattr(demonstrations, "collect_demonstrations", failing)
    config = CollectConfig(task=f"{RED},{GREEN}", episodes=2, out=str(tmp_path / "data"), env=ENV)
    with pytest.raises(DemonstrationError, match="Only 0"):
        run_collect(config, quiet())
    assert load_demonstrations(tmp_path / "data").instructions == ("lift the red block",) * 2
    assert "holds only the episodes of some tasks" in caplog.text


def test_words_that_change_within_an_episode_come_back(tmp_path):
    demos = expert(2)
    instructions = ("reach",) * 3 + ("hold",) * (len(demos) - 3)
    firsts = (instructions[0], instructions[int(demos.offsets[1])])
    demos = dataclasses.replace(demos, instructions=firsts, frame_instructions=instructions)
    save_demonstrations(demos, tmp_path / "data")
    back = load_demonstrations(tmp_path / "data")
    same(back, demos)
    assert back.words(np.arange(len(back))) == list(instructions)
