"""Ordinary Gymnasium environments, as a user would write them. Importing this registers them."""

from __future__ import annotations

import os

import gymnasium as gym
import numpy as np


class Plain(gym.Env):
    """Takes no argument, and never ends."""

    observation_space = gym.spaces.Dict({"agent_pos": gym.spaces.Box(-1, 1, (2,), np.float32)})
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    @property
    def process_id(self):
        return os.getpid()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"agent_pos": self.np_random.uniform(-1, 1, 2).astype(np.float32)}, {}

    def step(self, action):
        return {"agent_pos": np.zeros(2, np.float32)}, 0.0, False, False, {"success": False}


class Declared(Plain):
    """Tells its time limit as LeRobot's environments do, and leaves it to others."""

    _max_episode_steps = 7


for _class in (Plain, Declared):
    gym.register(f"plain/{_class.__name__}-v0", _class)


class Scripted(Plain):
    """Does what a test asks for; begins anew from its seed and ends after three actions."""

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        observation = {"agent_pos": np.zeros(2, np.float32)}
        return observation, 1.0, self.steps == 3, False, self.info()


class DropsIt(Scripted):
    def info(self):
        return {"success": False}


class Solved(Scripted):
    def info(self):
        return {"success": self.steps == 1}


class Silent(Scripted):
    def info(self):
        return {}


class Seedless(DropsIt):
    def reset(self, *, seed=None, options=None):
        return super().reset()


class Alike(DropsIt):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=1)


class Wider(DropsIt):
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)


class Lone(DropsIt):
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (8, 8, 3), dtype=np.uint8), {}


class NoAsset(Plain):
    def __init__(self):
        raise FileNotFoundError("arm.xml")


class Breaks(Solved):
    def step(self, action):
        raise ZeroDivisionError("the gripper has no width")


class Buttons(DropsIt):
    action_space = gym.spaces.Discrete(4)


class Taught(Solved):
    """Has a scripted expert."""

    def expert_actions(self, style, length):
        return np.full((length, 1), 0.25, np.float32)


class NeedsOptions(Plain):
    def reset(self, *, seed=None, options=None):
        return options["goal"], {}


for _class in (
    DropsIt,
    Solved,
    Silent,
    Seedless,
    Alike,
    Wider,
    Lone,
    NoAsset,
    NeedsOptions,
    Breaks,
    Buttons,
    Taught,
):
    gym.register(f"plain/{_class.__name__}-v0", _class, max_episode_steps=9)

gym.register(
    "plain/OtherKind-v0",
    "own_envs:Solved",
    max_episode_steps=9,
    vector_entry_point="gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv",
)
