"""Reset finished environments of a vector env automatically, in either of Gymnasium's modes.

The vector environments of this suite let a finished environment stand still, so that its true final
observation stays available. Loops for Gymnasium's own vector environments expect automatic resets::

    envs = gym.make_vec("gym_razor/LiftCube-v0", 8, vectorization_mode="vector_entry_point")
    envs = Autoreset(envs, AutoresetMode.NEXT_STEP)
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray


class Autoreset(VectorWrapper[Any, Any, NDArray[Any]]):
    """Reset finished environments; their start states come from the env's own generator."""

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Wrap a vector environment of this suite.

        Args:
            env: `RazorVectorEnv` or `ChunkedVectorEnv` (autoreset disabled).
            mode: `NEXT_STEP`: the step after the last one ignores its action and returns the new
                episode's first observation with reward 0. `SAME_STEP`: the last step already
                returns that observation. The true final one is in `infos["final_obs"]`, its infos
                are in `infos["final_info"]`.

        Raises:
            ValueError: `mode` is DISABLED or unknown, or `env` resets automatically.
        """
        self.mode = AutoresetMode(mode)
        if self.mode == AutoresetMode.DISABLED:
            raise ValueError(
                "`mode` is DISABLED, but this wrapper is there to reset: give NEXT_STEP or "
                "SAME_STEP, or leave the wrapper out."
            )
        if env.metadata.get("autoreset_mode") != AutoresetMode.DISABLED:
            raise ValueError(
                "This environment resets automatically; give one with autoreset disabled."
            )
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": self.mode}
        self._finished = np.zeros(env.num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes; see the environment."""
        mask = (options or {}).get("reset_mask")
        self._finished[slice(None) if mask is None else np.asarray(mask, np.bool_)] = False
        # Gymnasium types `seed` more narrowly than its environments take it.
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        return observations, infos

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment that is not waiting for its reset; see `mode`."""
        begin = self._finished
        stepped: Any = self.env
        result = stepped.step(actions, mask=~begin)
        observations, rewards, terminated, truncated, infos = result
        terminated, truncated = terminated & ~begin, truncated & ~begin
        if begin.any():
            observations, infos = self.env.reset(options={"reset_mask": begin})
        self._finished = terminated | truncated
        if self.mode == AutoresetMode.SAME_STEP and self._finished.any():
            observations, infos = self._restart(observations, infos)
        return observations, rewards, terminated, truncated, infos

    def _restart(self, observations: Any, infos: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Reset the environments that have just finished; keep their last observations."""
        finished = self._finished
        last = np.full(self.num_envs, None, dtype=object)
        for env_id, observation in enumerate(iterate(self.observation_space, observations)):
            if finished[env_id]:
                last[env_id] = deepcopy(observation)
        before = {key: np.array(values) for key, values in infos.items()}
        observations, infos = self.env.reset(options={"reset_mask": finished})
        self._finished = np.zeros_like(finished)
        infos = dict(infos) | {"final_obs": last, "_final_obs": finished}
        return observations, infos | {"final_info": before, "_final_info": finished}
