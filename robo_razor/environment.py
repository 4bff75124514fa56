"""Make vector environments by Gymnasium id, and drive them in groups.

The toolkit asks a vector environment for four things beyond `gymnasium.vector.VectorEnv`: a chunk
of actions per step, resets of single sub-environments, a task and an instruction for each of them,
and a final observation that is not replaced (autoreset disabled). Environments registered with a
`vector_entry_point` bring that themselves, `lerobot:TYPE/TASK` gets it from `lerobot_tasks`, and
any other id runs in `serial_env`. Tasks of unlike origin are joined by `mixed_env`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from robo_razor.config import EnvConfig
from robo_razor.errors import EnvError, unknown_name
from robo_razor.lerobot_tasks import (
    environment_type,
    is_lerobot_task,
    make_lerobot_env,
    register_lerobot_task,
)
from robo_razor.types import Observation

StepResult = tuple[
    NDArray[np.int64],
    Observation,
    NDArray[np.float64],
    NDArray[np.bool_],
    NDArray[np.bool_],
    dict[str, Any],
]


def import_env_packages(names: Sequence[str]) -> None:
    """Import the packages that register environments.

    Raises:
        EnvError: If a package is not importable.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise EnvError(
                f"The package {name!r} in `env.env_packages` cannot be imported: {error}",
                remedy="Install it, or remove it from the list.",
            ) from error


def check_tasks(tasks: Sequence[str]) -> None:
    """Check that every task is a registered Gymnasium id, or one environment of LeRobot's.

    Raises:
        UnknownNameError: If one is not; lists the ids of its namespace and suggests one.
        EnvError: LeRobot cannot make one, or its name stands for several.
    """
    for task in tasks:
        if is_lerobot_task(task):
            if task not in (found := register_lerobot_task(task)):
                raise EnvError(
                    f"{task!r} stands for {len(found)} tasks, and one is needed here",
                    allowed=", ".join(found),
                )
        elif task not in gym.registry:
            namespace = task.split("/")[0] + "/" if "/" in task else ""
            options = [name for name in gym.registry if name.startswith(namespace) and "/" in name]
            raise unknown_name(
                "task", task, options, remedy="`robo-razor list tasks` describes them."
            )


def tasks_of_role(role: str, packages: Sequence[str]) -> list[str]:
    """Return the ids that some packages registered with `role` "prior" or "new", in that order."""
    return [
        name
        for name, spec in gym.registry.items()
        if spec.kwargs.get("role") == role and _package(spec) in packages
    ]


def resolve_tasks(spec: str, packages: Sequence[str]) -> list[str]:
    """Return the task ids that a setting means.

    Args:
        spec: `prior`, `new`, `all`, `none`, ids or skill names, several with commas.
        packages: Packages whose environments are meant, imported if they are not yet.

    Raises:
        UnknownNameError: A name is none of them.
    """
    import_env_packages(packages)
    roles = {"prior": ("prior",), "new": ("new",), "all": ("prior", "new"), "none": ()}
    known = [name for name, item in gym.registry.items() if _package(item) in packages]
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
            raise unknown_name("task", part, [*roles, *(skill_name(task) for task in known)])
        tasks.append(by_name.get(part, part))
    return list(dict.fromkeys(tasks))


def task_id(name: str, packages: Sequence[str]) -> str:
    """Return the task id of a skill name; any other name is returned as it is.

    Args:
        name: Such as `LiftCube`.
        packages: Packages whose environments are meant, imported if they are not yet.
    """
    if "/" in name or ":" in name:
        return name
    import_env_packages(packages)
    if name in gym.registry:
        return name
    found = [task for task in gym.registry if skill_name(task) == name]
    return next((task for task in found if _package(gym.registry[task]) in packages), name)


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


def time_limit(task: str) -> float:
    """Return the time limit that a task is registered with, control steps; infinite without one."""
    spec = gym.registry.get(task)
    return math.inf if spec is None or not spec.max_episode_steps else spec.max_episode_steps


def skill_name(task: str) -> str:
    """Return the short name of a task id: `LiftCube` for `gym_razor/LiftCube-v0`."""
    name = task.split("/")[-1]
    stem, _, version = name.rpartition("-v")
    return stem if stem and version.isdigit() else name


