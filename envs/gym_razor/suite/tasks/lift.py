"""Lift one of the two objects off the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gym_razor.suite import scene
from gym_razor.suite.tasks.base import (
    CLOSED,
    Action,
    Style,
    Task,
    grasp_point,
    holding,
    pick,
    towards,
)

if TYPE_CHECKING:
    from gym_razor.suite.world import World

LIFT_HEIGHT_M = 0.08
TEMPLATES = (
    "lift the {kind}",
    "pick up the {kind}",
    "raise the {kind}",
    "lift the {{colour}} {kind}",
    "pick up the {{colour}} {kind}",
)


@dataclass(frozen=True)
class Lift(Task):
    """Success: the named object is at least 0.08 m above the table for five control steps."""

    def succeeded(self, world: World) -> bool:  # noqa: D102
        return bool(world.object_position(self.target)[2] > LIFT_HEIGHT_M)

    def progress(self, world: World) -> float:  # noqa: D102
        reach = np.exp(-8.0 * np.linalg.norm(world.tip - grasp_point(world, self.target)))
        height = np.clip(world.object_position(self.target)[2] / LIFT_HEIGHT_M, 0.0, 1.0)
        return float(0.4 * reach + 0.6 * height)

    def expert(self, world: World, style: Style) -> Action:  # noqa: D102
        if not holding(world, self.target):
            return pick(world, self.target, style)
        target = world.tip.copy()
        target[2] = max(
            style.carry_m, scene.OBJECTS[self.target].grasp_height_m + LIFT_HEIGHT_M + 0.06
        )
        return towards(world, target, None, CLOSED, style)


def lift_task(kind: str) -> Lift:
    """Make the lift task for one kind of object."""
    return Lift(
        name=f"Lift{kind.capitalize()}",
        role="prior",
        pairs=tuple(pair for pair in scene.OBJECT_PAIRS if kind in pair),
        templates=tuple(template.format(kind=kind) for template in TEMPLATES),
        max_episode_steps=48,
        target=kind,
        hold_steps=5,
    )
