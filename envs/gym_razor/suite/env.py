"""The suite as a single Gymnasium environment."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_razor.suite import scene
from gym_razor.suite.action import ACTION_DIM
from gym_razor.suite.episode import Episode
from gym_razor.suite.render import POLICY_CAMERAS, Renderer
from gym_razor.suite.tasks import STYLES, TASKS
from gym_razor.suite.world import STATE_DIM, World

Observation = dict[str, Any]


def observation_space(image_size: int) -> gym.spaces.Dict:
    """Return the observation space for square images of `image_size` pixels."""
    image = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
    low = np.array([-1.5, -1.5, -0.5, -1.0, -1.0, -0.5, -1.0], dtype=np.float32)
    high = np.array([1.5, 1.5, 1.5, 1.0, 1.0, 1.5, 1.0], dtype=np.float32)
    return gym.spaces.Dict(
        {
            "agent_pos": gym.spaces.Box(low, high, (STATE_DIM,), np.float32),
            "pixels": gym.spaces.Dict(dict.fromkeys(POLICY_CAMERAS, image)),
        }
    )


ACTION_SPACE = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)


class TableEnv(gym.Env[Observation, npt.NDArray[np.float32]]):
    """One task on the table.

    Task: see its file in `gym_razor.suite.tasks`; `task_description` is the instruction.
    Observation: `pixels` {`front`, `wrist`}: uint8 [S, S, 3]; `agent_pos`: float32 [7], tip x, y, z
        (m, robot base frame), sin and cos of the gripper's yaw, finger opening in [0, 1], last
        gripper command in [-1, 1].
    Action: float32 [5] in [-1, 1] at 10 Hz: tip displacement dx, dy, dz (1 is 0.05 m), dyaw (1 is
        0.3 rad), gripper (+1 closes, -1 opens).
    Randomisation: object pair, colours, positions and yaws, fixture positions, drawer opening,
        start pose and instruction are a pure function of (task, seed). `reset()` without a seed
        draws one from the environment's own generator.
    Success: `info["is_success"]`; the goal must hold for a few steps to count.
    Reward: `sparse`: 1 at success, else 0. `shaped`: that, plus the change of a potential.
    Termination: at success, or when the physics diverges (`info["physics_error"]`).
    Truncation: at the time limit only.

    Args:
        task: Gymnasium id of the task, set by the registration.
        image_size: Edge of the square images in pixels.
        max_episode_steps: Own time limit in control steps; None for none, as under `gym.make`,
            which adds the limit from outside (`gym.make(id, max_episode_steps=...)`).
        reward_type: `sparse` or `shaped`.
        render_mode: `rgb_array` or None.
        render_size: Edge of what `render()` returns, in pixels.
        role: The task's role. Like `package` it is an argument so that `gym.spec(id).kwargs` has
            it.
        package: The package that registers the task.
    """

    expert_styles = tuple(STYLES)

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "landmark_names": list(scene.LANDMARKS),
    }

    def __init__(
        self,
        task: str,
        image_size: int = 64,
        max_episode_steps: int | None = None,
        reward_type: str = "sparse",
        render_mode: str | None = None,
        render_size: int = 256,
        role: str | None = None,
        package: str | None = None,
    ) -> None:
        del package
        if task not in TASKS:
            raise ValueError(f"Unknown task {task!r}; the suite has {', '.join(TASKS)}.")
        self.task = task
        self.role = role or TASKS[task].role
        self.render_mode = render_mode
        self.image_size = image_size
        self.render_size = render_size
        self.observation_space = observation_space(image_size)
        self.action_space = ACTION_SPACE
        self._max_episode_steps = math.inf if max_episode_steps is None else max_episode_steps
        self._worlds: dict[tuple[str, str], World] = {}
        self._episode = Episode(self._take_world, reward_type)
        self._renderer: Renderer | None = None

    def _take_world(self, pair: tuple[str, str]) -> World:
        if pair not in self._worlds:
            self._worlds[pair] = World(pair)
        return self._worlds[pair]

    @property
    def task_description(self) -> str:
        """The instruction of the running episode."""
        return self._episode.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `options["instruction"]` replaces the drawn instruction."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31 - 1))
        self._episode.reset(
            self.task, seed, (options or {}).get("instruction"), self._max_episode_steps
        )
        info = self._info(physics_error=False)
        return self._observe(), {**info, "start_state_hash": self._episode.world.state_hash()}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute one control step."""
        result = self._episode.step(np.asarray(action, dtype=np.float32)[None])
        info = self._info(result.physics_error)
        return self._observe(), result.reward, result.terminated, result.truncated, info

    def expert_actions(self, style: str = "a", length: int = 1) -> npt.NDArray[np.float32]:
        """Return the scripted expert's next actions, float32 [length, 5]."""
        return self._episode.expert_actions(style, length)

    def render(self) -> npt.NDArray[np.uint8]:
        """Return a picture for people, uint8 [render_size, render_size, 3]."""
        world = self._episode.world
        picture: npt.NDArray[np.uint8] = self._view().render(
            world, ("show",), self.render_size, fine=True
        )[0]
        return picture

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _view(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(self._episode.world)
        return self._renderer

    def _observe(self) -> Observation:
        views = self._view().render(self._episode.world, POLICY_CAMERAS, self.image_size)
        return {
            "agent_pos": self._episode.world.proprioception(),
            "pixels": {
                name: np.ascontiguousarray(view)
                for name, view in zip(POLICY_CAMERAS, views, strict=True)
            },
        }

    def _info(self, physics_error: bool) -> dict[str, Any]:
        world = self._episode.world
        return {
            "is_success": self._episode.is_success,
            "elapsed_steps": self._episode.elapsed_steps,
            "landmarks": world.landmarks().astype(np.float32),
            "landmarks_present": world.landmarks_present.copy(),
            "physics_error": physics_error,
        }
