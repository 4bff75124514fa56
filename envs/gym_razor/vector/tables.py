"""Many tables in parallel: worker processes with shared memory, one OpenGL context each.

A call executes a chunk of actions in the worker and renders once at its end. When a worker dies or
stays silent, the error names the tasks, seeds and actions of its episodes. They are enough to
replay them, because a start state is a pure function of (task, seed).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from gym_razor.suite.scene import LANDMARKS
from gym_razor.suite.tasks import STYLES, TASKS
from gym_razor.vector.pool import Ids, PooledVectorEnv, Request, observation_arrays
from gym_razor.vector.workers import Arrays, by_value

logger = logging.getLogger(__name__)

_VARIABLES = {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class TableSettings:
    """What all tables of a vector environment have in common.

    Attributes:
        image_size: Edge of the square images in pixels.
        max_episode_steps: Time limit in control steps; each task's own if None.
        reward_type: `sparse` or `shaped`.
        render_observations: False leaves the images black (states only).
    """

    image_size: int = 64
    max_episode_steps: int | None = None
    reward_type: str = "sparse"
    render_observations: bool = True


class _TableGroup:
    """The tables of one process.

    What needs MuJoCo is imported here and not with the module: where OpenGL fails, the worker can
    then report it.
    """

    def __init__(self, env_ids: Sequence[int], settings: TableSettings) -> None:
        from gym_razor.suite.env import observation_space
        from gym_razor.suite.episode import Episode

        arrays = {keys[-1]: name for name, keys, _ in observation_arrays(observation_space(1))}
        self._state_array = arrays.pop("agent_pos")
        self._camera_arrays = arrays
        self._settings = settings
        self._free: dict[tuple[str, str], list[Any]] = {}
        self._episodes = {
            env_id: Episode(self._take_world, settings.reward_type) for env_id in env_ids
        }
        self._renderer: Any = None

    def describe(self) -> None:
        """Return nothing: all tables are alike."""

    def attach(self, arrays: Arrays) -> None:
        """Keep the shared arrays."""
        self._arrays = arrays

    def _take_world(self, pair: tuple[str, str]) -> Any:
        from gym_razor.suite.world import World

        free = self._free.setdefault(pair, [])
        return free.pop() if free else World(pair)

    def reset(self, requests: Sequence[Request], new_tasks: Sequence[Any]) -> list[tuple[str, str]]:
        """Start episodes; return task and instruction of each.

        Args:
            requests: The episodes to start.
            new_tasks: Tasks that this process may not know yet.
        """
        TASKS.update({item.fn.id: item.fn for item in new_tasks})
        started = []
        for env_id, seed, task, instruction, _ in requests:
            episode = self._episodes[env_id]
            if hasattr(episode, "world"):
                self._free.setdefault(episode.world.pair, []).append(episode.world)
            assert task is not None
            assert seed is not None
            episode.reset(task, seed, instruction, self._settings.max_episode_steps)
            for name in ("reward", "terminated", "truncated", "physics_error"):
                self._arrays[name][env_id] = 0
            self._arrays["start_state_hash"][env_id] = episode.world.state_hash()
            self._arrays["landmarks_present"][env_id] = episode.world.landmarks_present
            self._observe(env_id)
            started.append((task, episode.instruction))
        self._look([env_id for env_id, *_ in requests])
        return started

    def step(self, env_ids: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
        """Execute each env's chunk; return (env id, state) of those whose physics diverged."""
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
        arrays[self._state_array][env_id] = world.proprioception()
        arrays["is_success"][env_id] = episode.is_success
        arrays["elapsed_steps"][env_id] = episode.elapsed_steps
        arrays["landmarks"][env_id] = world.landmarks()

    def _look(self, env_ids: Sequence[int]) -> None:
        """Render both cameras of each env.

        All envs move before the first is rendered: physics and OpenGL push each other's code and
        tables out of the processor's caches.
        """
        if not self._settings.render_observations:
            return
        arrays, cameras = self._arrays, tuple(self._camera_arrays)
        for env_id in env_ids:
            world = self._episodes[env_id].world
            views = self._view(world).render(world, cameras, self._settings.image_size)
            for name, view in zip(self._camera_arrays.values(), views, strict=True):
                arrays[name][env_id] = view

    def _view(self, world: Any) -> Any:
        if self._renderer is None:
            from gym_razor.suite.render import Renderer

            self._renderer = Renderer(world)
        return self._renderer

    def expert(
        self, env_ids: Sequence[int], style: str, length: int
    ) -> list[npt.NDArray[np.float32]]:
        """Return the expert's next actions, float32 [length, 5] each."""
        return [self._episodes[env_id].expert_actions(style, length) for env_id in env_ids]

    def render(self, env_ids: Sequence[int], size: int) -> list[npt.NDArray[np.uint8]]:
        """Return pictures for people, uint8 [size, size, 3] each."""
        worlds = [self._episodes[env_id].world for env_id in env_ids]
        return [
            np.array(self._view(world).render(world, ("show",), size, fine=True)[0])
            for world in worlds
        ]

    def gl_renderer(self) -> str | None:
        """Return the OpenGL renderer's name, None before the first picture."""
        return None if self._renderer is None else str(self._renderer.name)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()


