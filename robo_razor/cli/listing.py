"""`robo-razor list`: tables of tasks, methods, regularisers, predictors, policies and files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robo_razor.core.errors import UnknownNameError, did_you_mean, shown
from robo_razor.core.plugins import METHODS, PREDICTORS, REGULARISERS
from robo_razor.core.settings.config import EnvConfig, FinetuneConfig, ListConfig
from robo_razor.core.settings.conversion import field_help
from robo_razor.core.settings.shipped import EXPERIMENTS, about_file, shipped_files

SHIPPED_POLICIES = {"razor-base": "The base that ships with robo-razor; knows all prior skills."}

OVERVIEW = ("tasks", "methods", "regularisers", "policies")
"""The tables to print if the command names none."""


def run_list(config: ListConfig, console: Console | None = None) -> None:
    """Print tables of what a user can choose from.

    Args:
        config: Settings of `robo-razor list`. Without `kinds`: the tables of `OVERVIEW`, which
            import neither LeRobot nor the predictors.
        console: Where it is shown; default: standard output.

    Raises:
        UnknownNameError: One of `kinds` is not listed.
    """
    packages = config.env.env_packages
    tables: dict[str, Callable[[], Table]] = {
        "tasks": lambda: task_table(packages),
        "skills": lambda: skill_table(packages),
        "methods": method_table,
        "regularisers": regulariser_table,
        "predictors": predictor_table,
        "policies": policy_table,
        "configs": config_table,
        "lerobot": lerobot_table,
    }
    for kind in config.kinds:
        if kind not in tables:
            raise UnknownNameError(
                f"`robo-razor list` does not take {shown(kind)}.{did_you_mean(kind, tables)}",
                allowed=", ".join(tables),
            )
    console = console or Console()
    for kind in config.kinds or OVERVIEW:
        console.print(tables[kind]())


def task_table(packages: Sequence[str] = EnvConfig().env_packages) -> Table:
    """Return the tasks of some packages with their roles; those without a role come last."""
    table = _table("Tasks", "task", "role")
    for task, role in _tasks(packages):
        table.add_row(task, role or "-")
    return table


def skill_table(packages: Sequence[str] = EnvConfig().env_packages) -> Table:
    """Return the short names that `evaluate --skills` and `prior_tasks` take."""
    from robo_razor.core.plain_text import skill_name

    table = _table("Skills", "skill", "role", "task")
    for task, role in _tasks(packages):
        if role:
            table.add_row(skill_name(task), role, task)
    return table


def lerobot_table() -> Table:
    """Return LeRobot's registered environment types, each with the default task of its config."""
    import dataclasses

    from robo_razor.rollout.lerobot import PREFIX, known_types

    table = _table("LeRobot's environments", "type", "default task")
    for kind, config in sorted(known_types().items()):
        default = next(item.default for item in dataclasses.fields(config) if item.name == "task")
        table.add_row(kind, f"{PREFIX}{kind}/{default}" if default else "-")
    table.caption = (
        'Most need `pip install "lerobot[TYPE]"`; docs/how-to/lerobot.md lists what was tested. '
        "The tasks are the defaults of LeRobot's configs; some are outdated."
    )
    return table


def method_table() -> Table:
    """Return the ways to fine-tune."""
    table = _table("Methods", "method", "what it does")
    for name in METHODS:
        table.add_row(name, _about(METHODS.get(name)))
    table.caption = (
        "`robo-razor finetune --method NAME --help` shows a method's settings. `grpo` is PPO with "
        "advantages within groups, without a critic."
    )
    return table


def regulariser_table() -> Table:
    """Return the terms that hold a policy near its base."""
    table = _table("Regularisers", "name", "what it penalises")
    for name in REGULARISERS:
        table.add_row(name, _about(REGULARISERS.get(name)))
    table.caption = "Add any number to any method: `--regularise.NAME.weight 0.1`."
    return table


def predictor_table() -> Table:
    """Return the distances to the base that may predict forgetting."""
    table = _table("Predictors", "name", "what it is", "cost")
    for name in PREDICTORS:
        predictor = PREDICTORS.get(name)
        table.add_row(name, predictor.label, predictor.cost)
    table.caption = (
        "Measured at every checkpoint, in addition to the KL; expensive ones only with "
        "`--tracking.distances`."
    )
    return table


def config_table() -> Table:
    """Return the settings files that ship, each with its first line."""
    table = _table("Settings files", "command", "what it is")
    groups = (("finetune --config", ""), ("sweep", EXPERIMENTS))
    for command, kind in groups:
        for name, file in shipped_files(kind).items():
            table.add_row(f"{command} {name}", about_file(file))
    return table


def _about(item: object) -> str:
    """Return the first line of a docstring."""
    return (item.__doc__ or "").strip().partition("\n")[0]


def _table(title: str, *columns: str) -> Table:
    """Return a table that folds long names instead of cutting them."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def policy_table() -> Table:
    """Return the shipped policies and the last checkpoints of runs under `runs/`."""
    table = _table("Policies", "policy", "what it is")
    for name, about in SHIPPED_POLICIES.items():
        table.add_row(name, about)
    for config in sorted(Path("runs").glob("*/config.yaml")):
        if (config.parent / "checkpoints" / "last").exists():
            table.add_row(str(config.parent), "Last checkpoint of this run.")
    table.caption = field_help(FinetuneConfig)["policy"]
    return table


def _tasks(packages: Iterable[str]) -> list[tuple[str, str | None]]:
    """Return id and role of the tasks of some packages and of all that have a role."""
    from robo_razor.rollout.environments import list_tasks

    return [(task.id, task.role) for task in list_tasks(env_packages=tuple(packages))]
