"""The table scene as MJCF: a lean Panda, a bin, a drawer cabinet with a shelf on top, a button, a zone and two movable objects.

One model is compiled per pair of movable objects. Everything that differs between episodes lives in `MjData`
(free joints, mocap bodies) or in `geom_rgba`, so that all episodes with the same pair share one compiled model.

Geometry groups: 0 collision only (invisible), 1 seen by every camera, 2 fine Panda meshes for pictures that
people look at, 3 coarse Panda meshes for the policy cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MESH_DIR = Path(__file__).parents[1] / "assets" / "meshes"

PHYSICS_DT_S = 0.005
SUBSTEPS_PER_CONTROL = 20  # 10 Hz control

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.12, 0.30, 0.85),
    "yellow": (0.95, 0.80, 0.10),
    "orange": (1.00, 0.50, 0.00),
    "purple": (0.50, 0.20, 0.65),
    "white": (0.95, 0.95, 0.95),
    "black": (0.12, 0.12, 0.12),
}


@dataclass(frozen=True)
class ObjectKind:
    """A movable object: its shape, its colours, and where a gripper should hold it.

    Attributes:
        name: Word used for it in instructions.
        geoms: MJCF geoms in the object's frame, whose origin is the point that rests on the table; `COLOUR` is
            replaced by the colour class attributes.
        mass_kg: Total mass.
        grasp_height_m: Height of the gripper tip above the resting point for a grasp.
        height_m: Height of the object.
        half_width_m: Half the width between the fingers at the grasp.
        colours: Colours it comes in; each kind has its own, because at 64 px a far object is a
            handful of pixels and its colour is easier to recognise than its shape.
        yaw_symmetry: Number of equal grasp yaws in a full turn (4 for a cube, 0 for a round object).
    """

    name: str
    geoms: str
    mass_kg: float
    grasp_height_m: float
    height_m: float
    half_width_m: float
    colours: tuple[str, ...]
    yaw_symmetry: int


OBJECTS: dict[str, ObjectKind] = {
    "cube": ObjectKind(
        "cube",
        '<geom name="cube" class="object" type="box" size=".021 .021 .021" pos="0 0 .021"/>',
        0.06,
        0.020,
        0.042,
        0.021,
        ("red", "yellow"),
        4,
    ),
    "can": ObjectKind(
        "can",
        '<geom name="can" class="object" type="cylinder" size=".026 .038" pos="0 0 .038"/>'
        '<geom class="trim" type="cylinder" size=".0235 .0385" pos="0 0 .0385" rgba=".8 .8 .82 1"/>',
        0.08,
        0.050,
        0.076,
        0.026,
        ("green", "white"),
        0,
    ),
    "bottle": ObjectKind(
        "bottle",
        '<geom name="bottle" class="object" type="cylinder" size=".024 .036" pos="0 0 .036"/>'
        '<geom class="trim" type="capsule" size=".011 .018" pos="0 0 .086" rgba=".9 .9 .85 1"/>',
        0.07,
        0.046,
        0.115,
        0.024,
        ("blue", "purple"),
        0,
    ),
    "block": ObjectKind(
        "block",
        '<geom name="block" class="object" type="box" size=".03 .03 .02" pos="0 0 .02"/>',
        0.09,
        0.018,
        0.040,
        0.030,
        ("orange", "black"),
        4,
    ),
}

OBJECT_PAIRS: tuple[tuple[str, str], ...] = (
    ("cube", "can"),
    ("cube", "bottle"),
    ("can", "bottle"),
    ("cube", "block"),
    ("can", "block"),
    ("bottle", "block"),
)
"""Every scene holds one of these pairs; `landmark` slots of absent kinds are marked as absent."""

FIXTURES = ("bin", "cabinet", "button", "zone")
LANDMARKS = (*OBJECTS, "bin", "handle", "button", "zone")
"""Landmark slots, in the order of the `landmarks` arrays."""

HOME_QPOS = (0.0, 0.0806, 0.0, -2.3135, 0.0, 2.3941, 0.7854)
"""Arm joints (rad) with the gripper pointing down over the table, tip near (0.45, 0, 0.22) m."""

BIN_INNER_HALF_M = 0.085
BIN_WALL_HEIGHT_M = 0.06
STAND_MAX_HEIGHT_M = 0.12  # under the bin and the cabinet, see `Layout.raised_m`
CABINET_HALF_M = (0.09, 0.10)
CABINET_HEIGHT_M = 0.11
DRAWER_TRAVEL_M = 0.11
HANDLE_OFFSET_M = (-0.165, 0.0, 0.062)  # drawer closed, from the cabinet centre
BUTTON_TOP_M = 0.05
BUTTON_TRAVEL_M = 0.015
ZONE_HALF_M = 0.06

# position, quaternion of each link's body, then inertial, then joint range; from robosuite's Panda.
_LINKS: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "1",
        "0 0 .333",
        "1 0 0 0",
        '<inertial pos="0 0 -.07" mass="3" diaginertia=".3 .3 .3"/>',
        "-2.8973 2.8973",
    ),
    (
        "2",
        "0 0 0",
        ".707107 -.707107 0 0",
        '<inertial pos="0 -.1 0" mass="3" diaginertia=".3 .3 .3"/>',
        "-1.7628 1.7628",
    ),
    (
        "3",
        "0 -.316 0",
        ".707107 .707107 0 0",
        '<inertial pos=".04 0 -.05" mass="2" diaginertia=".2 .2 .2"/>',
        "-2.8973 2.8973",
    ),
    (
        "4",
        ".0825 0 0",
        ".707107 .707107 0 0",
        '<inertial pos="-.04 .05 0" mass="2" diaginertia=".2 .2 .2"/>',
        "-3.0718 -.0698",
    ),
    (
        "5",
        "-.0825 .384 0",
        ".707107 -.707107 0 0",
        '<inertial pos="0 0 -.15" mass="2" diaginertia=".2 .2 .2"/>',
        "-2.8973 2.8973",
    ),
    (
        "6",
        "0 0 0",
        ".707107 .707107 0 0",
        '<inertial pos=".06 0 0" mass="1.5" diaginertia=".1 .1 .1"/>',
        "-.0175 3.7525",
    ),
    (
        "7",
        ".088 0 0",
        ".707107 .707107 0 0",
        '<inertial pos="0 0 .08" mass=".5" diaginertia=".05 .05 .05"/>',
        "-2.8973 2.8973",
    ),
)
_LINK_COLOURS = {"light": ".93 .94 .95 1", "dark": ".25 .25 .25 1", "accent": ".04 .54 .78 1"}


def _mesh_names() -> list[str]:
    return sorted(path.stem for path in MESH_DIR.glob("*.stl"))


def _link_visuals(part: str, extra: str = "") -> str:
    geoms = []
    for name in _mesh_names():
        link, colour, level = name.rsplit("_", 2)
        if link == part:
            css = "fine" if level == "hd" else "coarse"
            geoms.append(
                f'<geom class="{css}" mesh="{name}" rgba="{_LINK_COLOURS[colour]}" {extra}/>'
            )
    return "".join(geoms)


def _finger(name: str, quat: str, axis_range: str, sign: int) -> str:
    return f"""
    <body name="{name}" pos="0 0 .0524" quat=".707107 0 0 .707107" gravcomp="1">
      <inertial pos="0 0 .05" mass=".1" diaginertia=".0001 .0001 .0001"/>
      <joint name="{name}" class="finger" axis="0 1 0" range="{axis_range}"/>
      {_link_visuals("finger", f'quat="{quat}"')}
      <geom class="pad" size=".010 .0055 .0105" pos="0 {sign * 0.0075} .0475"/>
      <geom class="pad" size=".010 .0065 .012" pos="0 {sign * 0.0125} .026"/>
    </body>"""


def _hand() -> str:
    # robosuite: right_hand (turned by -45 deg) holds right_gripper (turned by another -90 deg).
    return f"""
  <body name="hand" pos="0 0 .1065" quat=".924 0 0 -.383" gravcomp="1">
    <inertial pos="0 0 .05" mass=".8" diaginertia=".01 .01 .01"/>
    <camera name="wrist" pos=".075 0 .01" xyaxes="0 1 0 .9 0 .42" fovy="78"/>
    <body name="gripper" quat=".707107 0 0 -.707107" gravcomp="1">
      <inertial pos="0 0 .06" mass=".2" diaginertia=".001 .001 .001"/>
      {_link_visuals("hand", 'quat=".707107 0 0 .707107"')}
      <geom class="shell" type="box" size=".10 .028 .03" pos="0 0 .03"/>
      <site name="tip" pos="0 0 .0999" group="5"/>
      {_finger("finger_left", "1 0 0 0", "0 .04", 1)}
      {_finger("finger_right", "0 0 0 1", "-.04 0", -1)}
    </body>
  </body>"""


def _arm(index: int = 0) -> str:
    if index == len(_LINKS):
        return _hand()
    number, pos, quat, inertial, limits = _LINKS[index]
    collision = (
        '<geom class="shell" type="capsule" size=".05" fromto="0 0 -.02 0 0 .04"/>'
        if number == "7"
        else ""
    )
    return f"""
