"""Ordinary Gymnasium environments of the user's own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from gym_razor.faults import WorkerError
from robo_razor.config import EnvConfig
from robo_razor.environment import GroupDriver, make_env
from robo_razor.errors import EnvError


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
    assert not caplog.records


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

        def step_async(self, actions, env_ids):
            raise WorkerError("worker 0 died")

        def step_wait(self):
            raise AssertionError

    with pytest.raises(EnvError, match="worker 0 died"):
        GroupDriver(Dead()).submit(np.zeros((1, 5, 1), np.float32), np.array([0]))
