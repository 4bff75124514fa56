"""The base of all tasks: start states, instructions, motion primitives for scripted experts.

Experts are reactive: their action is a function of the present state and of a style. So they can
label any state that a policy visits, not only the states on their own path.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from gym_razor.suite import scene
from gym_razor.suite.action import MAX_STEP_M, MAX_TURN_RAD
from gym_razor.suite.layout import Layout

if TYPE_CHECKING:  # MuJoCo is not needed to know which tasks there are
    from gym_razor.suite.world import Array, World

Role = Literal["prior", "new"]
Action = npt.NDArray[np.float32]
OPEN, CLOSED = -1.0, 1.0

OBJECT_AREA = ((0.42, 0.57), (-0.12, 0.11))
MIN_OBJECT_GAP_M = 0.135
SAFE_HEIGHT_M = 0.17


@dataclass(frozen=True)
class Style:
    """How an annotator moves.

    Attributes:
        name: `a` made the pretraining data, `b` is the other annotator.
        speed: Largest translation action, in (0, 1].
        hover_m: Height above the grasp point at which it lines up.
        carry_m: Tip height when carrying.
        axis_by_axis: Moves along one horizontal axis at a time.
        yaw_offset: Grasp yaw added to the nearest one, in units of the object's symmetry (round
            objects: quarter turns).
        place_offset: Where in the bin it puts an object, in units of the free half width, per axis.
        release_m: Height above the ground at which it lets go.
    """

    name: str
    speed: float
    hover_m: float
    carry_m: float
    axis_by_axis: bool
    yaw_offset: float
    place_offset: tuple[float, float]
    release_m: float


STYLES: dict[str, Style] = {
    "a": Style("a", 0.9, 0.05, 0.17, False, 0.0, (0.0, -0.15), 0.03),
    "b": Style("b", 0.6, 0.11, 0.24, True, 0.5, (0.45, 0.4), 0.06),
}


@dataclass(frozen=True)
class Task:
    """A skill on the table. Subclasses give randomisation, success, reward and the scripted expert.

    Attributes:
        name: The id without namespace and version, for example `LiftCube`.
        role: `prior` tasks are in the pretraining data, `new` ones are not.
        pairs: Pairs of movable objects its scenes are drawn from.
        templates: Instruction variants; `{colour}` is replaced where it stands.
        max_episode_steps: Time limit in control steps of 0.1 s.
        target: The movable object that the instruction names, if any.
        hold_steps: Control steps for which success must last.
        namespace: First part of the id: the package that the task belongs to.
    """

    name: str
    role: Role
    pairs: tuple[tuple[str, str], ...]
    templates: tuple[str, ...]
    max_episode_steps: int
    target: str = ""
    hold_steps: int = 3
    namespace: str = "gym_razor"

    @property
    def id(self) -> str:
        """Gymnasium id."""
        return f"{self.namespace}/{self.name}-v0"

    def rng(self, seed: int) -> np.random.Generator:
        """Return the generator of a start state: a function of (task, seed) only."""
        return np.random.default_rng([zlib.crc32(self.name.encode()), seed])

    def sample(self, seed: int) -> tuple[tuple[str, str], Layout, str]:
        """Draw a start state.

        Args:
            seed: Any non-negative integer.

        Returns:
            The pair of objects, the layout and the instruction.
        """
        rng = self.rng(seed)
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        layout = sample_layout(rng, pair)
        self.adjust(rng, layout)
        template = self.templates[int(rng.integers(len(self.templates)))]
        return pair, layout, template.format(colour=layout.colours.get(self.target, ""))

    def adjust(self, rng: np.random.Generator, layout: Layout) -> None:
        """Change the common layout for this task."""

    def succeeded(self, world: World) -> bool:
        """Return whether the goal holds now; it must hold for `hold_steps` to count."""
        raise NotImplementedError

    def progress(self, world: World) -> float:
        """Return the shaped reward's potential in [0, 1]."""
        raise NotImplementedError

    def expert(self, world: World, style: Style) -> Action:
        """Return the scripted expert's action, float32 [5]."""
        raise NotImplementedError

    def expert_action(self, world: World, style: str) -> Action:
        """Return the expert's action in the style of that name, within [-1, 1], float32 [5]."""
        if style not in STYLES:
            raise ValueError(f"Unknown style {style!r}; allowed are {', '.join(STYLES)}.")
        return np.clip(self.expert(world, STYLES[style]), -1.0, 1.0)


def sample_layout(rng: np.random.Generator, pair: tuple[str, str]) -> Layout:
    """Draw the layout that all tasks share, so that the scene does not reveal the task."""
    fixtures = {
        "bin": (rng.uniform(0.44, 0.54), rng.uniform(0.30, 0.33), rng.uniform(-0.1, 0.1)),
        "cabinet": (rng.uniform(0.58, 0.62), rng.uniform(-0.36, -0.33), 0.0),
        "button": (rng.uniform(0.65, 0.69), rng.uniform(-0.10, 0.12), 0.0),
    }
    (x_low, x_high), (y_low, y_high) = OBJECT_AREA
    points: list[tuple[float, float]] = []
    while len(points) < 2:
        point = (float(rng.uniform(x_low, x_high)), float(rng.uniform(y_low, y_high)))
        if all(np.hypot(point[0] - x, point[1] - y) >= MIN_OBJECT_GAP_M for x, y in points):
            points.append(point)
    fixtures["zone"] = (rng.uniform(x_low + 0.05, x_high), rng.uniform(y_low, y_high), 0.0)
    colours: dict[str, str] = {}
    for kind in pair:
        free = [colour for colour in scene.OBJECTS[kind].colours if colour not in colours.values()]
        colours[kind] = free[int(rng.integers(len(free)))]
    objects = {
        kind: (x, y, float(rng.uniform(-np.pi / 4, np.pi / 4)))
        for kind, (x, y) in zip(pair, points, strict=True)
    }
    drawer = float(rng.uniform(0.05, scene.DRAWER_TRAVEL_M)) if rng.random() < 0.35 else 0.0
    tip = (
        float(rng.uniform(0.42, 0.50)),
        float(rng.uniform(-0.05, 0.05)),
        float(rng.uniform(0.19, 0.25)),
    )
    return Layout(fixtures, objects, colours, drawer, tip, float(rng.uniform(-0.15, 0.15)))


