"""Checks of a run before it trains or writes anything."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from robo_razor.core.errors import ConfigError, PolicyError
from robo_razor.core.plugins import SINKS
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.policies.policy import Policy
from robo_razor.rollout.dataset.metadata import renamable
from robo_razor.rollout.environments import check_tasks, import_env_packages, named_tasks
from robo_razor.rollout.lerobot import simulated
from robo_razor.training.methods import Method
from robo_razor.training.methods.bc import BC
from robo_razor.training.regularisers import Regulariser

logger = logging.getLogger(__name__)


def check_settings(config: FinetuneConfig) -> dict[str, str]:
    """Check names and settings before anything is loaded; return the prior skills' tasks.

    Raises:
        RoboRazorError: A method, task or setting cannot be used.
    """
    for sink in config.log:
        SINKS.get(sink)
    import_env_packages(config.env.env_packages)
    check_tasks([config.task])
    prior = _without_new(named_tasks(config.prior_tasks, config.env.env_packages), config)
    method_of(config).validate(config)
    regularisers_of(config)
    return prior


def _without_new(prior: dict[str, str], config: FinetuneConfig) -> dict[str, str]:
    """Return the prior skills' tasks without the new task, under whatever name it is listed.

    Raises:
        ConfigError: The setting lists the new task by its name, not as a member of a group.
    """
    settings = config.env.lerobot
    new = simulated(config.task, settings)
    same = {skill: task for skill, task in prior.items() if simulated(task, settings) == new}
    listed = {part.strip() for part in config.prior_tasks.split(",")}
    for skill, task in same.items():
        if {skill, task} & listed:
            raise ConfigError(
                f"`prior_tasks` contains {task!r}, which is the new task {config.task!r}",
                remedy="Remove it there: a task that is being learnt cannot be forgotten.",
            )
        if task != config.task:
            logger.warning("%s is left out of the prior skills: it is the new task", task)
    return {skill: task for skill, task in prior.items() if skill not in same}


def method_of(config: FinetuneConfig) -> Method:
    """Return the method of a run.

    Raises:
        ConfigError: The object that is registered under its name is not a method.
    """
    method = config.method
    if isinstance(method, Method):
        return method
    raise ConfigError(
        f"The method {method.name!r} cannot be run: {type(method).__name__} is not a subclass of "
        "robo_razor.training.methods.Method",
        remedy="Derive it from `Method`, or from `robo_razor.training.on_policy.OnPolicy`.",
    )


def regularisers_of(config: FinetuneConfig) -> tuple[Regulariser, ...]:
    """Return the regularisers of a run.

    Raises:
        ConfigError: One of them is not a regulariser.
    """
    terms: list[Regulariser] = []
    for term in config.regularise:
        if not isinstance(term, Regulariser):
            raise ConfigError(
                f"The regulariser {term.name!r} cannot be used: {type(term).__name__} is not a "
                "subclass of robo_razor.training.regularisers.Regulariser",
                remedy="Derive it from `Regulariser`.",
            )
        terms.append(term)
    return tuple(terms)


def check_base(base: Policy, config: FinetuneConfig, prior: Mapping[str, str]) -> None:
    """Check that a policy can be fine-tuned as the settings say.

    Raises:
        RoboRazorError: It cannot be fine-tuned, or not by this method.
    """
    base.check_finetuning(config.flow)
    method = method_of(config)
    if method.needs_density and not base.has_density:
        raise PolicyError(
            f"The policy {config.policy!r} has no action density, which the method "
            f"{method.name!r} needs",
            remedy="Clone it instead (`--method bc`), or choose a policy with action tokens "
            "such as razor-base, or a flow-matching one (smolvla, pi0, pi05).",
        )
    for term in regularisers_of(config):
        term.validate(config, base, prior)


def cloned_columns(config: FinetuneConfig) -> Collection[str]:
    """Return the columns of the data set to clone, which `rename` may name; else none."""
    method = config.method
    return renamable(method.demonstrations) if isinstance(method, BC) else ()
