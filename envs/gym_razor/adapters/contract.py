"""Any Gymnasium environments behind the observation and episode contract of this suite.

`ContractEnv` takes single environments that follow LeRobot's conventions (`pixels` as one image or
a dictionary of cameras, `agent_pos`, `task_description`, `info["is_success"]`). It offers the
interface of this suite's own environments, so that `ChunkedVectorEnv` can step them in worker
processes. Nothing here imports LeRobot or torch; a worker imports them only if a factory's
environment does.

Every reset and step is checked against the environment's spaces. A part that is missing, has
another shape or type or is not finite, and any exception, becomes an `EnvironmentFault` that names
task, seed and control step.

An episode depends on (task, seed) as far as the environment allows it. The seed goes to its
`reset`. Some environments draw from Python's and numpy's global generators: these are seeded from
(task, seed), and each environment has its own states of them during every call.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from gym_razor.adapters.generators import GlobalGenerators
from gym_razor.adapters.pictures import as_bytes, check_picture_space, into_square, resize
from gym_razor.vector.any_env import ChunkedVectorEnv
from gym_razor.vector.faults import Breach, EnvironmentFault
from gym_razor.vector.success import IS_SUCCESS, no_success_message, reported_success

logger = logging.getLogger(__name__)

EnvFactory = Callable[[], "gym.Env[Any, Any]"]

LONE_CAMERA = "observation.image"
"""Camera of an environment whose `pixels` are one image; LeRobot calls it so, without a suffix."""

_OLD_GYM = ". That is the interface of Gym before 0.26; Gymnasium's is needed"

WORKER_TIMEOUT_S = 300.0
"""Longest wait for a worker: making an environment may import a simulator first."""


class ContractEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """Run one of several foreign tasks as an environment of this suite.

    Observation: `{"pixels": {camera: uint8 [h, w, 3]}, "agent_pos": float32 [S]}`, and the foreign
    environment's other number arrays under their own keys. `agent_pos` has size 0 if the foreign
    environment has none.

    Action: the foreign environment's.

    Reward: `"sparse"`: 1 at the action that succeeds, else 0. `"shaped"`: the foreign
    environment's.

    Success: `info["is_success"]`, else `info["success"]` (see `gym_razor.vector.success`). One
    step of success makes the episode a success, and ends it. An episode that ends without a report
    of success or failure is a fault.

    Termination: on success, and when the foreign environment terminates. Truncation: when it
    truncates, or after the time limit; the observation is then the true last one.

    With `own_rules` the reward is the foreign environment's, and success does not end the episode.
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
        own_rules: bool = False,
    ) -> None:
        """Build the first task's environment.

        Args:
            factories: Task id -> maker of its environment; `reset` can switch between them.
            image_shape: Height and width that images are scaled to; None keeps the environment's.
            max_episode_steps: Time limit in actions; None takes the environment's.
            reward_type: `"sparse"` or `"shaped"`.
            render_size: Side of the picture that `render` returns, pixels.
            fast_images: Render without shadows and multisampling, and at `image_shape` if it is
                given, where the environment uses Gymnasium's MuJoCo renderer (Meta-World). That is
                several times faster in software, but the pictures differ from LeRobot's.
            own_rules: True leaves the reward and the end of an episode to the environment.

        Raises:
            EnvironmentFault: Its observations cannot be used.
        """
        self._own_rules = own_rules
        self._fast_images = fast_images
        self.renders_fast = False
        self._factories = dict(factories)
        self._image_shape = image_shape
        self._given_limit = max_episode_steps
        self._reward_type = reward_type
        self._render_size = render_size
        self.render_mode = "rgb_array"
        self._elapsed = 0
        self._seed: int | None = None
        self._succeeded: bool | None = None
        self._instruction: str | None = None
        self._raw: Any = None
        self._generators: GlobalGenerators | None = None
        self._env: gym.Env[Any, Any] | None = None
        self._open(next(iter(self._factories)))
        self._space, self._cameras = self._offered()
        self.observation_space = self._space
        self.action_space = self._actions()
        metadata = dict(self._inner().metadata or {})
        metadata.pop("landmark_names", None)
        self.metadata = {**self.metadata, **metadata}

    @property
    def task_description(self) -> str:
        """Return the instruction of the current episode: the user's, else by LeRobot's rule."""
        if self._instruction is not None:
            return self._instruction
        description = _attribute(self._inner(), "task_description")
        return str(description or _attribute(self._inner(), "task") or "")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Goes to the environment. None draws one from this environment's generator.
            options: `"task"` switches to another of the tasks, `"instruction"` replaces the task's
                instruction; the rest goes to the environment.
        """
        rest = dict(options or {})
        task = rest.pop("task", None) or self.task
        self._instruction = rest.pop("instruction", None)
        if task != self.task:
            self._switch(task)
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        self._seed, self._elapsed, self._succeeded = episode_seed, 0, None
        env = self._inner()
        if hasattr(env.unwrapped, "init_state_id"):  # LIBERO counts resets: let the seed choose
            env.unwrapped.init_state_id = episode_seed
        arguments = {"options": rest} if rest else {}
        self._generators = _seeded(zlib.crc32(task.encode()), episode_seed)
        with self._faults("reset"):
            with self._own_generators(), _unformatted(env, "_format_raw_obs"):
                result = env.reset(seed=episode_seed, **arguments)
            if not isinstance(result, tuple) or len(result) != 2:
                raise Breach(f"returned {_kind(result)}, not (observation, info){_OLD_GYM}")
            self._raw = result[0]
            self.renders_fast = self._fast_images and self._render_fast()
        info: dict[str, Any] = {IS_SUCCESS: False, "elapsed_steps": 0}
        if not self._own_rules:
            info["start_state_hash"] = _hash(self._raw)
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
        """Do as `step`, without the observation.

        Only the last action of a chunk needs one. Environments that draw their picture inside
        `step` still draw it, but it is not scaled. `_unformatted` keeps those that can from
        drawing.
        """
        env = self._inner()
        self._elapsed += 1
        with self._faults("step"):
            with self._own_generators(), _unformatted(env, "_format_raw_obs", "reset"):
                result = env.step(np.asarray(action, np.float32))
            return self._judged(result)

    def _judged(self, result: Any) -> tuple[float, bool, bool, dict[str, Any]]:
        """Return a step's reward, terminated, truncated and info by the rules of this class."""
        if not isinstance(result, tuple) or len(result) != 5:
            raise Breach(
                f"returned {_kind(result)}, not (observation, reward, terminated, truncated, "
                f"info){_OLD_GYM}"
            )
        self._raw, reward, *flags, info = result
        ends = [_flag(name, x) for name, x in zip(("terminated", "truncated"), flags, strict=True)]
        if not isinstance(info, Mapping):
            raise Breach(f"gave an info that is {_kind(info)}, not a dictionary")
        number = _number("reward", reward)
        success = reported_success(info)
        if success is not None:
            self._succeeded = bool(self._succeeded) or success
        ended = ends[0] or (bool(success) and not self._own_rules)
        out_of_time = ends[1] or (self._limit is not None and self._elapsed >= self._limit)
        if self._succeeded is None and (ended or out_of_time):
            raise Breach(no_success_message(info))
        if self._reward_type == "sparse" and not self._own_rules:
            number = float(bool(success))
        own_info = {IS_SUCCESS: bool(self._succeeded), "elapsed_steps": self._elapsed}
        return number, ended, out_of_time and not ended, own_info

    def observe(self) -> dict[str, Any]:
        """Return the observation that the last step led to."""
        env = self._inner()
        with self._faults("observation"):
            if not _formats_late(env):
                return self._observe(self._raw)
            with self._own_generators():
                return self._observe(env._format_raw_obs(self._raw))  # type: ignore[attr-defined]

    def render(self) -> NDArray[np.uint8]:
        """Return a square picture uint8 [render_size, render_size, 3] without distortion."""
        with self._faults("render"):
            with self._own_generators():
                frame = np.asarray(self._inner().render())
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise Breach(
                    f"cannot be filmed: its render() gives {_kind(frame)}, not a picture uint8 "
                    "[height, width, 3]. It must take `render_mode` and draw with 'rgb_array'"
                )
            return into_square(frame, self._render_size)

    def has_wrapper_attr(self, name: str) -> bool:
        """Return whether this environment or the foreign one has an attribute."""
        return hasattr(self, name) or self._inner().has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        """Return an attribute of this environment, else of the foreign one."""
        if hasattr(self, name):
            return getattr(self, name)
        return self._inner().get_wrapper_attr(name)

    def close(self) -> None:
        """Close the environment; a second call does nothing."""
        if self._env is not None:
            try:
                self._env.close()
            except Exception as error:  # must not lose the results of the episodes
                logger.warning("%s could not be closed: %r", self.task, error)
            self._env = None

    def _inner(self) -> gym.Env[Any, Any]:
        assert self._env is not None, "the environment is closed"
        return self._env

    def _open(self, task: str) -> None:
        if task not in self._factories:
            raise ValueError(f"Unknown task {task!r}; allowed are {', '.join(self._factories)}.")
        self.close()
        self.task = task
        self._env = self._factories[task]()
        if self._given_limit is not None:
            self._allow(self._given_limit)
        own_limit = _attribute(self._env, "_max_episode_steps")
        self.has_time_limit = own_limit is not None
        limit = self._given_limit or own_limit
        self._limit: int | None = int(limit) if limit and math.isfinite(limit) else None

    def _allow(self, limit: int) -> None:
        """Raise the environment's own time limit where it is lower than `limit`."""
        layer: Any = self._env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, TimeLimit):
                layer._max_episode_steps = max(limit, layer._max_episode_steps)
            layer = layer.env

    def _actions(self) -> spaces.Space[Any]:
        """Return the space of actions, a `Box` that policies can fill with numbers."""
        space = self._inner().action_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise EnvironmentFault(
                f"{self.task} takes actions of {space}, but a Box of shape (size,) is needed: "
                "policies give numbers. Wrap the environment in a gymnasium.ActionWrapper with "
                "such an action_space, which turns the numbers into the environment's actions"
            )
        return space

    def _switch(self, task: str) -> None:
        previous = self.task
        self._open(task)
        space, self._cameras = self._offered()
        offered = (space, self._inner().action_space)
        if offered != (self._space, self.action_space):
            before = _description(self._space, self.action_space)
            raise EnvironmentFault(
                f"{task} and {previous} differ in their observations or actions: the first has "
                f"{_description(*offered)}; the second {before}. No policy fits both: choose tasks "
                "with the same cameras, state and actions."
            )

    @contextlib.contextmanager
    def _faults(self, call: str) -> Iterator[None]:
        """Turn what a call raises into a fault with task, seed and control step."""
        try:
            yield
        except EnvironmentFault:
            raise
        except (Exception, SystemExit) as error:
            moment = f" (seed {self._seed}, control step {self._elapsed})"
            name = self.task + (moment if self._seed is not None else "")
            fault = f"raised {type(error).__name__} in its {call}: {error}{_hint(error)}"
            if isinstance(error, Breach):
                fault = str(error)
            raise EnvironmentFault(f"{name} {fault}") from error

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

    def _offered(self) -> tuple[spaces.Dict, dict[str, spaces.Space[Any]]]:
        """Return the space of what `_observe` returns, and the foreign spaces of the cameras."""
        with self._faults("observation_space"):
            raw = self._inner().observation_space
            parts = dict(raw.spaces) if isinstance(raw, spaces.Dict) else _named(raw, raw.shape)
            pixels = parts.pop("pixels", spaces.Dict({}))
            cameras = dict(pixels.items() if isinstance(pixels, spaces.Dict) else [])
            if not isinstance(pixels, spaces.Dict):
                cameras = {LONE_CAMERA: pixels}
            images: dict[str, spaces.Space[Any]] = {}
            for name, space in cameras.items():
                check_picture_space(name, space)
                shape = self._image_shape or (space.shape or ())[:2]
                images[name] = spaces.Box(0, 255, (*shape, 3), np.uint8)
            rest = {name: _number_space(space) for name, space in parts.items()}
            rest.setdefault("agent_pos", spaces.Box(-np.inf, np.inf, (0,), np.float32))
            numbers = {name: space for name, space in rest.items() if space is not None}
            return spaces.Dict({"pixels": spaces.Dict(images), **numbers}), cameras

    def _observe(self, raw: Any) -> dict[str, Any]:
        parts = dict(raw) if isinstance(raw, Mapping) else _named(raw, np.shape(raw))
        pixels = parts.pop("pixels", {})
        pictures = pixels if isinstance(pixels, Mapping) else {LONE_CAMERA: pixels}
        images = {}
        for name, space in self._cameras.items():
            if name not in pictures:
                raise Breach(f"gives no picture {name!r}, though its space has one")
            size: Any = self._space["pixels"][name].shape  # type: ignore[index]
            images[name] = resize(as_bytes(name, pictures[name], space), *size[:2])
        if (own := self._space.spaces.get("agent_pos")) is not None and own.shape == (0,):
            parts.setdefault("agent_pos", np.zeros(0, np.float32))
        numbers = {
            name: _numbers(name, parts.get(name), space)
            for name, space in self._space.items()
            if name != "pixels"
        }
        return {"pixels": images, **numbers}

    def _own_generators(self) -> contextlib.AbstractContextManager[None]:
        """Let the foreign environment draw from its own states of the global generators."""
        if self._generators is None:  # not reset yet
            return contextlib.nullcontext()
        return self._generators.installed()