class RazorVectorEnv(PooledVectorEnv):
    """Parallel tables that execute a chunk of H actions per call and render once at its end.

    Autoreset is DISABLED: a finished env keeps its true final observation until
    `reset(options={"reset_mask": ...})` names it, so that a learner sees the state at the time
    limit. For loops that expect Gymnasium's other modes, wrap it with
    `gym_razor.adapters.autoreset.Autoreset`. `reset` can switch each env to another task of the
    suite.

    Args:
        num_envs: Number of environments N.
        task: Gymnasium id that envs start with.
        num_workers: Worker processes; 0 runs everything in this process.
        chunk_size: Actions per call, H.
        timeout_s: A worker that is silent for longer is reported as hung.
        dump_dir: Where episodes are dumped after a fault; the system's temporary folder if None.
        render_mode: Gymnasium passes it; pictures are always made.
        role: The task's role, from its registration; unused.
        package: The package that registers the task; unused.
        **settings: Fields of `TableSettings`: `image_size`, `max_episode_steps`, `reward_type`,
            `render_observations`.
    """

    expert_styles = tuple(STYLES)
    pure_starts = True
    """Start states are pure functions of (task, seed), and all tasks have the same observations."""

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    _info_names = (*PooledVectorEnv._info_names, "physics_error")

    def __init__(
        self,
        num_envs: int,
        task: str,
        num_workers: int = 2,
        chunk_size: int = 1,
        timeout_s: float = 120.0,
        dump_dir: str | None = None,
        render_mode: str | None = None,
        role: str | None = None,
        package: str | None = None,
        **settings: Any,
    ) -> None:
        from gym_razor.suite.env import ACTION_SPACE, observation_space

        del role, package
        self._settings = TableSettings(**settings)
        self._start(
            lambda ids: functools.partial(_TableGroup, ids, self._settings),
            num_envs,
            chunk_size,
            num_workers,
            timeout_s=timeout_s,
            variables=_worker_variables(),
            dump_dir=dump_dir,
        )
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "landmark_names": list(LANDMARKS)}
        self.tasks = [task] * num_envs
        self._generator = np.random.default_rng()
        self._known_tasks: list[set[str]] = [set() for _ in self.groups]
        self._describe_spaces(observation_space(self._settings.image_size), ACTION_SPACE)
        self._share(len(LANDMARKS), {"physics_error": ((num_envs,), np.bool_)})

    def expert_actions(
        self, style: str = "a", env_ids: Ids | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the scripted expert's next chunks float32 [n, H, 5]; no state changes.

        Args:
            style: `a` (the style of the pretraining data) or `b`.
            env_ids: Environments; None: all.
        """
        return self._expert_chunks(style, env_ids)

    def render(  # type: ignore[override]
        self, env_ids: Ids | None = None, size: int = 256
    ) -> npt.NDArray[np.uint8]:
        """Return pictures for people, uint8 [n, size, size, 3]."""
        return np.stack(self._gather(env_ids, "render", size))

    @property
    def gl_renderer(self) -> str | None:
        """Return the name of the OpenGL renderer; None before the first picture."""
        self._check_idle([0])
        self._send(0, "gl_renderer")
        name: str | None = self._receive(0)
        return name

    def _spread_seed(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if isinstance(seed, int | np.integer):
            self._generator = np.random.default_rng(int(seed))
        return super()._spread_seed(seed)

    def _seed_of_episode(self, seed: int | None) -> int:
        return int(self._generator.integers(2**31 - 1)) if seed is None else int(seed)

    def _check_tasks(self, tasks: Sequence[str | None], mask: npt.NDArray[np.bool_]) -> None:
        for env_id in np.flatnonzero(mask):
            task = tasks[env_id] or self.tasks[env_id]
            if task not in TASKS:
                raise ValueError(f"Unknown task {task!r}; the suite has {', '.join(TASKS)}.")
            self.tasks[env_id] = task

    def _reset_arguments(self, index: int, requests: Sequence[Request]) -> tuple[Any, ...]:
        full: list[Request] = [
            (env_id, seed, self.tasks[env_id], instruction, {})
            for env_id, seed, _, instruction, _ in requests
        ]
        # A task may be another package's, which the worker has not imported: send it once.
        needed = dict.fromkeys(self.tasks[env_id] for env_id, *_ in requests)
        new = [task for task in needed if task not in self._known_tasks[index]]
        self._known_tasks[index].update(new)
        return full, [by_value(TASKS[task]) for task in new]

    def _handle_step_answer(self, answer: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Log the environments whose physics diverged: (id, state)."""
        for env_id, state in answer:
            path = self._dump([env_id], "the physics diverged", {env_id: state})
            logger.warning(
                "The physics of %s (seed %d) diverged; the episode ends as a failure. "
                "State and actions: %s",
                self.tasks[env_id],
                self._seeds[env_id],
                path,
            )


def _worker_variables() -> dict[str, str]:
    """Return the environment variables that a worker needs before it imports OpenGL or BLAS."""
    default_gl = {"MUJOCO_GL": "egl"} if os.name == "posix" else {}
    chosen = {name: os.environ[name] for name in default_gl if name in os.environ}
    return {**_VARIABLES, **default_gl, **chosen}
