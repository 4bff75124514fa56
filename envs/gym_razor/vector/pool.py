"""A vector environment in worker processes that is stepped by chunks of actions.

`PooledVectorEnv` owns what all such environments share. Each worker runs one group of environments,
and one group can move while the policy decides for another. The pool spreads masks and seeds, keeps
observations and infos in shared arrays, and lets finished environments stand still. When a worker
dies, hangs or raises, it reports that and dumps what is needed to replay the episodes. Subclasses
make the groups and name the spaces.

Axis letters: N environments, H actions per chunk, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from gym_razor.vector.faults import WorkerError, dump_episodes, worker_error
from gym_razor.vector.workers import (
    Group,
    Layout,
    SharedArrays,
    Worker,
    WorkerFault,
    first_ready,
    start_workers,
)

Ids = NDArray[np.intp]
Infos = dict[str, Any]
Observations = Any
StepResult = tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]
Request = tuple[int, int | None, str | None, str | None, dict[str, Any]]
"""One reset: environment, seed, task (None keeps it), instruction (None: the task's), options."""


class ObservationArray(NamedTuple):
    """One array of an observation: its shared array's name, its path in the tree, its space."""

    name: str
    keys: tuple[str, ...]
    space: gym.Space[Any]


def observation_arrays(
    space: gym.Space[Any], keys: tuple[str, ...] = ()
) -> Iterator[ObservationArray]:
    """Yield the arrays that an observation space consists of.

    Args:
        space: A `Dict`, also of further ones, or a space of arrays of numbers.
        keys: Where it lies in the observation.

    Raises:
        ValueError: A part is not an array of numbers.
    """
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.items():
            yield from observation_arrays(part, (*keys, key))
    elif space.shape is None or space.dtype is None or space.dtype.kind not in "biuf":
        raise ValueError(
            f"The observation {' '.join(keys)} is {space}: only arrays of numbers can be observed."
        )
    else:
        yield ObservationArray(_array_name(keys), keys, space)


def _array_name(keys: tuple[str, ...]) -> str:
    return "/".join(("observation", *keys))


class PooledVectorEnv(VectorEnv[Observations, NDArray[np.float32], NDArray[Any]]):
    """Step N environments by chunks of H actions, without automatic resets.

    A finished environment keeps its true final observation and stands still (reward 0, the same
    flags) until `reset` names it in `reset_mask`.

    A subclass calls `_start`, then `_describe_spaces` and `_share`, in its `__init__`. Its groups
    write observations into the arrays that `observation_arrays` names.

    Attributes:
        groups: Environment ids (int arrays) per worker; they can be stepped separately.
        chunk_size: Actions per decision, H.
        tasks: Task id of every environment.
        instructions: Instruction of every environment's current episode.
    """

    _info_names: tuple[str, ...] = (
        "is_success",
        "elapsed_steps",
        "landmarks",
        "landmarks_present",
    )
    """Shared arrays that `step` and `reset` return as infos of the same name."""

    def _start(
        self,
        make_group: Callable[[list[int]], Callable[[], Group]],
        num_envs: int,
        chunk_size: int,
        num_workers: int,
        *,
        timeout_s: float,
        variables: Mapping[str, str],
        dump_dir: str | Path | None = None,
    ) -> list[Any]:
        """Start the workers.

        Args:
            make_group: Returns for some environment ids the maker of their group; a worker process
                calls that maker.
            num_envs: N.
            chunk_size: H.
            num_workers: Worker processes; 0 runs everything in this process.
            timeout_s: A worker that is silent for longer is reported as hung.
            variables: Environment variables of the worker processes.
            dump_dir: Where episodes are dumped after a fault; the temporary folder if None.

        Returns:
            Each group's answer to `describe`.

        Raises:
            ValueError: A number is out of range.
        """
        if num_envs < 1 or chunk_size < 1 or num_workers < 0:
            raise ValueError(
                f"num_envs is {num_envs}, chunk_size is {chunk_size} and num_workers is "
                f"{num_workers}: the first two must be at least 1, the last at least 0."
            )
        self.num_envs, self.chunk_size = num_envs, chunk_size
        self.tasks: list[str] = [""] * num_envs
        self.instructions: list[str] = [""] * num_envs
        self._dump_dir = dump_dir
        self._seeds: list[int | None] = [None] * num_envs
        self._history: list[list[NDArray[np.float32]]] = [[] for _ in range(num_envs)]
        self._was_reset = np.zeros(num_envs, np.bool_)
        self._pending: dict[int, Ids] = {}
        self._shared: SharedArrays | None = None
        self._workers: list[Worker] = []
        self.groups: list[Ids] = list(
            np.array_split(np.arange(num_envs), max(1, min(num_workers, num_envs)))
        )
        makers = [
            (f"Environment worker {index} ({_span(ids)})", make_group(ids.tolist()))
            for index, ids in enumerate(self.groups)
        ]
        self._workers = start_workers(
            makers, local=num_workers == 0, timeout_s=timeout_s, variables=variables
        )
        return [self._receive(index) for index in range(len(self.groups))]

    def _describe_spaces(self, observation: gym.Space[Any], action: gym.Space[Any]) -> None:
        """Set the spaces from those of one environment and one action."""
        self._chunk_shape = (self.chunk_size, *(action.shape or ()))
        self.single_observation_space = observation
        # With chunks of one action the environment looks like any other vector environment.
        self.single_action_space = (
            action if self.chunk_size == 1 else batch_space(action, self.chunk_size)
        )
        self.observation_space = batch_space(observation, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _share(self, num_landmarks: int, extra: Layout | None = None) -> None:
        """Make the arrays that the workers write into.

        Args:
            num_landmarks: Landmarks that the infos report.
            extra: Further arrays.
        """
        n = self.num_envs
        observation = observation_arrays(self.single_observation_space)
        layout: Layout = {
            **{name: ((n, *(space.shape or ())), space.dtype) for name, _, space in observation},
            "actions": ((n, *self._chunk_shape), np.float32),
            "reward": ((n,), np.float64),
            "terminated": ((n,), np.bool_),
            "truncated": ((n,), np.bool_),
            "is_success": ((n,), np.bool_),
            "elapsed_steps": ((n,), np.int64),
            "landmarks": ((n, num_landmarks, 3), np.float32),
            "landmarks_present": ((n, num_landmarks), np.bool_),
            "start_state_hash": ((n,), np.dtype("U64")),
            **(extra or {}),
        }
        self._shared = SharedArrays(self._workers, layout)
        for index in range(len(self._workers)):
            self._receive(index)
        self._shared.forget_name()
        self._arrays = self._shared.arrays

    @property
    def _memory(self) -> Any:
        return None if self._shared is None else self._shared.memory

    @property
    def _processes(self) -> list[Any]:
        return [worker.process for worker in self._workers if worker.process is not None]

    # ---- what subclasses add ----

    def _check_tasks(self, tasks: Sequence[str | None], mask: NDArray[np.bool_]) -> None:
        """Check the tasks that a reset names (None keeps the present one)."""
        raise NotImplementedError

    def _seed_of_episode(self, seed: int | None) -> int | None:
        """Return the seed of an episode whose reset got `seed`."""
        return None if seed is None else int(seed)

    def _reset_arguments(self, index: int, requests: Sequence[Request]) -> tuple[Any, ...]:
        """Return the arguments of a group's `reset`, which answers with (task, instruction)s."""
        del index
        return (requests,)

    def _handle_step_answer(self, answer: Any) -> None:
        """Handle a group's answer to `step`."""

    # ---- Gymnasium ----

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, Infos]:
        """Start episodes.

        Args:
            seed: One seed per environment; an integer s gives s, s + 1, ...; None draws them.
            options: `reset_mask` (bool [N]; only these start, the others stay as they are), `tasks`
                (per environment a task id, or None to keep its task) and `instructions` (per
                environment a text for the policy, or None for the task's). All other entries go
                to the environments.

        Returns:
            Observations and infos of all environments, zeros for those that were never reset. These
            infos also hold `start_state_hash` where the environments report it: equal for equal
            start states, whatever the instruction.
        """
        rest = dict(options or {})
        mask = _as_mask(rest.pop("reset_mask", None), self.num_envs, "reset_mask")
        tasks = rest.pop("tasks", None) or [None] * self.num_envs
        instructions = rest.pop("instructions", None) or [None] * self.num_envs
        self._check_tasks(tasks, mask)
        seeds = self._spread_seed(seed)
        # Groups without an environment to reset are left alone: they may be in the middle of a
        # step.
        parts = self._by_group(np.flatnonzero(mask))
        self._check_idle(index for index, _ in parts)
        for index, ids in parts:
            requests: list[Request] = []
            for env_id in ids.tolist():
                self._seeds[env_id] = self._seed_of_episode(seeds[env_id])
                self._history[env_id] = []
                requests.append(
                    (env_id, self._seeds[env_id], tasks[env_id], instructions[env_id], rest)
                )
            self._send(index, "reset", *self._reset_arguments(index, requests))
        for index, ids in parts:
            for env_id, episode in zip(ids.tolist(), self._receive(index), strict=True):
                self.tasks[env_id], self.instructions[env_id] = episode
        self._was_reset |= mask
        infos = self._make_infos(None)
        hashes = self._arrays["start_state_hash"]
        if (hashes != "").any():
            infos["start_state_hash"] = hashes.copy()
        return self._make_observations(None), infos

    def step(
        self, actions: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
    ) -> StepResult:
        """Execute one chunk in every environment that is not finished.

        Args:
            actions: float32 [N, H, A], or [N, A] if H is 1.
            mask: bool [N]; only environments with True move. None moves all.

        Returns:
            Observations, rewards summed over the chunk [N], terminated [N], truncated [N] and
            infos, of all environments. Where an environment was not stepped, its reward is 0 and
            the rest is as it was.
        """
        moving = _as_mask(mask, self.num_envs, "mask")
        chunks = np.asarray(actions, np.float32)
        if chunks.shape not in (self.action_space.shape, (self.num_envs, *self._chunk_shape)):
            raise ValueError(
                f"The actions have shape {chunks.shape}, expected {self.action_space.shape} "
                "(environments, chunk, action)."
            )
        self._check_idle(range(len(self.groups)))
        self._check_reset(np.arange(self.num_envs))
        ids = np.flatnonzero(moving)
        self.step_async(chunks[ids], ids)
        while self._pending:
            self._finish_group()
        arrays = self._arrays
        return (
            self._make_observations(None),
            np.where(moving, arrays["reward"], 0.0),
            arrays["terminated"].copy(),
            arrays["truncated"].copy(),
            self._make_infos(None),
        )

    def step_async(self, actions: NDArray[np.float32], env_ids: Ids) -> None:
        """Start a chunk in some environments; `step_wait` returns them group by group.

        Args:
            actions: float32 [n, H, A] (or [n, A] if H is 1), one chunk per id.
            env_ids: int [n]; groups, or parts of groups, that are not moving yet.
        """
        ids = np.asarray(env_ids, np.intp)
        chunks = np.asarray(actions, np.float32).reshape(len(ids), *self._chunk_shape)
        if not np.isfinite(chunks).all():
            raise ValueError("The actions hold NaN or infinity: give finite numbers.")
        parts = self._by_group(ids)
        self._check_idle(index for index, _ in parts)
        self._check_reset(ids)
        arrays = self._arrays
        arrays["actions"][ids] = chunks
        arrays["reward"][ids] = 0.0
        alive = ~(arrays["terminated"] | arrays["truncated"])
        for env_id, chunk, moves in zip(ids.tolist(), chunks.copy(), alive[ids], strict=True):
            if moves:
                self._history[env_id].append(chunk)
        for index, group_ids in parts:
            self._send(index, "step", group_ids[alive[group_ids]].tolist())
            self._pending[index] = group_ids

    def step_wait(
        self,
    ) -> tuple[Ids, Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Wait for the next group that `step_async` started.

        Returns:
            Environment ids, then observations, rewards, terminated, truncated and infos of only
            those environments.
        """
        ids = self._finish_group()
        arrays = self._arrays
        return (
            ids,
            self._make_observations(ids),
            arrays["reward"][ids],
            arrays["terminated"][ids],
            arrays["truncated"][ids],
            self._make_infos(ids),
        )

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the workers and free the shared memory; `terminate=True` does not wait for them."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.stop(kill=bool(kwargs.get("terminate")))
        for worker in workers:
            worker.join()
        self._pending.clear()
        self._arrays = {}
        if self._shared is not None:
            self._shared.close()

    # ---- groups and messages ----

    def _finish_group(self) -> Ids:
        """Wait for a group that is moving; return its environments."""
        if not self._pending:
            raise RuntimeError("No environment is moving: call step_async first.")
        index, ready = first_ready({index: self._workers[index] for index in self._pending})
        answer = self._receive(index, is_ready=ready)
        ids = self._pending.pop(index)
        self._handle_step_answer(answer)
        return ids

    def _gather(
        self, env_ids: Sequence[int] | Ids | None, command: str, *arguments: Any
    ) -> list[Any]:
        """Call a method of the groups; return the answer for each environment, in order.

        Args:
            env_ids: Environments; None: all.
            command: A group's method that takes ids and `arguments`; it returns an answer per id.
            *arguments: The same for all groups.
        """
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids, np.intp)
        parts = self._by_group(ids)
        self._check_idle(index for index, _ in parts)
        for index, group_ids in parts:
            self._send(index, command, group_ids.tolist(), *arguments)
        answers = {
            env_id: answer
            for index, group_ids in parts
            for env_id, answer in zip(group_ids.tolist(), self._receive(index), strict=True)
        }
        return [answers[env_id] for env_id in ids.tolist()]

    def _expert_chunks(
        self, style: str = "a", env_ids: Sequence[int] | Ids | None = None
    ) -> NDArray[np.float32]:
        """Return the scripted expert's next chunks, float32 [n, H, A]; no state changes.

        Args:
            style: One of the environments' `expert_styles`.
            env_ids: Environments; None: all.
        """
        chunks = self._gather(env_ids, "expert", style, self.chunk_size)
        return np.stack([np.asarray(chunk, np.float32) for chunk in chunks])

    def _by_group(self, ids: Ids) -> list[tuple[int, Ids]]:
        """Return the groups that have any of the environments, with those environments."""
        wanted = np.zeros(self.num_envs, np.bool_)
        wanted[ids] = True
        parts = ((index, group[wanted[group]]) for index, group in enumerate(self.groups))
        return [(index, group_ids) for index, group_ids in parts if len(group_ids)]

    def _send(self, index: int, command: str, *arguments: Any) -> None:
        try:
            self._workers[index].send(command, *arguments)
        except WorkerFault as error:
            self._fail(index, error)

    def _receive(self, index: int, *, is_ready: bool = False) -> Any:
        try:
            return self._workers[index].receive(is_ready=is_ready)
        except WorkerFault as error:
            self._fail(index, error)

    def _fail(self, index: int, error: WorkerFault) -> None:
        """Stop everything and report a faulty worker with a dump of its episodes.

        Raises:
            WorkerError: Always.
        """
        worker, ids = self._workers[index], self.groups[index].tolist()
        text = f"{worker.name} {error}."
        if all(self.tasks[env_id] for env_id in ids):  # else no episode has started yet
            episodes = [{"task": self.tasks[i], "seed": self._seeds[i]} for i in ids]
            path = self._dump(ids, str(error))
            text = worker_error(worker.name, str(error), episodes, path)
        self.close(terminate=True)
        raise WorkerError(text) from error

    def _dump(
        self, ids: Sequence[int], reason: str, states: Mapping[int, Any] | None = None
    ) -> Path:
        """Write what is needed to replay some environments' episodes."""
        episodes = [
            {
                "env": env_id,
                "task": self.tasks[env_id],
                "seed": self._seeds[env_id],
                "instruction": self.instructions[env_id],
                "actions": [chunk.tolist() for chunk in self._history[env_id]],
                "state": (states or {}).get(env_id),
            }
            for env_id in ids
        ]
        return dump_episodes(reason, episodes, self._dump_dir)

    # ---- checks and copies ----

    def _check_idle(self, groups: Iterable[int]) -> None:
        busy = sorted(set(groups) & set(self._pending))
        if busy:
            raise RuntimeError(f"Groups {busy} are still moving: call step_wait first.")

    def _check_reset(self, ids: Ids) -> None:
        if not self._was_reset[ids].all():
            missing = ids[~self._was_reset[ids]].tolist()
            raise gym.error.ResetNeeded(
                f"Environments {missing} have not been reset: call reset before step."
            )

    def _spread_seed(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + env_id for env_id in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(
                f"There are {len(seed)} seeds for {self.num_envs} environments: give one for each."
            )
        return seed

    def _make_observations(self, ids: Ids | None) -> Observations:
        """Return observations of some environments, all if None."""
        return self._observation_tree(self.single_observation_space, (), ids)

    def _observation_tree(
        self, space: gym.Space[Any], keys: tuple[str, ...], ids: Ids | None
    ) -> Observations:
        if isinstance(space, gym.spaces.Dict):
            return {
                key: self._observation_tree(part, (*keys, key), ids) for key, part in space.items()
            }
        return self._copy(_array_name(keys), ids)

    def _make_infos(self, ids: Ids | None) -> Infos:
        return {name: self._copy(name, ids) for name in self._info_names}

    def _copy(self, name: str, ids: Ids | None) -> NDArray[Any]:
        """Return a copy of a shared array's rows, all if None; workers go on writing into it."""
        array = self._arrays[name]
        copied: NDArray[Any] = array.copy() if ids is None else array.take(ids, axis=0)
        return copied


def _span(ids: Ids) -> str:
    first, last = int(ids[0]), int(ids[-1])
    return f"environment {first}" if first == last else f"environments {first}-{last}"


def _as_mask(mask: Any, num_envs: int, name: str) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(num_envs, np.bool_)
    array = np.asarray(mask)
    if array.shape != (num_envs,) or array.dtype != np.bool_:
        raise ValueError(
            f"`{name}` is {array.dtype} of shape {array.shape}: give bool of shape ({num_envs},)."
        )
    return array
