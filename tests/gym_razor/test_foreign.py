"""Foreign environments behind the suite's contract: pictures, spaces, errors."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from counter import toy_factory
from gymnasium import spaces

from gym_razor.faults import WorkerError
from gym_razor.foreign import LONE_CAMERA, ContractEnv, make_foreign_vector_env
from gym_razor.pictures import resize


def test_a_picture_is_scaled_by_averaging():
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    halved = resize(picture, 2, 3)
    np.testing.assert_array_equal(
        halved, np.rint(picture.reshape(2, 2, 3, 2, 3).mean((1, 3))).astype(np.uint8)
    )
    assert resize(picture, 4, 6) is not None
    np.testing.assert_array_equal(resize(picture, 4, 6), picture)
    # 3 pixels onto 2: each new one is one and a half old ones.
    row = np.array([[[30], [60], [90]]], np.uint8).repeat(3, 2)
    assert resize(row, 1, 2)[0, :, 0].tolist() == [40, 80]
    flat = np.full((480, 640, 3), 201, np.uint8)
    assert (resize(flat, 64, 64) == 201).all()


class Odd(gym.Env):
    """Gives whatever a test asks for."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, observation, info=None):
        self.given, self.info = observation, {"is_success": False} if info is None else info
        self.observation_space = space_of(observation)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.given, {}

    def step(self, action):
        return self.given, 0.5, False, False, self.info

    def render(self):
        return np.full((10, 20, 3), 99, np.uint8)


def space_of(value):
    if isinstance(value, dict):
        return spaces.Dict({name: space_of(part) for name, part in value.items()})
    if isinstance(value, str):
        return spaces.Text(9)
    return spaces.Box(0, 255, value.shape, value.dtype)


IMAGE = np.zeros((8, 12, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "cameras", "numbers"),
    [
        (IMAGE, {LONE_CAMERA: (4, 4, 3)}, {"agent_pos": (0,)}),
        (np.ones(3), {}, {"agent_pos": (3,)}),
        ({"pixels": IMAGE, "agent_pos": np.ones(2)}, {LONE_CAMERA: (4, 4, 3)}, {"agent_pos": (2,)}),
        (
            {"pixels": {"a": IMAGE, "b": IMAGE}, "environment_state": np.ones(5), "note": "x"},
            {"a": (4, 4, 3), "b": (4, 4, 3)},
            {"agent_pos": (0,), "environment_state": (5,)},
        ),
    ],
)
def test_observations_are_named_as_in_lerobot(given, cameras, numbers):
    env = ContractEnv({"odd": lambda: Odd(given)}, image_shape=(4, 4))
    observation, _ = env.reset(seed=0)
    assert {name: x.shape for name, x in observation.pop("pixels").items()} == cameras
    assert {name: x.shape for name, x in observation.items()} == numbers
    assert all(x.dtype == np.float32 for x in observation.values())
    assert env.observation_space.contains(env.step(np.zeros(2))[0])


def test_pictures_for_people_are_square_and_keep_their_aspect():
    picture = ContractEnv({"odd": lambda: Odd(IMAGE)}, render_size=40).render()
    assert picture.shape == (40, 40, 3)
    assert picture[:10].max() == 0
    assert (picture[10:30] == 99).all()


def test_a_longer_time_limit_than_the_environments_own_is_kept():
    def make():
        return gym.wrappers.TimeLimit(Odd({"agent_pos": np.zeros(2, np.float32)}), 3)

    for asked, lasts in ((5, 5), (2, 2), (None, 3)):
        env = ContractEnv({"odd": make}, max_episode_steps=asked)
        env.reset(seed=0)
        ends = [env.step(np.zeros(2, np.float32))[3] for _ in range(lasts)]
        assert ends == [False] * (lasts - 1) + [True]


def test_tasks_that_give_other_things_are_told():
    both = ContractEnv({"a": lambda: Odd(IMAGE), "b": lambda: Odd(np.ones(3))})
    with pytest.raises(ValueError, match="b and a give or take other things"):
        both.reset(seed=0, options={"task": "b"})
    with pytest.raises(ValueError, match="'c' is none of a, b"):
        both.reset(seed=0, options={"task": "c"})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tasks_can_be_switched_one_by_one(num_workers):
    factories = {"low": toy_factory(goal=1.0), "high": toy_factory(goal=3.0)}
    env = make_foreign_vector_env(factories, 3, chunk_size=2, num_workers=num_workers)
    try:
        env.reset(seed=[0, 0, 0], options={"tasks": ["high", None, "low"]})
        assert env.tasks == ["high", "low", "low"]
        chunk = np.ones((3, 2, 3), np.float32)
        _, rewards, terminated, *_ = env.step(chunk)
        assert terminated.tolist() == [False, True, True]
        assert rewards.tolist() == [0, 1, 1]
        with pytest.raises((ValueError, WorkerError), match="'other' is none of low, high"):
            env.reset(options={"tasks": ["other"] * 3})
    finally:
        env.close()


def test_a_first_reset_may_leave_some_out():
    env = make_foreign_vector_env({"a": toy_factory()}, 2)
    mask = np.array([False, True])
    observation, infos = env.reset(seed=[1, 1], options={"reset_mask": mask})
    assert observation["agent_pos"].tolist() == [[0, 0], [1, 0]]
    assert [bool(state) for state in infos["start_state_hash"]] == [False, True]
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0\] have not been reset"):
        env.step(np.zeros((2, 3), np.float32))