def make_contract_vector_env(
    factories: Mapping[str, EnvFactory],
    num_envs: int,
    *,
    chunk_size: int = 1,
    num_workers: int = 0,
    **settings: Any,
) -> ChunkedVectorEnv:
    """Build a chunk-stepping vector of `ContractEnv`.

    Args:
        factories: Task id -> maker of a single environment; pickled by value if a worker could not
            import it.
        num_envs: Number of environments.
        chunk_size: Actions per decision.
        num_workers: Worker processes; 0 steps in this process.
        **settings: Further arguments of `ContractEnv`.
    """
    make = functools.partial(ContractEnv, dict(factories), **settings)
    return ChunkedVectorEnv(
        [make] * num_envs, chunk_size, num_workers=num_workers, timeout_s=WORKER_TIMEOUT_S
    )


def _named(part: Any, shape: tuple[int, ...] | None) -> dict[str, Any]:
    """Name the only part of an observation (or of its space): an image or a state."""
    return {"pixels": part} if len(shape or ()) == 3 else {"agent_pos": part}


def _number_space(space: spaces.Space[Any]) -> spaces.Space[Any] | None:
    """Return the space as float32, or None if it does not hold arrays of numbers."""
    if isinstance(space, spaces.Dict):
        inner = {name: _number_space(part) for name, part in space.spaces.items()}
        return spaces.Dict({name: part for name, part in inner.items() if part is not None})
    if isinstance(space, spaces.Box):
        return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    return None


