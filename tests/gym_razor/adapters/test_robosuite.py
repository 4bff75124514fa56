"""robosuite's tasks behind this suite's contract."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from gym_razor.adapters.robosuite import (
    ROBOSUITE_TASKS,
    STABLE_STEPS,
    RobosuiteEnv,
    register_robosuite_tasks,
    robosuite_task_id,
)


def _egl_fault():
    """Return why no EGL context can be made here, or None."""
    code = "import mujoco.egl as e; c = e.GLContext(8, 8); c.make_current(); c.free()"
    command = [sys.executable, "-c", code]  # while tests are collected, where pytest has no limit
    done = subprocess.run(command, capture_output=True, timeout=600, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


EGL_FAULT = _egl_fault()
pytestmark = pytest.mark.skipif(EGL_FAULT is not None, reason=f"no EGL context: {EGL_FAULT}")


@pytest.fixture(scope="module")
def envs():
    made: dict[str, RobosuiteEnv] = {}

    def get(task):
        if task not in made:
            made[task] = RobosuiteEnv(task, image_size=32)
        return made[task]

    yield get
    for env in made.values():
        env.close()


def physics_state(env):
    sim = env._env.sim
    return np.concatenate([sim.get_state().flatten(), sim.model.body_pos.ravel()])


def roll(env, seed, steps=4):
    """Return the physics states of an episode with fixed pseudo-random actions."""
    env.reset(seed=seed)
    rng = np.random.default_rng(0)
    states = [physics_state(env)]
    for _ in range(steps):
        env.step_without_rendering(rng.uniform(-1, 1, 5))
        states.append(physics_state(env))
    return np.stack(states)


@pytest.mark.parametrize("task", ROBOSUITE_TASKS)
def test_contract(envs, task):
    env = envs(task)
    observation, info = env.reset(seed=3)
    assert observation in env.observation_space
    assert set(observation["pixels"]) == {"front", "wrist"}
    assert all(image.shape == (32, 32, 3) for image in observation["pixels"].values())
    assert all(image.std() > 5 for image in observation["pixels"].values()), "blank picture"
    assert info == {"is_success": False, "elapsed_steps": 0}
    assert env.task == f"gym_razor/robosuite-{task}-v0"
    assert env.task_description in ROBOSUITE_TASKS[task].instructions
    assert env.metadata["render_fps"] == 10
    assert env.render().shape == (256, 256, 3)
    if task == "Lift":  # many resets, each of which compiles robosuite's model anew
        check_env(env, skip_close_check=True, skip_render_check=True)


@pytest.mark.parametrize("task", ROBOSUITE_TASKS)
def test_start_state_and_dynamics_are_a_pure_function_of_the_seed(envs, task):
    env = envs(task)
    first = roll(env, 5)
    assert not np.array_equal(first[0], roll(env, 6)[0])
    np.random.seed(99)  # noqa: NPY002 - the caller's global state must not matter
    random.seed(99)
    assert np.array_equal(roll(env, 5), first)


def test_another_instance_starts_in_the_same_state(envs):
    first = roll(envs("Lift"), 8)
    np.random.seed(1)  # noqa: NPY002
    other = RobosuiteEnv("Lift")
    assert np.array_equal(roll(other, 8), first)
    other.close()


def test_the_callers_generators_and_environment_variables_are_left_alone(envs):
    env = envs("Lift")
    np.random.seed(4)  # noqa: NPY002
    random.seed(4)
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    env.reset(seed=1)
    env.step(np.zeros(5, np.float32))
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state


def test_importing_and_building_is_quiet_and_lazy():
    code = """
import os, sys, logging
before = dict(os.environ)
from gym_razor.adapters.robosuite import RobosuiteEnv, register_robosuite_tasks
register_robosuite_tasks()
assert "robosuite" not in sys.modules and "mujoco" not in sys.modules
env = RobosuiteEnv("Lift", image_size=16)
env.reset(seed=0)
env.close()
env.close()
changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
assert not changed - {"PYOPENGL_PLATFORM", "LD_LIBRARY_PATH"}, changed  # OpenCV sets the second
assert not logging.getLogger("robosuite_logs").filters
import robosuite
assert robosuite.environments.base.REGISTERED_ENVS["Lift"] is robosuite.Lift
"""
    # Without cached bytecode the syntax warnings of robosuite's sources appear too.
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPYCACHEPREFIX": "/nonexistent",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_the_hand_moves_as_the_action_says(envs):
    env = envs("Lift")
    for axis in range(3):
        env.reset(seed=2)
        before = env._agent_pos()
        action = np.zeros(5, np.float32)
        action[axis] = 0.5
        for _ in range(4):
            env.step_without_rendering(action)
        for _ in range(5):
            env.step_without_rendering(np.zeros(5))
        moved = env._agent_pos()[:3] - before[:3]
        expected = np.zeros(3)
        expected[axis] = 0.1
        assert moved == pytest.approx(expected, abs=0.015)


def test_the_hand_turns_as_the_action_says(envs):
    env = envs("Lift")
    env.reset(seed=2)
    before = env._agent_pos()
    for _ in range(4):
        env.step_without_rendering(np.array([0, 0, 0, 0.5, 0], np.float32))
    for _ in range(5):
        env.step_without_rendering(np.zeros(5))
    after = env._agent_pos()
    turned = np.arctan2(after[3], after[4]) - np.arctan2(before[3], before[4])
    assert turned == pytest.approx(0.6, abs=0.1)
    assert after[:3] == pytest.approx(before[:3], abs=0.02)


def lift_cube(env, seed):
    """Lift robosuite's cube with a short script; return the results of the last step."""
    env.reset(seed=seed)
    data = env._env.sim.data
    cube = data.body_xpos[env._env.cube_body_id] - data.get_body_xpos("robot0_base")
    stages = [(0.1, -1, 12), (0.0, -1, 12), (0.0, 1, 6), (0.2, 1, 20)]
    rewards = []
    for height, gripper, steps in stages:
        for _ in range(steps):
            error = (cube + np.array([0, 0, height]) - env._agent_pos()[:3]) / 0.05 * 0.5
            action = np.array([*np.clip(error, -1, 1), 0, gripper], np.float32)
            reward, terminated, truncated, info = env.step_without_rendering(action)
            rewards.append(reward)
            if terminated or truncated:
                return rewards, terminated, truncated, info
    return rewards, terminated, truncated, info


