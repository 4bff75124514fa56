"""What can be added to the toolkit, in its own tree or from another package.

Each registry finds the files of one folder by name, what a module given to `--plugins` registers,
and what an installed package offers as an entry point, in the group of the kind
(`robo_razor.methods`) or of the room (`robo_razor.training`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from robo_razor.core.errors import ConfigError, shown
from robo_razor.core.registry import Registry


def _registry(kind: str, room: str, folder: str) -> Registry[Any]:
    groups = (f"robo_razor.{folder}", f"robo_razor.{room}")
    return Registry(kind, f"robo_razor.{room}.{folder}", groups)


METHODS = _registry("method", "training", "methods")
"""Ways to fine-tune: classes, see `robo_razor.training.methods`."""
REGULARISERS = _registry("regulariser", "training", "regularisers")
"""Terms that hold a policy near its base: classes, see `robo_razor.training.regularisers`."""
PREDICTORS = _registry("predictor", "evaluation", "predictors")
"""Distances between policies: functions, see `robo_razor.evaluation.predictors`."""
FAMILIES = _registry("policy family", "policies", "families")
"""What is particular to a LeRobot policy type, see `robo_razor.policies.families`."""
LAUNCHERS = _registry("launcher", "sweep", "launchers")
"""Where the runs of a sweep go: classes, see `robo_razor.sweep.launchers`."""
SINKS = _registry("metric sink", "core", "sinks")
"""Where a run's metrics are written: classes, see `robo_razor.core.sinks`."""


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules, which register what they bring.

    Raises:
        ConfigError: One cannot be imported.
    """
    for name in modules:
        if name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"The plugin {shown(name)} cannot be imported: {error}",
                remedy="Install its package, or put its folder into PYTHONPATH.",
            ) from error
