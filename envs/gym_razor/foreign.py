"""Foreign Gymnasium environments behind the observation and episode contract of this suite.

`ContractEnv` takes single environments that follow LeRobot's conventions (`pixels` as one image or
a dictionary of cameras, `agent_pos`, `task_description`, `info["is_success"]`) and gives what this
suite's own environments give, so that `ChunkedVectorEnv` can step them in worker processes. Nothing
here imports LeRobot or torch; a worker imports them only if a factory's environment does.

What happens in an episode depends on (task, seed) as far as the environment lets it: the seed goes
to its `reset`, and Python's and numpy's global generators are seeded from (task, seed) and are the
environment's own during every call, for environments that draw from those.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from gym_razor.chunked import ChunkedVectorEnv
from gym_razor.pictures import into_square, resize

EnvFactory = Callable[[], "gym.Env[Any, Any]"]

LONE_CAMERA = "observation.image"
"""Camera of an environment whose `pixels` are one image: LeRobot's whole name, it has no other."""

WORKER_TIMEOUT_S = 300.0
"""Longest wait for a worker: making an environment may import a whole simulator."""


class ContractEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """Run one of several foreign tasks as an environment of this suite.

    Observation: `{"pixels": {camera: uint8 [h, w, 3]}, "agent_pos": float32 [S]}`, and the foreign
    environment's other number arrays under their own keys. `agent_pos` has size 0 where there is
    none.

    Action: the foreign environment's own.

    Reward: `"sparse"`: 1 at the action that succeeds, else 0. `"shaped"`: the environment's own.

    Success: `info["is_success"]`. It ends the episode, as LeRobot counts an episode that succeeded
    at any time.

    Termination: on success, and when the environment says so. Truncation: when it says so, or
    after its time limit; the observation is then the true last one.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - see gymnasium
    switches_tasks = True

    def __init__(
        self,
        factories: Mapping[str, EnvFactory],
        *,
        image_shape: tuple[int, int] | None = None,
        max_episode_steps: int | None = None,
        reward_type: str = "sparse",
        render_size: int = 256,
        fast_images: bool = False,
    ) -> None:
        """Build the first task's environment.

        Args:
            factories: Task id -> maker of its environment; `reset` can switch between them.
            image_shape: Height and width that images are scaled to; None keeps the environment's.
            max_episode_steps: Time limit in actions; None takes the environment's own.
            reward_type: `"sparse"` or `"shaped"`.
            render_size: Side of the picture that `render` returns, pixels.
            fast_images: Let an environment that renders with Gymnasium's MuJoCo renderer
                (Meta-World) do so without shadows and multisampling, and at `image_shape` if there
                is one. That is several times faster in software, but another picture than
                LeRobot's.
        """
        self._fast_images = fast_images
        self.renders_fast = False
        self._factories = dict(factories)
        self._image_shape = image_shape
        self._given_limit = max_episode_steps
        self._reward_type = reward_type
        self._render_size = render_size
        self.render_mode = "rgb_array"
        self._elapsed = 0
        self._words: str | None = None
        self._raw: Any = None
        self._generators: tuple[Any, Any] | None = None
        self._env: gym.Env[Any, Any] | None = None
        self._open(next(iter(self._factories)))
        self._space = self._offered()
        self.observation_space = self._space
        self.action_space = self._inner().action_space
        self.metadata = {**self.metadata, **self._inner().metadata}

    @property
    def task_description(self) -> str:
        """Return the instruction of the current episode (LeRobot's rule, or the user's words)."""
        if self._words is not None:
            return self._words
        words = _attribute(self._inner(), "task_description")
        return str(words or _attribute(self._inner(), "task") or "")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Goes to the environment. None draws one from this environment's generator.
            options: `"task"` switches to another of the tasks, `"instruction"` replaces the words;
                the rest goes to the environment.
        """
        given = dict(options or {})
        task = given.pop("task", None) or self.task
        self._words = given.pop("instruction", None)
        if task != self.task:
            self._switch(task)
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        env = self._inner()
        if hasattr(env.unwrapped, "init_state_id"):  # LIBERO counts resets: let the seed choose
            env.unwrapped.init_state_id = number
        more = {"options": given} if given else {}
        self._generators = _seeded(zlib.crc32(task.encode()), number)
        with self._own_generators(), _unformatted(env, "_format_raw_obs"):
            self._raw, _ = env.reset(seed=number, **more)
        self._elapsed = 0
        self.renders_fast = self._fast_images and self._render_fast()
        info = {"is_success": False, "elapsed_steps": 0, "start_state_hash": _hash(self._raw)}
        return self.observe(), info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one action."""
        reward, terminated, truncated, info = self.step_without_rendering(action)
        return self.observe(), reward, terminated, truncated, info

    def step_without_rendering(
        self, action: NDArray[np.float32]
    ) -> tuple[float, bool, bool, dict[str, Any]]:
        """Do as `step`, but leave out what only the observation is for.

        The last action of a chunk alone needs one. Environments that draw their picture inside
        `step` draw it all the same, but it is not scaled; `_unformatted` says which are asked not
        to.
        """
        env = self._inner()
        with self._own_generators(), _unformatted(env, "_format_raw_obs", "reset"):
            self._raw, reward, terminated, truncated, info = env.step(
                np.asarray(action, np.float32)
            )
        if "is_success" not in info:
            raise ValueError(
                f"{self.task} tells no success: its info has {sorted(info)}, but no 'is_success'."
            )
        self._elapsed += 1
        success = bool(info["is_success"])
        ended = success or bool(terminated)
        out_of_time = bool(truncated) or (self._limit is not None and self._elapsed >= self._limit)
        if self._reward_type == "sparse":
            reward = float(success)
        told = {"is_success": success, "elapsed_steps": self._elapsed}
        return float(reward), ended, out_of_time and not ended, told

    def observe(self) -> dict[str, Any]:
        """Return the observation that the last step led to."""
        env = self._inner()
        if not _formats_late(env):
            return self._observe(self._raw)
        with self._own_generators():
            return self._observe(env._format_raw_obs(self._raw))  # type: ignore[attr-defined]

    def render(self) -> NDArray[np.uint8]:
        """Return a square picture uint8 [render_size, render_size, 3] with its aspect kept."""
        with self._own_generators():
            frame = np.asarray(self._inner().render(), np.uint8)
        return into_square(frame, self._render_size)

    def get_wrapper_attr(self, name: str) -> Any:
        """Return an attribute of this environment, else of the foreign one."""
        if hasattr(self, name):
            return getattr(self, name)
        return self._inner().get_wrapper_attr(name)

    def close(self) -> None:
        """Close the environment; a second call does nothing."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _inner(self) -> gym.Env[Any, Any]:
        assert self._env is not None, "the environment is closed"
        return self._env

    def _open(self, task: str) -> None:
        if task not in self._factories:
            raise ValueError(f"The task {task!r} is none of {', '.join(self._factories)}.")
        self.close()
        self.task = task
        self._env = self._factories[task]()
        if self._given_limit is not None:
            self._allow(self._given_limit)
        limit = self._given_limit or _attribute(self._env, "_max_episode_steps")
        self._limit: int | None = None if limit is None else int(limit)

    def _allow(self, limit: int) -> None:
        """Let episodes last as long as was asked for, though the environment has its own limit."""
        layer: Any = self._env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, TimeLimit):
                layer._max_episode_steps = max(limit, layer._max_episode_steps)
            layer = layer.env

    def _switch(self, task: str) -> None:
        before = self.task
        self._open(task)
        found = (self._offered(), self._inner().action_space)
        if found != (self._space, self.action_space):
            raise ValueError(
                f"{task} and {before} give or take other things: {found[0]} and {found[1]} against "
                f"{self._space} and {self.action_space}."
            )

    def _render_fast(self) -> bool:
        """Set up a MuJoCo renderer before its first picture; return whether there is one."""
        simulation = getattr(self._inner().unwrapped, "_env", None)
        renderer = getattr(simulation, "mujoco_renderer", None)
        if renderer is None or simulation is None:
            return False
        if self._image_shape is not None:
            renderer.height, renderer.width = self._image_shape
        simulation.model.vis.quality.offsamples = 0
        simulation.model.vis.quality.shadowsize = 0
        return True

    def _offered(self) -> spaces.Dict:
        """Return the space of what `_observe` returns."""
        raw = self._inner().observation_space
        parts = dict(raw.spaces) if isinstance(raw, spaces.Dict) else _named(raw, raw.shape or ())
        pixels = parts.pop("pixels", spaces.Dict({}))
        cameras = pixels.spaces if isinstance(pixels, spaces.Dict) else {LONE_CAMERA: pixels}
        own = {name: space.shape or (0, 0) for name, space in cameras.items()}
        shapes = {name: self._image_shape or shape[:2] for name, shape in own.items()}
        rest = {name: _number_space(space) for name, space in parts.items()}
        rest.setdefault("agent_pos", spaces.Box(-np.inf, np.inf, (0,), np.float32))
        images: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0, 255, (*shape, 3), np.uint8) for name, shape in shapes.items()
        }
        kept = {name: space for name, space in rest.items() if space is not None}
        return spaces.Dict({"pixels": spaces.Dict(images), **kept})

    def _observe(self, raw: Any) -> dict[str, Any]:
        parts = dict(raw) if isinstance(raw, Mapping) else _named(raw, np.shape(raw))
        pixels = parts.pop("pixels", {})
        cameras = pixels if isinstance(pixels, Mapping) else {LONE_CAMERA: pixels}
        shapes: Any = self._space["pixels"]
        images = {name: self._picture(x, shapes[name].shape[:2]) for name, x in cameras.items()}
        parts.setdefault("agent_pos", np.zeros(0, np.float32))
        kept = {name: _numbers(x) for name, x in parts.items() if name in self._space.spaces}
        return {"pixels": images, **kept}

    def _picture(self, image: Any, shape: tuple[int, int]) -> NDArray[np.uint8]:
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3:
            raise ValueError(
                f"{self.task} gives images of type {array.dtype} and shape {array.shape}; uint8 "
                "[height, width, 3] is needed."
            )
        return resize(array, *shape)

    @contextlib.contextmanager
    def _own_generators(self) -> Iterator[None]:
        """Let the global generators be this environment's, and give the others' back after."""
        if self._generators is None:  # not reset yet
            yield
            return
        others = random.getstate(), np.random.get_state()  # noqa: NPY002 - theirs to draw from
        _set_generators(self._generators)
        try:
            yield
        finally:
            self._generators = random.getstate(), np.random.get_state()  # noqa: NPY002
            _set_generators(others)