<body name="link{number}" pos="{pos}" quat="{quat}" gravcomp="1">{inertial}
  <joint name="joint{number}" class="arm" axis="0 0 1" range="{limits}"/>{_link_visuals("link" + number)}{collision}
  {_arm(index + 1)}
</body>"""


def _object(kind: ObjectKind) -> str:
    half = kind.half_width_m
    height = kind.height_m
    inertia = kind.mass_kg * (half**2 * 4 + height**2) / 12
    axial = kind.mass_kg * (half**2 * 8) / 12
    return f"""
<body name="{kind.name}">
  <freejoint name="{kind.name}"/>
  <inertial pos="0 0 {min(height, 0.08) / 2}" mass="{kind.mass_kg}" diaginertia="{inertia} {inertia} {axial}"/>
  {kind.geoms}
</body>"""


def _box(pos: tuple[float, float, float], size: tuple[float, float, float], css: str) -> str:
    return f'<geom class="{css}" type="box" pos="{pos[0]} {pos[1]} {pos[2]}" size="{size[0]} {size[1]} {size[2]}"/>'


def _bin() -> str:
    inner, height, wall = BIN_INNER_HALF_M, BIN_WALL_HEIGHT_M / 2, 0.005
    outer = inner + wall
    walls: list[tuple[tuple[float, float, float], tuple[float, float, float]]] = [
        ((outer, 0, height), (wall, outer, height)),
        ((-outer, 0, height), (wall, outer, height)),
    ]
    walls += [
        ((0, outer, height), (outer, wall, height)),
        ((0, -outer, height), (outer, wall, height)),
    ]
    floor = _box((0, 0, 0.002), (inner, inner, 0.002), "binfloor")
    boxes = "".join(_box(p, s, "bin") for p, s in walls)
    return f'<body name="bin" mocap="true">{floor}{boxes}{_stand(inner, inner)}</body>'


def _stand(half_x: float, half_y: float) -> str:
    """Return the stand under a raised fixture; it lies inside the table if that is not raised."""
    half = STAND_MAX_HEIGHT_M / 2
    return _box((0, 0, -half - 0.001), (half_x - 0.01, half_y - 0.01, half), "stand")


def _cabinet() -> str:
    half_x, half_y = CABINET_HALF_M
    height = CABINET_HEIGHT_M
    middle = (height - 0.008) / 2  # up to the underside of the shelf
    sides = _box((0, half_y - 0.005, middle), (half_x, 0.005, middle), "cabinet")
    sides += _box((0, -half_y + 0.005, middle), (half_x, 0.005, middle), "cabinet")
    sides += _box((half_x - 0.005, 0, middle), (0.005, half_y, middle), "cabinet")
    shelf = _box((0, 0, height - 0.004), (half_x, half_y, 0.004), "shelf")
    front = -half_x - 0.005
    inner_y = half_y - 0.013
    drawer = _box((front, 0, 0.05), (0.005, half_y, 0.045), "drawer")
    drawer += _box((0, 0, 0.012), (half_x - 0.012, inner_y, 0.003), "drawervisual")
    handle_x = HANDLE_OFFSET_M[0]
    stem_half = (front - 0.005 - handle_x) / 2
    handle = _box((handle_x, 0, HANDLE_OFFSET_M[2]), (0.006, 0.045, 0.008), "handle")
    for side in (-0.039, 0.039):
        handle += _box(
            (handle_x + stem_half, side, HANDLE_OFFSET_M[2]), (stem_half, 0.006, 0.006), "handle"
        )
    return f"""
