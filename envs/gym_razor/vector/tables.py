"""Many tables in parallel: worker processes with shared memory, one OpenGL context each.

A call executes a whole chunk of actions in the worker and renders once at its end. Workers are
spawned, never forked (a forked OpenGL context hangs), and watched: a worker that dies or stays
silent is reported with the tasks, seeds and actions of its episodes, which are enough to replay
them because a start state is a pure function of (task, seed).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from gym_razor.vector.faults import (
    NO_GUARD,
    WorkerError,
    check_can_start,
    dump_episodes,
    starting_workers,
    unguarded,
    worker_error,
)

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]
Infos = dict[str, Any]

CAMERAS = ("front", "wrist")
ACTION_DIM, STATE_DIM = 5, 7
_WORKER_ENVIRONMENT = {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _layout(
    num_envs: int, image_size: int, chunk_size: int, num_landmarks: int
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape and dtype of each shared array."""
    image = (num_envs, image_size, image_size, 3)
    return {
        "front": (image, np.uint8),
        "wrist": (image, np.uint8),
        "agent_pos": ((num_envs, STATE_DIM), np.float32),
        "actions": ((num_envs, chunk_size, ACTION_DIM), np.float32),
        "expert": ((num_envs, chunk_size, ACTION_DIM), np.float32),
        "reward": ((num_envs,), np.float64),
        "terminated": ((num_envs,), np.bool_),
        "truncated": ((num_envs,), np.bool_),
        "is_success": ((num_envs,), np.bool_),
        "physics_error": ((num_envs,), np.bool_),
        "elapsed_steps": ((num_envs,), np.int64),
        "landmarks": ((num_envs, num_landmarks, 3), np.float32),
        "landmarks_present": ((num_envs, num_landmarks), np.bool_),
        "start_state_hash": ((num_envs,), np.dtype("U16")),
    }


