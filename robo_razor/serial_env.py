"""Single Gymnasium environments one after another behind the chunked interface."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from robo_razor.environment import StepResult, map_arrays, reset_request, take, takes
from robo_razor.errors import EnvError
from robo_razor.types import Observation

logger = logging.getLogger(__name__)
_ENDLESS = 2**62


class SerialVectorEnv:
    """Runs ordinary single environments one after another behind the chunked interface.

    For environments without a `vector_entry_point`. Start states depend on (task, seed) only as far
    as the single environment's own `reset(seed)` does.
    """

    def __init__(
        self, task: str, num_envs: int, *, chunk_size: int, env_kwargs: dict[str, Any] | None = None
    ) -> None:
        self.num_envs = num_envs
        self.chunk_size = chunk_size
        self._env_kwargs = dict(env_kwargs or {})
        self._warned: set[str] = set()
        self._envs = [self._make(task) for _ in range(num_envs)]
        self._limits = [self._limit(env) or _ENDLESS for env in self._envs]
        self._tasks = [task] * num_envs
        self._instructions = [self._describe(env) for env in self._envs]
        self._observation: Observation | None = None
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._pending: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        self.single_observation_space = self._envs[0].observation_space
        self.single_action_space = self._envs[0].action_space
        self.metadata = {**self._envs[0].metadata}
        self.groups = [np.arange(num_envs)]

    @property
    def instructions(self) -> list[str]:
        """Return the current instruction of every sub-environment."""
        return list(self._instructions)

    @property
    def tasks(self) -> list[str]:
        """Return the current task id of every sub-environment."""
        return list(self._tasks)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset the sub-environments where `options["reset_mask"]` is True (all by default)."""
        mask, seeds, tasks, words = reset_request(self.num_envs, seed, options)
        for i in np.flatnonzero(mask):
            if tasks[i] is not None and tasks[i] != self._tasks[i]:
                self._envs[i].close()
                self._envs[i], self._tasks[i] = self._make(tasks[i]), tasks[i]
                self._limits[i] = self._limit(self._envs[i]) or _ENDLESS
            observation, _ = self._envs[i].reset(seed=None if seeds[i] is None else int(seeds[i]))
            self._instructions[i] = words[i] or self._describe(self._envs[i])
            self._elapsed[i] = 0
            self._store(i, observation)
        if self._observation is None:
            raise EnvError("The first reset must include every sub-environment in use.")
        return self._observation, {}

    def step_async(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Remember the chunks float32 [n, H, A] for `step_wait`."""
        self._pending = (actions, np.asarray(env_ids))

    def step_wait(self) -> StepResult:
        """Execute the remembered chunks and return the rows of those sub-environments."""
        if self._pending is None:
            raise EnvError("step_wait() was called without step_async().")
        (actions, env_ids), self._pending = self._pending, None
        n = len(env_ids)
        rewards = np.zeros(n)
        ends = np.zeros((2, n), dtype=bool)
        success = np.zeros(n, dtype=bool)
        for row, i in enumerate(env_ids):
            for action in actions[row]:
                observation, reward, terminated, truncated, info = self._envs[i].step(action)
                rewards[row] += float(reward)
                self._elapsed[i] += 1
                truncated = truncated or self._elapsed[i] >= self._limits[i]
                success[row] = bool(info.get("is_success", terminated))
                ends[:, row] = terminated, truncated and not terminated
                if terminated or truncated:
                    break
            self._store(i, observation)
        assert self._observation is not None
        infos = {"is_success": success, "elapsed_steps": self._elapsed[env_ids]}
        return env_ids, take(self._observation, env_ids), rewards, ends[0], ends[1], infos

    def render(self, env_ids: NDArray[np.int64] | None = None, size: int = 256) -> Any:
        """Return uint8 [n, h, w, 3] frames of the given sub-environments."""
        ids = range(self.num_envs) if env_ids is None else env_ids
        return np.stack([np.asarray(self._envs[i].render()) for i in ids])

    def close(self) -> None:
        """Close every sub-environment."""
        for env in self._envs:
            env.close()

    def _make(self, task: str) -> Any:
        kwargs = {**({"render_mode": "rgb_array"} if _draws(task) else {}), **self._env_kwargs}
        try:
            env = gym.make(task, **kwargs)
        except (TypeError, gym.error.Error) as error:
            raise EnvError(
                f"The environment {task!r} cannot be made with {kwargs or 'no argument'}: {error}",
                remedy="Leave out settings of `env` that its `__init__` does not take.",
            ) from error
        if self._limit(env) is None and task not in self._warned:
            self._warned.add(task)
            logger.warning(
                "The environment %r tells no time limit. Where it has none, an episode that fails "
                "never ends: register it with max_episode_steps, or set --env.max-episode-steps.",
                task,
            )
        return env

    @staticmethod
    def _limit(env: Any) -> int | None:
        """Return the time limit that an environment tells, in actions; not all enforce theirs."""
        own = getattr(env.unwrapped, "_max_episode_steps", None)
        limit = own if env.spec is None else env.spec.max_episode_steps or own
        return None if limit is None else int(limit)

    @staticmethod
    def _describe(env: Any) -> str:
        return str(getattr(env.unwrapped, "task_description", ""))

    def _store(self, i: int, observation: Observation) -> None:
        if self._observation is None:
            self._observation = map_arrays(
                lambda x: np.zeros((self.num_envs, *np.shape(x)), np.asarray(x).dtype), observation
            )
        _assign(self._observation, i, observation)


def _draws(task: str) -> bool:
    """Tell whether an environment's maker takes `render_mode`; an unknown one is asked."""
    maker: Any = gym.spec(task).entry_point
    maker = load_env_creator(maker) if isinstance(maker, str) else maker
    return maker is None or takes(maker, {"render_mode"})


def _assign(target: Observation, i: int, source: Observation) -> None:
    for key, value in source.items():
        if isinstance(value, dict):
            _assign(target[key], i, value)
        else:
            target[key][i] = value
