"""The contract that every environment of the suite keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import my_tasks  # noqa: F401 - registers the task of docs/how-to/environments.md
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import gym_razor
from gym_razor.suite.tasks import TASKS

TASK_IDS = list(TASKS)
MAIN = "gym_razor/PlaceCanInBin-v0"
HOLD = np.array([0, 0, 0, 0, -1], np.float32)


def make(task_id, **kwargs):
    return gym.make(task_id, image_size=32, **kwargs)


def make_vec(task_id=MAIN, num_envs=3, num_workers=2, chunk_size=2, **kwargs):
    return gym.make_vec(
        task_id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        num_workers=num_workers,
        chunk_size=chunk_size,
        image_size=32,
        **kwargs,
    )


def chunks_for(num_envs, chunk_size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (num_envs, chunk_size, 5)).astype(np.float32)


def flatten(observation):
    return {"agent_pos": observation["agent_pos"], **observation["pixels"]}


def assert_same(first, second):
    first, second = flatten(first), flatten(second)
    for name, values in first.items():
        assert np.array_equal(values, second[name]), name


def row(batched, env_id):
    return {
        "agent_pos": batched["agent_pos"][env_id],
        "pixels": {name: image[env_id] for name, image in batched["pixels"].items()},
    }


# ---- one environment ---------------------------------------------------------------------------


def test_there_are_enough_skills_and_each_has_a_role():
    assert len(gym_razor.PRIOR_TASKS) >= 7
    assert len(gym_razor.NEW_TASKS) >= 2
    assert gym_razor.NEW_TASKS[0] == MAIN
    assert len(set(TASK_IDS)) == len(TASK_IDS)
    for role, ids in (("prior", gym_razor.PRIOR_TASKS), ("new", gym_razor.NEW_TASKS)):
        assert {gym.spec(task_id).kwargs["role"] for task_id in ids} == {role}


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_gymnasium_accepts_the_environment(task_id):
    env = make(task_id, render_mode="rgb_array")
    check_env(env.unwrapped, skip_close_check=True)
    env.close()


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_observation_action_and_attributes(task_id):
    env = make(task_id, render_mode="rgb_array")
    observation, info = env.reset(seed=1)
    assert set(observation["pixels"]) == {"front", "wrist"}
    for image in observation["pixels"].values():
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8
        assert image.std() > 5, "blank picture"
    assert observation["agent_pos"].shape == (7,)
    assert observation["agent_pos"].dtype == np.float32
    assert np.hypot(*observation["agent_pos"][3:5]) == pytest.approx(1.0, abs=1e-5)
    assert observation["agent_pos"][5] == pytest.approx(1.0, abs=0.05), "fingers start open"
    assert env.action_space.shape == (5,)
    landmarks = len(env.metadata["landmark_names"])
    assert info["landmarks"].shape == (landmarks, 3)
    assert info["landmarks_present"].any()
    assert info["is_success"] is False
    assert info["elapsed_steps"] == 0
    assert env.unwrapped.task == task_id
    assert env.metadata["render_fps"] == 10
    assert env.unwrapped._max_episode_steps > 0
    env.close()


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_start_state_is_a_pure_function_of_the_seed(task_id):
    """It depends on no earlier episode, no other instance and no global generator."""
    env = make(task_id)
    first, info = env.reset(seed=11)
    instruction = env.unwrapped.task_description
    after_first = [env.step(action) for action in chunks_for(1, 3)[0]]
    other, _ = env.reset(seed=12)
    assert not np.array_equal(other["pixels"]["front"], first["pixels"]["front"])
    for action in chunks_for(1, 4, seed=1)[0]:
        env.step(action)
    np.random.seed(3)  # noqa: NPY002 - must not matter
    for candidate in (env, make(task_id)):
        again, info_again = candidate.reset(seed=11)
        assert_same(first, again)
        assert np.array_equal(info["landmarks"], info_again["landmarks"])
        assert candidate.unwrapped.task_description == instruction
        for action, expected in zip(chunks_for(1, 3)[0], after_first, strict=True):
            assert_same(candidate.step(action)[0], expected[0])
        candidate.close()


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_the_time_limit_truncates_and_does_not_terminate(task_id):
    for env in (
        make(task_id, max_episode_steps=3),
        gym.make(task_id, image_size=32).unwrapped.__class__(
            task=task_id, image_size=32, max_episode_steps=3
        ),
    ):
        env.reset(seed=0)
        ends = [env.step(HOLD)[2:4] for _ in range(3)]
        assert ends == [(False, False), (False, False), (False, True)]
        env.close()


def test_a_longer_time_limit_than_the_default_is_kept():
    env = make(MAIN)
    own_limit = env.get_wrapper_attr("_max_episode_steps")
    env.close()
    env = make(MAIN, max_episode_steps=own_limit + 5)
    env.reset(seed=0)
    steps, truncated = 0, False
    while not truncated and steps < own_limit + 10:
        truncated = env.step(HOLD)[3]
        steps += 1
    env.close()
    assert steps == own_limit + 5


def test_instruction_variants_and_own_words():
    env = make(MAIN)
    instructions = set()
    for seed in range(25):
        env.reset(seed=seed)
        instructions.add(env.unwrapped.task_description)
    assert len(instructions) >= 4
    assert all("can" in instruction for instruction in instructions)
    start, _ = env.reset(seed=3)
    own, _ = env.reset(seed=3, options={"instruction": "do it"})
    assert env.unwrapped.task_description == "do it"
    assert_same(start, own)
    env.close()


def test_no_two_tasks_share_an_instruction():
    owners: dict[str, str] = {}
    for task_id in TASK_IDS:
        env = make(task_id)
        for seed in range(8):
            env.reset(seed=seed)
            assert owners.setdefault(env.unwrapped.task_description, task_id) == task_id
        env.close()


@pytest.mark.parametrize("size", [16, 64, 256])
def test_image_and_render_sizes(size):
    env = gym.make(MAIN, image_size=size, render_mode="rgb_array", render_size=size)
    observation, _ = env.reset(seed=0)
    assert observation["pixels"]["wrist"].shape == (size, size, 3)
    assert env.render().shape == (size, size, 3)
    assert_same(observation, env.unwrapped.reset(seed=0)[0])
    env.close()


def test_rendering_for_people_does_not_change_what_the_policy_sees():
    env = make(MAIN, render_mode="rgb_array")
    env.reset(seed=0)
    plain = env.step(HOLD)[0]
    env.reset(seed=0)
    env.render()
    assert_same(env.step(HOLD)[0], plain)
    env.close()


def test_environments_of_one_process_do_not_draw_into_each_other():
    """Each has an OpenGL context of its own, and OpenGL draws into whichever is current."""
    first = gym.make("gym_razor/LiftCube-v0", image_size=64)
    picture = first.reset(seed=0)[0]["pixels"]["front"].copy()
    second = gym.make("gym_razor/OpenDrawer-v0", image_size=32)
    second.reset(seed=1)
    np.testing.assert_array_equal(first.reset(seed=0)[0]["pixels"]["front"], picture)
    second.close()
    np.testing.assert_array_equal(first.reset(seed=0)[0]["pixels"]["front"], picture)
    first.close()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="reward_type is 'dense'"):
        make(MAIN, reward_type="dense")


def test_importing_the_suite_loads_no_simulator():
    code = (
        "import sys, gym_razor\n"
        "heavy = {'mujoco', 'robosuite', 'torch', 'lerobot', 'OpenGL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_the_start_state_has_a_hash_that_the_instruction_does_not_change(task_id):
    env = make(task_id)
    hashes = [env.reset(seed=seed)[1]["start_state_hash"] for seed in (0, 1, 2)]
    assert len(set(hashes)) == 3
    assert all(len(value) == 16 for value in hashes)
    _, _, _, _, info = env.step(HOLD)
    assert "start_state_hash" not in info
    again = env.reset(seed=1, options={"instruction": "do it"})[1]["start_state_hash"]
    assert again == hashes[1]
    env.close()


def test_the_hash_forgives_rounding_errors_and_nothing_else():
    from gym_razor.suite.world import World

    pair, layout, _ = TASKS[MAIN].sample(0)
    world = World(pair)
    world.reset(layout)
    expected = world.state_hash()
    world.data.qpos[:] += 1e-13
    assert world.state_hash() == expected
    for change in (lambda: world.data.qpos[0:1], lambda: world.data.mocap_pos[0]):
        world.reset(layout)
        assert world.state_hash() == expected
        change()[:] += 1e-4
        assert world.state_hash() != expected
    world.reset(layout)
    world.colours[pair[0]] = "another"
    assert world.state_hash() != expected


# ---- many environments -------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASK_IDS)
def test_vector_environment_equals_single_environments(task_id):
    seeds = [4, 1_000_004]
    vector = make_vec(task_id, num_envs=2, num_workers=0, chunk_size=3)
    actions = chunks_for(2, 3)
    started, start_infos = vector.reset(seed=seeds)
    stepped, rewards, terminated, truncated, infos = vector.step(actions)
    instructions = list(vector.instructions)
    vector.close()
    env = make(task_id)
    for env_id, seed in enumerate(seeds):
        observation, info = env.reset(seed=seed)
        assert_same(observation, row(started, env_id))
        assert np.array_equal(info["landmarks"], start_infos["landmarks"][env_id])
        assert info["start_state_hash"] == start_infos["start_state_hash"][env_id]
        assert env.unwrapped.task_description == instructions[env_id]
        total = 0.0
        for action in actions[env_id]:
            observation, reward, ended, cut, info = env.step(action)
            total += reward
        assert_same(observation, row(stepped, env_id))
        assert (total, ended, cut) == (rewards[env_id], terminated[env_id], truncated[env_id])
        assert info["elapsed_steps"] == infos["elapsed_steps"][env_id]
    env.close()


def test_results_do_not_depend_on_the_number_of_envs_or_workers():
    actions = chunks_for(5, 2)
    results = []
    for num_envs, num_workers in ((5, 0), (5, 1), (5, 2), (1, 0)):
        per_seed = {}
        for first in range(0, 5, num_envs):
            vector = make_vec(num_envs=num_envs, num_workers=num_workers)
            ids = np.arange(first, first + num_envs)
            started, _ = vector.reset(seed=(100 + ids).tolist())
            stepped, rewards, *_ = vector.step(actions[ids])
            for env_id, seed in enumerate(ids):
                per_seed[int(seed)] = (row(started, env_id), row(stepped, env_id), rewards[env_id])
            vector.close()
        results.append(per_seed)
    for other in results[1:]:
        for seed, (started, stepped, reward) in results[0].items():
            assert_same(started, other[seed][0])
            assert_same(stepped, other[seed][1])
            assert reward == other[seed][2]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs Linux")
def test_nothing_stays_in_shared_memory_whatever_is_killed():
    """A name there would outlive everything if all processes were killed at once."""
    vector = make_vec(num_envs=2, num_workers=2, render_observations=False)
    assert not (Path("/dev/shm") / vector.unwrapped._memory.name).exists()
    started, _ = vector.reset(seed=[1, 2])
    stepped, *_ = vector.step(chunks_for(2, 2))
    assert not np.array_equal(started["agent_pos"], stepped["agent_pos"])
    vector.close()
    vector.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_masks_move_and_reset_only_what_they_name(num_workers):
    vector = make_vec(num_workers=num_workers)
    started, _ = vector.reset(seed=[1, 2, 3])
    mask = np.array([True, False, True])
    stepped, rewards, _, _, infos = vector.step(chunks_for(3, 2), mask=mask)
    assert infos["elapsed_steps"].tolist() == [2, 0, 2]
    assert_same(row(started, 1), row(stepped, 1))
    assert rewards[1] == 0
    reset, infos = vector.reset(
        seed=[7, 7, 7], options={"reset_mask": np.array([False, True, False])}
    )
    assert infos["elapsed_steps"].tolist() == [2, 0, 2]
    assert_same(row(reset, 0), row(stepped, 0))
    assert not np.array_equal(reset["pixels"]["front"][1], stepped["pixels"]["front"][1])
    vector.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_start_states_are_told_at_reset_only(num_workers):
    vector = make_vec(num_workers=num_workers)
    first = vector.reset(seed=[1, 2, 3])[1]["start_state_hash"].tolist()
    assert "start_state_hash" not in vector.step(chunks_for(3, 2))[4]
    options = {"reset_mask": np.array([False, True, False])}
    second = vector.reset(seed=[9, 3, 9], options=options)[1]["start_state_hash"].tolist()
    assert second == [first[0], first[2], first[2]]
    assert vector.gl_renderer
    vector.close()


def test_a_finished_environment_keeps_its_final_observation_and_pays_no_reward_twice():
    vector = make_vec(num_envs=2, num_workers=0, chunk_size=2, max_episode_steps=3)
    vector.reset(seed=0)
    vector.step(chunks_for(2, 2))
    final, _, terminated, truncated, infos = vector.step(chunks_for(2, 2, seed=1))
    assert truncated.all()
    assert not terminated.any()
    assert infos["elapsed_steps"].tolist() == [3, 3]
    mask = np.array([True, False])
    again, infos = vector.reset(seed=5, options={"reset_mask": mask})
    assert_same(row(again, 1), row(final, 1))
    after, rewards, _, truncated, _ = vector.step(chunks_for(2, 2, seed=2), mask=mask)
    assert_same(row(after, 1), row(final, 1))
    assert truncated.tolist() == [False, True]
    assert rewards[1] == 0
    vector.close()


def test_success_ends_the_chunk_with_one_reward_and_is_not_paid_again():
    vector = make_vec("gym_razor/PressButton-v0", num_envs=2, num_workers=0, chunk_size=4)
    vector.reset(seed=[0, 1])
    total, ended = np.zeros(2), np.zeros(2, np.bool_)
    for _ in range(20):
        actions = vector.expert_actions(style="a")
        _, rewards, terminated, truncated, infos = vector.step(actions, mask=~ended)
        total += rewards
        ended = terminated | truncated
        if ended.all():
            break
    assert terminated.all()
    assert not truncated.any()
    assert infos["is_success"].all()
    assert total.tolist() == [1.0, 1.0]
    nobody = np.zeros(2, np.bool_)
    _, rewards, terminated, _, _ = vector.step(actions, mask=nobody)
    assert rewards.tolist() == [0.0, 0.0], "the reward of an earlier call"
    assert terminated.all()
    vector.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_group_can_be_reset_and_stepped_while_another_is_stepping(num_workers):
    actions = chunks_for(4, 2)
    vector = make_vec(num_envs=4, num_workers=num_workers)
    vector.reset(seed=[0, 1, 2, 3])
    expected, *_ = vector.step(actions)
    vector.reset(seed=[0, 1, 2, 3])
    first, last = vector.groups[0], vector.groups[-1]
    vector.step_async(actions[first], first)
    if num_workers:
        mask = np.isin(np.arange(4), last)
        vector.reset(seed=[0, 1, 2, 3], options={"reset_mask": mask})
        vector.step_async(actions[last], last)
    by_env = {}
    for _ in vector.groups:
        env_ids, observations, *_ = vector.step_wait()
        for place, env_id in enumerate(env_ids):
            by_env[int(env_id)] = row(observations, place)
    assert sorted(by_env) == [0, 1, 2, 3]
    for env_id, observation in by_env.items():
        assert_same(observation, row(expected, env_id))
    vector.close()


def test_tasks_can_be_switched_without_a_trace():
    vector = make_vec(num_envs=2, num_workers=0)
    other = "gym_razor/OpenDrawer-v0"
    mixed, _ = vector.reset(seed=[3, 3], options={"tasks": [other, None]})
    assert vector.tasks == [other, MAIN]
    back, _ = vector.reset(seed=[3, 3], options={"tasks": [MAIN, other]})
    assert_same(row(mixed, 0), row(back, 1))
    assert_same(row(mixed, 1), row(back, 0))
    vector.close()


def test_the_expert_looks_ahead_without_moving_anything():
    vector = make_vec(num_envs=2, num_workers=0, chunk_size=4)
    vector.reset(seed=[0, 1])
    plain, *_ = vector.step(chunks_for(2, 4))
    vector.reset(seed=[0, 1])
    for style in ("a", "b"):
        actions = vector.expert_actions(style=style)
        assert actions.shape == (2, 4, 5)
        assert np.abs(actions).max() <= 1
    stepped, *_ = vector.step(chunks_for(2, 4))
    assert_same(plain, stepped)
    assert vector.render(size=48).shape == (2, 48, 48, 3)
    assert vector.render(env_ids=np.array([1]), size=48).shape == (1, 48, 48, 3)
    vector.close()


def test_stable_baselines3_trains_on_the_fast_vector_environment():
    """A few hundred control steps: 64 decisions of 4 actions."""
    sb3 = pytest.importorskip("stable_baselines3")
    import torch

    from gym_razor.adapters.sb3 import SB3VecEnv

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    env = SB3VecEnv(
        gym.make_vec(
            "gym_razor/LiftCube-v0",
            num_envs=4,
            vectorization_mode="vector_entry_point",
            num_workers=1,
            chunk_size=4,
            image_size=36,
            max_episode_steps=20,
        )
    )
    model = sb3.PPO(
        "MultiInputPolicy",
        env,
        n_steps=8,
        batch_size=32,
        n_epochs=1,
        seed=0,
        policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 16}},
    )
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    model.learn(64)
    env.close()
    torch.set_num_threads(threads)
    assert model.num_timesteps == 64
    moved = [
        not torch.equal(before[name], value) for name, value in model.policy.named_parameters()
    ]
    assert np.mean(moved) > 0.9
