"""Foreign environments behind the suite's contract: pictures, spaces, errors."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from counter import toy_factory
from gymnasium import spaces

from gym_razor.adapters.contract import LONE_CAMERA, ContractEnv, make_contract_vector_env
from gym_razor.adapters.pictures import resize
from gym_razor.vector.faults import EnvironmentFault, WorkerError


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
    ("raw", "cameras", "numbers"),
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
def test_observations_are_named_as_in_lerobot(raw, cameras, numbers):
    env = ContractEnv({"odd": lambda: Odd(raw)}, image_shape=(4, 4))
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
    with pytest.raises(EnvironmentFault, match="b and a differ in their observations or actions"):
        both.reset(seed=0, options={"task": "b"})
    with pytest.raises(ValueError, match="Unknown task 'c'; allowed are a, b"):
        both.reset(seed=0, options={"task": "c"})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tasks_can_be_switched_one_by_one(num_workers):
    factories = {"low": toy_factory(goal=1.0), "high": toy_factory(goal=3.0)}
    env = make_contract_vector_env(factories, 3, chunk_size=2, num_workers=num_workers)
    try:
        env.reset(seed=[0, 0, 0], options={"tasks": ["high", None, "low"]})
        assert env.tasks == ["high", "low", "low"]
        chunk = np.ones((3, 2, 3), np.float32)
        _, rewards, terminated, *_ = env.step(chunk)
        assert terminated.tolist() == [False, True, True]
        assert rewards.tolist() == [0, 1, 1]
        with pytest.raises(
            (ValueError, WorkerError), match="Unknown task 'other'; allowed are low, high"
        ):
            env.reset(options={"tasks": ["other"] * 3})
    finally:
        env.close()


def test_a_first_reset_may_leave_some_out():
    env = make_contract_vector_env({"a": toy_factory()}, 2)
    mask = np.array([False, True])
    observation, infos = env.reset(seed=[1, 1], options={"reset_mask": mask})
    assert observation["agent_pos"].tolist() == [[0, 0], [1, 0]]
    assert [bool(state) for state in infos["start_state_hash"]] == [False, True]
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0\] have not been reset"):
        env.step(np.zeros((2, 3), np.float32))


def one_picture(low, high, picture, dtype=None):
    """Return what is seen of an environment that gives a picture in a space of those bounds."""
    picture = np.asarray(picture, dtype)

    class Camera(Odd):
        def __init__(self):
            super().__init__(picture)
            self.observation_space = spaces.Box(low, high, picture.shape, picture.dtype)

    observation, _ = ContractEnv({"odd": Camera}).reset(seed=0)
    return observation["pixels"][LONE_CAMERA]


def test_pictures_are_read_by_the_bounds_of_their_space():
    bytes_ = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    for low, high, picture in (
        (0, 255, bytes_),
        (0, 255, bytes_.astype(np.float32)),
        (0, 255, bytes_.astype(np.int64)),
        (0, 1, bytes_.astype(np.float32) / np.float32(255)),
        (0, 1, bytes_ / 255),
    ):
        np.testing.assert_array_equal(one_picture(low, high, picture), bytes_)


@pytest.mark.parametrize(
    ("low", "high", "picture", "text"),
    [
        (-1, 1, IMAGE / 255, "bounds -1 to 1, which do not say how bright"),
        (-np.inf, np.inf, IMAGE / 255, "bounds -inf to inf"),
        (0, 1, IMAGE.astype(np.int64), "int64 and the bounds 0 to 1"),
        (0, 1, IMAGE + 2.0, r"values from 2 to 2, outside .* 0 to 1"),
        (0, 255, IMAGE + np.nan, "values from nan to nan"),
        (0, 255, np.zeros((3, 8, 12), np.uint8), r"channels first \(3x8x12\).*np\.moveaxis"),
        (0, 255, np.zeros((8, 12, 1), np.uint8), r"shape 8x12x1.*repeats a grey channel"),
        (0, 255, np.zeros((8, 12, 4), np.uint8), r"shape 8x12x4.*transparency"),
    ],
)
def test_pictures_that_say_nothing_clear_are_refused(low, high, picture, text):
    with pytest.raises(EnvironmentFault, match=f"odd .*{text}"):
        one_picture(low, high, picture)


STATE = {"agent_pos": np.zeros(2, np.float32)}


def stepped(result, *, own_rules=False, steps=2):
    """Return what `ContractEnv` makes of a step's result."""

    class Stepping(Odd):
        def step(self, action):
            return result() if callable(result) else result

    env = ContractEnv({"odd": lambda: Stepping(STATE)}, own_rules=own_rules)
    env.reset(seed=7)
    for _ in range(steps):
        last = env.step(np.zeros(2, np.float32))
    return last


