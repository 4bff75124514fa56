"""One simulated table: reset, Cartesian control, state read-out, and copies for look-ahead.

Control: an action is a displacement of the gripper tip from where it *is* (so the next state
depends on the observed
state and the action only), solved to joint targets by one damped least-squares step and reached by
position servos
whose targets are ramped over the control period.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import numpy.typing as npt

from gym_razor import scene

if TYPE_CHECKING:
    from gym_razor.tasks.base import Layout

Array = npt.NDArray[np.float64]

CONTROL_DT_S = scene.PHYSICS_DT_S * scene.SUBSTEPS_PER_CONTROL
MAX_STEP_M = 0.05
"""Tip displacement of a translation action of 1, in metres per control step."""
MAX_TURN_RAD = 0.3
"""Yaw change of a yaw action of 1, in radians per control step."""
WORKSPACE = (np.array([0.24, -0.44, 0.012]), np.array([0.72, 0.44, 0.40]))
YAW_LIMIT_RAD = 1.75
ACTION_DIM = 5
STATE_DIM = 7
FINGER_TRAVEL_M = 0.04

_RAMP_SEGMENTS = 5
_RAMP_SUBSTEPS = scene.SUBSTEPS_PER_CONTROL // _RAMP_SEGMENTS
_IK_DAMPING = 0.03
_NULLSPACE_GAIN = 0.1
_MAX_JOINT_STEP_RAD = 0.35


class PhysicsError(RuntimeError):
    """The simulation produced a state that is not finite."""


@functools.cache
def load_model(pair: tuple[str, str]) -> mujoco.MjModel:
    """Compile (once per process) the scene with two movable objects, see `scene.OBJECTS`."""
    model = mujoco.MjModel.from_xml_string(scene.scene_xml(pair))
    # A diverged state must be seen and reported, not silently replaced by a reset.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model


class World:
    """One table with a robot and two movable objects.

    Args:
        pair: The two movable objects, names in `scene.OBJECTS`.
    """

    def __init__(self, pair: tuple[str, str]) -> None:
        self.pair = pair
        self.model = load_model(pair)
        self.data = mujoco.MjData(self.model)
        model = self.model
        self._tip = model.site("tip").id
        self._object_qpos = {kind: int(model.joint(kind).qposadr[0]) for kind in pair}
        self._object_dof = {kind: int(model.joint(kind).dofadr[0]) for kind in pair}
        self._mocap = {name: int(model.body(name).mocapid[0]) for name in scene.FIXTURES}
        self._drawer = int(model.joint("drawer").qposadr[0])
        self._button = int(model.joint("button").qposadr[0])
        self._finger = int(model.joint("finger_left").qposadr[0])
        self._finger_dof = int(model.joint("finger_left").dofadr[0])
        self._geoms = {kind: model.geom(kind).id for kind in pair}
        self._jacobian = np.zeros((6, model.nv))
        self._solution = np.zeros(6)
        self._home = np.array(scene.HOME_QPOS)
        self._state_size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.gripper_command = -1.0
        self.colours = dict.fromkeys(pair, "red")
        self._ctrl = np.zeros(model.nu)

    # ---- reset ----

    def reset(self, layout: Layout) -> None:
        """Put everything where `layout` says; all derived state is made anew."""
        data = self.data
        mujoco.mj_resetData(self.model, data)
        self.colours = dict(layout.colours)
        for name, (x, y, yaw) in layout.fixtures.items():
            data.mocap_pos[self._mocap[name]] = (x, y, 0.0)
            data.mocap_quat[self._mocap[name]] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        for kind, (x, y, yaw) in layout.objects.items():
            address = self._object_qpos[kind]
            data.qpos[address : address + 3] = (x, y, 0.0005)
            data.qpos[address + 3 : address + 7] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        data.qpos[self._drawer] = layout.drawer_m
        data.qpos[:7] = self._home
        data.qpos[self._finger] = FINGER_TRAVEL_M
        data.qpos[self._finger + 1] = -FINGER_TRAVEL_M
        self.gripper_command = -1.0
        self._solve_start_pose(np.array(layout.tip), layout.tip_yaw)
        data.ctrl[:7] = data.qpos[:7]
        data.ctrl[7:9] = (FINGER_TRAVEL_M, -FINGER_TRAVEL_M)
        mujoco.mj_step(self.model, data, scene.SUBSTEPS_PER_CONTROL)  # objects settle
        self._refresh()

    def _solve_start_pose(self, tip: Array, yaw: float) -> None:
        for _ in range(12):
            self._refresh()
            self.data.qpos[:7] += self._joint_step(tip, yaw)

    def apply_colours(self) -> None:
        """Write this world's object colours into the shared model; call before rendering."""
        for kind, colour in self.colours.items():
            self.model.geom_rgba[self._geoms[kind], :3] = scene.COLOURS[colour]

    # ---- control ----

    def step(self, action: npt.NDArray[np.float32]) -> None:
        """Run one control step of 0.1 s.

        Args:
            action: float [5] in [-1, 1]: dx, dy, dz (times 0.05 m), dyaw (times 0.3 rad), gripper
                (+1 closes).

        Raises:
            PhysicsError: The state is not finite any more.
        """
        data = self.data
        command = np.minimum(np.maximum(action.astype(np.float64), -1.0), 1.0)
        low, high = WORKSPACE
        target = np.minimum(np.maximum(self.tip + command[:3] * MAX_STEP_M, low), high)
        yaw = min(max(self.yaw + command[3] * MAX_TURN_RAD, -YAW_LIMIT_RAD), YAW_LIMIT_RAD)
        self.gripper_command = float(command[4])
        opening = 0.5 * FINGER_TRAVEL_M * (1.0 - command[4])
        goal = self._ctrl
        goal[:7] = data.qpos[:7] + self._joint_step(target, yaw)
        goal[7], goal[8] = opening, -opening
        ramp = (goal - data.ctrl) / _RAMP_SEGMENTS
        ramp[7:] = goal[7:] - data.ctrl[7:]  # the fingers' servos are slow enough by themselves
        for _ in range(_RAMP_SEGMENTS):
            data.ctrl += ramp
            ramp[7:] = 0.0
            mujoco.mj_step(self.model, data, _RAMP_SUBSTEPS)
        if not np.isfinite(data.qpos).all() or not np.isfinite(data.qvel).all():
            raise PhysicsError("the physics state is not finite")
        self._refresh()

    def _joint_step(self, target: Array, yaw: float) -> Array:
        """Solve (J J^T + d^2 I) w = e; J^T w moves the joints towards a pose pointing down."""
        data = self.data
        mujoco.mj_jacSite(self.model, data, self._jacobian[:3], self._jacobian[3:], self._tip)
        jacobian = self._jacobian[:, :7]
        error = np.empty(6)
        error[:3] = target - data.site_xpos[self._tip]
        axes = data.site_xmat[self._tip]
        # Rotation error as half the sum of axis cross products with the wanted frame
        # x = (-sin yaw, cos yaw, 0), z = (0, 0, -1), y = z cross x = (cos yaw, sin yaw, 0).
        sin, cos = np.sin(yaw), np.cos(yaw)
        ax, ay, az = axes[0::3], axes[1::3], axes[2::3]
        error[3] = 0.5 * (-ax[2] * cos - ay[2] * sin - az[1])
        error[4] = 0.5 * (-ax[2] * sin + ay[2] * cos + az[0])
        error[5] = 0.5 * (ax[0] * cos + ax[1] * sin + ay[0] * sin - ay[1] * cos)
        gram = jacobian @ jacobian.T
        gram.flat[::7] += _IK_DAMPING**2
        posture = _NULLSPACE_GAIN * (self._home - data.qpos[:7])
        mujoco.mju_cholFactor(gram, 0.0)
        mujoco.mju_cholSolve(self._solution, gram, error - jacobian @ posture)
        step: Array = jacobian.T @ self._solution + posture
        np.minimum(np.maximum(step, -_MAX_JOINT_STEP_RAD), _MAX_JOINT_STEP_RAD, out=step)
        return step

    def _refresh(self) -> None:
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)

    # ---- state ----

    @property
    def tip(self) -> Array:
        """Gripper tip, base frame, metres, [3]."""
        position: Array = self.data.site_xpos[self._tip]
        return position

    @property
    def yaw(self) -> float:
        """Gripper yaw in radians; at 0 the fingers open along y."""
        axes = self.data.site_xmat[self._tip]
        return float(np.arctan2(-axes[0], axes[3]))

    @property
    def opening(self) -> float:
        """Finger opening, 0 (closed) to 1 (0.08 m)."""
        return float(self.data.qpos[self._finger] - self.data.qpos[self._finger + 1]) / (
            2 * FINGER_TRAVEL_M
        )

    @property
    def finger_speed(self) -> float:
        """Speed at which the fingers open (positive) or close, metres per second."""
        return float(self.data.qvel[self._finger] - self.data.qvel[self._finger + 1])

    @property
    def drawer_m(self) -> float:
        """How far the drawer is open, metres."""
        return float(self.data.qpos[self._drawer])

    @property
    def button_m(self) -> float:
        """How far the button is pressed, metres."""
        return float(self.data.qpos[self._button])

    def object_position(self, kind: str) -> Array:
        """Return the resting point (bottom centre) of an object, metres, [3]."""
        address = self._object_qpos[kind]
        position: Array = self.data.qpos[address : address + 3]
        return position

    def object_yaw(self, kind: str) -> float:
        """Return an object's yaw in radians."""
        w, x, y, z = self.data.qpos[self._object_qpos[kind] + 3 : self._object_qpos[kind] + 7]
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    def object_upright(self, kind: str) -> float:
        """Return the cosine of an object's tilt: 1 upright, 0 lying."""
        _, x, y, _ = self.data.qpos[self._object_qpos[kind] + 3 : self._object_qpos[kind] + 7]
        return float(1 - 2 * (x * x + y * y))

    def object_speed(self, kind: str) -> float:
        """Return an object's linear speed, metres per second."""
        address = self._object_dof[kind]
        return float(np.linalg.norm(self.data.qvel[address : address + 3]))

    def fixture(self, name: str) -> Array:
        """Return a fixture's origin on the table, metres, [3]."""
        position: Array = self.data.mocap_pos[self._mocap[name]]
        return position

    def handle(self) -> Array:
        """Return the centre of the drawer's handle bar, metres, [3]."""
        offset = np.array(scene.HANDLE_OFFSET_M)
        offset[0] -= self.drawer_m
        position: Array = self.fixture("cabinet") + offset
        return position

    def proprioception(self) -> npt.NDArray[np.float32]:
        """Return `agent_pos`: tip x, y, z (m), sin, cos of yaw, opening, last gripper command."""
        yaw = self.yaw
        return np.array(
            [*self.tip, np.sin(yaw), np.cos(yaw), self.opening, self.gripper_command],
            dtype=np.float32,
        )

    def landmarks(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return positions float32 [L, 3] (m) of `scene.LANDMARKS` and bool [L], True if present.

        Objects are given by the point where they are held, which is also what a picture shows best.
        """
        positions = np.zeros((len(scene.LANDMARKS), 3), dtype=np.float32)
        present = np.ones(len(scene.LANDMARKS), dtype=np.bool_)
        for index, name in enumerate(scene.LANDMARKS):
            if name in scene.OBJECTS:
                present[index] = name in self.pair
                if present[index]:
                    positions[index] = self.object_position(name)
                    positions[index, 2] += scene.OBJECTS[name].height_m / 2
            elif name == "handle":
                positions[index] = self.handle()
            else:
                positions[index] = self.fixture(name)
        return positions, present

    # ---- copies ----

    def save(self) -> tuple[Array, float]:
        """Return everything that the next step depends on."""
        state = np.empty(self._state_size)
        mujoco.mj_getState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state, self.gripper_command

    def restore(self, saved: tuple[Array, float]) -> None:
        """Go back to a state from `save` (of a world with the same pair)."""
        state, self.gripper_command = saved
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._refresh()

    def snapshot(self) -> dict[str, Any]:
        """Return the full state as plain arrays, for a dump after a fault."""
        state, command = self.save()
        return {
            "pair": list(self.pair),
            "integration_state": state.tolist(),
            "gripper_command": command,
        }
