"""Autoreset behaves as Gymnasium's own vector environments do."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from counter import toy_factory
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gym_razor.adapters.autoreset import Autoreset
from gym_razor.vector.any_env import ChunkedVectorEnv

LIMITS = (3, 5, 4)
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)


def factories():
    return [toy_factory(limit=limit, goal=1e6) for limit in LIMITS]


@pytest.mark.parametrize("mode", MODES)
def test_steps_equal_those_of_gymnasium(mode):
    reference = SyncVectorEnv(factories(), autoreset_mode=mode)
    env = Autoreset(ChunkedVectorEnv(factories(), chunk_size=1, num_workers=0), mode)
    assert env.metadata["autoreset_mode"] == reference.metadata["autoreset_mode"] == mode
    env.reset(seed=[0, 0, 0])
    reference.reset(seed=[0, 0, 0])
    actions = np.zeros((len(LIMITS), 3), np.float32)
    ended = 0
    for _ in range(14):
        expected = reference.step(actions)
        result = env.step(actions)
        elapsed = [step[0]["agent_pos"][:, 1] for step in (result, expected)]
        np.testing.assert_array_equal(*elapsed)
        for values, expected_values in zip(result[1:4], expected[1:4], strict=True):
            np.testing.assert_array_equal(values, expected_values)
        np.testing.assert_array_equal(result[4]["elapsed_steps"], expected[4]["elapsed_steps"])
        assert ("final_obs" in result[4]) == ("final_obs" in expected[4])
        if "final_obs" in result[4]:
            np.testing.assert_array_equal(result[4]["_final_obs"], expected[4]["_final_obs"])
            for env_id in np.flatnonzero(result[4]["_final_obs"]):
                last, expected_last = (step[4]["final_obs"][env_id] for step in (result, expected))
                assert last["agent_pos"][1] == expected_last["agent_pos"][1] == LIMITS[env_id]
                np.testing.assert_array_equal(
                    last["pixels"]["front"], expected_last["pixels"]["front"]
                )
                assert result[4]["final_info"]["elapsed_steps"][env_id] == LIMITS[env_id]
        ended += int((result[2] | result[3]).sum())
    assert ended >= 8
    env.close()


@pytest.mark.parametrize("mode", MODES)
def test_an_ordinary_loop_runs_on_the_suite(mode):
    envs = Autoreset(
        gym.make_vec(
            "gym_razor/LiftCube-v0",
            num_envs=2,
            vectorization_mode="vector_entry_point",
            num_workers=0,
            render_observations=False,
            max_episode_steps=3,
        ),
        mode,
    )
    envs.reset(seed=0)
    begun = [envs.reset(seed=0)[1]["start_state_hash"].tolist()]
    truncations = []
    for _ in range(8):
        observations, rewards, _, truncated, infos = envs.step(envs.action_space.sample() * 0)
        assert envs.observation_space.contains(observations)
        assert rewards.shape == (2,)
        truncations.append(truncated.tolist())
        if "start_state_hash" in infos:
            begun.append(infos["start_state_hash"].tolist())
    period = 3 if mode == AutoresetMode.SAME_STEP else 4
    assert [step for step, cut in enumerate(truncations, 1) if all(cut)] == [3, 3 + period]
    assert begun[0] != begun[1]
    envs.close()


def test_a_mask_of_reset_is_respected():
    env = Autoreset(ChunkedVectorEnv(factories(), chunk_size=1, num_workers=0))
    env.reset(seed=[0, 0, 0])
    actions = np.zeros((3, 3), np.float32)
    for _ in range(3):
        *_, truncated, _ = env.step(actions)
    assert truncated.tolist() == [True, False, False]
    env.reset(options={"reset_mask": np.array([True, False, False])})
    observations, *_ = env.step(actions)
    assert observations["agent_pos"][:, 1].tolist() == [1, 4, 4]
    env.close()


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(ValueError, match="leave the wrapper out"):
        Autoreset(ChunkedVectorEnv(factories(), num_workers=0), AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="resets automatically"):
        Autoreset(SyncVectorEnv(factories()))
