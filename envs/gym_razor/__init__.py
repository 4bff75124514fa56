"""Skills on a table for a Franka Panda, as Gymnasium environments.

`gym.make("gym_razor/LiftCube-v0")` gives one environment; with
`gym.make_vec(..., vectorization_mode="vector_entry_point")` many run in parallel worker processes.
Importing this package only registers ids; MuJoCo is imported when an environment is made.

The package has three rooms, and each uses only those before it:

- `suite`: the table, its tasks, one environment;
- `vector`: many environments in worker processes, the suite's or any others;
- `adapters`: give other environments this interface (robosuite's, LeRobot's and your own), and
  give these environments other interfaces (Stable-Baselines3's, Gymnasium's autoreset).
"""

from __future__ import annotations

from typing import get_args

import gymnasium as gym

from gym_razor.adapters.robosuite import register_robosuite_tasks
from gym_razor.suite import scene
from gym_razor.suite.tasks import OWN_TASKS, TASKS
from gym_razor.suite.tasks.base import Role, Task


def register_task(task: Task) -> Task:
    """Add a task to the suite and to Gymnasium's registry.

    Then `gym.make` and `gym.make_vec` know it, its scripted expert can demonstrate it, and vector
    environments can switch to it. Put a task of your own into a module of your package, set its
    `namespace` to the package's name, and name the package in robo-razor's `env.env_packages`.
    Worker processes get the task itself and need not import the module.

    Args:
        task: The task. It replaces one with the same id, but not a task of the suite itself.

    Returns:
        The task.

    Raises:
        ValueError: The task cannot be registered as it is; the text says why.
    """
    _check(task)
    TASKS[task.id] = task
    gym.registry.pop(task.id, None)
    gym.register(
        task.id,
        max_episode_steps=task.max_episode_steps,
        entry_point="gym_razor.suite.env:TableEnv",
        vector_entry_point="gym_razor.vector.tables:RazorVectorEnv",
        kwargs={"task": task.id, "role": task.role, "package": task.namespace},
    )
    return task


def _check(task: Task) -> None:
    if any(task.id == own.id and task != own for own in OWN_TASKS):
        raise ValueError(
            f"{task.id} is a task of the suite itself: give yours another name or namespace."
        )
    if task.role not in get_args(Role):
        raise ValueError(f"{task.id} has the role {task.role!r}; allowed are 'prior' and 'new'.")
    if task.max_episode_steps < 1:
        raise ValueError(
            f"{task.id} has max_episode_steps {task.max_episode_steps}: give at least 1."
        )
    if not task.templates or not task.pairs or set(task.pairs) - set(scene.OBJECT_PAIRS):
        raise ValueError(
            f"{task.id} needs at least one instruction, and pairs of objects out of "
            f"{', '.join('+'.join(pair) for pair in scene.OBJECT_PAIRS)}."
        )


def _own_ids(role: Role) -> tuple[str, ...]:
    return tuple(task.id for task in OWN_TASKS if task.role == role)


PRIOR_TASKS = _own_ids("prior")
"""Ids of the suite's own skills that the base policy is trained on."""

NEW_TASKS = _own_ids("new")
"""Ids of the suite's own tasks that the base policy has not seen; the first is the main one."""

for _task in OWN_TASKS:
    register_task(_task)
register_robosuite_tasks()

__all__ = ["NEW_TASKS", "PRIOR_TASKS", "Task", "register_task"]
