"""Train Stable-Baselines3 agents on this suite's vector environments.

Stable-Baselines3 is optional: import this module only where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from gym_razor.adapters.wrappers import flat_space, flatten_observation, state_vector


class SB3VecEnv(VecEnv):
    """Present a chunk-stepping vector environment as a Stable-Baselines3 `VecEnv`.

    One step of the agent is one decision: its action is a chunk of H actions of A numbers, flat.
    Observations are flattened as by `FlattenForSB3`. Finished environments are reset at once, with
    `infos[i]["terminal_observation"]` and `infos[i]["TimeLimit.truncated"]` as Stable-Baselines3
    expects them, and take their next start states from their own generators.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any], state_only: bool = False) -> None:
        """Wrap a vector environment.

        Args:
            vector_env: `RazorVectorEnv` or `ChunkedVectorEnv` (autoreset disabled).
            state_only: True leaves the images out and gives the agent a vector.
        """
        self.vector_env = vector_env
        self.state_only = state_only
        self._num_landmarks = len(vector_env.metadata.get("landmark_names", []))
        self._chunk_shape = cast("tuple[int, ...]", vector_env.action_space.shape)[1:]
        self._next_seed: int | None = None
        self._actions = np.zeros((vector_env.num_envs, *self._chunk_shape), np.float32)
        self.render_mode = vector_env.render_mode
        observation_space = flat_space(
            vector_env.single_observation_space, self._num_landmarks, state_only
        )
        # One chunk, flat: whether a single action is a chunk or not depends on H.
        low, high = (
            cast("NDArray[np.float32]", bound)[0].reshape(-1)
            for bound in (
                cast("spaces.Box", vector_env.action_space).low,
                cast("spaces.Box", vector_env.action_space).high,
            )
        )
        super().__init__(
            vector_env.num_envs, observation_space, spaces.Box(low, high, dtype=np.float32)
        )

    def reset(self) -> Any:
        """Start an episode everywhere and return the observations."""
        observations, infos = self.vector_env.reset(seed=self._next_seed)
        self._next_seed = None
        return self._flatten(observations, infos)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next `reset`: environment i starts from `seed + i`."""
        self._next_seed = seed
        if seed is None:
            return [None] * self.num_envs
        return [seed + env_id for env_id in range(self.num_envs)]

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Store the chunks, float32 [N, H * A], for `step_wait`."""
        self._actions = np.asarray(actions, np.float32).reshape(-1, *self._chunk_shape)

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Execute the chunks; reset the environments that have finished."""
        observations, rewards, terminated, truncated, infos = self.vector_env.step(self._actions)
        flat = self._flatten(observations, infos)
        finished = np.asarray(terminated) | np.asarray(truncated)
        rows = [{key: values[i] for key, values in infos.items()} for i in range(self.num_envs)]
        if finished.any():
            for env_id in np.flatnonzero(finished):
                rows[env_id]["terminal_observation"] = _row(flat, env_id)
                rows[env_id]["TimeLimit.truncated"] = bool(
                    truncated[env_id] and not terminated[env_id]
                )
            flat = self._flatten(*self.vector_env.reset(options={"reset_mask": finished}))
        return flat, np.asarray(rewards, np.float32), finished, rows

    def close(self) -> None:
        """Close the vector environment."""
        self.vector_env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture per environment."""
        return list(cast("NDArray[np.uint8]", self.vector_env.render()))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the vector environment, once per index."""
        return [getattr(self.vector_env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: the environments live in other processes.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{attr_name} cannot be set afterwards: pass it to gymnasium.make_vec."
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: the environments live in other processes.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{method_name} cannot be called per environment: use `vector_env` of this wrapper."
        )

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return False for every environment: they have no Gymnasium wrappers."""
        return [False] * len(list(self._get_indices(indices)))

    def _flatten(self, observations: Any, infos: dict[str, Any]) -> Any:
        if self.state_only:
            return state_vector(observations["agent_pos"], infos, self._num_landmarks)
        return flatten_observation(observations)


def _row(flat: Any, env_id: int) -> Any:
    if isinstance(flat, dict):
        return {key: values[env_id].copy() for key, values in flat.items()}
    return flat[env_id].copy()
