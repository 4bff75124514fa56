"""The interface of a vector environment, and how a rollout steps it group by group.

`VectorEnv` is the contract. It needs four things beyond `gymnasium.vector.VectorEnv`: a chunk of
actions per step, resets of single sub-environments, a task and an instruction for each of them,
and a final observation that is not replaced (autoreset disabled). `boundary` checks all that goes
in and comes out.

Axis letters as in `types`: N environments, H chunk, A action dimensions; n of the N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from robo_razor.core.types import Observation
from robo_razor.rollout.boundary import Boundary
from robo_razor.rollout.faults import worker_errors

StepResult = tuple[
    NDArray[np.int64],
    Observation,
    NDArray[np.float64],
    NDArray[np.bool_],
    NDArray[np.bool_],
    dict[str, Any],
]
"""Environment ids [n], then their observations, rewards, `terminated`, `truncated` and infos."""


# --- The contract ---------------------------------------------------------------------------------


class VectorEnv(Protocol):
    """N sub-environments that execute chunks of actions and never reset automatically.

    It is also `SteppedByGroups` or `SteppedAtOnce`. `make_env` returns one.
    """

    @property
    def num_envs(self) -> int:
        """Return the number of sub-environments, N."""

    @property
    def single_observation_space(self) -> spaces.Dict:
        """Return the space of one sub-environment's observations; `make_env` checks it."""

    @property
    def single_action_space(self) -> spaces.Space[Any]:
        """Return the space of one sub-environment's actions."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return `render_fps`, `autoreset_mode`, and `landmark_names` if it has landmarks."""

    @property
    def tasks(self) -> Sequence[str]:
        """Return the task id of each sub-environment."""

    @property
    def instructions(self) -> Sequence[str]:
        """Return the instruction of each sub-environment's episode."""

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin episodes; return the observations and infos of all sub-environments.

        Args:
            seed: One seed or None for each of the N.
            options: `reset_mask` bool [N]: only these; `tasks` and `instructions`: one for each of
                the N, or None.
        """

    def render(self, *, env_ids: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Return pictures of some sub-environments for people, uint8 [n, size, size, 3]."""

    def close(self) -> None:
        """End the workers."""


