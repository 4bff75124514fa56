"""Make vector environments by Gymnasium id, and resolve the ids that a setting names.

All of them offer the interface `groups.VectorEnv`. Environments with a `vector_entry_point` have it
themselves, `lerobot` makes it for `lerobot:TYPE/TASK`, and any other id runs in the same kind of
workers. `mixed` joins tasks of different kinds.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from robo_razor.core.errors import EnvError, UnknownNameError, shown, unknown_name
from robo_razor.core.machine import check_descriptors
from robo_razor.core.plain_text import skill_name
from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.types import Observation
from robo_razor.rollout.faults import check_gl_setting, gl_advice, worker_errors
from robo_razor.rollout.groups import GroupDriver, VectorEnv, map_arrays
from robo_razor.rollout.lerobot import (
    environment_type,
    is_lerobot_task,
    make_lerobot_env,
    register_lerobot_task,
)
from robo_razor.rollout.mixed import MixedVectorEnv
from robo_razor.rollout.start_states import start_states

if TYPE_CHECKING:
    from robo_razor.policies.policy import Policy

logger = logging.getLogger(__name__)

OWN_VECTOR_ENV = "gym_razor.adapters.registered:make_registered_vector_env"
"""Makes vector environments of ids that have no `vector_entry_point`."""

AUTORESET_MODES = ("NEXT_STEP", "SAME_STEP")
"""Autoreset modes in which an episode's last observation is lost."""


def import_env_packages(names: Sequence[str]) -> None:
    """Import the packages that register environments.

    Raises:
        EnvError: A package cannot be imported; the message gives the reason.
    """
    for name in names:
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise EnvError(
                f"`env.env_packages` has {shown(name)}, which is not the name of a package",
                allowed="names that Python can import, such as gym_razor",
            )
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == name
            raise EnvError(
                f"The package {name!r} in `env.env_packages` cannot be imported: "
                f"{type(error).__name__}: {error}{gl_advice(str(error))}",
                remedy="Install it, or remove it from the list."
                if absent
                else "Mend it, install what it needs, or remove it from the list.",
            ) from error


def check_tasks(tasks: Sequence[str]) -> None:
    """Check that every task is a registered Gymnasium id, or one of LeRobot's environments.

    Raises:
        UnknownNameError: One is not; lists the ids of its namespace and suggests one.
        EnvError: LeRobot cannot make one, or a name stands for several tasks.
    """
    for task in tasks:
        if is_lerobot_task(task):
            if task not in (names := register_lerobot_task(task)):
                raise EnvError(
                    f"{task!r} stands for {len(names)} tasks, but one is needed here",
                    allowed=", ".join(names),
                )
        elif task not in gym.registry:
            raise _unknown_task(task, [name for name in gym.registry if "/" in name])


def _unknown_task(task: str, options: Sequence[str]) -> UnknownNameError:
    """Return the error for a task that is not registered."""
    namespace = task.split("/")[0] + "/" if "/" in task else ""
    known = [name for name in gym.registry if namespace and name.startswith(namespace)]
    if known:
        remedy = "`robo-razor list tasks` describes them."
    elif not namespace:
        remedy = (
            "`robo-razor list tasks` describes those of gym_razor. If a package of yours registers "
            "the task, name that too: `--env.env-packages gym_razor YOUR_PACKAGE`."
        )
    else:
        remedy = (
            f"No task is registered as {namespace}...: if a package of yours registers it, name "
            f"that too: `--env.env-packages gym_razor {namespace[:-1]}`."
        )
    return unknown_name("task", task, known or options, remedy=remedy)


def tasks_of_role(role: str, packages: Sequence[str]) -> list[str]:
    """Return the ids that some packages registered with `role` "prior" or "new", in that order."""
    return [
        name
        for name, spec in gym.registry.items()
        if spec.kwargs.get("role") == role and _is_of(spec, packages)
    ]


