"""LeRobot's simulation environments as tasks: `lerobot:TYPE/TASK`.

TYPE is a registered `EnvConfig` of LeRobot (`metaworld`, `pusht`, `aloha`, `libero`, a plugin's, or
the user's own from `env.env_packages`), TASK its `task`. Some names of TASK stand for several
tasks, such as `lerobot:libero/libero_10` or `lerobot:metaworld/easy`; then `TASK:3` is the one with
that number.

LeRobot's factory makes the environments, but this project's vector environment steps them.
LeRobot's vector environments render after every action, reset automatically, and cannot start one
sub-environment from a seed while others run. So single environments are taken out of what the
factory made. Worker processes get only the makers of these environments. They import LeRobot and
torch only if the environment's code lies in LeRobot, as Meta-World's and LIBERO's does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector.utils import create_empty_array

from robo_razor.core.errors import ConfigError, EnvError, RoboRazorError, did_you_mean, unknown_name
from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.settings.conversion import parse_mapping
from robo_razor.core.types import Observation
from robo_razor.policies.inputs import (
    AGENT_POS,
    IMAGE_PREFIX,
    STATE,
    camera_name,
    state_name,
)
from robo_razor.policies.inputs import PREFIX as FEATURE_PREFIX
from robo_razor.rollout.groups import SteppedByGroups, StepResult

logger = logging.getLogger(__name__)

PREFIX = "lerobot:"
VECTOR_ENV = "gym_razor.adapters.contract:make_contract_vector_env"
OWN_PLUGINS = ("robo_razor.lerobot_env",)
"""This project's modules that register environment types with LeRobot."""

WITHOUT_EXTRA = {
    "libero": "LIBERO asks for robosuite 1.4.0, this project for 1.5.1: install "
    '`pip install "lerobot[libero]"` in an environment of its own, and run `lerobot-eval` there on '
    "the checkpoints, which have LeRobot's layout.",
}
"""The advice for types whose extra of LeRobot cannot be installed beside this project."""

IGNORED_IN_NAMES = "metaworld-"
"""LeRobot's Meta-World removes this from the name of a task, wherever it occurs."""


@dataclass(frozen=True)
class LeRobotTask:
    """One of LeRobot's simulated tasks.

    Attributes:
        make: Makes a single environment; worker processes get it.
        max_episode_steps: Its time limit in control steps, None if unknown.
        processor: LeRobot's observation pipeline of this type, None if it has no steps.
    """

    make: Callable[[], Any]
    max_episode_steps: int | None
    processor: Any

    @property
    def simulated(self) -> str:
        """A text that is equal for two names of one task."""
        return _identity(self.make).replace(IGNORED_IN_NAMES, "")


def is_lerobot_task(name: str) -> bool:
    """Return whether a name is one of LeRobot's environments."""
    return name.startswith(PREFIX)


def environment_type(task: str) -> str:
    """Return `metaworld` for `lerobot:metaworld/assembly-v3`."""
    return _split(task)[0]


def register_lerobot_task(name: str) -> list[str]:
    """Register the tasks of a name with Gymnasium; return their ids.

    Raises:
        RoboRazorError: The type or task does not exist, or its simulator is not installed.
    """
    tasks = lerobot_tasks(name)
    for task, item in tasks.items():
        if task not in gym.registry:
            gym.register(
                task,
                vector_entry_point="robo_razor.rollout.lerobot:make_lerobot_env",
                max_episode_steps=item.max_episode_steps,
            )
    return list(tasks)


@functools.cache
def lerobot_tasks(name: str, settings: str = "") -> dict[str, LeRobotTask]:
    """Return id -> task of all tasks of a name.

    Args:
        name: `lerobot:TYPE/TASK` or `lerobot:TYPE/TASK:NUMBER`.
        settings: Fields of the type's LeRobot config, as in the setting `env.lerobot`.

    Raises:
        RoboRazorError: The type, task or field does not exist, or its simulator is not installed.
    """
    kind, task, number = _split(name)
    config = _env_config(kind, task, settings)
    with _install_hint(kind, name):
        tasks = _tasks_of(config, kind)
    single = f"{PREFIX}{kind}/{task}"
    if number is None:
        if len(tasks) == 1:
            return {single: tasks[0]}
        return {f"{single}:{i}": item for i, item in enumerate(tasks)}
    if not number.isdigit() or int(number) >= len(tasks):
        raise unknown_name("task", name, [f"{single}:{i}" for i in range(len(tasks))])
    return {name: tasks[int(number)]}


