"""Open and close the drawer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gym_razor.suite import scene
from gym_razor.suite.layout import Layout
from gym_razor.suite.tasks.base import CLOSED, Action, Style, Task, descend_beside, towards

if TYPE_CHECKING:
    from gym_razor.suite.world import World

OPENED_M = 0.08
SHUT_M = 0.012
_ALL_PAIRS = scene.OBJECT_PAIRS


@dataclass(frozen=True)
class OpenDrawer(Task):
    """Success: the drawer is out by at least 0.08 m for three control steps."""

    def adjust(self, rng: np.random.Generator, layout: Layout) -> None:  # noqa: D102
        layout.drawer_m = float(rng.uniform(0.0, 0.015))

    def succeeded(self, world: World) -> bool:  # noqa: D102
        return world.drawer_m > OPENED_M

    def progress(self, world: World) -> float:  # noqa: D102
        reach = np.exp(-8.0 * np.linalg.norm(world.tip - world.handle()))
        return float(0.3 * reach + 0.7 * np.clip(world.drawer_m / OPENED_M, 0.0, 1.0))

    def expert(self, world: World, style: Style) -> Action:  # noqa: D102
        hook = world.handle() + np.array([0.024, 0.0, -0.014])
        behind = world.tip[0] > hook[0] - 0.016 and abs(world.tip[1] - hook[1]) < 0.035
        if not (behind and world.tip[2] < hook[2] + 0.02 and world.tip[0] < hook[0] + 0.02):
            action = descend_beside(
                world, hook + np.array([0.002, 0.0, 0.0]), style, tolerance_m=0.01
            )
            if action is not None:
                return action
        pull = world.tip.copy()
        pull[0] -= 0.05
        pull[1:] = hook[1:]
        return towards(world, pull, 0.0, CLOSED, style)


@dataclass(frozen=True)
class CloseDrawer(Task):
    """Success: the drawer is shut to within 0.012 m for three control steps."""

    def adjust(self, rng: np.random.Generator, layout: Layout) -> None:  # noqa: D102
        layout.drawer_m = float(rng.uniform(0.06, scene.DRAWER_TRAVEL_M))

    def succeeded(self, world: World) -> bool:  # noqa: D102
        return world.drawer_m < SHUT_M

    def progress(self, world: World) -> float:  # noqa: D102
        reach = np.exp(-8.0 * np.linalg.norm(world.tip - world.handle()))
        return float(
            0.3 * reach + 0.7 * np.clip(1.0 - world.drawer_m / scene.DRAWER_TRAVEL_M, 0.0, 1.0)
        )

    def expert(self, world: World, style: Style) -> Action:  # noqa: D102
        front = world.handle() + np.array([-0.045, 0.0, -0.010])
        before = world.tip[0] < front[0] + 0.03 and abs(world.tip[1] - front[1]) < 0.04
        if not (before and world.tip[2] < front[2] + 0.025):
            action = descend_beside(world, front, style, tolerance_m=0.018)
            if action is not None:
                return action
        push = world.tip.copy()
        push[0] += 0.045
        push[1:] = front[1:]
        return towards(world, push, 0.0, CLOSED, style)


OPEN_DRAWER = OpenDrawer(
    name="OpenDrawer",
    role="prior",
    pairs=_ALL_PAIRS,
    templates=("open the drawer", "pull the drawer open", "slide the drawer open"),
    max_episode_steps=60,
)
CLOSE_DRAWER = CloseDrawer(
    name="CloseDrawer",
    role="prior",
    pairs=_ALL_PAIRS,
    templates=("close the drawer", "push the drawer shut", "shut the drawer"),
    max_episode_steps=60,
)
