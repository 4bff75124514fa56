"""A vector of any Gymnasium environments that is stepped by chunks of actions.

`ChunkedVectorEnv` gives environments that have no vector entry point of their own the interface of
this suite's fast one: `step(actions [N, H, A])` executes H actions per environment and returns the
last observation, finished environments wait for a reset with a mask, and groups of environments
can be stepped while others are thought about.

Axis letters: N environments, H actions per chunk, A action dimensions.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import CloudpickleWrapper, batch_space, create_empty_array
from numpy.typing import NDArray

from gym_razor.vector.faults import (
    NO_GUARD,
    Breach,
    WorkerError,
    check_can_start,
    dump_episodes,
    starting_workers,
    unguarded,
    worker_error,
)
from gym_razor.vector.success import silent_text, told_success

EnvFactory = Callable[[], "gym.Env[Any, Any]"]
Transition = tuple[Any, float, bool, bool, dict[str, Any]]
StepResult = tuple[
    NDArray[np.intp], Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
]


def step_chunk(env: gym.Env[Any, Any], actions: NDArray[np.float32]) -> Transition:
    """Execute a chunk of actions, stopping after the one that ends the episode.

    An environment with the methods `step_without_rendering` and `observe` renders only the
    observation that is returned.

    Args:
        env: The environment.
        actions: float32 [H, A].

    Returns:
        Last observation, sum of the rewards, terminated, truncated, last info. `is_success` in the
        info is True if any action of the chunk succeeded, and absent if none told of success.
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
        told = told_success(info)
        if told is not None:
            success = bool(success) or told
        if terminated or truncated:
            break
    if lean:
        observation = cast("Any", env).observe()
    if success is not None:
        info = {**info, "is_success": success}
    return observation, total, bool(terminated), bool(truncated), info


class _EnvGroup:
    """Some environments of one process."""

    def __init__(self, env_fns: Sequence[EnvFactory]) -> None:
        self.envs = [env_fn() for env_fn in env_fns]
        self._told = [False] * len(self.envs)
        """Which environments have said in this episode whether they succeeded."""

    def describe(self) -> dict[str, Any]:
        env = self.envs[0]
        return {
            "observation_space": env.observation_space,
            "action_space": env.action_space,
            "metadata": dict(env.metadata),
            "render_mode": env.render_mode,
            "switches_tasks": getattr(env, "switches_tasks", False),
        }

    def reset(self, requests: dict[int, tuple[int | None, dict[str, Any]]]) -> dict[int, Any]:
        started = {}
        for row, (seed, options) in requests.items():
            env = self.envs[row]
            observation, info = env.reset(seed=seed, options=options or None)
            words = env.get_wrapper_attr("task_description")
            started[row] = (observation, info, env.get_wrapper_attr("task"), words)
            self._told[row] = False
        return started

    def step(self, rows: Sequence[int], actions: NDArray[np.float32]) -> dict[int, Transition]:
        return {row: self._step(row, chunk) for row, chunk in zip(rows, actions, strict=True)}

    def _step(self, row: int, chunk: NDArray[np.float32]) -> Transition:
        transition = step_chunk(self.envs[row], chunk)
        _, _, terminated, truncated, info = transition
        self._told[row] |= "is_success" in info
        if (terminated or truncated) and not self._told[row]:
            raise Breach(f"{self.envs[row].get_wrapper_attr('task')} {silent_text(info)}")
        return transition

    def render(self, rows: Sequence[int]) -> dict[int, Any]:
        return {row: self.envs[row].render() for row in rows}

    def get(self, name: str) -> list[Any]:
        return [env.get_wrapper_attr(name) for env in self.envs]

    def close(self) -> None:
        for env in self.envs:
            env.close()


def _work(connection: Any, env_fns: Sequence[CloudpickleWrapper]) -> None:
    """Serve one `_EnvGroup` until told to close or the parent is gone."""
    # No threads of software OpenGL: they would fight with the other processes for the cores.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    try:
        group = _EnvGroup([env_fn.fn for env_fn in env_fns])
        connection.send(("ok", group.describe()))
        while True:
            command, arguments = connection.recv()
            result = getattr(group, command)(*arguments)
            connection.send(("ok", result))
            if command == "close":
                return
    except EOFError:
        return
    except BaseException as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        connection.send(("error", text))


