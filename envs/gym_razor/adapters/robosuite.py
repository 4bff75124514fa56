"""robosuite's own tasks behind the observation and action contract of this suite.

The physics, the robot, the objects, the success checks and the operational-space controller are
robosuite's. This module maps them onto `{"pixels": {"front", "wrist"}, "agent_pos"}` and the
5-dimensional action, and makes the start state a pure function of (task, seed). It imports
robosuite lazily, silences its notices, and protects the caller's global state.

A task is one entry of `ROBOSUITE_TASKS`; `register_robosuite_tasks` gives it the id
`gym_razor/robosuite-<Task>-v0`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gym_razor.adapters.generators import GlobalGenerators
from gym_razor.vector.success import IS_SUCCESS
from gym_razor.vector.workers import preserved_variables

if TYPE_CHECKING:
    from gym_razor.vector.any_env import ChunkedVectorEnv

CONTROL_HZ = 10
"""Actions per second of the contract."""

CONTROLLER_HZ = 20
"""robosuite's own rate: every action is held for CONTROLLER_HZ / CONTROL_HZ controller steps."""

METRES_PER_UNIT = 0.05
"""Motion of the gripper's target per action of size 1."""

RADIANS_PER_UNIT = 0.3
"""Rotation of the gripper's target per action of size 1."""

_MAX_LEAD_M = 0.08
_MAX_LEAD_RAD = 0.5
"""The largest lead of the controller's target over the gripper; it bounds the force of a blocked
gripper. The stock controller's largest single inputs are 0.05 m and 0.5 rad."""

STABLE_STEPS = 3
"""Actions in a row for which robosuite must report success before the episode terminates."""

GRIPPER_OPENING_M = 0.08
"""Distance between the fingers of an open Panda gripper."""

_AGENT_POS_LOW = np.array([-2.0, -2.0, -2.0, -1.0, -1.0, 0.0, -1.0], np.float32)
_AGENT_POS_HIGH = np.array([2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0], np.float32)

_ARENA = "16M"
"""Memory of one MjData. robosuite's `nconmax="5000" njmax="5000"` would take 1.3 GB."""

_MODEL_SEED = 0
"""robosuite draws object sizes when it builds a model: a fixed seed makes the model a constant."""

_ROBOSUITE_LOGGER = "robosuite_logs"


@dataclass(frozen=True)
class RobosuiteTask:
    """Describe one robosuite task.

    Attributes:
        robosuite_name: Name for `robosuite.make`.
        instructions: Equivalent instructions; the seed chooses one.
        max_episode_steps: Default time limit in actions (10 per second).
        front_camera: robosuite camera that fills `pixels.front`.
        options: Further keyword arguments of the robosuite environment.
    """

    robosuite_name: str
    instructions: tuple[str, ...]
    max_episode_steps: int = 200
    front_camera: str = "agentview"
    options: dict[str, Any] = field(default_factory=dict)


ROBOSUITE_TASKS: dict[str, RobosuiteTask] = {
    "Lift": RobosuiteTask(
        "Lift",
        ("lift the red cube", "pick up the red cube", "raise the red cube from the table"),
        max_episode_steps=150,
    ),
    "Stack": RobosuiteTask(
        "Stack",
        ("stack the red cube on the green cube", "put the red cube on top of the green cube"),
    ),
    "PickPlaceCan": RobosuiteTask(
        "PickPlaceCan",
        ("put the can in its bin", "place the can in the bin", "move the can to the right bin"),
    ),
    "Door": RobosuiteTask(
        "Door",
        ("open the door", "pull the door open", "turn the handle and open the door"),
        front_camera="frontview",
    ),
}


def robosuite_task_id(task: str) -> str:
    """Return the Gymnasium id of a robosuite task.

    Args:
        task: A key of `ROBOSUITE_TASKS`.
    """
    return f"gym_razor/robosuite-{task}-v0"


