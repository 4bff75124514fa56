"""A toy environment: a counter."""

from __future__ import annotations

import os
import time

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def toy_factory(limit=10, goal=5.0, fault=None):
    """Return a factory of a counter: the state adds up the first action number."""

    class Counter(gym.Env):
        metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
        render_mode = "rgb_array"
        task = "toy/Counter-v0"
        task_description = "count"
        observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict({"front": spaces.Box(0, 255, (4, 4, 3), np.uint8)}),
                "agent_pos": spaces.Box(-99, 99, (2,), np.float32),
            }
        )
        action_space = spaces.Box(-1, 1, (3,), np.float32)

        def observation(self):
            state = np.array([self.total, self.steps], np.float32)
            return {
                "pixels": {"front": np.full((4, 4, 3), self.steps, np.uint8)},
                "agent_pos": state,
            }

        def info(self):
            return {"is_success": self.total >= goal, "elapsed_steps": self.steps}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.total, self.steps = float((seed or 0) % 3), 0
            self.task_description = (options or {}).get("instruction", "count")
            return self.observation(), self.info()

        def step(self, action):
            if fault == "raise":
                raise ZeroDivisionError("the toy broke")
            if fault == "exit":
                os._exit(7)
            if fault == "hang":
                time.sleep(3600)
            self.total += float(action[0])
            self.steps += 1
            terminated = self.total >= goal
            truncated = self.steps >= limit and not terminated
            return self.observation(), float(terminated), terminated, truncated, self.info()

        def render(self):
            return np.full((8, 8, 3), self.steps, np.uint8)

    return Counter
