"""One vector environment made of several, so that a run can mix tasks of unlike origin.

Sub-environment i of the whole is sub-environment i of whichever part runs its current task; the
others' stand idle. All parts must offer the same observations and take the same actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from robo_razor.core.errors import EnvError
from robo_razor.core.types import Observation
from robo_razor.rollout.groups import GroupDriver, StepResult, VectorEnv, put, take


class MixedVectorEnv:
    """Runs tasks of several vector environments with equally many sub-environments.

    Args:
        parts: Tasks and the vector environment that can switch between those.
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
        self._observation: Observation | None = None
        self._asked: list[NDArray[np.int64]] = []
        self._rows: dict[int, tuple[Observation, float, bool, bool, bool, int]] = {}

    @property
    def gl_renderer(self) -> str | None:
        """Return the first OpenGL renderer that a part tells."""
        names = (getattr(env, "gl_renderer", None) for env in self._envs)
        return next((name for name in names if name), None)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset the sub-environments where `options["reset_mask"]` is True (all by default)."""
        n = self.num_envs
        mask, seeds, tasks, own_words = _reset_request(n, seed, options)
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
                [own_words[i] for i in ids],
            )
            self._see(ids, observation)
            states = infos.get("start_state_hash", [""] * len(ids))
            for i, text, state in zip(ids, instructions, states, strict=True):
                self.instructions[i], hashes[i] = text, str(state)
        assert self._observation is not None, "no sub-environment was reset yet"
        return take(self._observation, np.arange(n)), {"start_state_hash": np.array(hashes)}

    def step_async(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Start the chunks float32 [n, H, A] of sub-environments that belong to one group."""
        ids = np.asarray(env_ids)
        self._asked.append(ids)
        for k in np.unique(self._current[ids]):
            here = self._current[ids] == k
            driver = self._drivers[k]
            for group in driver.groups:
                inside = here & np.isin(ids, group)
                if inside.any():
                    driver.submit(actions[inside], ids[inside])

    def step_wait(self) -> StepResult:
        """Return the rows of the group that was started first."""
        ids = self._asked.pop(0)
        while missing := [int(i) for i in ids if int(i) not in self._rows]:
            self._collect(self._drivers[self._current[missing[0]]])
        rows = [self._rows.pop(int(i)) for i in ids]
        for i, row in zip(ids, rows, strict=True):
            self._see(np.array([i]), row[0])
        _, rewards, terminated, truncated, success, elapsed = zip(*rows, strict=True)
        assert self._observation is not None
        infos = {"is_success": np.array(success), "elapsed_steps": np.array(elapsed)}
        return (
            ids,
            take(self._observation, ids),
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
        """Keep the rows of the next group of one part."""
        ids, observation, rewards, terminated, truncated, infos = driver.wait()
        success = infos["is_success"]
        elapsed = infos.get("elapsed_steps", np.zeros(len(ids), dtype=np.int64))
        for row, i in enumerate(ids):
            self._rows[int(i)] = (
                take(observation, np.array([row])),
                float(rewards[row]),
                bool(terminated[row]),
                bool(truncated[row]),
                bool(success[row]),
                int(elapsed[row]),
            )

    def _see(self, ids: NDArray[np.int64], observation: Observation) -> None:
        if self._observation is None:
            self._observation = take(observation, np.zeros(self.num_envs, dtype=np.int64))
        put(self._observation, ids, observation)

    def _common_groups(self) -> list[NDArray[np.int64]]:
        """Return the parts' groups where they agree, else one group of all."""
        groups = [[group.tolist() for group in driver.groups] for driver in self._drivers]
        if all(other == groups[0] for other in groups):
            return self._drivers[0].groups
        return [np.arange(self.num_envs)]

    def _check_alike(self, tasks: Sequence[str]) -> None:
        offered = [_offered(env) for env in self._envs]
        for task, other in zip(tasks[1:], offered[1:], strict=True):
            if other != offered[0]:
                first, second = _offer_text(offered[0], other), _offer_text(other, offered[0])
                raise EnvError(
                    f"{tasks[0]} and {task} cannot be in one run, because no policy fits both: "
                    f"the first has {first}; the second {second}",
                    remedy="Choose tasks with the same cameras, state and actions.",
                )


def _reset_request(
    num_envs: int, seed: Any, options: dict[str, Any] | None
) -> tuple[NDArray[np.bool_], list[Any], Sequence[Any], Sequence[Any]]:
    """Return what a reset asks for, per sub-environment: mask, seed, task, own words.

    The arguments are those of a vector environment's `reset`; where there is no seed, task or own
    words for a sub-environment it is None.
    """
    options = options or {}
    mask = np.asarray(options.get("reset_mask", np.ones(num_envs, dtype=bool)))
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * num_envs
    nothing = [None] * num_envs
    return mask, seeds, options.get("tasks") or nothing, options.get("instructions") or nothing


def _offered(env: VectorEnv) -> dict[str, tuple[str, ...]]:
    """Return name -> shape, type and bounds of what an environment gives, and of its action.

    Only actions have bounds that matter: a policy's numbers mean other motions within others.
    """
    offered: dict[str, tuple[str, ...]] = {}
    for name, space in env.single_observation_space.spaces.items():
        inner = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for part, x in inner.items():
            offered[f"{name} {part}".strip()] = (
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
    return offered | {"action": (size, bounds)}


def _offer_text(offer: Mapping[str, tuple[str, ...]], other: Mapping[str, tuple[str, ...]]) -> str:
    """Return what is offered in words, with types and bounds only where they differ."""
    return ", ".join(
        " ".join([name, value[0], *(value[1:] if value[1:] != other.get(name, value)[1:] else ())])
        for name, value in offer.items()
    )