def _numbers(name: str, value: Any, space: spaces.Space[Any]) -> Any:
    """Return number arrays as float32, checked against their space."""
    if isinstance(space, spaces.Dict):
        parts = value if isinstance(value, Mapping) else {}
        return {key: _numbers(f"{name}/{key}", parts.get(key), x) for key, x in space.items()}
    if value is None:
        raise Breach(f"gives no {name!r}, though its space has it")
    array = np.asarray(value)
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        raise Breach(
            f"gives {name!r} as {array.dtype} of shape {array.shape}, but its space says "
            f"numbers of shape {space.shape}"
        )
    with np.errstate(over="ignore"):
        numbers = np.asarray(array, np.float32)
    if not np.isfinite(numbers).all():
        index = np.argwhere(~np.isfinite(numbers))[0].tolist()
        raise Breach(f"gives {name!r} with {numbers[tuple(index)]} at {index}: not a finite number")
    return numbers


def _number(name: str, value: Any) -> float:
    """Return a finite number that a step gave."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise Breach(f"gives a {name} that is {_kind(value)}, not a number")
    number = float(array.item())
    if not math.isfinite(number):
        raise Breach(f"gives a {name} of {number}: not a finite number")
    return number


def _flag(name: str, value: Any) -> bool:
    """Return `terminated` or `truncated`, which must be a bool."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype == np.bool_:
        return bool(value.item())
    raise Breach(f"gives `{name}` as {_kind(value)}, not a bool")