def make_foreign_vector_env(
    factories: Mapping[str, EnvFactory],
    num_envs: int,
    *,
    chunk_size: int = 1,
    num_workers: int = 0,
    **settings: Any,
) -> ChunkedVectorEnv:
    """Build a chunk-stepping vector of `ContractEnv`.

    Args:
        factories: Task id -> maker of a single environment; it is pickled by value where it must.
        num_envs: Number of environments.
        chunk_size: Actions per decision.
        num_workers: Worker processes; 0 steps in this process.
        **settings: Further arguments of `ContractEnv`.
    """
    make = functools.partial(ContractEnv, dict(factories), **settings)
    return ChunkedVectorEnv(
        [make] * num_envs, chunk_size, num_workers=num_workers, timeout_s=WORKER_TIMEOUT_S
    )


def _named(whole: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Name an observation that is one array: an image or a state."""
    return {"pixels": whole} if len(shape) == 3 else {"agent_pos": whole}


def _number_space(space: spaces.Space[Any]) -> spaces.Space[Any] | None:
    """Return the space as float32, or None where it holds no number arrays."""
    if isinstance(space, spaces.Dict):
        inner = {name: _number_space(part) for name, part in space.spaces.items()}
        return spaces.Dict({name: part for name, part in inner.items() if part is not None})
    if isinstance(space, spaces.Box):
        return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return None


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _numbers(part) for name, part in value.items()}
    return np.asarray(value, np.float32)


def _formats_late(env: gym.Env[Any, Any]) -> bool:
    """Tell whether an environment is one of LeRobot's that build observations in a method."""
    return env is env.unwrapped and callable(getattr(env, "_format_raw_obs", None))


@contextlib.contextmanager
def _unformatted(env: gym.Env[Any, Any], *names: str) -> Iterator[None]:
    """Let LeRobot's Meta-World and LIBERO return what they simulate as it is, during a call.

    Meta-World would render in `_format_raw_obs`, and begin a new episode inside the step that
    succeeds, so that its last state could not be looked at any more.
    """
    if not _formats_late(env):
        yield
        return
    vars(env).update({name: lambda raw=None: raw for name in names})
    try:
        yield
    finally:
        for name in names:
            del vars(env)[name]


def _attribute(env: gym.Env[Any, Any], name: str) -> Any:
    """Return an attribute of an environment or of what it wraps, None where there is none."""
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None


def _seeded(task: int, seed: int) -> tuple[Any, Any]:
    """Return states of Python's and numpy's generators that are functions of (task, seed)."""
    words = np.random.SeedSequence([task, seed]).generate_state(2)
    return random.Random(int(words[0])).getstate(), np.random.RandomState(words[1]).get_state()


def _set_generators(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def _hash(observation: Any) -> str:
    """Return 16 hexadecimal digits for an observation as the environment gave it."""
    digest = hashlib.blake2b(digest_size=8)

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value):
                add(f"{name}/{key}", value[key])
        else:
            array = np.ascontiguousarray(value)
            digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
            digest.update(array.tobytes())

    add("", observation)
    return digest.hexdigest()