def broken():
    raise RuntimeError("singular matrix")


TOLD = {"is_success": False}


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ((STATE, np.nan, False, False, TOLD), "gives a reward of nan"),
        ((STATE, None, False, False, TOLD), "gives a reward that is None, not a number"),
        ((STATE, np.zeros(2), False, False, TOLD), "gives a reward that is float64 of shape"),
        ((STATE, 0.0, None, False, TOLD), "gives `terminated` as None, not a bool"),
        ((STATE, 0.0, False, 0, TOLD), "gives `truncated` as a int, not a bool"),
        ((STATE, 0.0, False, False, None), "gave an info that is None"),
        ((STATE, 0.0, True, False, {"done": 1}), r"does not report success: .*\['done'\]"),
        ((STATE, 0.0, True, False, {"success": "no"}), "neither True nor False"),
        ((STATE, 0.0, False, TOLD), "returned 4 values.*Gym before 0.26"),
        (({"agent_pos": np.array([0, np.inf])}, 0.0, False, False, TOLD), r"inf at \[1\]"),
        (({"agent_pos": np.zeros(3)}, 0.0, False, False, TOLD), r"of shape \(3,\), but its space"),
        (({"state": np.zeros(2)}, 0.0, False, False, TOLD), "gives no 'agent_pos'"),
        (broken, "raised RuntimeError in its step: singular matrix"),
    ],
)
def test_a_step_that_cannot_be_used_is_told_with_task_seed_and_control_step(result, text):
    with pytest.raises(EnvironmentFault, match=rf"odd \(seed 7, control step 1\) .*{text}"):
        stepped(result)


def test_a_reset_that_cannot_be_used_is_told():
    class NoSeed(Odd):
        def reset(self):
            return self.given, {}

    class Alone(Odd):
        def reset(self, *, seed=None, options=None):
            return self.given

    for kind, text in (
        (NoSeed, "unexpected keyword argument 'seed'. Its reset.. must take `seed` and `options`"),
        (Alone, r"returned a dict, not \(observation, info\). That is the interface of Gym before"),
    ):
        with pytest.raises(EnvironmentFault, match=rf"odd \(seed 3, control step 0\) .*{text}"):
            ContractEnv({"odd": lambda kind=kind: kind(STATE)}).reset(seed=3)


def test_success_is_kept_and_ends_an_episode_unless_that_is_left_to_the_environment():
    seen = iter([True, False, True, False])

    def result():
        return STATE, 0.25, False, False, {"success": next(seen)}

    _, reward, terminated, _, info = stepped(result, own_rules=True)
    assert (reward, terminated, info["is_success"]) == (0.25, False, True)
    _, reward, terminated, _, info = stepped(result, steps=1)
    assert (reward, terminated, info["is_success"]) == (1.0, True, True)


def test_an_environment_that_draws_nothing_cannot_be_filmed():
    class Blind(Odd):
        def render(self):
            return None

    with pytest.raises(EnvironmentFault, match=r"odd cannot be filmed: its render\(\) gives None"):
        ContractEnv({"odd": lambda: Blind(STATE)}).render()


def test_an_environment_that_cannot_be_closed_loses_nothing(caplog):
    class Stuck(Odd):
        def close(self):
            raise OSError("busy")

    ContractEnv({"odd": lambda: Stuck(STATE)}).close()
    assert "odd could not be closed: OSError('busy')" in caplog.text
