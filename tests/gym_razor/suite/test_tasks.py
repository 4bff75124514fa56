"""The suite's tasks: scripted experts, start states, success, faults."""

import gymnasium as gym
import my_tasks  # noqa: F401 - registers the task of docs/how-to/environments.md
import numpy as np
import pytest

import gym_razor
from gym_razor.suite import scene
from gym_razor.suite.episode import Episode
from gym_razor.suite.tasks import OWN_TASKS, STYLES, TASKS
from gym_razor.suite.world import World

WORLDS: dict[tuple[str, str], World] = {}


def take_world(pair: tuple[str, str]) -> World:
    return WORLDS.setdefault(pair, World(pair))


def play(task: str, seed: int, style: str) -> Episode:
    episode = Episode(take_world)
    episode.reset(task, seed)
    while not episode.is_success and episode.elapsed_steps < episode.max_episode_steps:
        episode.step(episode.task.expert_action(episode.world, style)[None])
    return episode


def test_registered_ids_are_the_suite() -> None:
    assert [*gym_razor.PRIOR_TASKS, *gym_razor.NEW_TASKS] == [task.id for task in OWN_TASKS]
    assert {task.id for task in OWN_TASKS if task.role == "new"} == set(gym_razor.NEW_TASKS)
    for task in TASKS.values():
        spec = gym.spec(task.id)
        assert spec.max_episode_steps == task.max_episode_steps
        assert spec.kwargs["role"] == task.role


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("task", sorted(TASKS))
def test_expert_solves_the_task(task: str, style: str) -> None:
    solved = [play(task, seed, style).is_success for seed in range(3)]
    assert sum(solved) >= 2  # 95 % in the long run: see benchmarks/expert_success.py


@pytest.mark.parametrize("task", sorted(TASKS))
def test_doing_nothing_never_succeeds(task: str) -> None:
    episode = Episode(take_world)
    episode.reset(task, 0)
    idle = np.zeros((episode.max_episode_steps, 5), dtype=np.float32)
    result = episode.step(idle)
    assert result.truncated
    assert not result.terminated
    assert result.reward == 0.0


def test_styles_differ_in_path_and_place() -> None:
    task = "gym_razor/PlaceCanInBin-v0"
    ends = {}
    for style in STYLES:
        episode = play(task, 5, style)
        where = episode.world.object_position("can") - episode.world.fixture("bin")
        ends[style] = (episode.elapsed_steps, where[:2].copy())
    assert ends["b"][0] > ends["a"][0] + 10
    assert np.linalg.norm(ends["a"][1] - ends["b"][1]) > 0.02


def test_unknown_style_is_refused() -> None:
    episode = Episode(take_world)
    episode.reset("gym_razor/LiftCube-v0", 0)
    with pytest.raises(ValueError, match=r"Unknown style 'c'; allowed are a, b"):
        episode.expert_actions("c", 2)


def test_start_state_is_a_function_of_task_and_seed_only() -> None:
    episode = Episode(take_world)
    episode.reset("gym_razor/LiftCan-v0", 11)
    first, instruction = episode.world.save()[0], episode.instruction
    play("gym_razor/LiftCan-v0", 12, "a")  # the same worlds, used for something else
    episode.reset("gym_razor/LiftCan-v0", 11)
    np.testing.assert_array_equal(episode.world.save()[0], first)
    assert episode.instruction == instruction
    episode.reset("gym_razor/LiftCan-v0", 13)
    assert not np.array_equal(episode.world.save()[0][:40], first[:40])


def test_expert_look_ahead_leaves_the_state_as_it_is() -> None:
    episode = Episode(take_world)
    episode.reset("gym_razor/PlaceCubeInBin-v0", 3)
    for _ in range(3):
        before, _ = episode.world.save()
        ahead = episode.expert_actions("a", 4)
        np.testing.assert_array_equal(episode.world.save()[0], before)
        one_by_one = []
        for _ in range(4):
            action = episode.task.expert_action(episode.world, "a")
            one_by_one.append(action)
            episode.step(action[None])
        np.testing.assert_allclose(ahead, one_by_one, atol=1e-5)


def test_same_scene_has_several_instructions() -> None:
    lift, place = TASKS["gym_razor/LiftCan-v0"], TASKS["gym_razor/PlaceCanInBin-v0"]
    assert lift.pairs == place.pairs
    instructions = {lift.sample(seed)[2] for seed in range(40)}
    assert len(instructions) >= 5
    assert any(colour in text for text in instructions for colour in scene.OBJECTS["can"].colours)


def test_success_must_last() -> None:
    episode = Episode(take_world)
    episode.reset("gym_razor/PressButton-v0", 0)
    world, address = episode.world, int(episode.world.model.joint("button").qposadr[0])
    world.data.qpos[address] = (
        scene.BUTTON_TRAVEL_M
    )  # pressed for a moment; the spring brings it back
    assert episode.task.succeeded(world)
    result = episode.step(np.zeros((4, 5), dtype=np.float32))
    assert not result.is_success


def test_shaped_reward_sums_to_the_potential_plus_one() -> None:
    episode = Episode(take_world, "shaped")
    episode.reset("gym_razor/LiftCube-v0", 2)
    start = episode.task.progress(episode.world)
    total = 0.0
    while not episode.is_success:
        total += episode.step(episode.task.expert_action(episode.world, "a")[None]).reward
    assert total == pytest.approx(1.0 + episode.task.progress(episode.world) - start)


def test_diverged_physics_ends_the_episode_as_a_failure() -> None:
    episode = Episode(World)
    episode.reset("gym_razor/LiftCube-v0", 2)
    episode.world.data.qvel[0] = np.nan
    result = episode.step(np.zeros((4, 5), dtype=np.float32))
    assert result.physics_error
    assert result.terminated
    assert not result.is_success
