"""A vector of any Gymnasium environments that is stepped by chunks of actions.

`ChunkedVectorEnv` gives single environments the interface of the suite's tables: they run in the
same kind of workers, `step(actions [N, H, A])` executes H actions per environment and returns the
last observation, and finished environments wait for a reset with a mask.

Axis letters: N environments, H actions per chunk, A action dimensions.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from gym_razor.vector.faults import Breach
from gym_razor.vector.pool import PooledVectorEnv, Request, observation_arrays
from gym_razor.vector.success import IS_SUCCESS, no_success_message, reported_success
from gym_razor.vector.workers import Arrays

EnvFactory = Callable[[], "gym.Env[Any, Any]"]
Transition = tuple[Any, float, bool, bool, dict[str, Any]]


def step_chunk(env: gym.Env[Any, Any], actions: NDArray[np.float32]) -> Transition:
    """Execute a chunk of actions, stopping after the one that ends the episode.

    An environment with the methods `step_without_rendering` and `observe` renders only the
    observation that is returned.

    Args:
        env: The environment.
        actions: float32 [H, A].

    Returns:
        Last observation, sum of the rewards, terminated, truncated, last info. `is_success` in the
        info is True if any action of the chunk succeeded, and absent if no info reported success.
    """
    success: bool | None = None
    lean = env is env.unwrapped and hasattr(env, "step_without_rendering")
    total = 0.0
    for action in actions:
        if lean:
            reward, terminated, truncated, info = cast("Any", env).step_without_rendering(action)
            observation = None
        else:
            observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        step_success = reported_success(info)
        if step_success is not None:
            success = bool(success) or step_success
        if terminated or truncated:
            break
    if lean:
        observation = cast("Any", env).observe()
    if success is not None:
        info = {**info, IS_SUCCESS: success}
    return observation, total, bool(terminated), bool(truncated), info


class _EnvGroup:
    """Some environments of one process."""

    def __init__(self, env_ids: Sequence[int], env_fns: Sequence[EnvFactory]) -> None:
        self._envs = {i: env_fn() for i, env_fn in zip(env_ids, env_fns, strict=True)}
        self._reported = dict.fromkeys(env_ids, False)
        """Whether each environment has reported in this episode if it succeeded."""
        self._observation_arrays = list(observation_arrays(self._first().observation_space))

    def _first(self) -> gym.Env[Any, Any]:
        return next(iter(self._envs.values()))

    def describe(self) -> dict[str, Any]:
        env = self._first()
        return {
            "observation_space": env.observation_space,
            "action_space": env.action_space,
            "metadata": dict(env.metadata or {}),
            "render_mode": env.render_mode,
            "switches_tasks": getattr(env, "switches_tasks", False),
            "expert_styles": self._expert_styles(env),
            "tasks": self.get(list(self._envs), "task"),
            "instructions": self.get(list(self._envs), "task_description"),
        }

    def attach(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def reset(self, requests: Sequence[Request]) -> list[tuple[str, str]]:
        started = []
        for env_id, seed, task, instruction, options in requests:
            env = self._envs[env_id]
            env_options = {**options, **({"instruction": instruction} if instruction else {})}
            if task is not None and getattr(env, "switches_tasks", False):
                env_options["task"] = task
            observation, info = env.reset(seed=seed, options=env_options or None)
            self._reported[env_id] = False
            self._arrays["reward"][env_id] = 0.0
            self._arrays["start_state_hash"][env_id] = str(info.get("start_state_hash", ""))
            self._write(env_id, observation, False, False, info)
            started.append((env.get_wrapper_attr("task"), env.get_wrapper_attr("task_description")))
        return started

    def step(self, env_ids: Sequence[int]) -> None:
        for env_id in env_ids:
            env = self._envs[env_id]
            chunk = self._arrays["actions"][env_id].copy()
            observation, reward, terminated, truncated, info = step_chunk(env, chunk)
            self._reported[env_id] |= IS_SUCCESS in info
            if (terminated or truncated) and not self._reported[env_id]:
                raise Breach(f"{env.get_wrapper_attr('task')} {no_success_message(info)}")
            self._arrays["reward"][env_id] = reward
            self._write(env_id, observation, terminated, truncated, info)

    def render(self, env_ids: Sequence[int]) -> list[Any]:
        return [self._envs[env_id].render() for env_id in env_ids]

    def get(self, env_ids: Sequence[int], name: str) -> list[Any]:
        return [self._envs[env_id].get_wrapper_attr(name) for env_id in env_ids]

    def expert(self, env_ids: Sequence[int], style: str, length: int) -> list[Any]:
        return [
            self._envs[env_id].get_wrapper_attr("expert_actions")(style, length)
            for env_id in env_ids
        ]

    @staticmethod
    def _expert_styles(env: gym.Env[Any, Any]) -> tuple[str, ...] | None:
        """Return the styles of an environment's expert, None if it has no expert."""
        if not env.has_wrapper_attr("expert_actions"):
            return None
        return tuple(
            env.get_wrapper_attr("expert_styles") if env.has_wrapper_attr("expert_styles") else "a"
        )

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def _write(
        self, env_id: int, observation: Any, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> None:
        """Write into the shared arrays what an environment's reset or step returned."""
        arrays = self._arrays
        for name, keys, space in self._observation_arrays:
            part = np.asarray(functools.reduce(lambda tree, key: tree[key], keys, observation))
            if part.shape != space.shape or not np.can_cast(
                part.dtype, arrays[name].dtype, "same_kind"
            ):
                raise Breach(
                    f"{self._envs[env_id].get_wrapper_attr('task')} gives "
                    f"{' '.join(keys) or 'an observation'} as {part.dtype} of shape {part.shape}, "
                    f"but its space says {space.dtype} of shape {space.shape}"
                )
            arrays[name][env_id] = part
        arrays["terminated"][env_id], arrays["truncated"][env_id] = terminated, truncated
        arrays["is_success"][env_id] = bool(info.get(IS_SUCCESS, False))
        arrays["elapsed_steps"][env_id] = int(info.get("elapsed_steps", 0))
        for name in ("landmarks", "landmarks_present"):
            arrays[name][env_id] = info.get(name, 0) if arrays[name].size else 0


class ChunkedVectorEnv(PooledVectorEnv):
    """Step N environments by chunks of H actions, without automatic resets.

    A finished environment keeps its true final observation and stands still (reward 0, the same
    flags) until `reset` names it in `reset_mask`. Environments with `switches_tasks` can change
    their task at a reset.

    An environment may have a scripted expert: a method `expert_actions(style, length)` that returns
    the expert's next actions, float32 [length, A], and changes nothing. Then this class has
    `expert_actions(style, env_ids)`, and `expert_styles` are the environments' (`("a",)` if they
    name none).

    Attributes:
        groups: Environment ids (int arrays) per worker; they can be stepped separately.
        chunk_size: Actions per decision, H.
    """

    def __init__(
        self,
        env_fns: Iterable[EnvFactory],
        chunk_size: int = 1,
        num_workers: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        """Build the environments.

        Args:
            env_fns: One factory per environment; all must have the same spaces.
            chunk_size: Actions per decision, at least 1.
            num_workers: Worker processes; 0 steps in this process.
            timeout_s: Longest wait for a worker's answer.

        Raises:
            ValueError: No environment, a number out of range, or an observation that is not made
                of arrays.
        """
        factories = list(env_fns)
        if not factories:
            raise ValueError("env_fns is empty: give one factory per environment.")
        described = self._start(
            lambda ids: functools.partial(_EnvGroup, ids, [factories[i] for i in ids]),
            len(factories),
            chunk_size,
            num_workers,
            timeout_s=timeout_s,
            # No threads of software OpenGL: they would fight with other processes for the cores.
            variables={"LP_NUM_THREADS": os.environ.get("LP_NUM_THREADS", "0")},
        )
        first = described[0]
        self.metadata = {
            "landmark_names": [],
            **first["metadata"],
            "autoreset_mode": AutoresetMode.DISABLED,
        }
        self.render_mode = first["render_mode"]
        self._switches_tasks = bool(first["switches_tasks"])
        self.tasks = [task for group in described for task in group["tasks"]]
        self.instructions = [text for group in described for text in group["instructions"]]
        if first["expert_styles"] is not None:  # so that `hasattr` shows whether there is an expert
            self.expert_styles = first["expert_styles"]
            self.expert_actions = self._expert_chunks
        self._describe_spaces(first["observation_space"], first["action_space"])
        self._share(len(self.metadata["landmark_names"]))

    def call(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment; no group may be moving."""
        return tuple(self._gather(None, "get", name))

    def render(  # type: ignore[override]
        self, env_ids: Sequence[int] | None = None, size: int | None = None
    ) -> NDArray[np.uint8]:
        """Return the pictures of some environments, uint8 [n, size, size, 3].

        Args:
            env_ids: Environments; None takes all.
            size: Side in pixels; None takes what the environments render. Other sizes are
                sampled from that (nearest pixel).
        """
        pictures = np.stack(self._gather(env_ids, "render"))
        if size is None or size == pictures.shape[1]:
            return pictures
        nearest = ((np.arange(size) + 0.5) * pictures.shape[1] / size).astype(np.intp)
        return np.ascontiguousarray(pictures[:, nearest][:, :, nearest])

    def _check_tasks(self, tasks: Sequence[str | None], mask: NDArray[np.bool_]) -> None:
        del mask
        wanted = {task for task in tasks if task is not None}
        if not self._switches_tasks and any(
            task not in (None, current) for task, current in zip(tasks, self.tasks, strict=True)
        ):
            raise ValueError(
                f"These environments cannot switch tasks: they run {sorted(set(self.tasks))}, and "
                f"the reset names {sorted(wanted)}. Make one vector environment per task."
            )
