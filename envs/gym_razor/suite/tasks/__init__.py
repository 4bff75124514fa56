"""The tasks: prior skills, which the base policy is trained on, and new ones."""

from __future__ import annotations

from gym_razor.suite.tasks.base import STYLES, Style, Task
from gym_razor.suite.tasks.button import PRESS_BUTTON
from gym_razor.suite.tasks.drawer import CLOSE_DRAWER, OPEN_DRAWER
from gym_razor.suite.tasks.lift import lift_task
from gym_razor.suite.tasks.place import RAISED_BIN_M, RAISED_SHELF_M, bin_task, shelf_task
from gym_razor.suite.tasks.push import PUSH_BLOCK

OWN_TASKS: tuple[Task, ...] = (
    OPEN_DRAWER,
    CLOSE_DRAWER,
    PRESS_BUTTON,
    PUSH_BLOCK,
    lift_task("cube"),
    lift_task("can"),
    lift_task("bottle"),
    bin_task("cube", "prior"),
    bin_task("bottle", "prior"),
    bin_task("block", "prior"),
    shelf_task("cube", "prior"),
    shelf_task("bottle", "prior"),
    bin_task("can", "new", RAISED_BIN_M),
    shelf_task("can", "new", RAISED_SHELF_M),
)
"""The tasks that come with the suite."""

TASKS: dict[str, Task] = {task.id: task for task in OWN_TASKS}
"""Every task that is known, by Gymnasium id; `gym_razor.register_task` adds to it."""

__all__ = ["OWN_TASKS", "STYLES", "TASKS", "Style", "Task"]
