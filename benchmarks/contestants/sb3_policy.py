"""The razor policy inside Stable-Baselines3: its own modules, its action tokens as `MultiDiscrete`.

Import this only where Stable-Baselines3 is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from gym_razor.adapters.wrappers import FlattenForSB3, flatten_observation
from gym_razor.suite.env import TableEnv


class TokenActions(VecEnvWrapper):
    """Takes tokens int [N, H * A] and executes the actions at the centres of their bins."""

    def __init__(self, env: VecEnv, centers: NDArray[np.float32]) -> None:
        sizes = [len(centers)] * int(np.prod(env.action_space.shape))
        super().__init__(env, action_space=gym.spaces.MultiDiscrete(sizes))
        self.centers = centers

    def reset(self) -> Any:
        """Start an episode everywhere."""
        return self.venv.reset()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Pass on the actions of the tokens."""
        self.venv.step_async(self.centers[actions])

    def step_wait(self) -> Any:
        """Return the results of the environments."""
        return self.venv.step_wait()


class Chunks(gym.Wrapper[Any, Any, Any, Any]):
    """Makes a flat chunk of actions one step, as action repeats do; every action still renders."""

    def __init__(self, env: gym.Env[Any, Any], chunk_size: int) -> None:
        super().__init__(env)
        self.action_space = chunk_space(env.action_space, chunk_size)

    def step(self, action: NDArray[np.float32]) -> Any:
        """Execute a chunk, float32 [H * A], up to the action that ends the episode."""
        total = 0.0
        for part in action.reshape(-1, *self.env.action_space.shape):
            observation, reward, terminated, truncated, info = self.env.step(part)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def chunk_space(space: gym.Space[Any], chunk_size: int) -> gym.spaces.Box:
    """Return the space of flat chunks of actions in [-1, 1]."""
    return gym.spaces.Box(-1.0, 1.0, (chunk_size * int(np.prod(space.shape)),), np.float32)


def make_registered(task: str, chunk_size: int, max_episode_steps: int) -> gym.Env[Any, Any]:
    """Make the table as users of Gymnasium do; every control step renders."""
    env = gym.make(task, max_episode_steps=max_episode_steps, reward_type="shaped")
    return Chunks(FlattenForSB3(env), chunk_size)


class ChunkEnv(TableEnv):
    """One table that executes a flat chunk of actions and renders once; no public class does.

    The arguments are those of `make_registered`.
    """

    def __init__(self, task: str, chunk_size: int, max_episode_steps: int) -> None:
        super().__init__(task, max_episode_steps=max_episode_steps, reward_type="shaped")
        self.chunk_size = chunk_size
        self.action_space = chunk_space(self.action_space, chunk_size)
        space = self.observation_space
        cameras = dict(space["pixels"].spaces.items())
        self.observation_space = gym.spaces.Dict({**cameras, "agent_pos": space["agent_pos"]})

    def reset(self, **arguments: Any) -> Any:
        """Start an episode."""
        observation, info = super().reset(**arguments)
        return flatten_observation(observation), info

    def step(self, action: NDArray[np.float32]) -> Any:
        """Execute a chunk, float32 [H * A]."""
        result = self._episode.step(action.reshape(self.chunk_size, -1))
        info = self._info(result.physics_error)
        observation = flatten_observation(self._observe())
        return observation, result.reward, result.terminated, result.truncated, info


class RazorActorCritic(ActorCriticPolicy):
    """Actor and critic of a razor policy behind Stable-Baselines3's interface.

    Args:
        *arguments: Spaces and schedule, as Stable-Baselines3 passes them.
        make: Returns the razor policy's handle; its frozen weights stay frozen.
        instruction: The policy's instruction in every environment.
        **further: Further settings of Stable-Baselines3.
    """

    def __init__(
        self, *arguments: Any, make: Callable[[], Any], instruction: str, **further: Any
    ) -> None:
        self._make, self._instruction = make, instruction
        super().__init__(*arguments, **further)

    def _build(self, lr_schedule: Any) -> None:
        handle = self._make()
        self.razor = handle.module
        self._cameras = {f"observation.images.{name}": name for name in handle.camera_names}
        size, rows = handle.image_size, 2
        blank = {name: np.zeros((rows, size, size, 3), np.uint8) for name in handle.camera_names}
        # Proprioception 0 and 1 show the mean and the scale of the normaliser.
        state = np.stack([np.full(handle.state_dim, row, np.float32) for row in range(rows)])
        batch = handle.prepare({"pixels": blank, "agent_pos": state}, [self._instruction] * rows)
        self._state_shift = batch["observation.state"][0]
        self._state_scale = batch["observation.state"][1] - self._state_shift
        self._language = {
            key: value[:1] for key, value in batch.items() if key.startswith("observation.language")
        }
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **self.optimizer_kwargs)

    def _predict_both(self, obs: dict[str, Tensor]) -> tuple[Any, Tensor]:
        rows = len(obs["agent_pos"])
        language = {key: value.expand(rows, -1) for key, value in self._language.items()}
        images = {key: obs[camera] for key, camera in self._cameras.items()}
        state = obs["agent_pos"] * self._state_scale + self._state_shift
        output = self.razor.predict({**images, **language, "observation.state": state})
        distribution = self.action_dist.proba_distribution(output.logits.flatten(1))
        return distribution, output.value[:, None]

    def forward(
        self, obs: dict[str, Tensor], deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, values and log-probabilities."""
        distribution, values = self._predict_both(obs)
        tokens = distribution.get_actions(deterministic=deterministic)
        return tokens, values, distribution.log_prob(tokens)

    def evaluate_actions(
        self, obs: dict[str, Tensor], actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, log-probabilities and entropies."""
        distribution, values = self._predict_both(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: dict[str, Tensor]) -> Tensor:
        """Return only the values."""
        values: Tensor = self._predict_both(obs)[1]
        return values

    def get_distribution(self, obs: dict[str, Tensor]) -> Any:
        """Return the distribution of tokens."""
        with torch.no_grad():
            return self._predict_both(obs)[0]
