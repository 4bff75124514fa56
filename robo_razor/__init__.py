"""Fine-tune robot policies and see at every checkpoint which skills they forgot.

    import robo_razor as rr

    base = rr.load_policy("razor-base")
    run = rr.finetune(base, "PlaceCanInBin", rr.PPO(num_updates=2), seed=0)
    run.table()                                       # a pandas frame, a row per checkpoint
    rr.evaluate(run.best, skills="prior")             # success with 95 % intervals
    rr.measure(base, run.best)["kl_base_tuned"]       # how far the policy moved
    rr.compare(["runs/ppo", "runs/bc"]).headline      # at equal success on the new task

These functions return values, print nothing, and write files only where a path is given. Arguments
that cannot be used raise a `RoboRazorError`. Importing this package is fast: each name imports its
module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robo_razor.core.errors import RoboRazorError
    from robo_razor.core.plugins import load_plugins
    from robo_razor.core.settings.config import EnvConfig, TrackingConfig
    from robo_razor.evaluation.measure import evaluate, measure, visited_states
    from robo_razor.policies.load import load_policy
    from robo_razor.policies.policy import Policy
    from robo_razor.report.build import Comparison, compare
    from robo_razor.rollout.environments import TaskInfo, list_tasks
    from robo_razor.rollout.play import rollout
    from robo_razor.training.methods.bc import BC
    from robo_razor.training.methods.grpo import GRPO
    from robo_razor.training.methods.ppo import PPO
    from robo_razor.training.methods.reinforce import Reinforce
    from robo_razor.training.regularisers.kl import KL
    from robo_razor.training.regularisers.l2 import L2
    from robo_razor.training.run import Run, finetune, load_run

__all__ = [
    "BC",
    "Comparison",
    "EnvConfig",
    "GRPO",
    "KL",
    "L2",
    "PPO",
    "Policy",
    "Reinforce",
    "RoboRazorError",
    "Run",
    "TaskInfo",
    "TrackingConfig",
    "compare",
    "evaluate",
    "finetune",
    "list_tasks",
    "load_plugins",
    "load_policy",
    "load_run",
    "measure",
    "rollout",
    "visited_states",
]

_HOMES = {
    "core.errors": ("RoboRazorError",),
    "core.plugins": ("load_plugins",),
    "core.settings.config": ("EnvConfig", "TrackingConfig"),
    "evaluation.measure": ("evaluate", "measure", "visited_states"),
    "policies.load": ("load_policy",),
    "policies.policy": ("Policy",),
    "report.build": ("Comparison", "compare"),
    "rollout.environments": ("TaskInfo", "list_tasks"),
    "training.methods.bc": ("BC",),
    "training.methods.grpo": ("GRPO",),
    "training.methods.ppo": ("PPO",),
    "training.methods.reinforce": ("Reinforce",),
    "training.regularisers.kl": ("KL",),
    "training.regularisers.l2": ("L2",),
    "training.run": ("Run", "finetune", "load_run"),
}
"""Module -> the names that come from it."""


def __getattr__(name: str) -> Any:
    if name == "rollout":  # also the name of a package, which can be called
        return importlib.import_module("robo_razor.rollout")
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"robo_razor.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'robo_razor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
