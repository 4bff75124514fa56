"""Checks of all that goes into and comes out of a vector environment, once per decision.

No wrong number may be measured or learnt. So these are errors, which name task, seed and control
step:

| what | error |
|---|---|
| an observation without a key, or with another shape or type than its space | `EnvError` |
| a number from the environment that is not finite | `EnvError` |
| an episode that ends without a report of success or failure | `EnvError` |
| an action that is not finite | `PolicyError` |

The checks are vectorised over the sub-environments.

Success is `infos["is_success"]`, else `infos["success"]`, and nothing else. One control step of
success makes the episode a success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from robo_razor.core.errors import EnvError, PolicyError, shown
from robo_razor.core.types import Observation

IS_SUCCESS, ELAPSED_STEPS = "is_success", "elapsed_steps"
SUCCESS_KEYS = (IS_SUCCESS, "success")
LANDMARKS, LANDMARKS_PRESENT = "landmarks", "landmarks_present"
"""Keys of a vector environment's infos; all but success are optional."""


class Boundary:
    """Knows which episode each sub-environment is in, and checks what passes.

    Args:
        num_envs: Number of sub-environments.
        single_observation_space: Space of one sub-environment's observations.
    """

    def __init__(self, num_envs: int, single_observation_space: spaces.Space[Any]) -> None:
        n = num_envs
        self._leaves = dict(_leaves(single_observation_space))
        self._tasks: list[str] = [""] * n
        self._seeds: list[Any] = [None] * n
        self._elapsed = np.zeros(n, dtype=np.int64)
        self._reported = np.zeros(n, dtype=bool)
        self._success = np.zeros(n, dtype=bool)

    def begin(self, env_ids: NDArray[np.int64], tasks: Sequence[Any], seeds: Sequence[Any]) -> None:
        """Set the episodes that are about to start."""
        for i, task, seed in zip(env_ids, tasks, seeds, strict=True):
            self._tasks[i], self._seeds[i] = str(task), seed
        self._elapsed[env_ids] = 0
        self._reported[env_ids] = self._success[env_ids] = False

    def named(self, env_ids: NDArray[np.int64]) -> str:
        """Return the names of some sub-environments' episodes, four at most."""
        listed = ", ".join(self._where(i) for i in env_ids[:4])
        return listed + (f" and {len(env_ids) - 4} more" if len(env_ids) > 4 else "")

    def check_actions(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Check that the actions [n, H, A] for some sub-environments are finite.

        Raises:
            PolicyError: One is not.
        """
        finite = np.isfinite(actions)
        if not finite.all():
            row, step, dimension = np.argwhere(~finite)[0]
            control_step = self._elapsed[env_ids[row]] + step
            raise PolicyError(
                f"The policy gives an action that is not a finite number in "
                f"{self._where(env_ids[row], control_step)}: {actions[row, step, dimension]} in "
                f"dimension {dimension}",
                remedy="Its weights or statistics may be damaged, or training diverged.",
            )

    def check_tasks(
        self, env_ids: NDArray[np.int64], tasks: Sequence[Any], running: Sequence[str]
    ) -> None:
        """Check that sub-environments run the tasks of their reset.

        Raises:
            EnvError: One runs another task.
        """
        for i, task in zip(env_ids, tasks, strict=True):
            if task is not None and str(running[i]) != str(task):
                raise EnvError(
                    f"The vector environment was reset to {task!r}, but it runs "
                    f"{str(running[i])!r}",
                    remedy="Let its `reset` take options['tasks'], or set `switches_tasks = False` "
                    "on its maker: then each task has an environment of its own.",
                )

    def check_start(
        self, env_ids: NDArray[np.int64], observation: Observation, infos: Mapping[str, Any]
    ) -> None:
        """Check the first observations of some sub-environments.

        Raises:
            EnvError: They are not in the space.
        """
        self._check_observation(env_ids, observation)
        self._check_landmarks(env_ids, infos)

    def check_step(
        self,
        env_ids: NDArray[np.int64],
        observation: Observation,
        rewards: Any,
        ends: tuple[Any, Any],
        infos: dict[str, Any],
        num_steps: int,
    ) -> dict[str, Any]:
        """Check a step's results, and return its infos with the episodes' success so far.

        Args:
            env_ids: The sub-environments that were stepped, n.
            observation: Their observations.
            rewards: [n].
            ends: `terminated` and `truncated`, bool [n].
            infos: Their infos.
            num_steps: Control steps of the chunk, if the infos do not report them.

        Raises:
            EnvError: A result cannot be used.
        """
        self._elapsed[env_ids] = infos.get(ELAPSED_STEPS, self._elapsed[env_ids] + num_steps)
        self._check_finite(env_ids, "reward", np.asarray(rewards), ())
        for name, flags in zip(("terminated", "truncated"), ends, strict=True):
            if getattr(flags, "dtype", None) != np.bool_:
                raise EnvError(
                    f"{self._where(env_ids[0])} gives `{name}` that is not a bool array",
                    allowed="a numpy array of bool, one for each sub-environment",
                )
        self._check_observation(env_ids, observation)
        self._check_landmarks(env_ids, infos)
        self._note_success(env_ids, infos)
        unreported = (ends[0] | ends[1]) & ~self._reported[env_ids]
        if unreported.any():
            where = self._where(env_ids[np.flatnonzero(unreported)[0]])
            raise EnvError(
                f"{where} does not report success: the episode ended, and its infos have "
                f"{shown(sorted(map(str, infos)))}, but neither 'is_success' nor 'success'",
                remedy="An episode that terminated has not necessarily succeeded: let the "
                "environment report success in `info`.",
            )
        return {**infos, IS_SUCCESS: self._success[env_ids]}

    def _note_success(self, env_ids: NDArray[np.int64], infos: Mapping[str, Any]) -> None:
        reports: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
        for key in SUCCESS_KEYS:
            if key in infos:
                reported = np.asarray(infos.get(f"_{key}", np.ones(len(env_ids), dtype=bool)))
                reports.append((reported, self._as_bools(env_ids, key, infos[key], reported)))
        if len(reports) == 2:
            contradicts = reports[0][0] & reports[1][0] & (reports[0][1] != reports[1][1])
            if contradicts.any():
                where = self._where(env_ids[np.flatnonzero(contradicts)[0]])
                raise EnvError(
                    f"{where} contradicts itself: its info's `is_success` and `success` differ"
                )
        for reported, success in reports:
            self._reported[env_ids] |= reported
            self._success[env_ids] |= success & reported

    def _as_bools(
        self, env_ids: NDArray[np.int64], key: str, values: Any, reported: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        array, n = np.asarray(values), len(env_ids)
        if array.size != n:
            raise EnvError(
                f"{self.named(env_ids)} gives `{key}` in the shape {array.shape}, not one value "
                f"for each of {n}"
            )
        array = array.reshape(n)
        if array.dtype == np.bool_:
            return array
        for row in np.flatnonzero(reported):
            if not _is_flag(array[row]):
                raise EnvError(
                    f"{self._where(env_ids[row])} gives `{key}` as {shown(array[row])}, which is "
                    "neither True nor False"
                )
        return np.array([bool(value) for value in np.where(reported, array, False)])

    def _check_observation(self, env_ids: NDArray[np.int64], observation: Observation) -> None:
        for path, space in self._leaves.items():
            value: Any = observation
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            name = " ".join(path)
            if value is None:
                raise EnvError(
                    f"{self.named(env_ids)} gives no {name!r}, though its observation space has it"
                )
            array = np.asarray(value)
            expected = (len(env_ids), *(space.shape or ()))
            if array.shape != expected or array.dtype != space.dtype:
                raise EnvError(
                    f"{self.named(env_ids)} gives {name!r} as {array.dtype} of shape "
                    f"{array.shape[1:]}, but its observation space says {space.dtype} of shape "
                    f"{space.shape}"
                )
            if array.dtype.kind == "f":
                self._check_finite(env_ids, name, array, space.shape)

    def _check_landmarks(self, env_ids: NDArray[np.int64], infos: Mapping[str, Any]) -> None:
        if LANDMARKS in infos:
            landmarks = np.asarray(infos[LANDMARKS])
            self._check_finite(env_ids, LANDMARKS, landmarks, landmarks.shape[1:])

    def _check_finite(
        self, env_ids: NDArray[np.int64], name: str, values: NDArray[Any], shape: Any
    ) -> None:
        """Check that values [n, *shape] are finite numbers."""
        if values.dtype.kind not in "biuf" or values.shape != (len(env_ids), *shape):
            raise EnvError(
                f"{self.named(env_ids)} gives `{name}` as {values.dtype} of shape {values.shape}, "
                f"not as numbers of shape {(len(env_ids), *shape)}"
            )
        finite = np.isfinite(values)
        if not finite.all():
            index = tuple(np.argwhere(~finite)[0])
            entry = f" at {list(map(int, index[1:]))}" if len(index) > 1 else ""
            raise EnvError(
                f"{self._where(env_ids[index[0]])} gives `{name}` {values[index]}{entry}: not a "
                "finite number",
                remedy="Let the environment end such an episode as a failure, or mend its physics "
                "(a shorter time step, limits).",
            )

    def _where(self, env_id: Any, step: Any = None) -> str:
        elapsed = int(self._elapsed[env_id] if step is None else step)
        task = self._tasks[env_id] or "The environment"
        return f"{task} (seed {self._seeds[env_id]}, control step {elapsed})"


def _is_flag(value: Any) -> bool:
    """Return whether a value is a bool, or the number 0 or 1."""
    array = np.asarray(value)
    return array.size == 1 and array.dtype.kind in "biuf" and array.item() in (0, 1)


def _leaves(
    space: spaces.Space[Any], path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], spaces.Space[Any]]]:
    """Return keys and space of the arrays that an observation space consists of."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.items() for leaf in _leaves(part, (*path, key))]
    return [(path, space)] if isinstance(space, spaces.Box) and path else []
