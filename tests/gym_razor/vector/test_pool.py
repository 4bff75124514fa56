"""What the suite's tables and any other environments have in common, because one pool runs them."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from counter import toy_factory

from gym_razor.vector.any_env import ChunkedVectorEnv
from gym_razor.vector.faults import WorkerError
from gym_razor.vector.tables import RazorVectorEnv

TASK = "gym_razor/PressButton-v0"
LIMIT = 4


def tables(num_envs, num_workers, **settings):
    settings = {
        "max_episode_steps": LIMIT,
        "render_observations": False,
        "image_size": 8,
    } | settings
    return RazorVectorEnv(num_envs, TASK, num_workers, chunk_size=2, **settings)


def counters(num_envs, num_workers):
    return ChunkedVectorEnv([toy_factory(limit=LIMIT)] * num_envs, 2, num_workers)


KINDS = pytest.mark.parametrize("make", [tables, counters])


def zeros(env):
    return np.zeros(env.action_space.shape, np.float32)


@KINDS
def test_a_finished_environment_stands_still_without_being_masked(make):
    env = make(2, 0)
    env.reset(seed=[0, 0])
    for _ in range(LIMIT // 2):
        final, _, _, truncated, _ = env.step(zeros(env))
    assert truncated.all()
    after, rewards, _, truncated, infos = env.step(zeros(env) + 1)
    np.testing.assert_array_equal(after["agent_pos"], final["agent_pos"])
    assert rewards.tolist() == [0, 0]
    assert truncated.all()
    assert infos["elapsed_steps"].tolist() == [LIMIT, LIMIT]
    env.close()


@KINDS
def test_a_step_before_the_first_reset_is_refused(make):
    env = make(2, 0)
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0, 1\] have not been reset"):
        env.step(zeros(env))
    env.close()


@KINDS
def test_wrong_actions_seeds_and_masks_are_named(make):
    env = make(2, 0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions hold NaN or infinity"):
        env.step(zeros(env) + np.nan)
    with pytest.raises(ValueError, match=r"expected \(2, 2, \d\)"):
        env.step(zeros(env)[:1])
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="`reset_mask` is int64 of shape"):
        env.reset(options={"reset_mask": np.array([0, 1])})
    env.close()


@KINDS
def test_a_group_that_is_being_stepped_takes_no_other_command(make):
    env = make(2, 0)
    env.reset(seed=0)
    env.step_async(zeros(env), np.arange(2))
    for command in (lambda: env.step(zeros(env)), lambda: env.reset(seed=1), env.render):
        with pytest.raises(RuntimeError, match=r"Groups \[0\] are still moving"):
            command()
    env.step_wait()
    env.close()


@KINDS
def test_a_worker_that_dies_is_reported_with_its_episodes_and_nothing_is_left(make):
    env = make(3, 2)
    env.reset(seed=[7, 8, 9])
    env.step(zeros(env))
    others = [process for process in env._processes[1:]]
    os.kill(env._processes[0].pid, signal.SIGKILL)
    env._processes[0].join()
    with pytest.raises(
        WorkerError, match=r"worker 0 \(environments 0-1\) died with exit"
    ) as caught:
        env.step(zeros(env))
    text = str(caught.value)
    task = TASK if make is tables else "toy/Counter-v0"
    assert "-9: the system stopped it" in text
    assert f"Its episodes ({task} seed 7, {task} seed 8)" in text
    dump = json.loads(Path(re.search(r"in (\S+\.json)", text)[1]).read_text())
    assert [episode["seed"] for episode in dump["episodes"]] == [7, 8]
    assert not any(process.is_alive() for process in others)
    env.close()


def test_a_table_that_diverges_is_dumped_and_ends_as_a_failure(tmp_path, caplog):
    env = tables(1, 0, dump_dir=str(tmp_path))
    env.reset(seed=[3])
    env._workers[0]._group._episodes[0].world.data.qvel[0] = np.nan
    _, rewards, terminated, _, infos = env.step(zeros(env))
    assert rewards.tolist() == [0]
    assert terminated.tolist() == infos["physics_error"].tolist() == [True]
    assert not infos["is_success"].any()
    assert f"The physics of {TASK} (seed 3) diverged" in caplog.text
    (dump,) = tmp_path.glob("*.json")
    (episode,) = json.loads(dump.read_text())["episodes"]
    assert episode["state"]["pair"]
    assert episode["actions"] == [[[0.0] * 5] * 2]
    env.close()


def test_an_environment_that_cannot_be_made_in_a_worker_is_reported_without_an_episode():
    def broken():
        raise FileNotFoundError("arm.xml")

    with pytest.raises(WorkerError) as caught:
        ChunkedVectorEnv([broken], num_workers=1)
    text = str(caught.value)
    assert text.startswith("Environment worker 0 (environment 0) raised FileNotFoundError: arm.xml")
    assert "Its episodes" not in text


def test_an_observation_that_its_space_does_not_describe_is_refused():
    class Wider(toy_factory()):
        def observation(self):
            return {**super().observation(), "agent_pos": np.zeros(3, np.float32)}

    env = ChunkedVectorEnv([Wider])
    with pytest.raises(ValueError, match=r"Counter-v0 gives agent_pos as float32 of shape \(3,\)"):
        env.reset(seed=0)


def test_a_space_without_arrays_is_refused():
    class Speaks(toy_factory()):
        observation_space = gym.spaces.Dict({"words": gym.spaces.Text(5)})

    with pytest.raises(ValueError, match="observation words is Text.*only arrays of numbers"):
        ChunkedVectorEnv([Speaks])
