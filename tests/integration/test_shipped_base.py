"""What the shipped base must be able to do: follow its instructions, from pixels."""

import numpy as np
import pytest

from gym_razor.suite.scene import LANDMARKS, OBJECTS
from gym_razor.suite.tasks import TASKS
from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.types import EpisodeRow
from robo_razor.policies.load import load_policy
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.episodes import run_episodes

PAIR = ("cube", "can")
SCENE = "gym_razor/LiftCube-v0"
EPISODES = 10


@pytest.fixture(scope="module")
def base():
    return load_policy("razor-base")


@pytest.fixture(scope="module")
def env(base):
    env = make_env(SCENE, EnvConfig(num_envs=EPISODES, num_workers=2), chunk_size=base.chunk_size)
    yield env
    env.close()


def seeds_with(pair: tuple[str, str], count: int) -> list[int]:
    seeds = range(1_000_000, 1_001_000)
    return [seed for seed in seeds if TASKS[SCENE].sample(seed)[0] == pair][:count]


class Heights:
    """Notes how high each object was lifted in every episode."""

    def __init__(self) -> None:
        self.highest = np.zeros((EPISODES, len(PAIR)))

    def on_start(self, start) -> None:
        pass

    def on_step(self, outcome) -> None:
        episodes = outcome.episodes
        landmarks = outcome.infos["landmarks"]
        for column, kind in enumerate(PAIR):
            rest = OBJECTS[kind].height_m / 2
            height = landmarks[:, LANDMARKS.index(kind), 2] - rest
            self.highest[episodes, column] = np.maximum(self.highest[episodes, column], height)


def lifted(base, env, instruction: str) -> np.ndarray:
    """Return the number of episodes in which the cube and the can were lifted by 5 cm."""
    rows = [EpisodeRow(SCENE, seed, instruction) for seed in seeds_with(PAIR, EPISODES)]
    heights = Heights()
    run_episodes(env, base, rows, "greedy", observer=heights)
    return (heights.highest > 0.05).sum(0)


def test_the_same_scene_and_another_instruction_give_another_behaviour(base, env):
    cube, can = lifted(base, env, "lift the cube")
    assert cube >= 8
    assert can <= 1
    cube, can = lifted(base, env, "lift the can")
    assert can >= 7
    assert cube <= 2


@pytest.mark.parametrize("skill", ["OpenDrawer", "PlaceCubeInBin"])
def test_the_base_has_its_skills(base, env, skill):
    rows = [EpisodeRow(f"gym_razor/{skill}-v0", 1_000_000 + i) for i in range(EPISODES)]
    assert run_episodes(env, base, rows, "greedy").success.sum() >= 7