class _LocalGroup:
    """Run an `_EnvGroup` in this process behind the interface of `_RemoteGroup`."""

    def __init__(self, env_fns: Sequence[EnvFactory]) -> None:
        self.group = _EnvGroup(env_fns)
        self._results: list[Any] = [self.group.describe()]

    def send(self, command: str, *arguments: Any) -> None:
        self._results.append(getattr(self.group, command)(*arguments))

    def receive(self) -> Any:
        return self._results.pop(0)

    def close(self) -> None:
        self.group.close()


class _Fault(RuntimeError):
    """What went wrong with a worker process."""


class _RemoteGroup:
    """An `_EnvGroup` in a worker process."""

    def __init__(self, env_fns: Sequence[EnvFactory], name: str, timeout_s: float) -> None:
        # Spawn, never fork: a forked OpenGL context or BLAS thread pool hangs.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.name, self.timeout_s = name, timeout_s
        self.last_request = "the construction of its environments"
        self.process = context.Process(
            target=_work,
            args=(theirs, [CloudpickleWrapper(env_fn) for env_fn in env_fns]),
            name=name,
            daemon=True,
        )
        with starting_workers():
            self.process.start()
        theirs.close()

    def send(self, command: str, *arguments: Any) -> None:
        self.last_request = f"{command}{arguments[:1]}"
        try:
            self.connection.send((command, arguments))
        except OSError as error:
            raise self._died() from error

    def receive(self) -> Any:
        if not self.connection.poll(self.timeout_s):
            self.process.kill()
            raise _Fault(
                f"gave no answer for {self.timeout_s:.0f} s after {self.last_request} (a hung "
                "OpenGL call?) and was stopped"
            )
        try:
            status, result = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died() from error
        if status == "error":
            raise _Fault(f"raised {result}")
        return result

    def close(self) -> None:
        if self.process.is_alive():
            try:
                self.connection.send(("close", ()))
                self.process.join(timeout=5)
            except OSError:
                pass
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout=5)
        self.connection.close()

    def _died(self) -> _Fault:
        self.process.join(timeout=1)
        code = self.process.exitcode
        if code == NO_GUARD:
            raise unguarded() from None
        why = " (-9: the system stopped it, usually for memory)" if code == -9 else ""
        return _Fault(f"died with exit code {code}{why} in {self.last_request}")