def _map_arrays(
    memory: SharedMemory | None, layout: dict[str, tuple[tuple[int, ...], Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Lay the arrays into one block of shared memory (or plain memory if None)."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in layout.items():
        if memory is None:
            arrays[name] = np.zeros(shape, dtype)
        else:
            arrays[name] = np.ndarray(shape, dtype, buffer=memory.buf, offset=offset)
            offset += -(-arrays[name].nbytes // 64) * 64
    return arrays


def _memory_size(layout: dict[str, tuple[tuple[int, ...], Any]]) -> int:
    return sum(
        -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64
        for shape, dtype in layout.values()
    )


class _Worker:
    """The episodes of one process; also used in-process when `num_workers` is 0."""

    def __init__(
        self, arrays: dict[str, npt.NDArray[Any]], env_ids: Sequence[int], settings: dict[str, Any]
    ) -> None:
        from gym_razor.suite.episode import Episode

        self._arrays = arrays
        self._image_size: int = settings["image_size"]
        self._max_episode_steps: int | None = settings["max_episode_steps"]
        self._render: bool = settings["render_observations"]
        self._free: dict[tuple[str, str], list[Any]] = {}
        self._episodes = {
            env_id: Episode(self._take_world, settings["reward_type"]) for env_id in env_ids
        }
        self._renderer: Any = None

    def _take_world(self, pair: tuple[str, str]) -> Any:
        from gym_razor.suite.world import World

        free = self._free.setdefault(pair, [])
        return free.pop() if free else World(pair)

    def reset(self, rows: Sequence[tuple[int, str, int, str | None]]) -> list[str]:
        """Start episodes (rows: env id, task id, seed, own words); returns the instructions."""
        words = []
        for env_id, task, seed, instruction in rows:
            episode = self._episodes[env_id]
            if hasattr(episode, "world"):
                self._free.setdefault(episode.world.pair, []).append(episode.world)
            episode.reset(task, seed, instruction, self._max_episode_steps)
            for name in ("reward", "terminated", "truncated", "physics_error"):
                self._arrays[name][env_id] = 0
            self._arrays["start_state_hash"][env_id] = episode.world.state_hash()
            self._arrays["landmarks_present"][env_id] = episode.world.landmarks_present
            self._observe(env_id)
            words.append(episode.instruction)
        self._look([env_id for env_id, *_ in rows])
        return words

    def step(self, env_ids: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
        """Execute each env's chunk; returns (env id, state) of those whose physics diverged."""
        arrays, faults = self._arrays, []
        for env_id in env_ids:
            episode = self._episodes[env_id]
            result = episode.step(arrays["actions"][env_id])
            arrays["reward"][env_id] = result.reward
            arrays["terminated"][env_id] = result.terminated
            arrays["truncated"][env_id] = result.truncated
            arrays["physics_error"][env_id] = result.physics_error
            if result.physics_error:
                faults.append((env_id, episode.world.snapshot()))
            else:
                self._observe(env_id)
        diverged = {env_id for env_id, _ in faults}
        self._look([env_id for env_id in env_ids if env_id not in diverged])
        return faults

    def _observe(self, env_id: int) -> None:
        arrays, episode = self._arrays, self._episodes[env_id]
        world = episode.world
        arrays["agent_pos"][env_id] = world.proprioception()
        arrays["is_success"][env_id] = episode.is_success
        arrays["elapsed_steps"][env_id] = episode.elapsed_steps
        arrays["landmarks"][env_id] = world.landmarks()

    def _look(self, env_ids: Sequence[int]) -> None:
        """Render both cameras of each env.

        All envs are rendered after all have moved: physics and OpenGL push each other's code and
        tables out of the processor's caches.
        """
        if not self._render:
            return
        arrays = self._arrays
        for env_id in env_ids:
            world = self._episodes[env_id].world
            views = self._view(world).render(world, CAMERAS, self._image_size)
            for name, view in zip(CAMERAS, views, strict=True):
                arrays[name][env_id] = view

    def _view(self, world: Any) -> Any:
        if self._renderer is None:
            from gym_razor.suite.render import Renderer

            self._renderer = Renderer(world)
        return self._renderer

    def expert(self, env_ids: Sequence[int], style: str) -> None:
        """Write each env's expert chunk into the shared array."""
        for env_id in env_ids:
            chunk = self._arrays["expert"].shape[1]
            self._arrays["expert"][env_id] = self._episodes[env_id].expert_actions(style, chunk)

    def render(self, env_ids: Sequence[int], size: int) -> npt.NDArray[np.uint8]:
        """Return pictures for people, uint8 [n, size, size, 3]."""
        worlds = [self._episodes[env_id].world for env_id in env_ids]
        return np.stack(
            [self._view(world).render(world, ("show",), size, fine=True)[0] for world in worlds]
        )

    def gl_renderer(self) -> str | None:
        """Return the OpenGL renderer's name, None before the first picture."""
        return None if self._renderer is None else str(self._renderer.name)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()


def _serve(
    connection: Connection, memory_name: str, env_ids: list[int], settings: dict[str, Any]
) -> None:
    """Run a worker process until told to close or until the parent is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    memory = SharedMemory(name=memory_name)
    try:
        worker = _Worker(_map_arrays(memory, settings["layout"]), env_ids, settings)
        connection.send(("ok", None))
        while True:
            command, arguments = connection.recv()
            if command == "close":
                break
            if command == "fault":  # for tests of the watchdog
                os._exit(3) if arguments == "die" else time.sleep(3600)
            connection.send(("ok", getattr(worker, command)(*arguments)))
        worker.close()
    except (EOFError, BrokenPipeError):  # the parent is gone
        worker.close()
    except Exception as error:
        import traceback

        with contextlib.suppress(OSError):
            connection.send(("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """Set what a spawned worker must find before it imports OpenGL or BLAS."""
    wanted = dict(_WORKER_ENVIRONMENT)
    if os.name == "posix" and "MUJOCO_GL" not in os.environ:
        wanted["MUJOCO_GL"] = "egl"
    saved = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class RazorVectorEnv(VectorEnv[dict[str, Any], npt.NDArray[np.float32], npt.NDArray[Any]]):
    """Parallel tables that execute a chunk of H actions per call and render once at its end.

    Autoreset is DISABLED: a finished env keeps its true final observation until it is reset through
    `reset(options={"reset_mask": ...})`, so that a learner sees what the time limit cut off; wrap
    with `gym_razor.adapters.autoreset.Autoreset` for loops that expect Gymnasium's other modes.

    Args:
        num_envs: Number of environments N.
        task: Gymnasium id that envs start with; `reset` can switch each env to another task of the
            suite.
        num_workers: Worker processes; 0 runs everything in this process.
        chunk_size: Actions per call, H.
        image_size: Edge of the square images in pixels.
        max_episode_steps: Time limit in control steps; each task's own if None.
        reward_type: `sparse` or `shaped`.
        render_observations: False leaves the images black (states only).
        timeout_s: A worker silent for longer is reported as hung.
        dump_dir: Where episodes are dumped after a fault; the system's temporary folder if None.
        role: Of the task, from its registration; unused.
    """

    expert_styles = ("a", "b")
    pure_starts = True
    """Start states are pure functions of (task, seed), and all tasks give the same things."""

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        num_envs: int,
        task: str,
        num_workers: int = 2,
        chunk_size: int = 1,
        image_size: int = 64,
        max_episode_steps: int | None = None,
        reward_type: str = "sparse",
        render_observations: bool = True,
        timeout_s: float = 120.0,
        dump_dir: str | None = None,
        role: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        from gym_razor.suite.env import ACTION_SPACE, observation_space
        from gym_razor.suite.scene import LANDMARKS

        del role
        if num_envs < 1 or chunk_size < 1 or num_workers < 0:
            raise ValueError(
                f"num_envs={num_envs}, chunk_size={chunk_size}, num_workers={num_workers}: "
                "the first two must be at least 1, the last at least 0."
            )
        self.num_envs = num_envs
        self.chunk_size = chunk_size
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "landmark_names": list(LANDMARKS)}
        self.single_observation_space = observation_space(image_size)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (chunk_size, ACTION_DIM), np.float32)
        if chunk_size == 1:
            self.single_action_space = ACTION_SPACE
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tasks: list[str] = [task] * num_envs
        self.instructions: list[str] = [""] * num_envs
        self._seeds = [0] * num_envs
        self._history: list[list[npt.NDArray[np.float32]]] = [[] for _ in range(num_envs)]
        self._generator = np.random.default_rng()
        self._timeout_s = timeout_s
        self._render_observations = render_observations
        self._dump_dir = dump_dir
        layout = _layout(num_envs, image_size, chunk_size, len(LANDMARKS))
        settings = {
            "layout": layout,
            "image_size": image_size,
            "max_episode_steps": max_episode_steps,
            "reward_type": reward_type,
            "render_observations": render_observations,
        }
        count = max(1, min(num_workers, num_envs))
        self.groups: list[Ids] = [
            ids.astype(np.int64) for ids in np.array_split(np.arange(num_envs), count)
        ]
        self._memory: SharedMemory | None = None
        self._linked = True
        self._local: _Worker | None = None
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._pending: dict[int, tuple[str, Ids]] = {}
        if num_workers == 0:
            self._arrays = _map_arrays(None, layout)
            self._local = _Worker(self._arrays, range(num_envs), settings)
        else:
            check_can_start()
            self._memory = SharedMemory(create=True, size=_memory_size(layout))
            self._arrays = _map_arrays(self._memory, layout)
            self._start_workers(settings)

    def _start_workers(self, settings: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        assert self._memory is not None
        with starting_workers(), _worker_environment():
            for index, ids in enumerate(self.groups):
                mine, theirs = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(theirs, self._memory.name, [int(i) for i in ids], settings),
                    name=f"gym_razor-{index}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._connections.append(mine)
                self._processes.append(process)
        for index, ids in enumerate(self.groups):
            self._pending[index] = ("start", ids)
        while self._pending:
            self._receive()
        # All have it open now, and it stays mapped: nothing is left behind, whatever is killed.
        self._memory.unlink()
        self._linked = False

    # ---- messages ----

    def _send(self, index: int, command: str, ids: Ids, *arguments: Any) -> None:
        if index in self._pending:
            raise RuntimeError(
                "step_wait() must be called before this worker gets another command."
            )
        self._pending[index] = (command, ids)
        with contextlib.suppress(BrokenPipeError):  # _receive reports the dead worker
            self._connections[index].send((command, arguments))

    def _receive(self, among: Sequence[int] | None = None) -> tuple[int, Ids, Any]:
        """Wait for the first worker (of `among`, or all): its index, env ids and answer."""
        waiting = {
            self._connections[index]: index for index in (self._pending if among is None else among)
        }
        ready = wait(list(waiting), timeout=self._timeout_s)
        if not ready:
            index = next(iter(waiting.values()))
            self._fail(
                index,
                f"gave no answer for {self._timeout_s:.0f} s (a hung OpenGL call?) and was stopped",
            )
        index = min(waiting[connection] for connection in ready)  # type: ignore[index]
        try:
            status, answer = self._connections[index].recv()
        except (EOFError, OSError):
            status, answer = "died", None
        if status == "died":
            self._processes[index].join(timeout=5)
            code = self._processes[index].exitcode
            if code == NO_GUARD:
                self.close(terminate=True)
                raise unguarded()
            self._fail(index, f"died (exit code {code})")
        if status == "error":
            self._fail(index, f"raised {answer}")
        _, ids = self._pending.pop(index)
        return index, ids, answer

    def _fail(self, index: int, what: str) -> None:
        ids = self.groups[index]
        path = self._dump([int(i) for i in ids], reason=what)
        self.close(terminate=True)
        episodes = [{"task": self.tasks[i], "seed": self._seeds[i]} for i in ids]
        raise WorkerError(worker_error(f"Environment worker {index}", what, episodes, path))

    def _dump(
        self, env_ids: Sequence[int], reason: str, states: dict[int, Any] | None = None
    ) -> Path:
        """Write what is needed to replay the episodes."""
        rows = [
            {
                "env": env_id,
                "task": self.tasks[env_id],
                "seed": self._seeds[env_id],
                "instruction": self.instructions[env_id],
                "actions": [chunk.tolist() for chunk in self._history[env_id]],
                "state": (states or {}).get(env_id),
            }
            for env_id in env_ids
        ]
        return dump_episodes(reason, rows, self._dump_dir)

    # ---- Gymnasium ----

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], Infos]:
        """Start episodes.

        Args:
            seed: One seed per env, or one integer s for s, s+1, ...; None draws them.
            options: `reset_mask` bool [N]: only these; `tasks`: per env a task id or None to keep;
                `instructions`: per env own words or None; lists have length N.

        Returns:
            Observations and infos of all envs; these infos also hold `start_state_hash`, equal for
            equal physics states and looks, whatever the instruction.
        """
        options = options or {}
        mask = np.asarray(
            options.get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)), dtype=np.bool_
        )
        tasks = options.get("tasks") or [None] * self.num_envs
        words = options.get("instructions") or [None] * self.num_envs
        seeds = self._spread_seed(seed)
        from gym_razor.suite.tasks import TASKS

        for env_id in np.flatnonzero(mask):
            task = tasks[env_id] or self.tasks[env_id]
            if task not in TASKS:
                raise ValueError(f"Unknown task {task!r}; the suite has {', '.join(TASKS)}.")
            self.tasks[env_id] = task
            drawn = seeds[env_id]
            self._seeds[env_id] = (
                int(self._generator.integers(2**31 - 1)) if drawn is None else int(drawn)
            )
            self._history[env_id] = []
        sent: list[
            int
        ] = []  # other groups may be in the middle of a step, whose answers are not ours
        for index, group in enumerate(self.groups):
            ids = group[mask[group]]
            rows = [(int(i), self.tasks[i], self._seeds[i], words[i]) for i in ids]
            if not rows:
                continue
            if self._local is not None:
                self._keep_instructions(ids, self._local.reset(rows))
            else:
                self._send(index, "reset", ids, rows)
                sent.append(index)
        while sent:
            index, ids, answer = self._receive(sent)
            sent.remove(index)
            self._keep_instructions(ids, answer)
        hashes = np.array(self._arrays["start_state_hash"])
        return self._observations(None), {**self._infos(None), "start_state_hash": hashes}

    def _keep_instructions(self, ids: Ids, words: Sequence[str]) -> None:
        for env_id, text in zip(ids, words, strict=True):
            self.instructions[env_id] = text

    def _spread_seed(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            self._generator = np.random.default_rng(int(seed))
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(
                f"Got {len(seed)} seeds for {self.num_envs} environments; give one for each."
            )
        return seed

    def step(
        self, actions: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[
        dict[str, Any], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], Infos
    ]:
        """Execute a chunk in every env (or in those with `mask` True).

        Args:
            actions: float32 [N, H, 5] in [-1, 1], or [N, 5] if H is 1.
            mask: bool [N], True steps that env.

        Returns:
            Observations, summed rewards [N] (0 where not stepped), terminated [N], truncated [N]
            (as they last were where not stepped), infos, for all envs.
        """
        moved = np.ones(self.num_envs, np.bool_) if mask is None else np.asarray(mask, np.bool_)
        ids = np.flatnonzero(moved)
        self.step_async(np.asarray(actions)[ids], ids)
        while self._pending:
            self.step_wait()
        arrays = self._arrays
        return (
            self._observations(None),
            np.where(moved, arrays["reward"], 0.0),
            arrays["terminated"].copy(),
            arrays["truncated"].copy(),
            self._infos(None),
        )

    def step_async(self, actions: npt.NDArray[np.float32], env_ids: Ids) -> None:
        """Send chunks to some envs without waiting; `step_wait` returns them group by group.

        Args:
            actions: float32 [len(env_ids), H, 5] (or [len(env_ids), 5] if H is 1).
            env_ids: Envs to step; whole groups or parts of them, see `groups`.
        """
        chunks = np.asarray(actions, dtype=np.float32).reshape(
            len(env_ids), self.chunk_size, ACTION_DIM
        )
        if not np.isfinite(chunks).all():
            raise ValueError("Actions must be finite; got NaN or infinity from the policy.")
        self._arrays["actions"][env_ids] = chunks
        for env_id, chunk in zip(env_ids, chunks.copy(), strict=True):
            self._history[env_id].append(chunk)
        for index, ids in self._by_worker(env_ids):
            if self._local is not None:
                self._report_faults(self._local.step(ids.tolist()))
                self._pending[index] = ("step", ids)
            else:
                self._send(index, "step", ids, ids.tolist())

    def step_wait(
        self,
    ) -> tuple[
        Ids,
        dict[str, Any],
        npt.NDArray[np.float64],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        Infos,
    ]:
        """Wait for the next group that `step_async` sent.

        Returns:
            Env ids, then observations, rewards, terminated, truncated and infos of those envs only.
        """
        if self._local is not None:
            _, ids = self._pending.pop(next(iter(self._pending)))
        else:
            _, ids, faults = self._receive()
            self._report_faults(faults)
        arrays = self._arrays
        return (
            ids,
            self._observations(ids),
            arrays["reward"][ids],
            arrays["terminated"][ids],
            arrays["truncated"][ids],
            self._infos(ids),
        )

    def _report_faults(self, faults: Sequence[tuple[int, dict[str, Any]]]) -> None:
        for env_id, state in faults:
            path = self._dump([env_id], "the physics diverged", {env_id: state})
            logger.warning(
                "The physics of %s (seed %d) diverged; the episode ends as a failure. "
                "State and actions: %s",
                self.tasks[env_id],
                self._seeds[env_id],
                path,
            )

    def expert_actions(
        self, style: str = "a", env_ids: Ids | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the scripted expert's next chunks float32 [n, H, 5]; states stay as they are.

        Args:
            style: `a` (the pretraining data's annotator) or `b` (the other one).
            env_ids: Which envs; all if None.
        """
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        sent: list[int] = []
        for index, mine in self._by_worker(ids):
            if self._local is not None:
                self._local.expert([int(i) for i in mine], style)
            else:
                self._send(index, "expert", mine, [int(i) for i in mine], style)
                sent.append(index)
        while sent:
            sent.remove(self._receive(sent)[0])
        chunks: npt.NDArray[np.float32] = self._arrays["expert"][ids]
        return chunks

    def render(  # type: ignore[override]
        self, env_ids: Ids | None = None, size: int = 256
    ) -> npt.NDArray[np.uint8]:
        """Return pictures for people, uint8 [n, size, size, 3]."""
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        pictures = np.empty((len(ids), size, size, 3), dtype=np.uint8)
        place = {int(env_id): row for row, env_id in enumerate(ids)}
        sent: list[int] = []
        for index, mine in self._by_worker(ids):
            if self._local is not None:
                pictures[[place[int(i)] for i in mine]] = self._local.render(
                    [int(i) for i in mine], size
                )
            else:
                self._send(index, "render", mine, [int(i) for i in mine], size)
                sent.append(index)
        while sent:
            index, mine, answer = self._receive(sent)
            sent.remove(index)
            pictures[[place[int(i)] for i in mine]] = answer
        return pictures

    @property
    def gl_renderer(self) -> str | None:
        """Return the name of the OpenGL renderer; None before the first picture."""
        if self._local is not None:
            return self._local.gl_renderer()
        self._send(0, "gl_renderer", self.groups[0])
        name: str | None = self._receive([0])[2]
        return name

    def _by_worker(self, ids: Ids) -> Iterator[tuple[int, Ids]]:
        """Yield the workers that have any of the envs, with those envs."""
        wanted = np.zeros(self.num_envs, np.bool_)
        wanted[ids] = True
        for index, group in enumerate(self.groups):
            mine = group[wanted[group]]
            if len(mine):
                yield index, mine

    def _observations(self, ids: Ids | None) -> dict[str, Any]:
        agent_pos = self._taken("agent_pos", ids)
        if self._render_observations:
            pixels = {name: self._taken(name, ids) for name in CAMERAS}
        else:
            shape = (len(agent_pos), *self._arrays[CAMERAS[0]].shape[1:])
            pixels = {name: np.zeros(shape, np.uint8) for name in CAMERAS}
        return {"agent_pos": agent_pos, "pixels": pixels}

    def _infos(self, ids: Ids | None) -> Infos:
        names = ("is_success", "elapsed_steps", "landmarks", "landmarks_present", "physics_error")
        return {name: self._taken(name, ids) for name in names}

    def _taken(self, name: str, ids: Ids | None) -> npt.NDArray[Any]:
        """Copy a shared array's rows, all if None; what a worker writes later does not show."""
        array = self._arrays[name]
        copied: npt.NDArray[Any] = array.copy() if ids is None else array.take(ids, axis=0)
        return copied

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the workers and free the shared memory; `terminate=True` does not wait for them."""
        terminate = bool(kwargs.get("terminate"))
        for connection, process in zip(self._connections, self._processes, strict=True):
            with contextlib.suppress(OSError, BrokenPipeError):
                if not terminate:
                    connection.send(("close", None))
            if terminate:
                process.kill()
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join(timeout=5)
            connection.close()
        self._connections, self._processes = [], []
        self._pending.clear()
        if self._local is not None:
            self._local.close()
        self._arrays = {}
        if self._memory is not None:
            with contextlib.suppress(BufferError):
                self._memory.close()
            if self._linked:
                self._memory.unlink()
            self._memory = None