@pytest.mark.parametrize("seed", range(3))
def test_lifting_the_cube_terminates_with_one_sparse_reward(envs, seed):
    rewards, terminated, truncated, info = lift_cube(envs("Lift"), seed)
    assert terminated
    assert not truncated
    assert info["is_success"]
    assert sum(rewards) == rewards[-1] == 1.0
    assert info["elapsed_steps"] == len(rewards)


def test_shaped_reward_grows_towards_success():
    env = RobosuiteEnv("Lift", image_size=16, reward_type="shaped")
    rewards, terminated, *_ = lift_cube(env, 0)
    env.close()
    assert terminated
    assert 0.0 < rewards[0] < rewards[-STABLE_STEPS - 2] < rewards[-1] == pytest.approx(1.0)


def test_the_time_limit_truncates_and_does_not_terminate():
    register_robosuite_tasks()
    direct = RobosuiteEnv("Lift", image_size=16, max_episode_steps=3)
    made = gym.make(robosuite_task_id("Lift"), image_size=16, max_episode_steps=3)
    for env in (direct, made):
        env.reset(seed=0)
        ends = [env.step(np.zeros(5, np.float32))[2:4] for _ in range(3)]
        assert ends == [(False, False), (False, False), (False, True)]
        assert env.get_wrapper_attr("_max_episode_steps") == 3
        env.close()


def test_vector_environment_equals_single_environments(envs):
    register_robosuite_tasks()
    vector = gym.make_vec(
        robosuite_task_id("Lift"),
        num_envs=2,
        vectorization_mode="vector_entry_point",
        chunk_size=2,
        num_workers=1,
        image_size=32,
    )
    try:
        chunks = np.random.default_rng(0).uniform(-1, 1, (2, 2, 5)).astype(np.float32)
        started, _ = vector.reset(seed=[5, 9])
        stepped, *_ = vector.step(chunks)
        single = envs("Lift")
        for env_id, seed in enumerate((5, 9)):
            observation, _ = single.reset(seed=seed)
            compare(observation, started, env_id)
            for action in chunks[env_id]:
                observation, *_ = single.step(action)
            compare(observation, stepped, env_id)
        assert vector.tasks == [robosuite_task_id("Lift")] * 2
    finally:
        vector.close()


def compare(single, batched, env_id):
    assert np.array_equal(single["agent_pos"], batched["agent_pos"][env_id])
    for camera, image in single["pixels"].items():
        assert np.array_equal(image, batched["pixels"][camera][env_id])


def test_own_words_replace_the_instruction(envs):
    env = envs("Door")
    env.reset(seed=0, options={"instruction": "please open it"})
    assert env.task_description == "please open it"
    instructions = set()
    for seed in range(12):
        env.reset(seed=seed)
        instructions.add(env.task_description)
    assert instructions == set(ROBOSUITE_TASKS["Door"].instructions)


def test_wrong_arguments_name_what_is_allowed(envs):
    with pytest.raises(ValueError, match="task is 'Lif'; allowed: 'Lift', 'Stack'"):
        RobosuiteEnv("Lif")
    with pytest.raises(ValueError, match="reward_type is 'dense'"):
        RobosuiteEnv("Lift", reward_type="dense")
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        RobosuiteEnv("Lift", max_episode_steps=0)
    env = envs("Lift")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="give 5 finite numbers"):
        env.step(np.full(5, np.nan, np.float32))


def test_robosuite_logs_again_afterwards(envs, caplog):
    envs("Lift").reset(seed=0)
    with caplog.at_level(logging.INFO, logger="robosuite_logs"):
        logging.getLogger("robosuite_logs").warning("from the user")
    assert "from the user" in caplog.text