def register_robosuite_tasks() -> list[str]:
    """Register every task of `ROBOSUITE_TASKS` with Gymnasium, without importing robosuite.

    Returns:
        The ids, in the order of `ROBOSUITE_TASKS`. Ids that exist already stay as they are.
    """
    task_ids = []
    for name, task in ROBOSUITE_TASKS.items():
        task_id = robosuite_task_id(name)
        task_ids.append(task_id)
        if task_id in gym.registry:
            continue
        gym.register(
            id=task_id,
            entry_point="gym_razor.adapters.robosuite:RobosuiteEnv",
            vector_entry_point="gym_razor.adapters.robosuite:make_robosuite_vector_env",
            max_episode_steps=task.max_episode_steps,
            kwargs={"task": name},
        )
    return task_ids


def make_robosuite_vector_env(
    num_envs: int, chunk_size: int = 1, num_workers: int = 0, **kwargs: Any
) -> ChunkedVectorEnv:
    """Build a chunk-stepping vector of `RobosuiteEnv` (the `vector_entry_point` of the ids).

    Args:
        num_envs: Number of environments.
        chunk_size: Actions per decision.
        num_workers: Worker processes; 0 steps in this process.
        **kwargs: Arguments of `RobosuiteEnv`.
    """
    from gym_razor.vector.any_env import ChunkedVectorEnv

    make = functools.partial(RobosuiteEnv, **kwargs)
    return ChunkedVectorEnv([make] * num_envs, chunk_size=chunk_size, num_workers=num_workers)


make_robosuite_vector_env.switches_tasks = False  # type: ignore[attr-defined]
make_robosuite_vector_env.pure_starts = True  # type: ignore[attr-defined]


class RobosuiteEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """Run one robosuite task with a Panda arm.

    Task: a key of `ROBOSUITE_TASKS`.

    Observation: `{"pixels": {"front", "wrist"}, "agent_pos"}`; images uint8 [image_size,
    image_size, 3] from the task's front camera and `robot0_eye_in_hand`; `agent_pos` float32 [7] =
    x, y, z of the gripper tip in the frame of the robot's base (m), sin(yaw), cos(yaw) of the
    gripper about the base's vertical axis (0 at the home pose, counterclockwise seen from above),
    finger opening in [0, 1], last gripper command (-1 open, +1 close).

    Action: float32 [5] in [-1, 1] at 10 Hz = dx, dy, dz (`METRES_PER_UNIT`), dyaw
    (`RADIANS_PER_UNIT`) in the base's frame, and gripper (> 0 closes, < 0 opens, 0 keeps the last
    command). They move the target of robosuite's operational-space controller (`OSC_POSE`, roll
    and pitch 0) in two of its 20 Hz steps, in its "desired" mode. The default "achieved" mode would
    restart from the gripper's present pose, halve every motion, and let every rotation push the
    gripper sideways (10 cm in 5 actions).

    Randomisation: robosuite's (object poses, noise on the joints), seeded per episode. The model is
    the same in every episode, also the object sizes that robosuite draws when it builds one.

    Success: robosuite's check, true for `STABLE_STEPS` actions in a row.

    Reward: `"sparse"`: 1 at the action that succeeds, else 0. `"shaped"`: robosuite's staged
    reward, in [0, 1] per action.

    Termination: on success. Truncation: only after `max_episode_steps`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - an instance variable in gymnasium's types
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_HZ,
    }

    def __init__(
        self,
        task: str = "Lift",
        image_size: int = 64,
        max_episode_steps: int | None = None,
        reward_type: str = "sparse",
        render_mode: str | None = "rgb_array",
        render_size: int = 256,
        shadows: bool = False,
    ) -> None:
        """Build the robosuite environment (2-6 s; the first one also compiles its kernels).

        Args:
            task: Key of `ROBOSUITE_TASKS`.
            image_size: Side of both camera images, pixels.
            max_episode_steps: Time limit in actions; None leaves it to Gymnasium's `TimeLimit`,
                which `gymnasium.make` adds.
            reward_type: `"sparse"` or `"shaped"`.
            render_mode: Only `"rgb_array"`, or None.
            render_size: Side of the image that `render` returns, pixels.
            shadows: True renders as robosuite does, with shadows and 4x multisampling: 2 to 4
                times slower in software.

        Raises:
            ValueError: An argument is out of its range; the text lists what is allowed.
        """
        _check_choice("task", task, tuple(ROBOSUITE_TASKS))
        _check_choice("reward_type", reward_type, ("sparse", "shaped"))
        _check_choice("render_mode", render_mode, ("rgb_array", None))
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps is {max_episode_steps}: give at least 1, or None.")
        self.spec_task = ROBOSUITE_TASKS[task]
        self.task = robosuite_task_id(task)
        self.image_size = image_size
        self.reward_type = reward_type
        self.render_mode = render_mode
        self.render_size = render_size
        self._time_limit = max_episode_steps
        self._max_episode_steps = max_episode_steps or self.spec_task.max_episode_steps
        self._instruction = self.spec_task.instructions[0]
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict(
                    {
                        camera: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
                        for camera in ("front", "wrist")
                    }
                ),
                "agent_pos": spaces.Box(_AGENT_POS_LOW, _AGENT_POS_HIGH, dtype=np.float32),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (5,), np.float32)
        self._env: Any = _build(self.spec_task, shaped=reward_type == "shaped", shadows=shadows)
        self._cameras: _Cameras | None = None
        self._shadows = shadows
        self._gripper_command = -1.0
        self._elapsed_steps = 0
        self._success_streak = 0
        self._input_per_unit = (0.0, 0.0)

    @property
    def task_description(self) -> str:
        """Return the instruction of the current episode."""
        return self._instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Start state and instruction are a pure function of (task, seed). None draws the
                next seed from this environment's own generator.
            options: `{"instruction": str}` replaces the instruction, not the task.
        """
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        sequence = np.random.SeedSequence([zlib.crc32(self.task.encode()), episode_seed])
        with _quiet(), _seeded(int(sequence.generate_state(1)[0])):
            self._env.reset()
        controller = self._controller()
        self._start_controller(controller)
        halves = CONTROLLER_HZ // CONTROL_HZ
        self._input_per_unit = (
            METRES_PER_UNIT / halves / float(controller.output_max[0]),
            RADIANS_PER_UNIT / halves / float(controller.output_max[5]),
        )
        choice = int(sequence.generate_state(2)[1]) % len(self.spec_task.instructions)
        instruction = (options or {}).get("instruction")
        self._instruction = instruction or self.spec_task.instructions[choice]
        self._gripper_command = -1.0
        self._elapsed_steps = 0
        self._success_streak = 0
        return self._observe(), self._info(is_success=False)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Hold one action for a tenth of a second.

        Args:
            action: float32 [5], clipped to [-1, 1].
        """
        reward, terminated, truncated, info = self.step_without_rendering(action)
        return self._observe(), reward, terminated, truncated, info

    def step_without_rendering(
        self, action: NDArray[np.float32]
    ) -> tuple[float, bool, bool, dict[str, Any]]:
        """Do as `step` without the observation: only the last action of a chunk needs one."""
        clipped = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        if clipped.shape != (5,) or not np.isfinite(clipped).all():
            raise ValueError(f"The action is {action!r}: give 5 finite numbers in [-1, 1].")
        if clipped[4] != 0.0:
            self._gripper_command = float(np.sign(clipped[4]))
        command = np.zeros(7)
        command[:3] = clipped[:3] * self._input_per_unit[0]
        command[5] = clipped[3] * self._input_per_unit[1]
        command[6] = self._gripper_command
        reward = 0.0
        for _ in range(CONTROLLER_HZ // CONTROL_HZ):
            self._limit_lead()
            _, reward, _, _ = self._env.step(command)
        self._elapsed_steps += 1
        self._success_streak = self._success_streak + 1 if self._env._check_success() else 0
        success = self._success_streak >= STABLE_STEPS
        if self.reward_type == "sparse":
            reward = float(success)
        truncated = self._time_limit is not None and self._elapsed_steps >= self._time_limit
        return float(reward), success, truncated and not success, self._info(is_success=success)

    def observe(self) -> dict[str, Any]:
        """Return the observation of the current state (renders both cameras)."""
        return self._observe()

    def render(self) -> NDArray[np.uint8] | None:
        """Return the front view as uint8 [render_size, render_size, 3]; None without a mode."""
        if self.render_mode is None:
            return None
        return self._renderer().image(self.spec_task.front_camera, self.render_size)

    def close(self) -> None:
        """Free the OpenGL context and the simulation; a second call does nothing."""
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None
        if self._env is not None:
            self._env.close()
            self._env = None

    def _renderer(self) -> _Cameras:
        if self._cameras is None:
            largest = max(self.image_size, self.render_size)
            self._cameras = _Cameras(self._env.sim, largest, shadows=self._shadows)
        return self._cameras

    def _observe(self) -> dict[str, Any]:
        cameras = self._renderer()
        return {
            "pixels": {
                "front": cameras.image(self.spec_task.front_camera, self.image_size),
                "wrist": cameras.image("robot0_eye_in_hand", self.image_size),
            },
            "agent_pos": self._agent_pos(),
        }

    def _agent_pos(self) -> NDArray[np.float32]:
        data = self._env.sim.data
        robot = self._env.robots[0]
        base = robot.robot_model.root_body
        base_rotation = data.get_body_xmat(base).reshape(3, 3)
        grip_site = robot.eef_site_id["right"]
        tip = base_rotation.T @ (data.site_xpos[grip_site] - data.get_body_xpos(base))
        # The site's y axis is horizontal, normal to the line through the fingers, and points along
        # x of the base at the home pose.
        across = base_rotation.T @ data.site_xmat[grip_site].reshape(3, 3)[:, 1]
        yaw = np.arctan2(across[1], across[0])
        finger_joints = data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        opening = (finger_joints[0] - finger_joints[1]) / GRIPPER_OPENING_M
        return np.array(
            [
                *tip,
                np.sin(yaw),
                np.cos(yaw),
                np.clip(opening, 0.0, 1.0),
                self._gripper_command,
            ],
            np.float32,
        )

    def _controller(self) -> Any:
        return self._env.robots[0].composite_controller.part_controllers["right"]

    def _start_controller(self, controller: Any) -> None:
        """Put the controller's target on the gripper.

        robosuite 1.5.1 resets it to a pose from before the reset, and in the world's frame.
        """
        self._env.robots[0].composite_controller.update_state()
        controller.update(force=True)
        controller.set_goal_update_mode("desired")
        reached = controller.goal_origin_to_eef_pose()
        controller.goal_pos, controller.goal_ori = reached[:3, 3].copy(), reached[:3, :3].copy()

    def _limit_lead(self) -> None:
        """Keep the controller's target near the gripper."""
        controller = self._controller()
        reached = controller.goal_origin_to_eef_pose()
        lead = controller.goal_pos - reached[:3, 3]
        distance = float(np.linalg.norm(lead))
        if distance > _MAX_LEAD_M:
            controller.goal_pos = reached[:3, 3] + lead * (_MAX_LEAD_M / distance)
        cosine = (np.trace(controller.goal_ori.T @ reached[:3, :3]) - 1.0) / 2.0
        if np.arccos(np.clip(cosine, -1.0, 1.0)) > _MAX_LEAD_RAD:
            controller.goal_ori = reached[:3, :3].copy()

    def _info(self, *, is_success: bool) -> dict[str, Any]:
        return {IS_SUCCESS: is_success, "elapsed_steps": self._elapsed_steps}


