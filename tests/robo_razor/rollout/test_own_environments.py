"""Ordinary Gymnasium environments of the user's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from toy_runs import own_warnings

from gym_razor.suite.tasks import TASKS
from gym_razor.vector.faults import WorkerError
from robo_razor.cli.listing import task_table
from robo_razor.core.errors import EnvError, UnknownNameError
from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.types import make_rows
from robo_razor.rollout.actors import ExpertActor
from robo_razor.rollout.environments import (
    check_tasks,
    make_env,
    resolve_tasks,
    role_of,
    task_id,
    time_limit,
)
from robo_razor.rollout.episodes import run_actor
from robo_razor.rollout.groups import GroupDriver

DOCUMENTED = Path(__file__).parents[3] / "docs" / "extend"
HOVER = "my_tasks/HoverOverButton-v0"


def steps_of(env, chunk=5, most=100):
    """Return the control steps of an episode, `most` at most."""
    env.reset(seed=[0])
    for _ in range(most // chunk):
        env.step_async(np.zeros((1, chunk, 1), np.float32), np.array([0]))
        *_, terminated, truncated, infos = env.step_wait()
        if terminated[0] or truncated[0]:
            assert truncated[0]
            break
    return int(infos["elapsed_steps"][0])


OWN = {"env_packages": ("own_envs",)}


def make(name, num_envs=1, **settings):
    config = EnvConfig(num_envs=num_envs, **OWN, **settings)
    return make_env(f"plain/{name}-v0", config, chunk_size=5)


def test_a_time_limit_that_is_only_told_is_kept(caplog):
    assert steps_of(make("Declared")) == 7
    assert steps_of(make("Declared", max_episode_steps=12)) == 12
    assert steps_of(make("Plain", max_episode_steps=12)) == 12
    assert not own_warnings(caplog)


def test_an_environment_without_a_time_limit_is_warned_of(caplog):
    assert steps_of(make("Plain"), most=50) == 50
    assert caplog.text.count("names no time limit") == 1
    caplog.clear()
    make("Plain", num_envs=3)
    assert caplog.text.count("names no time limit") == 1


def test_settings_that_an_environment_does_not_take_are_told():
    with pytest.raises(EnvError, match="'plain/Plain-v0' cannot be made with .*reward_type"):
        make("Plain", reward_type="shaped")


def test_a_worker_that_is_found_dead_when_it_is_given_work_is_an_error_of_the_environment():
    """Then the update is made again in fresh workers, which nothing else does."""

    class Dead:
        num_envs, groups = 1, [np.arange(1)]
        single_observation_space = gym.spaces.Dict()

        def step_async(self, actions, env_ids):
            raise WorkerError("worker 0 died")

        def step_wait(self):
            raise AssertionError

    with pytest.raises(EnvError, match="worker 0 died"):
        GroupDriver(Dead()).submit(np.zeros((1, 5, 1), np.float32), np.array([0]))


def outcome(name):
    """Return success, control steps and reward of one episode."""
    driver = GroupDriver(make(name))
    driver.reset(np.arange(1), [5], [f"plain/{name}-v0"], [None])
    driver.submit(np.zeros((1, 5, 1), np.float32), np.arange(1))
    _, _, rewards, _, _, infos = driver.wait()
    return bool(infos["is_success"][0]), int(infos["elapsed_steps"][0]), float(rewards[0])


def test_that_an_episode_ends_is_no_success():
    assert outcome("DropsIt") == (False, 3, 3.0)
    with pytest.raises(
        EnvError, match=r"plain/Silent-v0 \(seed 5, control step 3\) does not report succ"
    ):
        outcome("Silent")


def test_one_control_step_of_success_is_enough_and_ends_nothing():
    assert outcome("Solved") == (True, 3, 3.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Seedless", "starts differently each time from the same seed"),
        ("Alike", "whatever the seed"),
    ],
)
def test_a_seed_that_is_ignored_is_warned_of_once(caplog, name, text):
    make(name, num_envs=3)
    assert caplog.text.count(text) == 1
    assert f"plain/{name}-v0 " in caplog.text


@pytest.mark.parametrize("other", ["Wider", "Lone"])
def test_every_task_of_a_run_is_checked_against_the_first(other):
    tasks = ("plain/DropsIt-v0", f"plain/{other}-v0")
    with pytest.raises(
        EnvError, match=f"{tasks[1]} and {tasks[0]} differ in their observations or actions"
    ):
        make_env(tasks[0], EnvConfig(num_envs=1, **OWN), chunk_size=5, tasks=tasks)


def test_a_lone_picture_is_served_as_lerobot_names_it():
    env = make("Lone")
    assert env.single_observation_space["pixels"]["observation.image"].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NoAsset", r"'plain/NoAsset-v0' cannot be made .*FileNotFoundError: arm\.xml"),
        ("NeedsOptions", r"plain/NeedsOptions-v0 \(seed 0, .* TypeError in its reset: 'NoneType'"),
    ],
)
def test_an_environment_that_cannot_begin_is_an_error_before_any_work(name, text):
    with pytest.raises(EnvError, match=text):
        make(name)


def test_environments_of_a_package_that_is_named_run_in_worker_processes():
    env = make("Solved", num_envs=3, num_workers=2)
    processes = env.call("process_id")
    assert len(set(processes)) == 2
    assert os.getpid() not in processes


def test_an_environment_that_only_this_process_knows_runs_here_with_the_same_results(caplog):
    from own_envs import Solved

    gym.register("plain/Lambda-v0", lambda: Solved(), max_episode_steps=9)
    local, in_workers = make("Lambda", num_envs=2), make("Solved", num_envs=2)
    assert set(local.call("process_id")) == {os.getpid()}
    assert "plain/Lambda-v0 can be made in this process only" in caplog.text
    chunk = np.zeros((2, 5, 1), np.float32)
    for one, other in (
        (local.reset(seed=[3, 4]), in_workers.reset(seed=[3, 4])),
        (local.step(chunk), in_workers.step(chunk)),
    ):
        np.testing.assert_array_equal(one[0]["agent_pos"], other[0]["agent_pos"])
        assert [np.asarray(x).tolist() for x in one[1:-1]] == [
            np.asarray(x).tolist() for x in other[1:-1]
        ]
        assert one[-1]["elapsed_steps"].tolist() == other[-1]["elapsed_steps"].tolist()


def test_what_an_environment_raises_in_a_worker_is_told_with_its_episode():
    with pytest.raises(EnvError) as caught:
        outcome("Breaks")
    text = str(caught.value)
    assert "plain/Breaks-v0 (seed 5, control step 1) raised ZeroDivisionError" in text
    assert "the gripper has no width" in text
    assert "Its episodes (plain/Breaks-v0 seed 5)" in text
    assert "Traceback" not in text


def test_actions_that_are_no_numbers_are_refused_with_what_to_do():
    with pytest.raises(EnvError, match=r"plain/Buttons-v0 takes actions of Discrete\(4\).*Box"):
        make("Buttons")
    with pytest.raises(EnvError, match=r"CartPole-v1 takes actions of Discrete\(2\)"):
        make_env("CartPole-v1", EnvConfig(num_envs=2, env_packages=()), chunk_size=2)


def test_a_scripted_expert_of_an_environment_can_be_asked():
    env = make("Taught", num_envs=2)
    env.reset(seed=[0, 1])
    assert env.expert_actions(env_ids=np.array([1])).tolist() == [[[0.25]] * 5]
    assert not hasattr(make("Solved"), "expert_actions")


@pytest.fixture
def unknown():
    """Let nothing know the documented task, and give back what did."""
    places = ((gym.registry, HOVER), (TASKS, HOVER), (sys.modules, "my_tasks"))
    before = [place.pop(name, None) for place, name in places]
    yield
    for (place, name), value in zip(places, before, strict=True):
        place.pop(name, None)
        if value is not None:
            place[name] = value


@pytest.fixture
def my_tasks(monkeypatch, unknown):
    """Make the documented module with a task of the suite importable; return the packages."""
    monkeypatch.syspath_prepend(DOCUMENTED)
    return ("gym_razor", "my_tasks")


def test_a_task_that_another_package_registers_is_known_by_name_role_and_limit(my_tasks):
    assert HOVER in resolve_tasks("new", my_tasks)
    assert HOVER not in resolve_tasks("new", ("gym_razor",))
    assert resolve_tasks("new", ("my_tasks",)) == [HOVER]
    assert resolve_tasks("HoverOverButton,PressButton", my_tasks) == [
        HOVER,
        "gym_razor/PressButton-v0",
    ]
    assert task_id("HoverOverButton", my_tasks) == HOVER
    assert role_of(HOVER) == "new"
    assert time_limit(HOVER) == 40
    assert HOVER in task_table().columns[0]._cells


def test_the_expert_of_such_a_task_solves_it_beside_a_task_of_the_suite(my_tasks):
    config = EnvConfig(num_envs=2, num_workers=2, image_size=16, env_packages=my_tasks)
    env = make_env(HOVER, config, chunk_size=4, tasks=("gym_razor/PressButton-v0",))
    rows = [*make_rows(HOVER, range(2)), *make_rows("gym_razor/PressButton-v0", range(2))]
    assert run_actor(env, ExpertActor("a"), rows).success.all()
    env.close()


def test_a_task_whose_package_is_not_named_says_what_to_name(unknown):
    with pytest.raises(UnknownNameError, match="`--env.env-packages gym_razor my_tasks`"):
        check_tasks([HOVER])
    with pytest.raises(UnknownNameError, match="`--env.env-packages gym_razor YOUR_PACKAGE`"):
        resolve_tasks("HoverOverButton", ("gym_razor",))
