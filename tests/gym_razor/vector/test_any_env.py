"""The generic chunk-stepping vector environment, on a toy environment."""

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


def actions(env, value):
    chunk = np.zeros(env.action_space.shape, np.float32)
    chunk[..., 0] = value
    return chunk


def test_ctrl_c_is_the_parents_to_answer():
    """A terminal sends it to the workers as well; they must finish what the parent waits for."""
    env = ChunkedVectorEnv([toy_factory()] * 2, chunk_size=1, num_workers=1)
    try:
        env.reset(seed=0)
        os.kill(env._workers[0].process.pid, signal.SIGINT)
        _, rewards, *_ = env.step(actions(env, 0.5))
        assert len(rewards) == 2
    finally:
        env.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_chunk_steps_until_the_end_of_the_episode_and_then_waits(num_workers):
    env = ChunkedVectorEnv([toy_factory()] * 3, chunk_size=4, num_workers=num_workers)
    try:
        observations, infos = env.reset(seed=[0, 1, 2])
        assert observations["agent_pos"].tolist() == [[0, 0], [1, 0], [2, 0]]
        assert infos["elapsed_steps"].tolist() == [0, 0, 0]
        observations, rewards, terminated, truncated, infos = env.step(actions(env, 1))
        # Environments 1 and 2 reach the goal of 5 after 4 and 3 actions: no action after that.
        assert observations["agent_pos"].tolist() == [[4, 4], [5, 4], [5, 3]]
        assert observations["pixels"]["front"][:, 0, 0, 0].tolist() == [4, 4, 3]
        assert rewards.tolist() == [0, 1, 1]
        assert terminated.tolist() == [False, True, True]
        assert not truncated.any()
        assert infos["is_success"].tolist() == [False, True, True]

        observations, rewards, terminated, truncated, _ = env.step(actions(env, -0.1))
        assert observations["agent_pos"][1:].tolist() == [[5, 4], [5, 3]]
        assert rewards.tolist() == [0, 0, 0]
        assert terminated.tolist() == [False, True, True]

        mask = np.array([False, True, False])
        observations, _ = env.reset(seed=7, options={"reset_mask": mask})
        assert observations["agent_pos"][1].tolist() == [2, 0]
        assert observations["agent_pos"][0, 1] == 8
        observations, _, terminated, truncated, _ = env.step(actions(env, 0))
        assert observations["agent_pos"][:, 1].tolist() == [10, 4, 3]
        assert terminated.tolist() == [False, False, True]
        assert truncated.tolist() == [True, False, False]
    finally:
        env.close()


def test_step_mask_moves_only_what_it_names():
    env = ChunkedVectorEnv([toy_factory()] * 3, chunk_size=2)
    env.reset(seed=0)
    observations, *_ = env.step(actions(env, 0), mask=np.array([True, False, True]))
    assert observations["agent_pos"][:, 1].tolist() == [2, 0, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_groups_are_stepped_and_reset_independently(num_workers):
    env = ChunkedVectorEnv([toy_factory()] * 4, chunk_size=1, num_workers=num_workers)
    try:
        env.reset(seed=0)
        first, last = env.groups[0], env.groups[-1]
        chunks = actions(env, 0)
        env.step_async(chunks[first], first)
        if num_workers:
            mask = np.isin(np.arange(4), last)
            env.reset(seed=0, options={"reset_mask": mask})
            env.step_async(chunks[last], last)
        seen = []
        for _ in env.groups:
            env_ids, observations, rewards, *_ = env.step_wait()
            assert observations["agent_pos"].shape == (len(env_ids), 2)
            assert rewards.shape == (len(env_ids),)
            seen.extend(env_ids.tolist())
        assert sorted(seen) == [0, 1, 2, 3]
        with pytest.raises(RuntimeError, match="step_async first"):
            env.step_wait()
    finally:
        env.close()


def test_results_are_not_overwritten_by_later_steps():
    env = ChunkedVectorEnv([toy_factory()] * 2, chunk_size=1)
    before, _ = env.reset(seed=0)
    copies = before["agent_pos"].copy()
    env.step(actions(env, 1))
    assert np.array_equal(before["agent_pos"], copies)


def test_instructions_tasks_and_pictures():
    env = ChunkedVectorEnv([toy_factory()] * 2, chunk_size=1)
    env.reset(options={"instructions": ["go on", None], "tasks": [None, "toy/Counter-v0"]})
    assert env.instructions == ["go on", "count"]
    assert env.tasks == ["toy/Counter-v0"] * 2
    assert env.call("task") == ("toy/Counter-v0",) * 2
    assert env.render().shape == (2, 8, 8, 3)
    assert env.render(env_ids=[1], size=4).shape == (1, 4, 4, 3)
    assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.DISABLED
    with pytest.raises(ValueError, match="cannot switch tasks"):
        env.reset(options={"tasks": ["toy/Other-v0", None]})


@pytest.mark.parametrize(
    ("fault", "text"),
    [("raise", "the toy broke"), ("exit", "died with exit code 7"), ("hang", "gave no answer")],
)
def test_faults_in_a_worker_are_reported(fault, text):
    factory = toy_factory(fault=fault)
    env = ChunkedVectorEnv([factory] * 2, chunk_size=1, num_workers=1, timeout_s=3600)
    try:
        env.reset(seed=5)
        if fault == "hang":  # the others answer, however long a busy machine takes
            env._workers[0].timeout_s = 0.5
        with pytest.raises(WorkerError, match=text) as caught:
            env.step(actions(env, 0.5))
        assert "toy/Counter-v0 seed 5, toy/Counter-v0 seed 6" in str(caught.value)
        dump = json.loads(Path(re.search(r"in (\S+\.json)", str(caught.value))[1]).read_text())
        assert [episode["seed"] for episode in dump["episodes"]] == [5, 6]
        assert dump["episodes"][0]["actions"] == [[[0.5, 0.0, 0.0]]]
    finally:
        env.close()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="env_fns is empty"):
        ChunkedVectorEnv([])
    with pytest.raises(ValueError, match="chunk_size is 0"):
        ChunkedVectorEnv([toy_factory()], chunk_size=0)
    env = ChunkedVectorEnv([toy_factory()] * 2, chunk_size=3)
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0, 1\] have not been reset"):
        env.step(actions(env, 0), mask=np.zeros(2, np.bool_))
    with pytest.raises(ValueError, match="3 seeds for 2"):
        env.reset(seed=[1, 2, 3])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected \\(2, 3, 3\\)"):
        env.step(np.zeros((2, 1, 3), np.float32))
    with pytest.raises(ValueError, match="`reset_mask` is bool of shape"):
        env.reset(options={"reset_mask": [True]})
