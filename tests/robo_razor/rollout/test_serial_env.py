"""Ordinary Gymnasium environments of the user's own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from toy_runs import own_warnings

from gym_razor.vector.faults import WorkerError
from robo_razor.core.errors import EnvError
from robo_razor.core.settings.config import EnvConfig
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.groups import GroupDriver


class Plain(gym.Env):
    """Takes no argument, and never ends."""

    observation_space = gym.spaces.Dict({"agent_pos": gym.spaces.Box(-1, 1, (2,), np.float32)})
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"agent_pos": self.np_random.uniform(-1, 1, 2).astype(np.float32)}, {}

    def step(self, action):
        return {"agent_pos": np.zeros(2, np.float32)}, 0.0, False, False, {"success": False}


class Declared(Plain):
    """Tells its time limit as LeRobot's environments do, and leaves it to others."""

    _max_episode_steps = 7


for _class in (Plain, Declared):
    gym.register(f"plain/{_class.__name__}-v0", _class)


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


def make(name, **settings):
    return make_env(f"plain/{name}-v0", EnvConfig(num_envs=1, **settings), chunk_size=5)


def test_a_time_limit_that_is_only_told_is_kept(caplog):
    assert steps_of(make("Declared")) == 7
    assert steps_of(make("Declared", max_episode_steps=12)) == 12
    assert steps_of(make("Plain", max_episode_steps=12)) == 12
    assert not own_warnings(caplog)


def test_an_environment_without_a_time_limit_is_warned_of(caplog):
    assert steps_of(make("Plain"), most=50) == 50
    assert caplog.text.count("tells no time limit") == 1
    caplog.clear()
    make_env("plain/Plain-v0", EnvConfig(num_envs=3), chunk_size=5)
    assert caplog.text.count("tells no time limit") == 1


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


class Scripted(Plain):
    """Does what a test asks for; begins anew from its seed and ends after three actions."""

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        observation = {"agent_pos": np.zeros(2, np.float32)}
        return observation, 1.0, self.steps == 3, False, self.info()


class DropsIt(Scripted):
    def info(self):
        return {"success": False}


class Solved(Scripted):
    def info(self):
        return {"success": self.steps == 1}


class Silent(Scripted):
    def info(self):
        return {}


class Seedless(DropsIt):
    def reset(self, *, seed=None, options=None):
        return super().reset()


class Alike(DropsIt):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=1)


class Wider(DropsIt):
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)


class Lone(DropsIt):
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (8, 8, 3), dtype=np.uint8), {}


class NoAsset(Plain):
    def __init__(self):
        raise FileNotFoundError("arm.xml")


class NeedsOptions(Plain):
    def reset(self, *, seed=None, options=None):
        return options["goal"], {}


for _class in (DropsIt, Solved, Silent, Seedless, Alike, Wider, Lone, NoAsset, NeedsOptions):
    gym.register(f"plain/{_class.__name__}-v0", _class, max_episode_steps=9)


def outcome(name):
    """Return success, control steps and reward of one episode."""
    driver = GroupDriver(make(name))
    driver.reset(np.arange(1), [5], [f"plain/{name}-v0"], [None])
    driver.submit(np.zeros((1, 5, 1), np.float32), np.arange(1))
    _, _, rewards, _, _, infos = driver.wait()
    return bool(infos["is_success"][0]), int(infos["elapsed_steps"][0]), float(rewards[0])


def test_that_an_episode_ends_is_no_success():
    assert outcome("DropsIt") == (False, 3, 3.0)
    with pytest.raises(EnvError, match=r"plain/Silent-v0 \(seed 5, control step 3\) tells no succ"):
        outcome("Silent")


def test_one_control_step_of_success_is_enough_and_ends_nothing():
    assert outcome("Solved") == (True, 3, 3.0)


@pytest.mark.parametrize(
    ("name", "text"),
    [("Seedless", "does not begin twice in the same way"), ("Alike", "whatever the seed")],
)
def test_a_seed_that_is_ignored_is_warned_of_once(caplog, name, text):
    make_env(f"plain/{name}-v0", EnvConfig(num_envs=3), chunk_size=5)
    assert caplog.text.count(text) == 1
    assert f"plain/{name}-v0 " in caplog.text


@pytest.mark.parametrize("other", ["Wider", "Lone"])
def test_every_task_of_a_run_is_checked_against_the_first(other):
    tasks = ("plain/DropsIt-v0", f"plain/{other}-v0")
    with pytest.raises(EnvError, match=f"{tasks[1]} and {tasks[0]} give or take other things"):
        make_env(tasks[0], EnvConfig(num_envs=1), chunk_size=5, tasks=tasks)


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