def simulated(task: str, settings: str = "") -> str:
    """Return a text that is equal for two names of one simulated task.

    Two names of one task may still differ in it, if LeRobot's environments do not show it.

    Args:
        task: A known Gymnasium id or `lerobot:TYPE/TASK`.
        settings: As in `lerobot_tasks`.
    """
    return lerobot_tasks(task, settings)[task].simulated if is_lerobot_task(task) else task


def make_lerobot_env(
    tasks: Sequence[str],
    config: EnvConfig,
    *,
    chunk_size: int,
    image_shape: tuple[int, int] | None = None,
) -> SteppedByGroups:
    """Make a vector environment that can switch between tasks of one LeRobot type.

    Args:
        tasks: Their ids; every sub-environment begins with the first.
        config: Number of environments and workers, reward, LeRobot's settings.
        chunk_size: Control steps per decision, H.
        image_shape: Height and width that images are scaled to; None keeps the environment's.
    """
    items: dict[str, LeRobotTask] = {}
    for task in tasks:
        items |= lerobot_tasks(task, config.lerobot)
    make: Any = load_env_creator(VECTOR_ENV)
    pooled: Any = make(
        factories={task: item.make for task, item in items.items()},
        num_envs=config.num_envs,
        chunk_size=chunk_size,
        num_workers=min(config.num_workers, config.num_envs),
        image_shape=image_shape,
        max_episode_steps=config.max_episode_steps,
        reward_type=config.reward_type,
        fast_images=config.fast_images,
    )
    if config.fast_images:
        pooled.reset(seed=0)  # makes the renderer
        if not pooled.call("renders_fast")[0]:
            logger.warning(
                "`env.fast_images` has no effect on %s: it does not render with Gymnasium's MuJoCo "
                "renderer",
                tasks[0],
            )
    processor = next(iter(items.values())).processor
    return cast(
        "SteppedByGroups", pooled if processor is None else ProcessedVectorEnv(pooled, processor)
    )


class ProcessedVectorEnv:
    """A vector environment whose observations pass through LeRobot's pipeline; the rest is as is.

    Some types need one: LIBERO's joins position, rotation and fingers into the state that its
    policies were trained on and turns its images upright. The pipeline runs in the main process on
    batches, and its output is converted back to this toolkit's host observation.

    Args:
        env: The vector environment; attributes that this class lacks are its.
        processor: LeRobot's `PolicyProcessorPipeline` of observations.
    """

    def __init__(self, env: SteppedByGroups, processor: Any) -> None:
        self._env, self._processor = env, processor
        blank: Any = create_empty_array(env.single_observation_space, n=1)
        sample = self._process(blank)
        self.single_observation_space = _space_of(sample)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the vector environment."""
        return getattr(self._env, name)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset as the environment does."""
        observation, infos = self._env.reset(seed=seed, options=options)
        return self._process(observation), infos

    def step_wait(self) -> StepResult:
        """Return the rows of the next group that is ready."""
        env_ids, observation, rewards, terminated, truncated, infos = self._env.step_wait()
        return env_ids, self._process(observation), rewards, terminated, truncated, infos

    def _process(self, observation: Observation) -> Observation:
        from lerobot.envs.utils import preprocess_observation

        parts = {
            key: value for key, value in observation.items() if np.size(value) or key != AGENT_POS
        }
        processed = self._processor(preprocess_observation(parts))
        pixels: dict[str, Any] = {}
        host: Observation = {"pixels": pixels}
        for key, value in processed.items():
            if key.startswith(IMAGE_PREFIX):
                image = value.permute(0, 2, 3, 1).mul(255.0).round()
                pixels[camera_name(key)] = image.clamp(0, 255).byte().cpu().numpy()
            elif key == STATE or (key.startswith(FEATURE_PREFIX) and hasattr(value, "cpu")):
                host[state_name(key)] = np.asarray(value.cpu().numpy(), np.float32)
        if AGENT_POS not in host:
            host[AGENT_POS] = np.zeros((len(next(iter(pixels.values()))), 0), np.float32)
        return host