def resolve_tasks(spec: str, packages: Sequence[str]) -> list[str]:
    """Return the task ids that a setting names.

    Args:
        spec: `prior`, `new`, `all`, `none`, ids or skill names, several with commas.
        packages: Packages that register the tasks; they are imported.

    Raises:
        UnknownNameError: A name is neither a role nor a task.
    """
    import_env_packages(packages)
    roles = {"prior": ("prior",), "new": ("new",), "all": ("prior", "new"), "none": ()}
    known = [name for name, item in gym.registry.items() if _is_of(item, packages)]
    by_name = {skill_name(task): task for task in reversed(known)} | {task: task for task in known}
    tasks = []
    for part in filter(None, (part.strip() for part in spec.split(","))):
        if part in roles:
            tasks += [task for role in roles[part] for task in tasks_of_role(role, packages)]
            continue
        if is_lerobot_task(part):
            tasks += register_lerobot_task(part)
            continue
        if part not in by_name and part not in gym.registry:
            raise _unknown_task(part, [*roles, *(skill_name(task) for task in known)])
        tasks.append(by_name.get(part, part))
    return list(dict.fromkeys(tasks))


def task_id(name: str, packages: Sequence[str]) -> str:
    """Return the task id of a skill name; any other name is returned as it is.

    Args:
        name: Such as `LiftCube`.
        packages: Packages that register the tasks; they are imported.
    """
    if "/" in name or ":" in name:
        return name
    import_env_packages(packages)
    if name in gym.registry:
        return name
    matching = [task for task in gym.registry if skill_name(task) == name]
    return next((task for task in matching if _is_of(gym.registry[task], packages)), name)


def named_tasks(spec: str, packages: Sequence[str]) -> dict[str, str]:
    """Return skill name -> task id for a setting such as `all` or `LiftCube,PressButton`."""
    tasks: dict[str, str] = {}
    for task in resolve_tasks(spec, packages):
        name = skill_name(task)
        tasks[task if name in tasks else name] = task
    return tasks


def role_of(task: str) -> str:
    """Return the role "prior" or "new" that a task is registered with ("new" without one)."""
    return str(gym.registry[task].kwargs.get("role", "new") if task in gym.registry else "new")


@dataclass(frozen=True)
class TaskInfo:
    """A registered task.

    Attributes:
        id: Its Gymnasium id.
        skill: Its short name, which commands also accept.
        role: `prior` (the shipped base has learnt it), `new` (it has not), or None.
        max_episode_steps: Control steps before an episode is truncated; None: no limit.
    """

    id: str
    skill: str
    role: str | None
    max_episode_steps: int | None


def list_tasks(
    role: str | None = None, env_packages: Sequence[str] = ("gym_razor",)
) -> list[TaskInfo]:
    """Return the tasks of some packages and all tasks that have a role, by role and name.

    Args:
        role: Only those with this role, `prior` or `new`.
        env_packages: Packages that register tasks; they are imported.
    """
    import_env_packages(env_packages)
    tasks = [
        TaskInfo(name, skill_name(name), spec.kwargs.get("role"), spec.max_episode_steps)
        for name, spec in gym.registry.items()
        if _is_of(spec, env_packages) or "role" in spec.kwargs
    ]
    chosen = [task for task in tasks if role is None or task.role == role]
    return sorted(chosen, key=lambda task: (task.role or "~", task.id))


def time_limit(task: str) -> float:
    """Return the time limit that a task is registered with, control steps; infinite without one."""
    spec = gym.registry.get(task)
    return math.inf if spec is None or not spec.max_episode_steps else spec.max_episode_steps