def _kind(value: Any) -> str:
    """Return a short description of a value."""
    if isinstance(value, np.ndarray):
        return "None" if value.dtype == object else f"{value.dtype} of shape {value.shape}"
    if isinstance(value, tuple):
        return f"{len(value)} values"
    return "None" if value is None else f"a {type(value).__name__}"


def _hint(error: BaseException) -> str:
    """Return the likely cause of an environment's exception, as the end of a message."""
    message = str(error)
    if isinstance(error, ValueError) and "values to unpack" in message:
        return _OLD_GYM
    if (
        isinstance(error, TypeError)
        and "unexpected keyword argument" in message
        and "seed" in message
    ):
        return ". Its reset() must take `seed` and `options`, as Gymnasium's does"
    return ""


def _description(space: spaces.Space[Any], action: spaces.Space[Any]) -> str:
    """Return an environment's observations and actions as text."""

    def parts(name: str, space: spaces.Space[Any]) -> list[str]:
        if isinstance(space, spaces.Dict):
            return [text for key, x in space.items() for text in parts(f"{name} {key}", x)]
        return [f"{name} {'x'.join(map(str, space.shape or ()))}".strip()]

    return f"{', '.join(parts('', space))}, action {action}"


def _formats_late(env: gym.Env[Any, Any]) -> bool:
    """Return whether an environment is one of LeRobot's that format observations in a method."""
    return env is env.unwrapped and callable(getattr(env, "_format_raw_obs", None))


@contextlib.contextmanager
def _unformatted(env: gym.Env[Any, Any], *names: str) -> Iterator[None]:
    """Let LeRobot's Meta-World and LIBERO return raw observations during a call.

    Meta-World would render in `_format_raw_obs`, and begin a new episode inside the step that
    succeeds: its last state would be lost.
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
    """Return an attribute of an environment or of what it wraps, None if neither has it."""
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:
        return None


def _seeded(task: int, seed: int) -> GlobalGenerators:
    """Return states of the global generators that are functions of (task, seed)."""
    python_seed, numpy_seed = np.random.SeedSequence([task, seed]).generate_state(2)
    return GlobalGenerators(int(python_seed), int(numpy_seed))


def _hash(observation: Any) -> str:
    """Return 16 hexadecimal digits for an observation as the environment returned it."""
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
