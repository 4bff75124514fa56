"""A simulation that knows nothing of LeRobot or this toolkit: a point looks for a dot on a line.

It follows LeRobot's conventions for environments. It draws its start from numpy's global generator
on purpose, never ends by itself at a time limit, and begins anew after a success as LeRobot's
Meta-World does.
"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
from gymnasium import spaces

HEIGHT, WIDTH = 24, 32


class Line(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, task="left", nested=False, cameras=1, max_episode_steps=None, **_):
        self.task, self.nested = task, nested
        self.task_description = f"go to the {task}"
        self._max_episode_steps = 12 if max_episode_steps is None else max_episode_steps
        self.render_mode = "rgb_array"
        image = spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.names = [f"view{i}" for i in range(cameras)] if cameras > 1 else []
        pixels = spaces.Dict(dict.fromkeys(self.names, image)) if self.names else image
        number = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        state = {"robot_state": spaces.Dict({"arm": spaces.Dict({"pos": number})})}
        self.observation_space = spaces.Dict(
            {"pixels": pixels, **(state if nested else {"agent_pos": number})}
        )
        self.action_space = spaces.Box(-1, 1, (3,), np.float32)
        self.resets = 0

    @property
    def loaded(self):
        """Name what of interest this process has imported."""
        return sorted({name.split(".")[0] for name in sys.modules} & {"torch", "lerobot"})

    def reset(self, seed=None, **_):
        super().reset(seed=seed)
        self.resets += 1
        self.at = float(np.random.uniform(-1, 1))  # noqa: NPY002
        self.goal = -2.0 if self.task == "left" else 2.0
        return self.observe(), {}

    def step(self, action):
        self.at += 0.5 * float(action[0]) + 0.001 * float(np.random.normal())  # noqa: NPY002
        success = abs(self.at - self.goal) < 0.6
        observation = self.observe()
        if success:
            self.reset()
        return observation, -abs(self.at), success, False, {"is_success": success}

    def observe(self):
        image = self.render()
        pixels = {name: np.roll(image, i, 0) for i, name in enumerate(self.names)} or image
        state = np.array([self.at, self.goal])
        if self.nested:
            return {"pixels": pixels, "robot_state": {"arm": {"pos": state}}}
        return {"pixels": pixels, "agent_pos": state}

    def render(self):
        image = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
        x = int(np.clip((self.at + 3) / 6 * WIDTH, 0, WIDTH - 1))
        image[:, x] = (240, 40, 40)
        return image


class Fixed(Line):
    """Ignores its seed, as some environments do."""

    def reset(self, seed=None, **_):
        super().reset(seed=seed)
        self.at = 0.25
        return self.observe(), {}


class Drifting(Line):
    """Starts from where it has been left: no seed makes it reproducible."""

    def reset(self, seed=None, **_):
        super().reset(seed=seed)
        self.at = 0.01 * self.resets
        return self.observe(), {}


for _name in ("Left", "Right"):
    gym.register(f"toy_sim/{_name}-v0", "toy_sim:Line", kwargs={"task": _name.lower()})
gym.register("toy_sim/Fixed-v0", "toy_sim:Fixed")
gym.register("toy_sim/Drifting-v0", "toy_sim:Drifting")