class _Cameras:
    """Render the fixed cameras of one robosuite simulation with one OpenGL context."""

    def __init__(self, sim: Any, largest: int, *, shadows: bool) -> None:
        import mujoco

        self._mujoco = mujoco
        self._model = sim.model._model
        self._data = sim.data._data
        self._model.vis.global_.offwidth = max(largest, 1)
        self._model.vis.global_.offheight = max(largest, 1)
        if not shadows:
            self._model.vis.quality.offsamples = 0
        self._context: Any = _gl_context(largest)
        self._context.make_current()
        self._mjr: Any = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
        self._scene = mujoco.MjvScene(self._model, maxgeom=2000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def image(self, camera: str, size: int) -> NDArray[np.uint8]:
        """Return uint8 [size, size, 3], first row on top."""
        mujoco = self._mujoco
        self._context.make_current()
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._mjr)
        mujoco.mjr_readPixels(pixels, None, viewport, self._mjr)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free the context."""
        self._context.make_current()
        self._mjr.free()
        self._context.free()


def _gl_context(size: int) -> Any:
    """Make a headless OpenGL context: EGL unless `MUJOCO_GL` names another backend."""
    import mujoco

    if os.environ.get("MUJOCO_GL", "egl").strip().lower() == "egl" and os.name == "posix":
        import mujoco.egl

        return mujoco.egl.GLContext(size, size)
    return mujoco.GLContext(size, size)


def _build(task: RobosuiteTask, *, shaped: bool, shadows: bool) -> Any:
    """Build the robosuite environment with a small arena and no per-physics-step sensors."""
    del shadows  # rendering is `_Cameras`' business: robosuite builds no OpenGL context here
    with _quiet(), _seeded(_MODEL_SEED):
        robosuite = _import_robosuite()
        base_class: type[Any] = robosuite.environments.base.REGISTERED_ENVS[task.robosuite_name]
        return _lean(base_class)(
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=True,
            renderer="mujoco",
            control_freq=CONTROLLER_HZ,
            ignore_done=True,
            hard_reset=False,
            reward_shaping=shaped,
            **task.options,
        )


_lean_classes: dict[type[Any], type[Any]] = {}


def _lean(base_class: type[Any]) -> type[Any]:
    """Return a subclass of a robosuite environment without its two largest costs."""
    if base_class in _lean_classes:
        return _lean_classes[base_class]

    def edit_model_xml(self: Any, xml: str) -> str:
        text: str = base_class.edit_model_xml(self, xml)
        return re.sub(r"<size[^>]*/>", f'<size memory="{_ARENA}"/>', text, count=1)

    def update_observables(self: Any, force: bool = False) -> None:
        # robosuite samples its sensors in Python at every physics step; this module reads the
        # simulation itself, so only the forced updates of its own resets remain.
        if force:
            base_class._update_observables(self, force=True)

    registered = dict(_registered_envs())
    lean = type(
        base_class.__name__,
        (base_class,),
        {"edit_model_xml": edit_model_xml, "_update_observables": update_observables},
    )
    # robosuite's metaclass has just registered the subclass under the name of its parent.
    _registered_envs().update(registered)
    _lean_classes[base_class] = lean
    return lean


def _registered_envs() -> dict[str, Any]:
    import robosuite.environments.base

    envs: dict[str, Any] = robosuite.environments.base.REGISTERED_ENVS
    return envs


def _import_robosuite() -> Any:
    """Import robosuite without its writes to the environment variables."""
    with preserved_variables(("MUJOCO_GL", "PYOPENGL_PLATFORM")):
        import robosuite
        import robosuite.environments.base
    return robosuite


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop robosuite's notices (missing macros, loaded controllers) and its syntax warnings."""
    logger = logging.getLogger(_ROBOSUITE_LOGGER)
    logger.addFilter(_only_errors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(_only_errors)


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _seeded(seed: int) -> contextlib.AbstractContextManager[None]:
    """Seed the global generators, from which robosuite draws; afterwards restore the caller's."""
    return GlobalGenerators(seed, seed).installed()


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
