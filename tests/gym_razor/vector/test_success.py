"""What counts as success, and that one control step of it is enough."""

from __future__ import annotations

import numpy as np
import pytest
from counter import toy_factory

from gym_razor.vector.any_env import ChunkedVectorEnv
from gym_razor.vector.success import reported_success


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"is_success": True}, True),
        ({"success": np.bool_(False)}, False),
        ({"success": 1}, True),
        ({"success": np.float32(0)}, False),
        ({"is_success": np.array([1.0])}, True),
        ({"is_success": True, "success": 1}, True),
        ({"terminated": True, "goal": 1}, None),
        ({}, None),
    ],
)
def test_one_of_two_keys_tells_success_and_nothing_else(info, expected):
    assert reported_success(info) is expected


@pytest.mark.parametrize("value", [None, np.nan, "yes", 2, 0.5, np.ones(2), [True, False], {}])
def test_a_value_that_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(ValueError, match=r"info\['success'\] as .* neither True nor False"):
        reported_success({"success": value})


def test_keys_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="'is_success' True and 'success' False"):
        reported_success({"is_success": True, "success": False})


class Blinking(toy_factory()):
    """Succeeds at its second action only, and says so under the other key."""

    def step(self, action):
        observation, reward, _, truncated, _ = super().step(action)
        return observation, reward, False, truncated, {"success": self.steps == 2}


class Silent(toy_factory()):
    def info(self):
        return {"elapsed_steps": self.steps}


def test_a_success_within_a_chunk_is_not_forgotten_at_its_end():
    env = ChunkedVectorEnv([Blinking], chunk_size=4)
    env.reset(seed=0)
    *_, infos = env.step(np.zeros((1, 4, 3), np.float32))
    assert infos["is_success"].tolist() == [True]


def test_an_episode_that_ends_without_a_word_about_success_is_refused():
    env = ChunkedVectorEnv([Silent], chunk_size=4)
    env.reset(seed=0)
    env.step(np.ones((1, 4, 3), np.float32))
    with pytest.raises(
        ValueError, match=r"Counter-v0 does not report success.*\['elapsed_steps'\]"
    ):
        env.step(np.ones((1, 4, 3), np.float32))


def test_an_episode_may_tell_of_success_at_its_end_only():
    class Late(toy_factory()):
        def info(self):
            return {"success": True} if self.total >= 5 else {}

    env = ChunkedVectorEnv([Late], chunk_size=4)
    env.reset(seed=0)
    for _ in range(2):
        *_, terminated, _, infos = env.step(np.ones((1, 4, 3), np.float32))
    assert terminated.all()
    assert infos["is_success"].all()
