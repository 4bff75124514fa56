"""Push the block to the zone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gym_razor.suite import scene
from gym_razor.suite.layout import Layout
from gym_razor.suite.tasks.base import (
    CLOSED,
    MIN_OBJECT_GAP_M,
    OBJECT_AREA,
    SAFE_HEIGHT_M,
    Action,
    Style,
    Task,
    towards,
)

if TYPE_CHECKING:
    from gym_razor.suite.world import World

ON_ZONE_M = 0.04


@dataclass(frozen=True)
class PushBlock(Task):
    """Success: the block is within 0.04 m of the zone's centre for three steps, on the table."""

    def adjust(self, rng: np.random.Generator, layout: Layout) -> None:  # noqa: D102
        (x_low, x_high), (y_low, y_high) = OBJECT_AREA
        other = next(kind for kind in layout.objects if kind != "block")
        while True:
            block = (float(rng.uniform(0.40, 0.46)), float(rng.uniform(y_low, y_high)))
            heading, distance = rng.uniform(-0.7, 0.7), rng.uniform(0.09, 0.14)
            zone = (block[0] + distance * np.cos(heading), block[1] + distance * np.sin(heading))
            spot = (float(rng.uniform(x_low, x_high)), float(rng.uniform(y_low, y_high)))
            clear = min(np.hypot(spot[0] - p[0], spot[1] - p[1]) for p in (block, zone))
            if clear > MIN_OBJECT_GAP_M - 0.02 and abs(zone[1]) < 0.15:
                break
        yaw = layout.objects["block"][2]
        layout.objects["block"] = (*block, yaw)
        layout.objects[other] = (*spot, layout.objects[other][2])
        layout.fixtures["zone"] = (float(zone[0]), float(zone[1]), 0.0)

    def succeeded(self, world: World) -> bool:  # noqa: D102
        offset = (world.object_position("block") - world.fixture("zone"))[:2]
        return bool(np.linalg.norm(offset) < ON_ZONE_M and world.object_position("block")[2] < 0.01)

    def progress(self, world: World) -> float:  # noqa: D102
        block, zone = world.object_position("block"), world.fixture("zone")
        reach = np.exp(-8.0 * np.linalg.norm((world.tip - block)[:2]))
        return float(0.3 * reach + 0.7 * np.exp(-8.0 * np.linalg.norm((block - zone)[:2])))

    def expert(self, world: World, style: Style) -> Action:  # noqa: D102
        block, zone = world.object_position("block"), world.fixture("zone")
        way = (zone - block)[:2]
        heading = way / max(float(np.linalg.norm(way)), 1e-6)
        across = np.array([-heading[1], heading[0]])
        yaw = float(np.clip(np.arctan2(heading[1], heading[0]), -1.5, 1.5))
        relative = world.tip[:2] - block[:2]
        along, lateral = float(relative @ heading), float(relative @ across)
        low = 0.02
        behind = along < -0.035 and abs(lateral) < 0.015
        if behind and world.tip[2] < low + 0.02:
            target = np.array([*(world.tip[:2] + heading * 0.04 - across * lateral * 1.2), low])
            return towards(world, target, yaw, CLOSED, style, speed=0.7)
        start = np.array([*(block[:2] - heading * 0.075), low])
        distance = float(np.linalg.norm((world.tip - start)[:2]))
        if distance > 0.02:
            start[2] = max(SAFE_HEIGHT_M - 0.05, low + style.hover_m)
            if world.tip[2] < start[2] - 0.05:
                start[:2] = world.tip[:2]
        return towards(world, start, yaw, CLOSED, style)


PUSH_BLOCK = PushBlock(
    name="PushBlock",
    role="prior",
    pairs=tuple(pair for pair in scene.OBJECT_PAIRS if "block" in pair),
    templates=(
        "push the block to the zone",
        "push the {colour} block to the zone",
        "slide the block to the target area",
        "move the block onto the zone",
    ),
    max_episode_steps=64,
    target="block",
)