class SteppedByGroups(VectorEnv, Protocol):
    """A vector environment of which one group can move while the policy decides for another."""

    @property
    def groups(self) -> Sequence[NDArray[Any]]:
        """Return the environment ids of each group."""

    def step_async(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Start the chunks [n, H, A] of sub-environments of one group."""

    def step_wait(self) -> StepResult:
        """Return the rows of the next group that is ready."""


class SteppedAtOnce(VectorEnv, Protocol):
    """A vector environment that is stepped as a whole."""

    def step(
        self, actions: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
    ) -> tuple[
        Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Execute the chunks [N, H, A] where `mask` bool [N] is True; return results of all."""


class HasExpert(VectorEnv, Protocol):
    """A vector environment with a scripted expert."""

    def expert_actions(self, *, style: str, env_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the expert's next chunks, float32 [n, H, A]; no state changes."""


def has_expert(env: VectorEnv) -> TypeGuard[HasExpert]:
    """Return whether an environment has a scripted expert."""
    return hasattr(env, "expert_actions")


def is_stepped_by_groups(env: VectorEnv) -> TypeGuard[SteppedByGroups]:
    """Return whether an environment can be stepped group by group."""
    return all(hasattr(env, name) for name in ("groups", "step_async", "step_wait"))


# --- Stepping -------------------------------------------------------------------------------------


class GroupDriver:
    """Steps a vector environment by groups, so that one can move while the policy decides.

    An environment that can only be stepped at once has one group with every sub-environment.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env = env
        self.num_envs = int(env.num_envs)
        self._boundary = Boundary(self.num_envs, env.single_observation_space)
        self._stepper: SteppedByGroups | _OneGroup = (
            env
            if is_stepped_by_groups(env)
            else _OneGroup(cast("SteppedAtOnce", env), self._boundary)
        )
        self.groups: list[NDArray[np.int64]] = [
            np.asarray(group, dtype=np.int64) for group in self._stepper.groups
        ]
        self._num_steps = 0

    def reset(
        self,
        env_ids: NDArray[np.int64],
        seeds: Sequence[int],
        tasks: Sequence[str],
        instructions: Sequence[str | None],
    ) -> tuple[Observation, list[str], dict[str, Any]]:
        """Reset some sub-environments; return their observations, instructions and infos."""
        n = self.num_envs
        mask = np.zeros(n, dtype=bool)
        mask[env_ids] = True
        options = {
            "reset_mask": mask,
            "tasks": _spread(n, env_ids, tasks),
            "instructions": _spread(n, env_ids, instructions),
        }
        self._boundary.begin(env_ids, tasks, seeds)
        with worker_errors(lambda: f"Reset of {self._boundary.named(env_ids)} failed"):
            observation, infos = self.env.reset(
                seed=_spread(n, env_ids, [int(seed) for seed in seeds]), options=options
            )
            all_instructions, running_tasks = self.env.instructions, self.env.tasks
            infos = _rows(infos, env_ids, n)
            observation = take(observation, env_ids)
        self._boundary.check_tasks(env_ids, tasks, running_tasks)
        self._boundary.check_start(env_ids, observation, infos)
        return observation, [str(all_instructions[i]) for i in env_ids], infos

    def submit(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Start the chunks float32 [n, H, A] of sub-environments that belong to one group."""
        self._boundary.check_actions(actions, env_ids)
        self._num_steps = actions.shape[1]
        with worker_errors(lambda: f"A step of {self._boundary.named(env_ids)} failed"):
            self._stepper.step_async(actions, env_ids)

    def wait(self) -> StepResult:
        """Return the rows of the next group that is ready.

        Their infos have `is_success`: whether the episode succeeded at any of its steps so far.
        """
        with worker_errors("A step failed"):
            env_ids, observation, rewards, terminated, truncated, infos = self._stepper.step_wait()
        infos = self._boundary.check_step(
            env_ids, observation, rewards, (terminated, truncated), infos, self._num_steps
        )
        return env_ids, observation, rewards, terminated, truncated, infos


class _OneGroup:
    """Steps an environment that can only be stepped at once, as one group."""

    def __init__(self, env: SteppedAtOnce, boundary: Boundary) -> None:
        self.env, self._boundary = env, boundary
        self.groups = [np.arange(env.num_envs)]
        self._pending: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None

    def step_async(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        self._pending = (actions, env_ids)

    def step_wait(self) -> StepResult:
        assert self._pending is not None
        (actions, env_ids), self._pending = self._pending, None
        n = self.env.num_envs
        full = np.zeros((n, *actions.shape[1:]), dtype=np.float32)
        full[env_ids] = actions
        mask = np.zeros(n, dtype=bool)
        mask[env_ids] = True
        with worker_errors(lambda: f"A step of {self._boundary.named(env_ids)} failed"):
            observation, rewards, terminated, truncated, infos = self.env.step(full, mask=mask)
        return (
            env_ids,
            take(observation, env_ids),
            rewards[env_ids],
            terminated[env_ids],
            truncated[env_ids],
            _rows(infos, env_ids, n),
        )


def _rows(infos: dict[str, Any], env_ids: NDArray[np.int64], n: int) -> dict[str, Any]:
    """Return the rows of some sub-environments, of those infos that have one for each of n."""
    arrays = {k: np.asarray(v) if isinstance(v, list | tuple) else v for k, v in infos.items()}
    return {key: value[env_ids] for key, value in arrays.items() if _is_per_env(value, n)}


def _spread(n: int, env_ids: NDArray[np.int64], values: Sequence[Any]) -> list[Any]:
    spread: list[Any] = [None] * n
    for i, value in zip(env_ids, values, strict=True):
        spread[i] = value
    return spread


def _is_per_env(value: Any, n: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim >= 1 and value.shape[0] == n


def workers_beside(env: VectorEnv) -> int:
    """Return how many workers of an environment may move while the policy decides.

    With a single group it is 0: then the policy and the environment wait for one another.
    """
    groups = len(GroupDriver(env).groups)
    return groups if groups > 1 else 0


# --- Observations ---------------------------------------------------------------------------------


class LatestObservations:
    """The last observation of each of N sub-environments, which arrive group by group."""

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs
        self._rows: Observation | None = None

    def update(self, env_ids: NDArray[np.int64], observation: Observation) -> None:
        """Store the observations of some sub-environments."""
        if self._rows is None:
            self._rows = take(observation, np.zeros(self._num_envs, dtype=np.int64))
        put(self._rows, env_ids, observation)

    def of(self, env_ids: NDArray[np.int64]) -> Observation:
        """Return copies of the observations of some sub-environments."""
        assert self._rows is not None, "no sub-environment was reset yet"
        return take(self._rows, env_ids)


def take(observation: Observation, env_ids: NDArray[np.int64]) -> Observation:
    """Return copies of the given rows of a host observation."""
    result: Observation = map_arrays(lambda x: np.asarray(x)[env_ids], observation)
    return result


def put(target: Observation, rows: NDArray[np.int64], source: Observation) -> None:
    """Write the rows of `source` into rows `rows` of `target`, in place."""
    for key, value in source.items():
        if isinstance(value, dict):
            put(target[key], rows, value)
        else:
            target[key][rows] = value


def concatenate(observations: Sequence[Observation]) -> Observation:
    """Join host observations along the first axis."""
    first = observations[0]
    return {
        key: concatenate([o[key] for o in observations])
        if isinstance(value, dict)
        else np.concatenate([o[key] for o in observations])
        for key, value in first.items()
    }


def map_arrays(function: Any, tree: Any) -> Any:
    """Apply a function to every array of a host observation."""
    if isinstance(tree, dict):
        return {key: map_arrays(function, value) for key, value in tree.items()}
    return function(tree)
