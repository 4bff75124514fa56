"""Wrappers that flatten this suite's nested observation, for libraries that need a flat one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LANDMARK_LIMIT_M = 5.0
"""Bound of landmark positions in the state space, metres."""


class FlattenForSB3(gym.Wrapper[Any, Any, Any, Any]):
    """Flatten `{"pixels": {...}, "agent_pos"}` for Stable-Baselines3.

    Observation: with `state_only=False` a flat dict `{"front", "wrist", "agent_pos"}` for its
    `MultiInputPolicy`; with `state_only=True` a float32 vector for its `MlpPolicy`: `agent_pos`,
    then x, y, z and presence of every landmark, where the environment reports landmarks.
    """

    def __init__(self, env: gym.Env[Any, Any], state_only: bool = False) -> None:
        """Wrap one environment.

        Args:
            env: An environment with this suite's observation.
            state_only: True leaves the images out.

        Raises:
            ValueError: The observation space is not this suite's.
        """
        super().__init__(env)
        self.state_only = state_only
        num_landmarks = len(env.get_wrapper_attr("metadata").get("landmark_names", []))
        self.observation_space = flat_space(env.observation_space, num_landmarks, state_only)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flatten(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Execute one action; see the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._flatten(observation, info), reward, terminated, truncated, info

    def _flatten(self, observation: Mapping[str, Any], info: Mapping[str, Any]) -> Any:
        if not self.state_only:
            return flatten_observation(observation)
        space = self.observation_space
        assert isinstance(space, spaces.Box)
        num_landmarks = (space.shape[0] - len(observation["agent_pos"])) // 4
        return state_vector(observation["agent_pos"], info, num_landmarks)


def flat_space(
    space: gym.Space[Any], num_landmarks: int, state_only: bool
) -> spaces.Dict | spaces.Box:
    """Return the space of the flattened observation of one environment.

    Args:
        space: The environment's `Dict("pixels": Dict, "agent_pos": Box)`.
        num_landmarks: Landmarks that its infos report.
        state_only: True leaves the images out.

    Raises:
        ValueError: `space` has another structure.
    """
    if not isinstance(space, spaces.Dict) or not {"pixels", "agent_pos"} <= set(space):
        raise ValueError(
            f"The observation space is {space}, but a Dict with 'pixels' and 'agent_pos' is "
            "needed, as the gym_razor environments have."
        )
    state, pixels = space["agent_pos"], space["pixels"]
    assert isinstance(state, spaces.Box)
    assert isinstance(pixels, spaces.Dict)
    if not state_only:
        return spaces.Dict({**dict(pixels.items()), "agent_pos": state})
    limit = np.tile(np.array([*[LANDMARK_LIMIT_M] * 3, 1.0], np.float32), num_landmarks)
    low = np.where(limit == 1.0, 0.0, -limit).astype(np.float32)
    return spaces.Box(
        np.concatenate([state.low, low]), np.concatenate([state.high, limit]), dtype=np.float32
    )


def flatten_observation(observation: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{camera: image, ..., "agent_pos": state}` (a batch stays a batch)."""
    return {**observation["pixels"], "agent_pos": observation["agent_pos"]}


def state_vector(
    agent_pos: NDArray[np.float32], info: Mapping[str, Any], num_landmarks: int
) -> NDArray[np.float32]:
    """Return `agent_pos`, then x, y, z (m) and presence (0 or 1) of every landmark.

    Args:
        agent_pos: float32 [..., 7].
        info: Info with `landmarks` [..., L, 3] and `landmarks_present` [..., L], if L > 0.
        num_landmarks: L.
    """
    if num_landmarks == 0:
        return np.asarray(agent_pos, np.float32)
    leading: Sequence[int] = np.shape(agent_pos)[:-1]
    positions = np.asarray(info["landmarks"], np.float32)
    present = np.asarray(info["landmarks_present"], np.float32)[..., None]
    landmarks = np.concatenate([positions, present], axis=-1).reshape(*leading, -1)
    state: NDArray[np.float32] = np.concatenate([agent_pos, landmarks], axis=-1, dtype=np.float32)
    return state
