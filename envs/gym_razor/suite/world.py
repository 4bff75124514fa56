"""One simulated table: reset, Cartesian control, state read-out, and copies for look-ahead.

Control: an action is a displacement of the gripper tip from its present position, so the next state
depends only on the observed state and the action. One damped least-squares step turns it into joint
targets; position servos follow these targets, which are ramped over the control period.

The control step is the hot path. It works on plain floats and on views of MuJoCo's arrays that are
made once: a property access or a temporary array costs as much as a tenth of a physics step.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from gym_razor.suite import scene
from gym_razor.suite.action import MAX_STEP_M, MAX_TURN_RAD
from gym_razor.suite.layout import Layout

Array = npt.NDArray[np.float64]

CONTROL_DT_S = scene.PHYSICS_DT_S * scene.SUBSTEPS_PER_CONTROL
WORKSPACE = (np.array([0.24, -0.44, 0.012]), np.array([0.72, 0.44, 0.40]))
_WORKSPACE = tuple(tuple(corner.tolist()) for corner in WORKSPACE)
YAW_LIMIT_RAD = 1.75
STATE_DIM = 7
FINGER_TRAVEL_M = 0.04

_RAMP_SEGMENTS = 5
_RAMP_SUBSTEPS = scene.SUBSTEPS_PER_CONTROL // _RAMP_SEGMENTS
_IK_DAMPING = 0.03
_NULLSPACE_GAIN = 0.1
_MAX_JOINT_STEP_RAD = 0.35
_HASH_STEPS_PER_UNIT = 1e6


class PhysicsError(RuntimeError):
    """The simulation produced a state that is not finite."""


@functools.cache
def load_model(pair: tuple[str, str]) -> mujoco.MjModel:
    """Compile (once per process) the scene with two movable objects, see `scene.OBJECTS`."""
    model = mujoco.MjModel.from_xml_string(scene.scene_xml(pair))
    # MuJoCo would silently reset a diverged state; it must be reported instead.
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
        self._qpos, self._qvel, self._ctrl = self.data.qpos, self.data.qvel, self.data.ctrl
        self._arm, self._mocap_pos = self._qpos[:7], self.data.mocap_pos
        self._tip_position: Array = self.data.site_xpos[self._tip]
        self._tip_axes = self.data.site_xmat[self._tip]
        self._make_control_buffers()
        self._state_size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.gripper_command = -1.0
        self.colours = dict.fromkeys(pair, "red")
        self._index_landmarks()

    def _make_control_buffers(self) -> None:
        """Allocate the buffers of the control step, and its constants as arrays.

        NumPy takes half a microsecond longer for an operand that is a Python number.
        """
        model = self.model
        jacobian = np.zeros((6, model.nv))
        self._position_jacobian, self._rotation_jacobian = jacobian[:3], jacobian[3:]
        self._arm_columns = jacobian[:, :7]
        self._jacobian = np.zeros((6, 7))
        self._gram = np.zeros((6, 6))
        self._gram_diagonal = self._gram.reshape(-1)[::7]
        self._damping = np.full(6, _IK_DAMPING**2)
        self._error, self._reached, self._solution = np.zeros(6), np.zeros(6), np.zeros(6)
        self._posture, self._gain = np.zeros(7), np.full(7, _NULLSPACE_GAIN)
        self._largest_step = np.full(7, _MAX_JOINT_STEP_RAD)
        self._smallest_step = -self._largest_step
        self._home = np.array(scene.HOME_QPOS)
        self._goal, self._ramp = np.zeros(model.nu), np.zeros(model.nu)
        self._arm_goal, self._arm_ramp = self._goal[:7], self._ramp[:7]
        self._arm_control, self._finger_control = self._ctrl[:7], self._ctrl[7:]
        self._segments = np.full(7, float(_RAMP_SEGMENTS))

    def _index_landmarks(self) -> None:
        """Find the array entries from which each of `scene.LANDMARKS` is read."""
        names = scene.LANDMARKS
        self._landmarks = np.zeros((len(names), 3))
        self.landmarks_present: npt.NDArray[np.bool_] = np.array(
            [name in self.pair or name not in scene.OBJECTS for name in names]
        )
        self._landmark_objects = [
            (names.index(kind), self._object_qpos[kind], scene.OBJECTS[kind].height_m / 2)
            for kind in self.pair
        ]
        fixtures = [name for name in names if name in scene.FIXTURES]
        self._landmark_fixtures = [names.index(name) for name in fixtures]
        self._landmark_mocap = [self._mocap[name] for name in fixtures]
        self._landmark_handle = names.index("handle")

    def _place_landmarks(self) -> None:
        """Write the landmarks that do not move until the next reset."""
        self._landmarks[self._landmark_fixtures] = self._mocap_pos[self._landmark_mocap]
        self._landmarks[self._landmark_handle] = self.handle()

    # ---- reset ----

    def reset(self, layout: Layout) -> None:
        """Arrange the scene as `layout` says; recompute all derived state."""
        data = self.data
        mujoco.mj_resetData(self.model, data)
        self.colours = dict(layout.colours)
        for name, (x, y, yaw) in layout.fixtures.items():
            data.mocap_pos[self._mocap[name]] = (x, y, layout.raised_m.get(name, 0.0))
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
        self._solve_start_pose(layout.tip, layout.tip_yaw)
        data.ctrl[:7] = data.qpos[:7]
        data.ctrl[7:9] = (FINGER_TRAVEL_M, -FINGER_TRAVEL_M)
        mujoco.mj_step(self.model, data, scene.SUBSTEPS_PER_CONTROL)  # objects settle
        self._refresh()
        self._place_landmarks()

    def _solve_start_pose(self, tip: Sequence[float], yaw: float) -> None:
        for _ in range(12):
            self._refresh()
            self._arm += self._joint_step(tip, yaw)

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
            PhysicsError: The new state is not finite.
        """
        dx, dy, dz, turn, gripper = [min(max(value, -1.0), 1.0) for value in action.tolist()]
        x, y, z = self._tip_position.tolist()
        (x_low, y_low, z_low), (x_high, y_high, z_high) = _WORKSPACE
        target = (
            min(max(x + dx * MAX_STEP_M, x_low), x_high),
            min(max(y + dy * MAX_STEP_M, y_low), y_high),
            min(max(z + dz * MAX_STEP_M, z_low), z_high),
        )
        yaw = min(max(self.yaw + turn * MAX_TURN_RAD, -YAW_LIMIT_RAD), YAW_LIMIT_RAD)
        self.gripper_command = gripper
        opening = 0.5 * FINGER_TRAVEL_M * (1.0 - gripper)
        np.add(self._joint_step(target, yaw), self._arm, self._arm_goal)
        self._finger_control[0], self._finger_control[1] = opening, -opening
        self._drive_arm()
        if not math.isfinite(self._qpos.dot(self._qpos) + self._qvel.dot(self._qvel)):
            raise PhysicsError("the physics state is not finite")
        self._refresh()

    def _drive_arm(self) -> None:
        """Step the physics for one control period while the arm's targets go to the goal.

        The fingers' servos are slow enough by themselves: their targets jump.
        """
        ramp, control, add, step = self._arm_ramp, self._arm_control, np.add, mujoco.mj_step
        model, data = self.model, self.data
        np.subtract(self._arm_goal, control, ramp)
        np.divide(ramp, self._segments, ramp)
        for _ in range(_RAMP_SEGMENTS):
            add(control, ramp, control)
            step(model, data, _RAMP_SUBSTEPS)

    def _joint_step(self, target: Sequence[float], yaw: float) -> Array:
        """Solve (J J^T + d^2 I) w = e; J^T w moves the joints towards a pose pointing down."""
        jacobian, gram = self._jacobian, self._gram
        mujoco.mj_jacSite(
            self.model, self.data, self._position_jacobian, self._rotation_jacobian, self._tip
        )
        np.copyto(jacobian, self._arm_columns)
        x, y, z = self._tip_position.tolist()
        x0, y0, z0, x1, y1, z1, x2, y2, _ = self._tip_axes.tolist()
        # Rotation error as half the sum of axis cross products with the wanted frame
        # x = (-sin yaw, cos yaw, 0), z = (0, 0, -1), y = z cross x = (cos yaw, sin yaw, 0).
        sin, cos = math.sin(yaw), math.cos(yaw)
        self._error[:] = (
            target[0] - x,
            target[1] - y,
            target[2] - z,
            0.5 * (-x2 * cos - y2 * sin - z1),
            0.5 * (-x2 * sin + y2 * cos + z0),
            0.5 * (x0 * cos + x1 * sin + y0 * sin - y1 * cos),
        )
        diagonal, posture, reached = self._gram_diagonal, self._posture, self._reached
        np.dot(jacobian, jacobian.T, gram)
        np.add(diagonal, self._damping, diagonal)
        np.subtract(self._home, self._arm, posture)
        np.multiply(posture, self._gain, posture)
        np.subtract(self._error, np.dot(jacobian, posture, reached), self._error)
        mujoco.mju_cholFactor(gram, 0.0)
        mujoco.mju_cholSolve(self._solution, gram, self._error)
        step: Array = self._solution.dot(jacobian)
        np.add(step, posture, step)
        np.minimum(step, self._largest_step, step)
        np.maximum(step, self._smallest_step, step)
        return step

    def _refresh(self) -> None:
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)

    # ---- state ----

    @property
    def tip(self) -> Array:
        """Gripper tip, base frame, metres, [3]."""
        return self._tip_position

    @property
    def yaw(self) -> float:
        """Gripper yaw in radians; at 0 the fingers open along y."""
        return math.atan2(-self._tip_axes[0], self._tip_axes[3])

    @property
    def opening(self) -> float:
        """Finger opening, 0 (closed) to 1 (0.08 m)."""
        left, right = self._qpos[self._finger], self._qpos[self._finger + 1]
        return float(left - right) / (2 * FINGER_TRAVEL_M)

    @property
    def finger_speed(self) -> float:
        """Speed at which the fingers open (positive) or close, metres per second."""
        return float(self._qvel[self._finger] - self._qvel[self._finger + 1])

    @property
    def drawer_m(self) -> float:
        """How far the drawer is open, metres."""
        return float(self._qpos[self._drawer])

    @property
    def button_m(self) -> float:
        """How far the button is pressed, metres."""
        return float(self._qpos[self._button])

    def object_position(self, kind: str) -> Array:
        """Return the resting point (bottom centre) of an object, metres, [3]."""
        address = self._object_qpos[kind]
        position: Array = self._qpos[address : address + 3]
        return position

    def object_yaw(self, kind: str) -> float:
        """Return an object's yaw in radians."""
        w, x, y, z = self._qpos[self._object_qpos[kind] + 3 : self._object_qpos[kind] + 7]
        return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))

    def object_upright(self, kind: str) -> float:
        """Return the cosine of an object's tilt: 1 upright, 0 lying."""
        _, x, y, _ = self._qpos[self._object_qpos[kind] + 3 : self._object_qpos[kind] + 7]
        return float(1 - 2 * (x * x + y * y))

    def object_speed(self, kind: str) -> float:
        """Return an object's linear speed, metres per second."""
        address = self._object_dof[kind]
        return math.hypot(*self._qvel[address : address + 3].tolist())

    def fixture(self, name: str) -> Array:
        """Return a fixture's origin on the table, metres, [3]."""
        position: Array = self._mocap_pos[self._mocap[name]]
        return position

    def handle(self) -> Array:
        """Return the centre of the drawer's handle bar, metres, [3]."""
        position: Array = self.fixture("cabinet") + np.array(scene.HANDLE_OFFSET_M)
        position[0] = self._handle_x()
        return position

    def _handle_x(self) -> float:
        return float(self.fixture("cabinet")[0]) + (scene.HANDLE_OFFSET_M[0] - self.drawer_m)

    def proprioception(self) -> npt.NDArray[np.float32]:
        """Return `agent_pos`: tip x, y, z (m), sin, cos of yaw, opening, last gripper command."""
        yaw = self.yaw
        x, y, z = self._tip_position.tolist()
        return np.array(
            (x, y, z, math.sin(yaw), math.cos(yaw), self.opening, self.gripper_command),
            dtype=np.float32,
        )

    def landmarks(self) -> Array:
        """Return positions [L, 3] (m) of `scene.LANDMARKS`, a view that the next call changes.

        An object's landmark is the point where it is held, which is also the easiest to see in a
        picture. Objects that are not on the table (`landmarks_present` is False) stay at 0.
        """
        positions, qpos = self._landmarks, self._qpos
        for index, address, half_height in self._landmark_objects:
            x, y, z = qpos[address : address + 3].tolist()
            positions[index] = x, y, z + half_height
        positions[self._landmark_handle, 0] = self._handle_x()
        return positions

    # ---- copies ----

    def save(self) -> tuple[Array, float]:
        """Return the complete state: the next step depends on nothing else."""
        state = np.empty(self._state_size)
        mujoco.mj_getState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state, self.gripper_command

    def restore(self, saved: tuple[Array, float]) -> None:
        """Go back to a state from `save` (of a world with the same pair)."""
        state, self.gripper_command = saved
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._refresh()
        self._place_landmarks()

    def state_hash(self) -> str:
        """Return a hash of the physics state and of the objects, 16 hexadecimal digits.

        The state is rounded to 1e-6 (m, rad, m/s, rad/s), because the last bits depend on the
        processor: they are about 1e-14 after the objects have settled. The solver's warm start does
        not enter the hash.
        """
        data = self.data
        parts = (data.qpos, data.qvel, data.ctrl, data.mocap_pos, data.mocap_quat)
        state = np.concatenate([part.ravel() for part in parts])
        digest = hashlib.blake2b(repr(list(self.colours.items())).encode(), digest_size=8)
        digest.update(np.rint(state * _HASH_STEPS_PER_UNIT).astype("<i8").tobytes())
        return digest.hexdigest()

    def snapshot(self) -> dict[str, Any]:
        """Return the full state as plain arrays, for a dump after a fault."""
        state, command = self.save()
        return {
            "pair": list(self.pair),
            "integration_state": state.tolist(),
            "gripper_command": command,
        }
