"""One vector environment made of several parts, so that a run can mix tasks of different kinds.

Sub-environment i runs in the part that can run its current task, as that part's sub-environment i.
In the other parts it stands idle. All parts must have the same observations and actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from robo_razor.core.errors import EnvError
from robo_razor.core.types import Observation
from robo_razor.rollout.boundary import ELAPSED_STEPS, IS_SUCCESS
from robo_razor.rollout.groups import (
    GroupDriver,
    LatestObservations,
    StepResult,
    VectorEnv,
    take,
)
from robo_razor.rollout.start_states import START_STATE_HASH, start_states


class MixedVectorEnv:
    """Runs tasks of several vector environments with equally many sub-environments.

    Args:
        parts: Pairs of tasks and the vector environment that can switch between them.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[str], VectorEnv]]) -> None:
        self._envs = [env for _, env in parts]
        self._drivers = [GroupDriver(env) for env in self._envs]
        self._part_of = {task: k for k, (tasks, _) in enumerate(parts) for task in tasks}
        first = self._envs[0]
        self._check_alike([tasks[0] for tasks, _ in parts])
        self.num_envs: int = first.num_envs
        self.single_observation_space = first.single_observation_space
        self.single_action_space = first.single_action_space
        self.metadata = {k: v for k, v in first.metadata.items() if k != "landmark_names"}
        self.tasks = [parts[0][0][0]] * self.num_envs
        self.instructions = [""] * self.num_envs
        self.groups = self._common_groups()
        self._current = np.zeros(self.num_envs, dtype=np.int64)
        self._observations = LatestObservations(self.num_envs)
        self._started: list[NDArray[np.int64]] = []
        self._rows: dict[int, tuple[Observation, float, bool, bool, bool, int]] = {}

    @property
    def gl_renderer(self) -> str | None:
        """Return the first part's OpenGL renderer that is known."""
        names = (getattr(env, "gl_renderer", None) for env in self._envs)
        return next((name for name in names if name), None)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset the sub-environments where `options["reset_mask"]` is True (all by default)."""
        n = self.num_envs
        mask, seeds, tasks, given_instructions = _reset_request(n, seed, options)
        for i in np.flatnonzero(mask):
            self.tasks[i] = tasks[i] or self.tasks[i]
            self._current[i] = self._part_of[self.tasks[i]]
        hashes = [""] * n
        for k, driver in enumerate(self._drivers):
            ids = np.flatnonzero(mask & (self._current == k))
            if not len(ids):
                continue
            observation, instructions, infos = driver.reset(
                ids,
                [seeds[i] for i in ids],
                [self.tasks[i] for i in ids],
                [given_instructions[i] for i in ids],
            )
            self._observations.update(ids, observation)
            states = start_states(infos, len(ids))
            for i, instruction, state in zip(ids, instructions, states, strict=True):
                self.instructions[i], hashes[i] = instruction, state or ""
        return self._observations.of(np.arange(n)), {START_STATE_HASH: np.array(hashes)}

    def step_async(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Start the chunks float32 [n, H, A] of sub-environments that belong to one group."""
        ids = np.asarray(env_ids)
        self._started.append(ids)
        for k in np.unique(self._current[ids]):
            in_part = self._current[ids] == k
            driver = self._drivers[k]
            for group in driver.groups:
                in_group = in_part & np.isin(ids, group)
                if in_group.any():
                    driver.submit(actions[in_group], ids[in_group])

    def step_wait(self) -> StepResult:
        """Return the rows of the group that was started first."""
        ids = self._started.pop(0)
        while missing := [int(i) for i in ids if int(i) not in self._rows]:
            self._collect(self._drivers[self._current[missing[0]]])
        rows = [self._rows.pop(int(i)) for i in ids]
        for i, row in zip(ids, rows, strict=True):
            self._observations.update(np.array([i]), row[0])
        _, rewards, terminated, truncated, success, elapsed = zip(*rows, strict=True)
        infos = {IS_SUCCESS: np.array(success), ELAPSED_STEPS: np.array(elapsed)}
        return (
            ids,
            self._observations.of(ids),
            np.array(rewards, dtype=np.float64),
            np.array(terminated),
            np.array(truncated),
            infos,
        )

    def render(
        self, *, env_ids: NDArray[np.int64] | None = None, size: int = 256
    ) -> NDArray[np.uint8]:
        """Return uint8 [n, size, size, 3] frames of the given sub-environments."""
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        frames: list[Any] = [None] * len(ids)
        for k in np.unique(self._current[ids]):
            rows = np.flatnonzero(self._current[ids] == k)
            pictures = self._envs[k].render(env_ids=ids[rows], size=size)
            for row, picture in zip(rows, pictures, strict=True):
                frames[row] = picture
        return np.stack(frames)

    def close(self) -> None:
        """Close every part."""
        for env in self._envs:
            env.close()

    def _collect(self, driver: GroupDriver) -> None:
        """Store the rows of the next group of one part."""
        ids, observation, rewards, terminated, truncated, infos = driver.wait()
        success = infos[IS_SUCCESS]
        elapsed = infos.get(ELAPSED_STEPS, np.zeros(len(ids), dtype=np.int64))
        for row, i in enumerate(ids):
            self._rows[int(i)] = (
                take(observation, np.array([row])),
                float(rewards[row]),
                bool(terminated[row]),
                bool(truncated[row]),
                bool(success[row]),
                int(elapsed[row]),
            )

    def _common_groups(self) -> list[NDArray[np.int64]]:
        """Return the parts' groups if they agree, else one group of all."""
        groups = [[group.tolist() for group in driver.groups] for driver in self._drivers]
        if all(other == groups[0] for other in groups):
            return self._drivers[0].groups
        return [np.arange(self.num_envs)]

    def _check_alike(self, tasks: Sequence[str]) -> None:
        interfaces = [_interface(env) for env in self._envs]
        for task, other in zip(tasks[1:], interfaces[1:], strict=True):
            if other != interfaces[0]:
                first = _interface_text(interfaces[0], other)
                second = _interface_text(other, interfaces[0])
                raise EnvError(
                    f"{tasks[0]} and {task} cannot be in one run, because no policy fits both: "
                    f"the first has {first}; the second {second}",
                    remedy="Choose tasks with the same cameras, state and actions.",
                )