def make_env(
    task: str,
    config: EnvConfig,
    *,
    chunk_size: int,
    tasks: Sequence[str] = (),
    image_shape: tuple[int, int] | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Make a vector environment that executes action chunks.

    Args:
        task: Gymnasium id, or `lerobot:TYPE/TASK`, of every sub-environment's first task.
        config: Number of environments and workers, image size, reward.
        chunk_size: Control steps per decision, H.
        tasks: Further tasks that it must be able to switch to.
        image_shape: Height and width of the policy's images. LeRobot's environments are scaled to
            it; all others render `config.image_size`.
        **kwargs: Passed to the environment.

    Raises:
        RoboRazorError: A task is unknown, its environment cannot be made, or the tasks differ in
            their observations or actions.
    """
    check_gl_setting()
    check_descriptors(config.num_workers)
    import_env_packages(config.env_packages)
    needed = list(dict.fromkeys((task, *tasks)))
    check_tasks(needed)
    families: dict[Any, list[str]] = {}
    for name in needed:
        with worker_errors(f"The environment {name!r} cannot be made"):
            families.setdefault(_family(name), []).append(name)
    parts: list[tuple[list[str], VectorEnv]] = []
    try:
        for names in families.values():
            with worker_errors(f"The environment {names[0]!r} cannot be made"):
                parts.append((names, _make_family(names, config, chunk_size, image_shape, kwargs)))
            check_vector_env(names[0], parts[-1][1])
            _try_tasks(names, parts[-1][1])
        if len(parts) == 1:
            return parts[0][1]
        return MixedVectorEnv(parts)
    except BaseException:
        for _, env in parts:
            env.close()
        raise


def make_fitting_env(
    policy: Policy | None,
    tasks: Sequence[str],
    config: EnvConfig,
    *,
    chunk_size: int | None = None,
    columns: Collection[str] = (),
) -> VectorEnv:
    """Make a vector environment, and check that a policy fits it.

    Args:
        policy: Who acts in it; None checks nothing (as for a scripted expert).
        tasks: Ids of the tasks that it must be able to switch between; all begin with the first.
        config: Number of environments and workers, image size, reward.
        chunk_size: Control steps per decision, H; None takes the policy's (1 without a policy).
        columns: LeRobot's names that only a data set offers, which `rename` may name too.

    Raises:
        RoboRazorError: The environment cannot be made, or the policy does not fit it.
    """
    if chunk_size is None:
        chunk_size = 1 if policy is None else policy.chunk_size
    env = make_env(
        tasks[0],
        config,
        chunk_size=chunk_size,
        tasks=tasks[1:],
        image_shape=None if policy is None else policy.wanted_image_shape,
    )
    try:
        if policy is not None:
            policy.check_env(env.single_observation_space, env.single_action_space, columns)
    except BaseException:
        env.close()
        raise
    return env


def _family(task: str) -> Any:
    """Return a key that tasks share if one vector environment can switch between them."""
    if is_lerobot_task(task):
        return environment_type(task)
    if not _steps_chunks(task):
        return OWN_VECTOR_ENV
    maker = _vector_maker(task)
    return maker if getattr(maker, "switches_tasks", True) else task


def _make_family(
    tasks: Sequence[str],
    config: EnvConfig,
    chunk_size: int,
    image_shape: tuple[int, int] | None,
    kwargs: dict[str, Any],
) -> VectorEnv:
    """Make the vector environment of tasks of one family."""
    task = tasks[0]
    if is_lerobot_task(task):
        return make_lerobot_env(tasks, config, chunk_size=chunk_size, image_shape=image_shape)
    kwargs = dict(kwargs)
    if config.max_episode_steps is not None:
        kwargs["max_episode_steps"] = config.max_episode_steps
    if config.reward_type != "sparse":
        kwargs["reward_type"] = config.reward_type
    num_workers = min(config.num_workers, config.num_envs)
    if not _steps_chunks(task):
        make: Any = load_env_creator(OWN_VECTOR_ENV)
        pooled: VectorEnv = make(
            tasks,
            config.num_envs,
            chunk_size=chunk_size,
            num_workers=num_workers,
            max_episode_steps=config.max_episode_steps,
            arguments=kwargs,
        )
        return pooled
    # Gymnasium's type of the result lacks what `VectorEnv` of this package adds.
    env = gym.make_vec(
        task,
        num_envs=config.num_envs,
        vectorization_mode="vector_entry_point",
        num_workers=num_workers,
        chunk_size=chunk_size,
        image_size=config.image_size,
        **kwargs,
    )
    return cast("VectorEnv", env)


def check_vector_env(task: str, env: VectorEnv) -> None:
    """Check the spaces and metadata of a vector environment, before any episode is run.

    Raises:
        EnvError: Its observations cannot be read, or it resets automatically.
    """
    mode = (env.metadata or {}).get("autoreset_mode")
    if str(getattr(mode, "name", mode)) in AUTORESET_MODES:
        raise EnvError(
            f"The vector environment of {task!r} resets automatically (autoreset mode "
            f"{getattr(mode, 'name', mode)}), so an episode's last observation and success are "
            "lost",
            remedy="Let it stand still after an episode, with "
            'metadata["autoreset_mode"] = AutoresetMode.DISABLED.',
        )
    space = env.single_observation_space
    pixels = space.spaces.get("pixels") if isinstance(space, spaces.Dict) else None
    if not isinstance(space, spaces.Dict) or not isinstance(pixels, spaces.Dict | None):
        raise EnvError(
            f"The vector environment of {task!r} gives {shown(str(space))}",
            allowed='a Dict {"pixels": Dict of cameras, "agent_pos": Box}',
        )
    for name, image in (pixels.spaces if pixels is not None else {}).items():
        if image.dtype != np.uint8:
            raise EnvError(
                f"The vector environment of {task!r} gives the picture {name!r} as {image.dtype}",
                allowed="uint8 [height, width, 3] for each sub-environment",
            )


def _try_tasks(tasks: Sequence[str], env: VectorEnv) -> None:
    """Start each task, so that errors come before any work; warn of ignored seeds and no limits.

    Environments whose maker promises `pure_starts` are not tried: their start states are functions
    of (task, seed), and their tasks have the same observations.
    """
    if getattr(_vector_maker(tasks[0]), "pure_starts", False):
        return
    pooled: Any = env  # what `OWN_VECTOR_ENV` makes has `call`
    for task in reversed(tasks):  # the first one last, because all are to begin with it
        if problem := seed_problem(env, task):
            logger.warning("%s %s", task, problem)
        if _family(task) == OWN_VECTOR_ENV and not pooled.call("has_time_limit")[0]:
            logger.warning(
                "The environment %r names no time limit. If it has none, an episode that fails "
                "never ends: register it with max_episode_steps, or set --env.max-episode-steps.",
                task,
            )


def seed_problem(env: VectorEnv, task: str) -> str | None:
    """Return what is wrong with the seeding of a task's environment, None if it is right.

    The first sub-environment is started three times: twice from one seed, once from another.

    Args:
        env: Vector environment that can switch to the task.
        task: Its id.
    """
    driver = GroupDriver(env)
    states: list[str | bytes] = []
    for seed in (0, 0, 1):
        observation, _, infos = driver.reset(np.arange(1), [seed], [task], [None])
        states.append(start_states(infos, 1)[0] or _bytes_of(observation))
    if states[0] != states[1]:
        return (
            "starts differently each time from the same seed. Its episodes cannot be paired or "
            "repeated, so success rates are less certain than their intervals."
        )
    if states[0] == states[2]:
        return (
            "starts in the same state whatever the seed. All episodes are alike, and an evaluation "
            "has the start states of the training."
        )
    return None


def _bytes_of(observation: Observation) -> bytes:
    parts: list[bytes] = []
    map_arrays(lambda x: parts.append(np.ascontiguousarray(x).tobytes()), observation)
    return b"".join(parts)


def _vector_maker(task: str) -> Any:
    entry_point = gym.spec(task).vector_entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _steps_chunks(task: str) -> bool:
    """Return whether a task's vector environment takes the arguments of this toolkit's."""
    maker = _vector_maker(task)
    if maker is None:
        return False
    return takes(maker, {"num_workers", "chunk_size", "image_size"})


def takes(maker: Callable[..., Any], names: Set[str]) -> bool:
    """Return whether a maker takes arguments of these names, or of any."""
    parameters = inspect.signature(maker).parameters
    return names <= set(parameters) or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _is_of(spec: Any, packages: Sequence[str]) -> bool:
    """Return whether one of the packages registers a task, by `package` or its entry point."""
    entry = spec.entry_point or spec.vector_entry_point
    module = entry.split(":")[0] if isinstance(entry, str) else entry.__module__
    owner = str(spec.kwargs.get("package") or module).split(".")[0]
    return owner in {name.split(".")[0] for name in packages}