<body name="cabinet" mocap="true">{sides}{shelf}{_stand(half_x, half_y)}
  <body name="drawer">
    <inertial pos="0 0 .03" mass=".4" diaginertia=".002 .002 .002"/>
    <joint name="drawer" type="slide" axis="-1 0 0" range="0 {DRAWER_TRAVEL_M}" damping="8" frictionloss="1.5" armature=".1"/>
    {drawer}{handle}
  </body>
</body>"""


def _button() -> str:
    return f"""
<body name="button" mocap="true">
  <geom class="fixture" type="cylinder" size=".042 .012" pos="0 0 .012" rgba=".3 .3 .33 1"/>
  <body name="cap">
    <inertial pos="0 0 .035" mass=".05" diaginertia=".0001 .0001 .0001"/>
    <joint name="button" type="slide" axis="0 0 -1" range="0 {BUTTON_TRAVEL_M}" stiffness="150" damping="4" armature=".05"/>
    <geom name="cap" class="fixture" type="cylinder" size=".028 .011" pos="0 0 {BUTTON_TOP_M - 0.011}" rgba=".9 .1 .5 1"/>
  </body>
</body>"""


_OPTIONS = f"""  <option timestep="{PHYSICS_DT_S}" integrator="implicitfast" cone="elliptic" iterations="12" ls_iterations="8" tolerance="1e-6">
    <flag nativeccd="enable" multiccd="disable"/>
  </option>
  <size memory="4M"/>
  <visual>
    <quality offsamples="0" shadowsize="0" numslices="28" numstacks="2" numquads="1"/>
    <global offwidth="640" offheight="640"/>
    <headlight ambient=".45 .45 .45" diffuse=".35 .35 .35" specular=".05 .05 .05"/>
    <map znear=".01" zfar="20"/>
  </visual>
