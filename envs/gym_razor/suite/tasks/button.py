"""Press the button."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gym_razor.suite import scene
from gym_razor.suite.tasks.base import CLOSED, Action, Style, Task, descend_beside, towards

if TYPE_CHECKING:
    from gym_razor.suite.world import World

PRESSED_M = 0.009


@dataclass(frozen=True)
class PressButton(Task):
    """Success: the button is down by at least 0.009 m for two control steps."""

    def succeeded(self, world: World) -> bool:  # noqa: D102
        return world.button_m > PRESSED_M

    def progress(self, world: World) -> float:  # noqa: D102
        top = world.fixture("button") + np.array([0.0, 0.0, scene.BUTTON_TOP_M])
        reach = np.exp(-8.0 * np.linalg.norm(world.tip - top))
        return float(0.6 * reach + 0.4 * np.clip(world.button_m / PRESSED_M, 0.0, 1.0))

    def expert(self, world: World, style: Style) -> Action:  # noqa: D102
        above = world.fixture("button") + np.array([0.0, 0.0, scene.BUTTON_TOP_M + 0.02])
        action = descend_beside(world, above, style)
        if action is not None:
            return action
        press = above.copy()
        press[2] = scene.BUTTON_TOP_M - 0.035
        return towards(world, press, None, CLOSED, style)


PRESS_BUTTON = PressButton(
    name="PressButton",
    role="prior",
    pairs=scene.OBJECT_PAIRS,
    templates=("press the button", "push the button", "push down the button"),
    max_episode_steps=40,
    hold_steps=2,
)