def _space_of(batch: Observation) -> spaces.Dict:
    """Return the space of one row of a batch."""
    images: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(0, 255, image.shape[1:], np.uint8)
        for name, image in batch["pixels"].items()
    }
    rest = {
        name: spaces.Box(-np.inf, np.inf, value.shape[1:], np.float32)
        for name, value in batch.items()
        if name != "pixels"
    }
    return spaces.Dict({"pixels": spaces.Dict(images), **rest})


def known_types() -> dict[str, Any]:
    """Return LeRobot's registered environment types: name -> `EnvConfig` class."""
    from lerobot.envs.configs import EnvConfig as LeRobotEnvConfig

    _register_plugins()
    return dict(LeRobotEnvConfig.get_known_choices())


@functools.cache  # looking through all installed distributions takes a while
def _register_plugins() -> None:
    from lerobot.utils.import_utils import register_third_party_plugins

    for module in OWN_PLUGINS:
        importlib.import_module(module)
    register_third_party_plugins()


def _split(name: str) -> tuple[str, str, str | None]:
    kind, slash, task = name.removeprefix(PREFIX).partition("/")
    stem, colon, number = task.partition(":")
    if not is_lerobot_task(name) or not kind or not slash or not stem:
        raise EnvError(
            f"{name!r} is not a name of a LeRobot environment",
            allowed="lerobot:TYPE/TASK, such as lerobot:metaworld/reach-v3",
        )
    return kind, stem, number if colon else None


def _env_config(kind: str, task: str, settings: str) -> Any:
    """Return LeRobot's config of a type, with the user's settings checked."""
    from lerobot.envs.configs import HubEnvConfig
    from lerobot.envs.factory import make_env_config

    types = known_types()
    if kind not in types:
        raise unknown_name(
            "LeRobot environment type",
            kind,
            types,
            remedy="Install its plugin, or name the package that registers it in "
            "`env.env_packages`.",
        )
    if issubclass(types[kind], HubEnvConfig) or hasattr(types[kind], "hub_path"):
        raise EnvError(
            f"LeRobot's environment type {kind!r} runs code from the hub, which is not supported",
            remedy="Write an `EnvConfig` that makes the environments from an installed package.",
        )
    fields = parse_mapping("env.lerobot", settings)
    names = [item.name for item in dataclasses.fields(types[kind]) if item.name != "task"]
    for key in fields:
        if key not in names:
            raise ConfigError(
                f"`env.lerobot` has {key!r}, which LeRobot's {kind} environment does not know."
                f"{did_you_mean(key, names)}",
                allowed=", ".join(names),
            )
    try:
        return make_env_config(kind, task=task, **fields)
    except Exception as error:
        raise ConfigError(
            f"LeRobot's {kind} environment refuses `env.lerobot`: {type(error).__name__}: {error}"
        ) from error