"""
"""Physics and rendering."""

_CLASSES = """  <default>
    <default class="fine"><geom type="mesh" group="2" contype="0" conaffinity="0" mass="0"/></default>
    <default class="coarse"><geom type="mesh" group="3" contype="0" conaffinity="0" mass="0"/></default>
    <default class="shell"><geom group="0" contype="1" conaffinity="2" friction=".6 .005 .0001" rgba="1 0 0 .2"/></default>
    <default class="pad">
      <geom type="box" group="0" contype="1" conaffinity="2" condim="4" friction="1.8 .02 .0001" priority="1"
            solref=".01 1" solimp=".9 .95 .002"/>
    </default>
    <default class="object">
      <geom group="1" contype="2" conaffinity="7" condim="3" friction=".9 .01 .0001" solref=".01 1" solimp=".9 .95 .002"/>
    </default>
    <default class="fixture"><geom group="1" contype="6" conaffinity="3" friction=".6 .005 .0001" solref=".01 1"/></default>
    <default class="bin"><geom group="1" contype="6" conaffinity="3" friction=".5 .005 .0001" rgba=".35 .42 .5 1"/></default>
    <default class="binfloor"><geom group="1" contype="6" conaffinity="3" friction=".8 .01 .0001" rgba=".22 .27 .33 1"/></default>
    <default class="stand"><geom group="1" contype="6" conaffinity="3" friction=".5 .005 .0001" rgba=".45 .47 .5 1"/></default>
    <default class="cabinet"><geom group="1" contype="6" conaffinity="3" friction=".5 .005 .0001" rgba=".62 .45 .28 1"/></default>
    <default class="shelf"><geom group="1" contype="6" conaffinity="3" friction=".9 .01 .0001" rgba=".74 .58 .38 1"/></default>
    <default class="drawer"><geom group="1" contype="6" conaffinity="3" friction=".4 .005 .0001" rgba=".85 .72 .5 1"/></default>
    <default class="drawervisual"><geom group="1" contype="0" conaffinity="0" rgba=".85 .72 .5 1"/></default>
    <default class="handle"><geom group="1" contype="6" conaffinity="3" friction=".6 .005 .0001" rgba=".15 .15 .17 1"/></default>
    <default class="trim"><geom group="1" contype="0" conaffinity="0"/></default>
    <default class="arm"><joint armature=".1" damping=".5"/></default>
    <default class="finger"><joint type="slide" armature=".4" damping="40" frictionloss=".5"/></default>
  </default>