# ---- primitives for experts ----


def towards(
    world: World,
    target: Array,
    yaw: float | None,
    gripper: float,
    style: Style,
    speed: float | None = None,
) -> Action:
    """Return the action that moves the tip towards a pose.

    Args:
        world: The world.
        target: Tip position, metres, [3].
        yaw: Gripper yaw in radians; None keeps the present yaw.
        gripper: Gripper action.
        style: Speed and path.
        speed: Largest translation action; the style's if None.
    """
    limit = style.speed if speed is None else min(speed, style.speed)
    offset = (target - world.tip) / MAX_STEP_M
    if style.axis_by_axis and abs(offset[0]) > 0.4 and abs(offset[1]) > 0.4:
        offset[1 if abs(offset[0]) >= abs(offset[1]) else 0] = 0.0
    length = float(np.linalg.norm(offset))
    if length > limit:
        offset *= limit / length
    turn = 0.0 if yaw is None else (yaw - world.yaw) / MAX_TURN_RAD
    return np.array([*offset, np.clip(turn, -limit, limit), gripper], dtype=np.float32)


def grasp_yaw(world: World, kind: str, style: Style) -> float:
    """Return the grasp yaw that the style prefers, in radians, within about +-100 degrees."""
    symmetry = scene.OBJECTS[kind].yaw_symmetry
    if symmetry == 0:
        return style.yaw_offset * np.pi / 2
    period = 2 * np.pi / symmetry
    yaw = world.object_yaw(kind)
    nearest = yaw - period * np.round(yaw / period)
    if style.yaw_offset:
        nearest += period if nearest < 0 else -period
    return float(nearest)


def grasp_point(world: World, kind: str) -> Array:
    """Return the tip position for a grasp of an upright object, metres, [3]."""
    point = world.object_position(kind).copy()
    point[2] += scene.OBJECTS[kind].grasp_height_m
    return point


def holding(world: World, kind: str) -> bool:
    """Return whether the closed gripper is around the object."""
    half = scene.OBJECTS[kind].half_width_m
    finger = world.opening * 0.04
    near = np.linalg.norm(world.tip - grasp_point(world, kind)) < 0.03
    return bool(
        near
        and world.gripper_command > 0.2
        and abs(finger - half) < 0.007
        and abs(world.finger_speed) < 0.03
    )


def pick(world: World, kind: str, style: Style) -> Action:
    """Line up above the object, go down, close: the action for an object that is not held yet."""
    point = grasp_point(world, kind)
    yaw = grasp_yaw(world, kind, style)
    distance = float(np.linalg.norm((world.tip - point)[:2]))
    yaw_error = abs(world.yaw - yaw) if scene.OBJECTS[kind].yaw_symmetry else 0.0
    half = scene.OBJECTS[kind].half_width_m
    in_jaws = distance < 0.014 and abs(world.tip[2] - point[2]) < 0.012
    if in_jaws and (yaw_error < 0.25 or world.gripper_command > 0.2):
        return towards(world, point, None, CLOSED, style, speed=0.05)
    target = point.copy()
    lined_up = distance < 0.010 and yaw_error < 0.15
    if not lined_up and (
        distance > 0.016 or yaw_error > 0.25 or world.tip[2] > point[2] + style.hover_m * 0.6
    ):
        top = scene.OBJECTS[kind].height_m - scene.OBJECTS[kind].grasp_height_m
        target[2] += max(style.hover_m, top + 0.025) + 0.3 * max(distance - 0.02, 0.0)
        if world.tip[2] < target[2] - 0.03 and distance > 0.016:
            # Too low to pass over objects: rise first, drift only a little.
            target[:2] = world.tip[:2] + 0.2 * (target[:2] - world.tip[:2])
    elif world.opening * 0.04 < half + 0.006:
        target[2] = max(
            world.tip[2], point[2] + style.hover_m
        )  # the jaws must open before going down
    return towards(world, target, yaw, OPEN, style)


def carry(world: World, target: Array, style: Style, carry_m: float) -> Action:
    """Carry the held object: up, across, down to `target` (tip position, metres, [3])."""
    distance = float(np.linalg.norm((world.tip - target)[:2]))
    waypoint = target.copy()
    if distance > 0.035:
        waypoint[2] = carry_m
        missing = carry_m - world.tip[2]
        if missing > 0.02:
            share = float(np.clip(1.0 - missing / 0.06, 0.0, 1.0))
            waypoint[:2] = world.tip[:2] + share * (target[:2] - world.tip[:2])
    return towards(world, waypoint, None, CLOSED, style)


def descend_beside(
    world: World, start: Array, style: Style, tolerance_m: float = 0.02
) -> Action | None:
    """Go above `start` with closed fingers, then down; None once there."""
    distance = float(np.linalg.norm((world.tip - start)[:2]))
    if distance < tolerance_m and world.tip[2] < start[2] + 0.02:
        return None
    target = start.copy()
    if distance > tolerance_m:
        target[2] = max(SAFE_HEIGHT_M, start[2] + style.hover_m)
        if world.tip[2] < target[2] - 0.05:
            target[:2] = world.tip[:2]
    return towards(world, target, 0.0, CLOSED, style)
