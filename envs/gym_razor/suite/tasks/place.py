"""Put an object into the bin or onto the shelf: the pick-and-place tasks.

In the new tasks the receptacle is on a stand. The base knows the object and the verb, but it has
carried things over a bin on the table only: where the stand is low that is enough, where it is high
it hits the rim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_razor.suite import scene
from gym_razor.suite.layout import Layout
from gym_razor.suite.tasks.base import (
    OPEN,
    Action,
    Role,
    Style,
    Task,
    carry,
    grasp_point,
    holding,
    pick,
    towards,
)

if TYPE_CHECKING:
    from gym_razor.suite.world import Array, World

ON_THE_TABLE = (0.0, 0.0)
RAISED_BIN_M = (0.04, 0.10)
RAISED_SHELF_M = (0.03, 0.08)
"""Heights of the stands under the receptacles of new tasks."""

BIN_TEMPLATES = (
    "put the {kind} in the bin",
    "place the {kind} in the bin",
    "drop the {kind} into the bin",
    "put the {{colour}} {kind} in the bin",
    "place the {{colour}} {kind} into the bin",
)
SHELF_TEMPLATES = (
    "put the {kind} on the shelf",
    "place the {kind} on the shelf",
    "put the {{colour}} {kind} on the shelf",
)


@dataclass(frozen=True)
class Place(Task):
    """Success: the object rests in (or on) the receptacle, let go, for three control steps.

    Attributes:
        fixture: The receptacle.
        raised_m: Range of the height of the stand under it.
        max_drop_m: Largest height above the ground at which the expert lets go.
    """

    fixture: str = ""
    raised_m: tuple[float, float] = ON_THE_TABLE
    max_drop_m: float = 1.0

    def adjust(self, rng: np.random.Generator, layout: Layout) -> None:  # noqa: D102
        if self.raised_m != ON_THE_TABLE:
            layout.raised_m[self.fixture] = float(rng.uniform(*self.raised_m))

    def place_point(self, world: World, style: Style) -> Array:
        """Return where the style puts the object's resting point, metres, [3]."""
        raise NotImplementedError

    def inside(self, world: World) -> bool:
        """Return whether the object is in the receptacle."""
        raise NotImplementedError

    def rim_m(self) -> float:
        """Return the height of the receptacle's rim above its foot, metres."""
        raise NotImplementedError

    def clearance(self, world: World) -> float:
        """Return the height of the receptacle's rim above the table, metres."""
        return float(world.fixture(self.fixture)[2]) + self.rim_m()

    def succeeded(self, world: World) -> bool:  # noqa: D102
        if not self.inside(world):
            return False
        released = world.opening * 0.04 > scene.OBJECTS[self.target].half_width_m + 0.003
        return released and world.object_speed(self.target) < 0.08

    def progress(self, world: World) -> float:  # noqa: D102
        position = world.object_position(self.target)
        goal = self.place_point(world, _NEUTRAL)
        reach = np.exp(-8.0 * np.linalg.norm(world.tip - grasp_point(world, self.target)))
        lifted = np.clip(position[2] / 0.06, 0.0, 1.0)
        near = np.exp(-5.0 * np.linalg.norm((position - goal)[:2]))
        if self.inside(world):
            return 1.0
        return float(0.2 * reach + 0.3 * lifted + 0.4 * near * lifted)

    def expert(self, world: World, style: Style) -> Action:  # noqa: D102
        if self.inside(world) and world.gripper_command < 0.2:
            target = world.tip.copy()
            target[2] = max(
                target[2], self.clearance(world) + scene.OBJECTS[self.target].grasp_height_m + 0.08
            )
            return towards(world, target, None, OPEN, style)
        if not holding(world, self.target):
            return pick(world, self.target, style)
        kind = scene.OBJECTS[self.target]
        goal = self.place_point(world, style)
        # The object hangs where it was grasped, so aim its resting point, not the tip.
        hang = world.tip - world.object_position(self.target)
        tip_goal = goal + hang
        drop = min(style.release_m, self.max_drop_m)
        tip_goal[2] = goal[2] + hang[2] + drop
        offset = float(np.linalg.norm((world.tip - tip_goal)[:2]))
        if offset < 0.03 and world.tip[2] < tip_goal[2] + max(0.5 * drop, 0.005):
            return np.array([0, 0, 0, 0, OPEN], dtype=np.float32)
        rim = self.clearance(world) + kind.grasp_height_m + 0.035
        return carry(world, tip_goal, style, max(rim, style.carry_m))


_NEUTRAL = Style("neutral", 1.0, 0.05, 0.15, False, 0.0, (0.0, 0.0), 0.03)


@dataclass(frozen=True)
class PlaceInBin(Place):
    """Success: the object lies in the bin, released and at rest."""

    def place_point(self, world: World, style: Style) -> Array:  # noqa: D102
        free = scene.BIN_INNER_HALF_M - scene.OBJECTS[self.target].half_width_m - 0.01
        point = world.fixture(self.fixture).copy()
        point[:2] += free * np.array(style.place_offset)
        point[2] += 0.004
        return point

    def inside(self, world: World) -> bool:  # noqa: D102
        x, y, z = world.object_position(self.target).tolist()
        bin_x, bin_y, bin_z = world.fixture(self.fixture).tolist()
        near: bool = max(abs(x - bin_x), abs(y - bin_y)) < scene.BIN_INNER_HALF_M
        return near and bin_z - 0.01 < z < bin_z + scene.BIN_WALL_HEIGHT_M

    def rim_m(self) -> float:  # noqa: D102
        return scene.BIN_WALL_HEIGHT_M


@dataclass(frozen=True)
class PlaceOnShelf(Place):
    """Success: the object stands on top of the cabinet, released and at rest."""

    def place_point(self, world: World, style: Style) -> Array:  # noqa: D102
        half = np.array(scene.CABINET_HALF_M) - 0.04
        point = world.fixture(self.fixture).copy()
        point[:2] += half * np.array(style.place_offset) * np.array([1.0, -1.0])
        point[2] += scene.CABINET_HEIGHT_M
        return point

    def inside(self, world: World) -> bool:  # noqa: D102
        offset = world.object_position(self.target) - world.fixture(self.fixture)
        return bool(
            np.all(np.abs(offset[:2]) < scene.CABINET_HALF_M)
            and abs(offset[2] - scene.CABINET_HEIGHT_M) < 0.015
            and world.object_upright(self.target) > 0.9
        )

    def rim_m(self) -> float:  # noqa: D102
        return scene.CABINET_HEIGHT_M


def bin_task(kind: str, role: Role, raised_m: tuple[float, float] = ON_THE_TABLE) -> PlaceInBin:
    """Make the put-into-the-bin task for one kind of object."""
    return PlaceInBin(**_description(kind, role, "InBin", BIN_TEMPLATES), raised_m=raised_m)


def shelf_task(kind: str, role: Role, raised_m: tuple[float, float] = ON_THE_TABLE) -> PlaceOnShelf:
    """Make the put-on-the-shelf task for one kind of object."""
    description = _description(kind, role, "OnShelf", SHELF_TEMPLATES)
    return PlaceOnShelf(**description, raised_m=raised_m, max_drop_m=0.006)


def _description(kind: str, role: Role, where: str, templates: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": f"Place{kind.capitalize()}{where}",
        "role": role,
        "pairs": tuple(pair for pair in scene.OBJECT_PAIRS if kind in pair),
        "templates": tuple(template.format(kind=kind) for template in templates),
        "max_episode_steps": 80,
        "target": kind,
        "fixture": {"InBin": "bin", "OnShelf": "cabinet"}[where],
    }
