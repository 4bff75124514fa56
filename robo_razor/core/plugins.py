"""What can be added to the toolkit, in its own tree or from another package.

Each registry looks in three places: the files of one folder, the modules given to `--plugins`, and
the entry points of installed packages, in the group of the kind (`robo_razor.methods`) or of the
room (`robo_razor.training`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from robo_razor.core.errors import ConfigError, shown
from robo_razor.core.registry import Registry
from robo_razor.core.settings.conversion import Settings
from robo_razor.core.settings.sections import MethodSettings, RegulariserSettings


class SettingsRegistry[S: MethodSettings | RegulariserSettings](Registry[type[S]]):
    """Classes whose fields are settings; the keys begin with the registered name.

    Args:
        kind: What is registered, a singular noun used in errors.
        package: Package of the built-in ones.
        groups: Entry-point groups.
        prefix: What stands before the name in the keys.
    """

    def __init__(self, kind: str, package: str, groups: tuple[str, ...], prefix: str = "") -> None:
        super().__init__(kind, package, groups)
        self.prefix = prefix

    def add(self, name: str, item: type[S]) -> type[S]:
        """Register a class and let its settings know their keys.

        Raises:
            RegistryError: `name` is already taken by another object.
        """
        super().add(name, item)
        if isinstance(item, type) and issubclass(item, Settings):
            item.NAME, item.SECTION = name, f"{self.prefix}{name}"
        return item


def _places(room: str, folder: str) -> tuple[str, tuple[str, ...]]:
    """Return the package of the built-in ones, and the entry-point groups of the others."""
    return f"robo_razor.{room}.{folder}", (f"robo_razor.{folder}", f"robo_razor.{room}")


def _registry(kind: str, room: str, folder: str) -> Registry[Any]:
    return Registry(kind, *_places(room, folder))


METHODS: SettingsRegistry[MethodSettings] = SettingsRegistry(
    "method", *_places("training", "methods")
)
"""Ways to fine-tune: classes, see `robo_razor.training.methods`."""
REGULARISERS: SettingsRegistry[RegulariserSettings] = SettingsRegistry(
    "regulariser", *_places("training", "regularisers"), prefix="regularise."
)
"""Terms that hold a policy near its base: classes, see `robo_razor.training.regularisers`."""
PREDICTORS = _registry("predictor", "evaluation", "predictors")
"""Distances between policies: functions, see `robo_razor.evaluation.predictors`."""
FAMILIES = _registry("policy family", "policies", "families")
"""What is special about a LeRobot policy type, see `robo_razor.policies.families`."""
LAUNCHERS = _registry("launcher", "sweep", "launchers")
"""Where the runs of a sweep are started: classes, see `robo_razor.sweep.launchers`."""
SINKS = _registry("metric sink", "core", "sinks")
"""Where a run's metrics are written: classes, see `robo_razor.core.sinks`."""


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules, which register their additions.

    Raises:
        ConfigError: One cannot be imported.
    """
    for name in modules:
        if name in sys.modules:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # a plugin may have any mistake
            raise ConfigError(
                f"The plugin {shown(name)} cannot be imported: {error}",
                remedy="Install its package, or put its folder into PYTHONPATH.",
            ) from error
