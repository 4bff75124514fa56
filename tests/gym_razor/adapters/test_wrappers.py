"""Flat observations, and Stable-Baselines3 on them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from gym_razor.adapters.wrappers import FlattenForSB3
from gym_razor.vector.any_env import ChunkedVectorEnv


class Reach(gym.Env):
    """Move a point to the origin; one landmark, two small cameras."""

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "landmark_names": ["goal", "absent"],
    }
    render_mode = None
    task, task_description = "toy/Reach-v0", "reach"
    observation_space = spaces.Dict(
        {
            "pixels": spaces.Dict(
                {name: spaces.Box(0, 255, (36, 36, 3), np.uint8) for name in ("front", "wrist")}
            ),
            "agent_pos": spaces.Box(-1, 1, (7,), np.float32),
        }
    )
    action_space = spaces.Box(-1, 1, (5,), np.float32)

    def observation(self):
        image = np.full((36, 36, 3), int(127 * (1 + self.at[0])), np.uint8)
        return {
            "pixels": {"front": image, "wrist": image.copy()},
            "agent_pos": np.concatenate([self.at, np.zeros(5)]).astype(np.float32),
        }

    def info(self):
        return {
            "is_success": bool(np.abs(self.at).max() < 0.1),
            "landmarks": np.array([[0.1, 0.2, 0.3], [0, 0, 0]], np.float32),
            "landmarks_present": np.array([True, False]),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self.observation(), self.info()

    def step(self, action):
        self.at = np.clip(self.at + 0.2 * np.asarray(action[:2], np.float64), -1, 1)
        self.steps += 1
        info = self.info()
        return self.observation(), -float(np.abs(self.at).sum()), False, self.steps >= 8, info


@pytest.fixture
def one_torch_thread():
    """Keep Stable-Baselines3 from fighting the other processes of this machine for its cores."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_flat_dict_has_the_cameras_and_the_state():
    env = FlattenForSB3(Reach())
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"front", "wrist", "agent_pos"}
    assert observation in env.observation_space
    stepped, *_ = env.step(env.action_space.sample())
    assert stepped in env.observation_space


def test_state_has_landmarks_with_presence():
    env = FlattenForSB3(Reach(), state_only=True)
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (7 + 2 * 4,)
    assert observation in env.observation_space
    assert observation[7:].tolist() == pytest.approx([0.1, 0.2, 0.3, 1, 0, 0, 0, 0])


def test_another_observation_space_is_refused():
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="a Dict with 'pixels' and 'agent_pos' is needed"):
        FlattenForSB3(env)


def test_stable_baselines3_trains_on_the_flat_dict(one_torch_thread):
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.PPO(
        "MultiInputPolicy", FlattenForSB3(Reach()), n_steps=32, batch_size=16, n_epochs=1, seed=0
    )
    model.learn(64)
    assert model.num_timesteps == 64


def test_stable_baselines3_improves_on_the_vector_environment(one_torch_thread):
    sb3 = pytest.importorskip("stable_baselines3")
    from gym_razor.adapters.sb3 import SB3VecEnv

    env = SB3VecEnv(ChunkedVectorEnv([Reach] * 8, chunk_size=2), state_only=True)
    env.seed(0)
    returns = []

    def watch(local_variables, _):
        returns.append(float(np.mean(local_variables["rewards"])))
        return True

    model = sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=64, learning_rate=3e-3, seed=0)
    model.learn(4096, callback=watch)
    assert np.mean(returns[-32:]) > 0.6 * np.mean(returns[:32])
    env.close()


def test_the_vector_adapter_reports_final_observations_and_time_limits():
    pytest.importorskip("stable_baselines3")
    from gym_razor.adapters.sb3 import SB3VecEnv

    env = SB3VecEnv(ChunkedVectorEnv([Reach] * 2, chunk_size=4))
    env.seed(0)
    env.reset()
    assert env.action_space.shape == (20,)
    env.step(np.zeros((2, 20)))
    observations, _, finished, infos = env.step(np.ones((2, 20)))
    assert finished.tolist() == [True, True]
    assert all(info["TimeLimit.truncated"] for info in infos)
    final = infos[0]["terminal_observation"]
    assert set(final) == {"front", "wrist", "agent_pos"}
    assert final["agent_pos"][:2].tolist() == pytest.approx([0.6, 0.6], abs=0.5)
    assert not np.array_equal(final["agent_pos"], observations["agent_pos"][0])
    env.close()
