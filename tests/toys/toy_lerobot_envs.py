"""Environment types registered with LeRobot by the tests: importing this module registers them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import gymnasium as gym
import toy_sim
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.processor import ObservationProcessorStep, PolicyProcessorPipeline


@dataclass
class ArmState(ObservationProcessorStep):
    """Joins a nested state and turns images over, as LIBERO's own step does."""

    def observation(self, observation):
        found = {k: v.flip(-2) for k, v in observation.items() if "image" in k}
        arm = observation["observation.robot_state"]["arm"]["pos"].float()
        return found | {"observation.state": arm.repeat(1, 2)}

    def transform_features(self, features):
        return features


@EnvConfig.register_subclass("toyline")
@dataclass
class ToyLine(EnvConfig):
    """One task by its Gymnasium id, made by LeRobot's default `create_envs`."""

    task: str | None = "Left-v0"
    fps: int = 20
    cameras: int = 1
    features: dict = field(
        default_factory=lambda: {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    )

    @property
    def package_name(self):
        return "toy_sim"

    @property
    def gym_kwargs(self):
        return {"cameras": self.cameras, "max_episode_steps": 9}


@EnvConfig.register_subclass("toysuite")
@dataclass
class ToySuite(ToyLine):
    """Two tasks at once, made as LeRobot's suites do it, with a pipeline of its own."""

    task: str | None = "both"

    def create_envs(self, n_envs, use_async_envs=False):
        print("LeRobot's factories print")
        if self.task not in ("both", "left", "right"):
            raise KeyError(self.task)
        tasks = ("left", "right") if self.task == "both" else (self.task,)
        made = {}
        for number, task in enumerate(tasks):
            make = functools.partial(toy_sim.Line, task, nested=True, cameras=2)
            made[number] = gym.vector.SyncVectorEnv([freeze_after_episode_end(make)] * n_envs)
        return {"toysuite": made}

    def get_env_processors(self):
        return PolicyProcessorPipeline(steps=[ArmState()]), PolicyProcessorPipeline(steps=[])


@EnvConfig.register_subclass("toymissing")
@dataclass
class ToyMissing(ToyLine):
    """Needs a package that nobody has."""

    @property
    def package_name(self):
        return "toy_sim_that_is_not_installed"


@EnvConfig.register_subclass("toyscaled")
@dataclass
class ToyScaled(ToyLine):
    """Would have a step of its own change the actions."""

    def get_env_processors(self):
        return PolicyProcessorPipeline(steps=[]), PolicyProcessorPipeline(steps=[ArmState()])


@EnvConfig.register_subclass("toycopy")
@dataclass
class ToyCopy(ToyLine):
    """Another type with the same environments."""