def _reset_request(
    num_envs: int, seed: Any, options: dict[str, Any] | None
) -> tuple[NDArray[np.bool_], list[Any], Sequence[Any], Sequence[Any]]:
    """Return mask, seeds, tasks and instructions of a reset, one per sub-environment.

    The arguments are those of a vector environment's `reset`. A seed, task or instruction that is
    not given is None.
    """
    options = options or {}
    mask = np.asarray(options.get("reset_mask", np.ones(num_envs, dtype=bool)))
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * num_envs
    no_values = [None] * num_envs
    return mask, seeds, options.get("tasks") or no_values, options.get("instructions") or no_values


def _interface(env: VectorEnv) -> dict[str, tuple[str, ...]]:
    """Return name -> shape and type of an environment's observations, shape and bounds of actions.

    The bounds of actions matter, because the same numbers mean other motions within other bounds.
    """
    interface: dict[str, tuple[str, ...]] = {}
    for name, space in env.single_observation_space.spaces.items():
        inner = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for part, x in inner.items():
            interface[f"{name} {part}".strip()] = (
                "x".join(map(str, x.shape or ())),
                str(x.dtype),
            )
    action = env.single_action_space
    size = str(action.shape[-1]) if action.shape else ""
    bounds = "discrete"
    if isinstance(action, spaces.Box):
        ends = np.stack([action.low, action.high]).reshape(2, -1, action.shape[-1])[:, 0]
        same = (ends == ends[:, :1]).all()
        low, high = ends[:, 0] if same else ends
        bounds = f"[{low:g}, {high:g}]" if same else f"{low.tolist()} to {high.tolist()}"
    return interface | {"action": (size, bounds)}


def _interface_text(
    interface: Mapping[str, tuple[str, ...]], other: Mapping[str, tuple[str, ...]]
) -> str:
    """Return an interface as text, with types and bounds only where they differ from another's."""
    return ", ".join(
        " ".join([name, value[0], *(value[1:] if value[1:] != other.get(name, value)[1:] else ())])
        for name, value in interface.items()
    )