def make_env(
    task: str,
    config: EnvConfig,
    *,
    chunk_size: int,
    tasks: Sequence[str] = (),
    image_shape: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Any:
    """Make a vector environment that executes action chunks.

    Args:
        task: Gymnasium id, or `lerobot:TYPE/TASK`, of every sub-environment's first task.
        config: Number of environments and workers, image size, reward.
        chunk_size: Control steps per decision, H.
        tasks: Further tasks that it must be able to switch to.
        image_shape: Height and width of the images that the policy wants; environments of LeRobot's
            are scaled to it, all others render `config.image_size`.
        **kwargs: Passed to the environment.
    """
    import_env_packages(config.env_packages)
    needed = list(dict.fromkeys((task, *tasks)))
    check_tasks(needed)
    families: dict[Any, list[str]] = {}
    for name in needed:
        families.setdefault(_family(name), []).append(name)
    parts: list[tuple[list[str], Any]] = []
    try:
        for names in families.values():
            parts.append((names, _make_family(names, config, chunk_size, image_shape, kwargs)))
        if len(parts) == 1:
            return parts[0][1]
        from robo_razor.mixed_env import MixedVectorEnv

        return MixedVectorEnv(parts)
    except BaseException:
        for _, env in parts:
            env.close()
        raise


def _family(task: str) -> Any:
    """Return what is equal for tasks that one vector environment can switch between."""
    if is_lerobot_task(task):
        return environment_type(task)
    if not _steps_chunks(task):
        return "serial"
    maker = _vector_maker(task)
    return maker if getattr(maker, "switches_tasks", True) else task


def _make_family(
    tasks: Sequence[str],
    config: EnvConfig,
    chunk_size: int,
    image_shape: tuple[int, int] | None,
    kwargs: dict[str, Any],
) -> Any:
    """Make the vector environment of tasks of one family."""
    task = tasks[0]
    if is_lerobot_task(task):
        with worker_errors():
            return make_lerobot_env(tasks, config, chunk_size=chunk_size, image_shape=image_shape)
    kwargs = dict(kwargs)
    if config.max_episode_steps is not None:
        kwargs["max_episode_steps"] = config.max_episode_steps
    if config.reward_type != "sparse":
        kwargs["reward_type"] = config.reward_type
    if not _steps_chunks(task):
        from robo_razor.serial_env import SerialVectorEnv

        return SerialVectorEnv(task, config.num_envs, chunk_size=chunk_size, env_kwargs=kwargs)
    with worker_errors():
        return gym.make_vec(
            task,
            num_envs=config.num_envs,
            vectorization_mode="vector_entry_point",
            num_workers=min(config.num_workers, config.num_envs),
            chunk_size=chunk_size,
            image_size=config.image_size,
            **kwargs,
        )


def _vector_maker(task: str) -> Any:
    entry_point = gym.spec(task).vector_entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _steps_chunks(task: str) -> bool:
    """Tell whether a task's own vector environment takes the arguments of those of this toolkit."""
    maker = _vector_maker(task)
    if maker is None:
        return False
    return takes(maker, {"num_workers", "chunk_size", "image_size"})


def takes(maker: Callable[..., Any], names: Set[str]) -> bool:
    """Tell whether a maker takes arguments of these names, or of any."""
    parameters = inspect.signature(maker).parameters
    return names <= set(parameters) or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def reset_request(
    num_envs: int, seed: Any, options: dict[str, Any] | None
) -> tuple[NDArray[np.bool_], list[Any], Sequence[Any], Sequence[Any]]:
    """Return what a reset asks for, per sub-environment: mask, seed, task, own words.

    The arguments are those of a vector environment's `reset`; where there is no seed, task or own
    words for a sub-environment it is None.
    """
    options = options or {}
    mask = np.asarray(options.get("reset_mask", np.ones(num_envs, dtype=bool)))
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * num_envs
    nothing = [None] * num_envs
    return mask, seeds, options.get("tasks") or nothing, options.get("instructions") or nothing


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Tell the fault of an environment's worker process as an error for the user.

    Environments call it `WorkerError` (dead, hung, or an exception inside); the traceback of the
    worker is left to `--debug`.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "WorkerError":
            raise
        text = re.sub(r"\nTraceback.*\n(?=\. Its episodes)", "", str(error), flags=re.DOTALL)
        raise EnvError(text, remedy="`robo-razor doctor` checks OpenGL and memory.") from error


class GroupDriver:
    """Steps a vector environment by groups, so that one can move while the policy thinks.

    Uses the split stepping of the environment if there is one (`step_async(actions, env_ids)`,
    `step_wait()` and `groups`), else one group that holds every sub-environment.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.num_envs = int(env.num_envs)
        split = all(hasattr(env, name) for name in ("groups", "step_async", "step_wait"))
        self._split = split
        self.groups: list[NDArray[np.int64]] = (
            [np.asarray(group, dtype=np.int64) for group in env.groups]
            if split
            else [np.arange(self.num_envs)]
        )
        self._pending: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None

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
        with worker_errors():
            observation, infos = self.env.reset(
                seed=_spread(n, env_ids, [int(seed) for seed in seeds]), options=options
            )
        words = self.env.instructions
        rows = {key: value[env_ids] for key, value in infos.items() if _is_per_env(value, n)}
        return take(observation, env_ids), [str(words[i]) for i in env_ids], rows

    def submit(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Start the chunks float32 [n, H, A] of sub-environments that belong to one group."""
        if self._split:
            with worker_errors():
                self.env.step_async(actions, env_ids)
        else:
            self._pending = (actions, env_ids)

    def wait(self) -> StepResult:
        """Return the rows of the next group that is ready."""
        if self._split:
            with worker_errors():
                result: StepResult = self.env.step_wait()
            return result
        assert self._pending is not None
        (actions, env_ids), self._pending = self._pending, None
        full = np.zeros((self.num_envs, *actions.shape[1:]), dtype=np.float32)
        full[env_ids] = actions
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[env_ids] = True
        with worker_errors():
            observation, rewards, terminated, truncated, infos = self.env.step(full, mask=mask)
        rows = {
            key: value[env_ids] for key, value in infos.items() if _is_per_env(value, self.num_envs)
        }
        return (
            env_ids,
            take(observation, env_ids),
            rewards[env_ids],
            terminated[env_ids],
            truncated[env_ids],
            rows,
        )


def _package(spec: Any) -> str:
    entry = spec.entry_point or spec.vector_entry_point
    module = entry.split(":")[0] if isinstance(entry, str) else entry.__module__
    return str(module).split(".")[0]


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


def workers_beside(env: Any) -> int:
    """Return how many workers of an environment may move while the policy thinks.

    None do with a single group, as with one sub-environment or in `serial_env`: then the policy and
    the environment wait for one another.
    """
    groups = len(GroupDriver(env).groups)
    return groups if groups > 1 else 0


def _spread(n: int, env_ids: NDArray[np.int64], values: Sequence[Any]) -> list[Any]:
    spread: list[Any] = [None] * n
    for i, value in zip(env_ids, values, strict=True):
        spread[i] = value
    return spread


def _is_per_env(value: Any, n: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim >= 1 and value.shape[0] == n
