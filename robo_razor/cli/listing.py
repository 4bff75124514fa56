"""What there is to choose from: tasks, skills, methods, policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robo_razor.core.errors import unknown_name
from robo_razor.core.plugins import METHODS
from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
from robo_razor.core.settings.conversion import field_help

SHIPPED_POLICIES = {"razor-base": "The base that ships with robo-razor; knows all prior skills."}


def run_list(kind: str | None = None) -> None:
    """Print what there is to choose from.

    Args:
        kind: `tasks`, `skills`, `methods`, `policies` or `lerobot`; None: everything but `skills`,
            which are the tasks' short names, and `lerobot`, whose import takes seconds.

    Raises:
        UnknownNameError: `kind` is none of these.
    """
    tables: dict[str, Callable[[], Table]] = {
        "tasks": task_table,
        "skills": skill_table,
        "methods": method_table,
        "policies": policy_table,
        "lerobot": lerobot_table,
    }
    if kind is not None and kind not in tables:
        raise unknown_name("list", kind, tables)
    console = Console()
    for name, table in tables.items():
        if kind == name or (kind is None and name not in ("skills", "lerobot")):
            console.print(table())


def task_table() -> Table:
    """Return the registered tasks with their roles; those without a role come last."""
    table = Table("task", "role", title="Tasks", title_justify="left")
    for task, role in sorted(_tasks().items(), key=lambda item: (item[1] or "~", item[0])):
        table.add_row(task, role or "-")
    return table


def skill_table() -> Table:
    """Return the short names that `evaluate --skills` and `prior_tasks` take."""
    from robo_razor.core.plain_text import skill_name

    table = Table("skill", "role", "task", title="Skills", title_justify="left")
    for task, role in sorted(_tasks().items(), key=lambda item: (item[1] or "~", item[0])):
        if role:
            table.add_row(skill_name(task), role, task)
    return table


def lerobot_table() -> Table:
    """Return LeRobot's registered environment types, each with the default task of its config."""
    import dataclasses

    from robo_razor.rollout.lerobot import PREFIX, known_types

    table = Table("type", "default task", title="LeRobot's environments", title_justify="left")
    for kind, config in sorted(known_types().items()):
        default = next(item.default for item in dataclasses.fields(config) if item.name == "task")
        table.add_row(kind, f"{PREFIX}{kind}/{default}" if default else "-")
    table.caption = (
        'Most need `pip install "lerobot[TYPE]"`; docs/lerobot.md says what was run. The tasks are '
        "the defaults of LeRobot's configs, not all of which are up to date."
    )
    table.caption_justify = "left"
    return table


def method_table() -> Table:
    """Return the ways to fine-tune."""
    table = Table("method", "what it does", title="Methods", title_justify="left")
    for name in METHODS:
        table.add_row(name, (METHODS.get(name).__doc__ or "").strip().splitlines()[0])
    return table


def policy_table() -> Table:
    """Return the shipped policies and the last checkpoints of runs under `runs/`."""
    table = Table("policy", "what it is", title="Policies", title_justify="left")
    for name, about in SHIPPED_POLICIES.items():
        table.add_row(name, about)
    for config in sorted(Path("runs").glob("*/config.yaml")):
        if (config.parent / "checkpoints" / "last").exists():
            table.add_row(str(config.parent), "Last checkpoint of this run.")
    table.caption = field_help(FinetuneConfig)["policy"]
    table.caption_justify = "left"
    return table


def _tasks() -> dict[str, str | None]:
    """Return id -> role of the default environment packages' tasks and of all that have a role."""
    from robo_razor.rollout.environments import list_tasks

    return {task.id: task.role for task in list_tasks(env_packages=EnvConfig().env_packages)}