def _tasks_of(config: Any, kind: str) -> list[LeRobotTask]:
    """Return all tasks that LeRobot's factory makes from a config, in its order."""
    from lerobot.envs.configs import EnvConfig as LeRobotEnvConfig
    from lerobot.envs.factory import make_env

    pipeline, actions = config.get_env_processors()
    if actions.steps:
        steps = ", ".join(type(step).__name__ for step in actions.steps)
        raise EnvError(
            f"LeRobot's {kind} environment changes actions before it executes them ({steps}, the "
            "second pipeline of its `get_env_processors`), which is not supported",
            remedy="Let the environment do that by itself, in a wrapper around it.",
        )
    processor = pipeline if pipeline.steps else None
    if type(config).create_envs is LeRobotEnvConfig.create_envs:
        # The factory would only call `gym.make` with these arguments, which needs no LeRobot.
        return [_registered(config, processor)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        suites = make_env(config, n_envs=1, use_async_envs=False, trust_remote_code=False)
    logger.debug("LeRobot's factory: %s", printed.getvalue())
    tasks = []
    for vector in (vector for suite in suites.values() for vector in suite.values()):
        try:
            limit = getattr(vector, "call", lambda _: (None,))("_max_episode_steps")[0]
        except AttributeError:
            limit = None
        tasks.append(LeRobotTask(_maker_in(vector, kind), limit, processor))
        vector.close()
    return tasks


def _registered(config: Any, processor: Any) -> LeRobotTask:
    """Return the task of a config whose environment is registered with Gymnasium."""
    importlib.import_module(config.package_name)
    if config.gym_id not in gym.registry:
        prefix = config.gym_id.rpartition("/")[0]
        known = [name.split("/")[-1] for name in gym.registry if name.startswith(f"{prefix}/")]
        raise unknown_name("task", str(config.task), known, remedy=f"They are {prefix}'s.")
    arguments = dict(config.gym_kwargs)
    limit = arguments.get("max_episode_steps") or gym.spec(config.gym_id).max_episode_steps
    make = functools.partial(
        gym.make,
        f"{config.package_name}:{config.gym_id}",
        disable_env_checker=config.disable_env_checker,
        **arguments,
    )
    return LeRobotTask(make, limit, processor)


def _maker_in(vector: Any, kind: str) -> Callable[[], Any]:
    """Return the maker of single environments that LeRobot's vector environment holds."""
    makers = getattr(vector, "env_fns", None) or getattr(vector, "_env_fns", None)
    if not makers:
        raise EnvError(
            f"LeRobot's {kind} environment comes as a {type(vector).__name__}, from which single "
            "environments cannot be taken",
            remedy="Its `create_envs` should return Gymnasium's SyncVectorEnv.",
        )
    make = makers[0]
    if "freeze_after_episode_end" in getattr(make, "__qualname__", ""):
        # Finished environments stand still here without this wrapper, which would import torch.
        make = inspect.getclosurevars(make).nonlocals["env_fn"]
    result: Callable[[], Any] = make
    return result


def _identity(make: Callable[[], Any]) -> str:
    """Return a text that is equal for two makers of the same task's environment."""
    if not isinstance(make, functools.partial):
        closed = inspect.getclosurevars(make).nonlocals if inspect.isfunction(make) else {}
        defaults = getattr(make, "__defaults__", None), getattr(make, "__kwdefaults__", None)
        return f"{make.__module__}.{getattr(make, '__qualname__', make)} {defaults} {closed}"
    if make.func is not gym.make or not make.args:
        return f"{_identity(make.func)} {make.args} {sorted(make.keywords.items())}"
    # Settings of pictures and time do not make another task; one with "task" in its name may.
    tasks = {name: value for name, value in make.keywords.items() if "task" in name}
    return str(make.args[0]).rpartition(":")[2] + (f" {sorted(tasks.items())}" if tasks else "")


@contextlib.contextmanager
def _install_hint(kind: str, name: str) -> Iterator[None]:
    """Turn exceptions of LeRobot's factory into errors for the user."""
    try:
        yield
    except ImportError as error:
        remedy = WITHOUT_EXTRA.get(kind, f'`pip install "lerobot[{kind}]"` if it is one of its own')
        raise EnvError(
            f"{name!r} needs a package that is not installed: {error}", remedy=remedy
        ) from error
    except KeyError as error:
        raise unknown_name(
            "task", name, [f"{PREFIX}{kind}/{t}" for t in _task_names(kind)]
        ) from error
    except RoboRazorError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"LeRobot cannot make {name!r}: {type(error).__name__}: {error}") from error


def _task_names(kind: str) -> list[str]:
    """Return the names of a type's tasks, [] if LeRobot does not list them."""
    try:
        module = importlib.import_module(f"lerobot.envs.{kind}")
    except ImportError:
        return []
    listed: Mapping[str, Any] = getattr(module, "TASK_DESCRIPTIONS", {})
    return list(listed)
