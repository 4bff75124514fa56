"""Make vector environments by Gymnasium id, and drive them in groups.

The toolkit asks a vector environment for four things beyond `gymnasium.vector.VectorEnv`: a chunk
of actions per step, resets of single sub-environments, a task and an instruction for each of them,
and a final observation that is not replaced (autoreset disabled). Environments registered with a
`vector_entry_point` bring that themselves, `lerobot:TYPE/TASK` gets it from `lerobot_tasks`, and
any other id runs in the same kind of workers. Tasks of unlike origin are joined by `mixed_env`.
Whatever the kind, what passes is checked by `boundary`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from robo_razor.core.errors import (
    EnvError,
    RoboRazorError,
    UnknownNameError,
    did_you_mean,
    shown,
    unknown_name,
)
from robo_razor.core.machine import check_descriptors
from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.types import Observation
from robo_razor.rollout.boundary import Boundary, check_vector_env
from robo_razor.rollout.lerobot import (
    environment_type,
    is_lerobot_task,
    make_lerobot_env,
    register_lerobot_task,
)

logger = logging.getLogger(__name__)

OWN_VECTOR_ENV = "gym_razor.adapters.registered:make_registered_vector_env"
"""Makes vector environments of ids without one of their own."""

GL_NAMES = ("egl", "osmesa", "glfw")
"""What `MUJOCO_GL` can be on Linux."""
GL_WORDS = {*GL_NAMES, "", "glx", "wgl", "cgl", "enable", "enabled", "on", "true", "1"} | {
    *("disable", "disabled", "off", "false", "0"),
}
"""All that MuJoCo takes."""
GL_SIGNS = re.compile(r"glGetError|MUJOCO_GL|GLContext|\bEGL\b|\begl[A-Z]|OSMesa|GLFWError")

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
        EnvError: If a package cannot be imported, for whatever reason.
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
                f"{type(error).__name__}: {error}{gl_trouble(str(error))}",
                remedy="Install it, or remove it from the list."
                if absent
                else "Mend it, install what it needs, or remove it from the list.",
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
            "it, name that too: `--env.env-packages gym_razor YOUR_PACKAGE`."
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
    """Return the task ids that a setting means.

    Args:
        spec: `prior`, `new`, `all`, `none`, ids or skill names, several with commas.
        packages: Packages whose environments are meant, imported if they are not yet.

    Raises:
        UnknownNameError: A name is none of them.
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
        packages: Packages whose environments are meant, imported if they are not yet.
    """
    if "/" in name or ":" in name:
        return name
    import_env_packages(packages)
    if name in gym.registry:
        return name
    found = [task for task in gym.registry if skill_name(task) == name]
    return next((task for task in found if _is_of(gym.registry[task], packages)), name)


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

    Raises:
        RoboRazorError: A task is unknown, its environment cannot be made, or the tasks give and
            take unlike things.
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
    parts: list[tuple[list[str], Any]] = []
    try:
        for names in families.values():
            with worker_errors(f"The environment {names[0]!r} cannot be made"):
                parts.append((names, _make_family(names, config, chunk_size, image_shape, kwargs)))
            check_vector_env(names[0], parts[-1][1])
            _try_tasks(names, parts[-1][1])
        if len(parts) == 1:
            return parts[0][1]
        from robo_razor.rollout.mixed import MixedVectorEnv

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
        return OWN_VECTOR_ENV
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
        return make_lerobot_env(tasks, config, chunk_size=chunk_size, image_shape=image_shape)
    kwargs = dict(kwargs)
    if config.max_episode_steps is not None:
        kwargs["max_episode_steps"] = config.max_episode_steps
    if config.reward_type != "sparse":
        kwargs["reward_type"] = config.reward_type
    num_workers = min(config.num_workers, config.num_envs)
    if not _steps_chunks(task):
        make: Any = load_env_creator(OWN_VECTOR_ENV)
        return make(
            tasks,
            config.num_envs,
            chunk_size=chunk_size,
            num_workers=num_workers,
            max_episode_steps=config.max_episode_steps,
            arguments=kwargs,
        )
    return gym.make_vec(
        task,
        num_envs=config.num_envs,
        vectorization_mode="vector_entry_point",
        num_workers=num_workers,
        chunk_size=chunk_size,
        image_size=config.image_size,
        **kwargs,
    )


def _try_tasks(tasks: Sequence[str], env: Any) -> None:
    """Begin each task, so that what cannot be used shows before any work; warn of ignored seeds.

    Environments whose maker promises `pure_starts` need it not: their start states are functions of
    (task, seed), and their tasks give the same things.
    """
    if getattr(_vector_maker(tasks[0]), "pure_starts", False):
        return
    for task in reversed(tasks):  # the first one last: that is the one they are to be left with
        if trouble := seed_trouble(env, task):
            logger.warning("%s %s", task, trouble)
        if _family(task) == OWN_VECTOR_ENV and not env.call("tells_limit")[0]:
            logger.warning(
                "The environment %r tells no time limit. Where it has none, an episode that fails "
                "never ends: register it with max_episode_steps, or set --env.max-episode-steps.",
                task,
            )


def seed_trouble(env: Any, task: str) -> str | None:
    """Say what is wrong with how a task's environment takes seeds; None where nothing is.

    Looks at three starts of the first sub-environment: two from one seed, one from another.

    Args:
        env: Vector environment that can switch to the task.
        task: Its id.
    """
    driver = GroupDriver(env)
    states = []
    for seed in (0, 0, 1):
        observation, _, infos = driver.reset(np.arange(1), [seed], [task], [None])
        state = infos["start_state_hash"][0] if "start_state_hash" in infos else ""
        states.append(state or _bytes_of(observation))
    if states[0] != states[1]:
        return (
            "does not begin twice in the same way from one seed: its episodes cannot be paired or "
            "repeated, so success rates say less than their intervals."
        )
    if states[0] == states[2]:
        return (
            "begins in the same way whatever the seed: all episodes start alike, and start states "
            "of an evaluation are those of the training."
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
def worker_errors(what: str | Callable[[], str] = "The environment failed") -> Iterator[None]:
    """Tell whatever an environment raises as an error for the user.

    Environments call it `WorkerError` if a worker process is at fault (dead, hung, or an exception
    inside), `EnvironmentFault` if it is the environment; their text says which episode it was. The
    tracebacks are left to `--debug`.

    Args:
        what: Begins the sentence for any other exception; a function says so only then.
    """
    try:
        yield
    except RoboRazorError:
        raise
    except (Exception, SystemExit) as error:
        kind, text = type(error).__name__, str(error)
        remedy = None
        if kind == "StartError":
            raise EnvError(text) from None  # it is the script's fault: where it came from is noise
        if kind == "WorkerError":
            text = re.sub(r"\nTraceback.*\n(?=\.)", "", text, flags=re.DOTALL)
            if "raised EnvironmentFault: " not in text:
                remedy = "`robo-razor doctor` checks OpenGL and memory."
        elif kind != "EnvironmentFault":
            text = f"{what if isinstance(what, str) else what()}: {kind}: {text}"
        raise EnvError(text + gl_trouble(text), remedy=remedy) from error


def check_gl_setting() -> None:
    """Check that `MUJOCO_GL` names a way to render, for MuJoCo itself stops at any other word.

    Raises:
        EnvError: If not.
    """
    given = os.environ.get("MUJOCO_GL", "")
    if given.strip().lower() not in GL_WORDS:
        raise EnvError(
            f"No OpenGL context can be made: MUJOCO_GL is {shown(given)}."
            f"{did_you_mean(given, GL_NAMES)}",
            allowed=", ".join(GL_NAMES),
            remedy="On a machine without a display take egl (Debian packages libegl1 and "
            "libgl1-mesa-dri), or osmesa (libosmesa6).",
        )


def gl_trouble(text: str) -> str:
    """Return what to say where an exception with this text comes from OpenGL, else nothing."""
    if "No OpenGL context" in text or not GL_SIGNS.search(text):
        return ""
    return (
        f". No OpenGL context could be made (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}): "
        "install the Debian package libegl1 (and libgl1-mesa-dri for software rendering) for "
        "MUJOCO_GL=egl, or libosmesa6 for MUJOCO_GL=osmesa"
    )


class GroupDriver:
    """Steps a vector environment by groups, so that one can move while the policy thinks.

    Uses the split stepping of the environment if there is one (`step_async(actions, env_ids)`,
    `step_wait()` and `groups`), else one group that holds every sub-environment.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.num_envs = int(env.num_envs)
        self._boundary = Boundary(env)
        split = all(hasattr(env, name) for name in ("groups", "step_async", "step_wait"))
        self._split = split
        self.groups: list[NDArray[np.int64]] = (
            [np.asarray(group, dtype=np.int64) for group in env.groups]
            if split
            else [np.arange(self.num_envs)]
        )
        self._pending: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
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
            words = self.env.instructions
            rows = _rows(infos, env_ids, n)
            seen = take(observation, env_ids)
        self._boundary.check_tasks(env_ids, tasks, getattr(self.env, "tasks", None))
        self._boundary.check_start(env_ids, seen, rows)
        return seen, [str(words[i]) for i in env_ids], rows

    def submit(self, actions: NDArray[np.float32], env_ids: NDArray[np.int64]) -> None:
        """Start the chunks float32 [n, H, A] of sub-environments that belong to one group."""
        self._boundary.check_actions(actions, env_ids)
        self._num_steps = actions.shape[1]
        if self._split:
            with worker_errors(lambda: f"A step of {self._boundary.named(env_ids)} failed"):
                self.env.step_async(actions, env_ids)
        else:
            self._pending = (actions, env_ids)

    def wait(self) -> StepResult:
        """Return the rows of the next group that is ready.

        Their infos have `is_success`: whether the episode succeeded at any of its steps so far.
        """
        env_ids, observation, rewards, terminated, truncated, infos = self._next()
        infos = self._boundary.check_step(
            env_ids, observation, rewards, (terminated, truncated), infos, self._num_steps
        )
        return env_ids, observation, rewards, terminated, truncated, infos

    def _next(self) -> StepResult:
        if self._split:
            with worker_errors("A step failed"):
                result: StepResult = self.env.step_wait()
            return result
        assert self._pending is not None
        (actions, env_ids), self._pending = self._pending, None
        full = np.zeros((self.num_envs, *actions.shape[1:]), dtype=np.float32)
        full[env_ids] = actions
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[env_ids] = True
        with worker_errors(lambda: f"A step of {self._boundary.named(env_ids)} failed"):
            observation, rewards, terminated, truncated, infos = self.env.step(full, mask=mask)
            return (
                env_ids,
                take(observation, env_ids),
                rewards[env_ids],
                terminated[env_ids],
                truncated[env_ids],
                _rows(infos, env_ids, self.num_envs),
            )


def _rows(infos: dict[str, Any], env_ids: NDArray[np.int64], n: int) -> dict[str, Any]:
    """Return the infos that tell something of each of n sub-environments, for some of them."""
    arrays = {k: np.asarray(v) if isinstance(v, list | tuple) else v for k, v in infos.items()}
    return {key: value[env_ids] for key, value in arrays.items() if _is_per_env(value, n)}


def _is_of(spec: Any, packages: Sequence[str]) -> bool:
    """Tell whether a task is of one of the packages: its `package`, else that of its maker."""
    entry = spec.entry_point or spec.vector_entry_point
    module = entry.split(":")[0] if isinstance(entry, str) else entry.__module__
    owner = str(spec.kwargs.get("package") or module).split(".")[0]
    return owner in {name.split(".")[0] for name in packages}


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

    None do with a single group, as with one sub-environment: then the policy and the environment
    wait for one another.
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