class ChunkedVectorEnv(VectorEnv[Any, NDArray[np.float32], NDArray[Any]]):
    """Step N environments by chunks of H actions, without automatic resets.

    A finished environment keeps its true final observation and stands still (reward 0, the same
    flags) until `reset` names it in `reset_mask`.

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
            timeout_s: Longest wait for an answer of a worker.

        Raises:
            ValueError: No environment, or a number out of range.
        """
        factories = list(env_fns)
        if not factories:
            raise ValueError("env_fns is empty: give one factory per environment.")
        if chunk_size < 1 or num_workers < 0:
            raise ValueError(
                f"chunk_size is {chunk_size} and num_workers is {num_workers}: give at least 1 "
                "and 0."
            )
        self.num_envs = len(factories)
        self.chunk_size = chunk_size
        shares = np.array_split(np.arange(self.num_envs), max(1, min(num_workers, self.num_envs)))
        self.groups: list[NDArray[np.intp]] = list(shares)
        self._workers: list[_LocalGroup | _RemoteGroup] = []
        self._group_of = np.concatenate(
            [np.full(len(ids), group) for group, ids in enumerate(self.groups)]
        )
        if num_workers > 0:
            check_can_start()
        for number, ids in enumerate(self.groups):
            share = [factories[env_id] for env_id in ids]
            if num_workers == 0:
                self._workers.append(_LocalGroup(share))
            else:
                name = f"Worker {number} (environments {ids[0]}-{ids[-1]})"
                self._workers.append(_RemoteGroup(share, name, timeout_s))
        self._tasks: list[str] = [""] * self.num_envs
        self._instructions: list[str] = [""] * self.num_envs
        self._seeds: list[int | None] = [None] * self.num_envs
        self._history: list[list[Any]] = [[] for _ in factories]
        descriptions = [self._receive(group) for group in range(len(self.groups))]
        self._describe(descriptions[0])
        self._pending: dict[int, NDArray[np.intp]] = {}
        self._observations: list[Any] = [None] * self.num_envs
        self._infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._terminated = np.zeros(self.num_envs, np.bool_)
        self._truncated = np.zeros(self.num_envs, np.bool_)
        self._tasks = cast("list[str]", self._get("task"))
        self._instructions = cast("list[str]", self._get("task_description"))

    def _describe(self, described: Mapping[str, Any]) -> None:
        self.metadata = {
            "landmark_names": [],
            **described["metadata"],
            "autoreset_mode": AutoresetMode.DISABLED,
        }
        self.render_mode = described["render_mode"]
        self._switches_tasks = bool(described["switches_tasks"])
        self.single_observation_space = described["observation_space"]
        action_space = described["action_space"]
        self._chunk_shape = (self.chunk_size, *action_space.shape)
        # With chunks of one action the environment looks like any other vector environment.
        self.single_action_space = (
            action_space if self.chunk_size == 1 else batch_space(action_space, self.chunk_size)
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def tasks(self) -> list[str]:
        """Return the task id of every environment."""
        return list(self._tasks)

    @property
    def instructions(self) -> list[str]:
        """Return the instruction of every environment's current episode."""
        return list(self._instructions)

    def call(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment; nothing may be being stepped."""
        return tuple(self._get(name))

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes.

        Args:
            seed: One seed per environment; an int gives `seed + i` to environment i.
            options: `"reset_mask"` (bool [N], True resets; the others keep their observation),
                `"instructions"` and `"tasks"` (str or None per environment; only environments with
                `switches_tasks` can change theirs); the rest goes to the environments.

        Returns:
            Observations and infos of all environments; zeros of those that were never reset.
        """
        given = dict(options or {})
        mask = _as_mask(given.pop("reset_mask", None), self.num_envs, "reset_mask")
        instructions = given.pop("instructions", None) or [None] * self.num_envs
        tasks = given.pop("tasks", None) or [None] * self.num_envs
        self._check_tasks(tasks)
        seeds = _spread_seed(seed, self.num_envs)
        # Groups without an environment to reset are left alone: they may be being stepped.
        asked = [int(group) for group in np.unique(self._group_of[mask])]
        self._check_idle(asked)
        for group in asked:
            requests = {}
            for row, env_id in enumerate(self.groups[group]):
                if mask[env_id]:
                    words = instructions[env_id]
                    own = {**given, "instruction": words} if words else dict(given)
                    if self._switches_tasks and tasks[env_id] is not None:
                        own["task"] = tasks[env_id]
                    requests[row] = (seeds[env_id], own)
                    self._seeds[env_id], self._history[env_id] = seeds[env_id], []
            self._send(group, "reset", requests)
        for group in asked:
            for row, started in self._receive(group).items():
                env_id = self.groups[group][row]
                self._observations[env_id], self._infos[env_id] = started[:2]
                self._tasks[env_id], self._instructions[env_id] = started[2:]
        self._terminated[mask] = False
        self._truncated[mask] = False
        everyone = np.arange(self.num_envs)
        return self._stack_observations(everyone), self._stack_infos(everyone)

    def step(
        self, actions: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Execute one chunk in every environment that is not finished.

        Args:
            actions: float32 [N, H, A] in [-1, 1], or [N, A] if H is 1.
            mask: bool [N]; only environments with True move. None moves all.

        Returns:
            Observations, rewards summed over the chunk [N], terminated [N], truncated [N], infos.
        """
        moving = np.flatnonzero(_as_mask(mask, self.num_envs, "mask"))
        chunks = np.asarray(actions, np.float32)
        if chunks.shape not in (self.action_space.shape, (self.num_envs, *self._chunk_shape)):
            raise ValueError(
                f"The actions have shape {chunks.shape}, expected {self.action_space.shape} "
                "(environments, chunk, action)."
            )
        rewards = np.zeros(self.num_envs)
        self._check_idle(range(len(self.groups)))
        self._check_reset(np.arange(self.num_envs))
        self.step_async(chunks[moving], moving)
        while self._pending:
            env_ids, _, group_rewards, _, _, _ = self.step_wait()
            rewards[env_ids] = group_rewards
        everyone = np.arange(self.num_envs)
        return (
            self._stack_observations(everyone),
            rewards,
            self._terminated.copy(),
            self._truncated.copy(),
            self._stack_infos(everyone),
        )

    def step_async(self, actions: NDArray[np.float32], env_ids: NDArray[np.intp]) -> None:
        """Start a chunk in some environments; `step_wait` collects the results by group.

        Args:
            actions: float32 [n, H, A] (or [n, A] if H is 1), one chunk per id.
            env_ids: int [n]; whole groups, or parts of them, that are not being stepped already.
        """
        ids = np.asarray(env_ids, np.intp)
        chunks = np.asarray(actions, np.float32).reshape(len(ids), *self._chunk_shape)
        groups = [int(group) for group in np.unique(self._group_of[ids])]
        self._check_idle(groups)
        self._check_reset(ids)
        for group in groups:
            asked = ids[self._group_of[ids] == group]
            own_chunks = chunks[self._group_of[ids] == group]
            active = ~(self._terminated[asked] | self._truncated[asked])
            first = self.groups[group][0]
            for env_id, chunk in zip(asked[active], own_chunks[active], strict=True):
                self._history[env_id].append(chunk.tolist())
            self._send(group, "step", (asked[active] - first).tolist(), own_chunks[active])
            self._pending[group] = asked

    def step_wait(self) -> StepResult:
        """Return (env_ids, observations, rewards, terminated, truncated, infos) of a ready group.

        The rows belong to `env_ids`, which `step_async` was given for that group.
        """
        if not self._pending:
            raise RuntimeError("Nothing is being stepped: call step_async first.")
        group = self._next_ready_group()
        asked = self._pending.pop(group)
        ids = self.groups[group]
        rewards = np.zeros(self.num_envs)
        for row, transition in self._receive(group).items():
            env_id = ids[row]
            self._observations[env_id], rewards[env_id] = transition[0], transition[1]
            self._terminated[env_id], self._truncated[env_id] = transition[2], transition[3]
            self._infos[env_id] = transition[4]
        return (
            asked,
            self._stack_observations(asked),
            rewards[asked],
            self._terminated[asked],
            self._truncated[asked],
            self._stack_infos(asked),
        )

    def render(  # type: ignore[override]
        self, env_ids: Sequence[int] | None = None, size: int | None = None
    ) -> NDArray[np.uint8]:
        """Return the pictures of some environments, uint8 [n, size, size, 3].

        Args:
            env_ids: Environments; None takes all.
            size: Side in pixels; None takes what the environments render. Other sizes are
                sampled from that (nearest pixel).
        """
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids, np.intp)
        groups = [int(group) for group in np.unique(self._group_of[ids])]
        self._check_idle(groups)
        frames: dict[int, Any] = {}
        for group in groups:
            members = self.groups[group]
            rows = (ids[self._group_of[ids] == group] - members[0]).tolist()
            self._send(group, "render", rows)
            frames.update({int(members[row]): frame for row, frame in self._receive(group).items()})
        pictures = np.stack([frames[int(env_id)] for env_id in ids])
        if size is None or size == pictures.shape[1]:
            return pictures
        at = (np.arange(size) + 0.5) * pictures.shape[1] / size
        rows_at = at.astype(np.intp)
        return np.ascontiguousarray(pictures[:, rows_at][:, :, rows_at])

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments and stop the workers."""
        del kwargs
        for worker in self._workers:
            worker.close()

    def _check_idle(self, groups: Iterable[int]) -> None:
        busy = sorted(set(groups) & set(self._pending))
        if busy:
            raise RuntimeError(f"Groups {busy} are being stepped: call step_wait first.")

    def _get(self, name: str) -> list[Any]:
        self._check_idle(range(len(self.groups)))
        groups = range(len(self.groups))
        for group in groups:
            self._send(group, "get", name)
        return [value for group in groups for value in self._receive(group)]

    def _send(self, group: int, command: str, *arguments: Any) -> None:
        try:
            self._workers[group].send(command, *arguments)
        except _Fault as fault:
            raise self._worker_error(group, str(fault)) from fault

    def _receive(self, group: int) -> Any:
        try:
            return self._workers[group].receive()
        except _Fault as fault:
            raise self._worker_error(group, str(fault)) from fault

    def _worker_error(self, group: int, what: str) -> WorkerError:
        """Dump what is needed to replay a faulty worker's episodes, and say so."""
        episodes = [
            {
                "env": int(env_id),
                "task": self._tasks[env_id],
                "seed": self._seeds[env_id],
                "instruction": self._instructions[env_id],
                "actions": self._history[env_id],
            }
            for env_id in self.groups[group]
        ]
        worker = self._workers[group]
        name = worker.name if isinstance(worker, _RemoteGroup) else "The environment"
        return WorkerError(worker_error(name, what, episodes, dump_episodes(what, episodes)))

    def _check_tasks(self, tasks: Sequence[str | None]) -> None:
        wanted = [task for task in tasks if task is not None]
        if not self._switches_tasks and any(
            task not in (None, own) for task, own in zip(tasks, self.tasks, strict=True)
        ):
            raise ValueError(
                f"These environments cannot switch tasks; they run {sorted(set(self.tasks))}, "
                f"asked for {sorted(set(wanted))}. Make one vector environment per task."
            )

    def _next_ready_group(self) -> int:
        for group in self._pending:
            if isinstance(self._workers[group], _LocalGroup):
                return group
        waiting = {
            cast("_RemoteGroup", self._workers[group]).connection: group for group in self._pending
        }
        ready = multiprocessing.connection.wait(list(waiting), self._longest_timeout_s())
        # With none ready, `receive` of the first reports the timeout.
        return waiting[cast("Any", ready[0])] if ready else next(iter(self._pending))

    def _longest_timeout_s(self) -> float:
        return max(w.timeout_s for w in self._workers if isinstance(w, _RemoteGroup))

    def _check_reset(self, env_ids: NDArray[np.intp]) -> None:
        missing = [int(env_id) for env_id in env_ids if self._observations[env_id] is None]
        if missing:
            raise gym.error.ResetNeeded(
                f"Environments {missing} have not been reset: call reset before step."
            )

    def _stack_observations(self, env_ids: NDArray[np.intp]) -> Any:
        return _stack(self.single_observation_space, [self._observations[i] for i in env_ids])

    def _stack_infos(self, env_ids: NDArray[np.intp]) -> dict[str, Any]:
        infos = [self._infos[env_id] for env_id in env_ids]
        stacked: dict[str, Any] = {
            "is_success": np.array([bool(info.get("is_success", False)) for info in infos]),
            "elapsed_steps": np.array([int(info.get("elapsed_steps", 0)) for info in infos]),
        }
        if any("start_state_hash" in info for info in infos):
            hashes = [str(info.get("start_state_hash", "")) for info in infos]
            stacked["start_state_hash"] = np.array(hashes)
        landmarks = len(self.metadata["landmark_names"])
        for name, shape, dtype in (
            ("landmarks", (landmarks, 3), np.float32),
            ("landmarks_present", (landmarks,), np.bool_),
        ):
            rows = [np.asarray(info.get(name, np.zeros(shape)), dtype) for info in infos]
            stacked[name] = np.stack(rows) if rows else np.zeros((0, *shape), dtype)
        return stacked


def _stack(space: gym.Space[Any], rows: Sequence[Any]) -> Any:
    """Stack observations of a (nested) space into new arrays, zeros for those that are None."""
    if isinstance(space, gym.spaces.Dict):
        return {
            key: _stack(space[key], [None if row is None else row[key] for row in rows])
            for key in space
        }
    if not rows:
        return create_empty_array(space, 0)
    blank = cast("Any", create_empty_array(space, 1))[0]
    return np.stack([blank if row is None else row for row in rows])


def _as_mask(mask: Any, num_envs: int, name: str) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(num_envs, np.bool_)
    array = np.asarray(mask)
    if array.shape != (num_envs,) or array.dtype != np.bool_:
        raise ValueError(
            f"{name} has shape {array.shape} and type {array.dtype}: give bool [{num_envs}]."
        )
    return array


def _spread_seed(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + env_id for env_id in range(num_envs)]
    seeds = [None if value is None else int(value) for value in seed]
    if len(seeds) != num_envs:
        raise ValueError(f"{len(seeds)} seeds for {num_envs} environments: give one for each.")
    return seeds
