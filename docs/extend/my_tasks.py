"""A task of your own on the suite's table: hold the gripper still above the button."""

from dataclasses import dataclass

import numpy as np

from gym_razor import register_task
from gym_razor.suite import scene
from gym_razor.suite.tasks.base import CLOSED, Action, Style, Task, towards
from gym_razor.suite.world import Array, World

ABOVE_M = np.array([0.0, 0.0, scene.BUTTON_TOP_M + 0.04])


@dataclass(frozen=True)
class HoverOverButton(Task):
    """Success: the tip stays within 2 cm of a point above the button for five control steps."""

    def offset(self, world: World) -> Array:
        """Return the way from the tip to that point, metres, [3]."""
        return world.fixture("button") + ABOVE_M - world.tip

    def succeeded(self, world: World) -> bool:
        """Say whether the goal holds now; it must hold for `hold_steps`."""
        return bool(np.linalg.norm(self.offset(world)) < 0.02)

    def progress(self, world: World) -> float:
        """Return the potential of the shaped reward, in [0, 1]."""
        return float(np.exp(-8.0 * np.linalg.norm(self.offset(world))))

    def expert(self, world: World, style: Style) -> Action:
        """Return the scripted expert's action in any state, float32 [5]."""
        return towards(world, world.tip + self.offset(world), None, CLOSED, style)


register_task(
    HoverOverButton(
        name="HoverOverButton",
        namespace="my_tasks",  # the id is my_tasks/HoverOverButton-v0
        role="new",  # or "prior": a skill that is not to be forgotten
        pairs=scene.OBJECT_PAIRS,  # what else lies on the table
        templates=("hold the gripper above the button", "hover over the button"),
        max_episode_steps=40,
        hold_steps=5,
    )
)