"""
"""Defaults of geoms and joints by class; contacts are between types and affinities."""


def _assets() -> str:
    meshes = "".join(f'<mesh name="{name}" file="{name}.stl"/>' for name in _mesh_names())
    return f"""  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".80 .86 .92" rgb2=".55 .62 .70" width="32" height="192"/>
    <texture name="wood" type="2d" builtin="flat" rgb1=".78 .74 .68" width="8" height="8"/>
    <material name="table" texture="wood" specular="0" shininess="0"/>
    {meshes}
  </asset>
"""


def _world(pair: tuple[str, str]) -> str:
    """Return all bodies of the scene."""
    return f"""  <worldbody>
    <light pos=".6 -.4 1.6" dir="-.1 .3 -1" directional="true" diffuse=".45 .45 .45" specular=".1 .1 .1" castshadow="false"/>
    <camera name="front" pos="1.12 0 .66" xyaxes="0 1 0 -.72 0 .69" fovy="50"/>
    <camera name="show" pos="1.42 -.70 .86" xyaxes=".62 .78 0 -.42 .33 .84" fovy="42"/>
    <geom name="table" type="plane" size="1.2 1.2 .1" pos=".3 0 0" material="table" contype="4" conaffinity="3" friction=".8 .01 .0001" solref=".01 1" group="1"/>
    <body name="link0">{_link_visuals("link0")}{_arm()}</body>
    {_bin()}{_cabinet()}{_button()}
    <body name="zone" mocap="true">
      <geom name="zone" type="box" size="{ZONE_HALF_M} {ZONE_HALF_M} .0008" pos="0 0 .0008" contype="0" conaffinity="0" group="1" rgba=".3 .75 .75 1"/>
    </body>
    {"".join(_object(OBJECTS[name]) for name in pair)}
  </worldbody>
"""


def _actuators() -> str:
    gains = (2500, 2500, 2500, 2500, 1200, 1200, 800)
    forces = (120, 120, 120, 120, 40, 40, 40)
    motors = "".join(
        f'<position name="joint{i}" joint="joint{i}" kp="{gain}" dampratio="1" '
        f'forcerange="-{force} {force}" ctrlrange="-3.1 3.8"/>'
        for i, (gain, force) in enumerate(zip(gains, forces, strict=True), 1)
    )
    return f"""  <actuator>
    {motors}
    <position name="finger_left" joint="finger_left" kp="1200" forcerange="-25 25" ctrlrange="0 .04"/>
    <position name="finger_right" joint="finger_right" kp="1200" forcerange="-25 25" ctrlrange="-.04 0"/>
  </actuator>
"""


def scene_xml(pair: tuple[str, str]) -> str:
    """Return the MJCF of the scene with the two movable objects in `pair` (names in `OBJECTS`)."""
    return f"""
<mujoco model="gym_razor">
  <compiler angle="radian" meshdir="{MESH_DIR}" autolimits="true"/>
{_OPTIONS}{_CLASSES}{_assets()}{_world(pair)}  <contact>
    <exclude body1="cabinet" body2="drawer"/><exclude body1="button" body2="cap"/>
  </contact>
{_actuators()}</mujoco>"""
