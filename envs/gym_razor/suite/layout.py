"""A start state: where objects, fixtures and gripper are before the first action."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Layout:
    """A start state; positions in metres on the table, yaws in radians.

    Attributes:
        fixtures: Name -> x, y, yaw.
        objects: Kind -> x, y, yaw.
        colours: Kind -> colour.
        drawer_m: How far the drawer is open.
        tip: Gripper tip x, y, z.
        tip_yaw: Gripper yaw.
        raised_m: Fixture -> height of the stand under it; the others stand on the table.
    """

    fixtures: dict[str, tuple[float, float, float]]
    objects: dict[str, tuple[float, float, float]]
    colours: dict[str, str]
    drawer_m: float
    tip: tuple[float, float, float]
    tip_yaw: float
    raised_m: dict[str, float] = field(default_factory=dict)
