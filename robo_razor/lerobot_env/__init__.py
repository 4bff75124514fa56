"""The table suite as a LeRobot environment of type `razor`, for `lerobot-eval` and `lerobot-train`.

Example:
    lerobot-eval --policy.path=RUN/checkpoints/last/pretrained_model \
        --env.discover_packages_path=robo_razor.lerobot_env --env.type=razor
        --env.task=LiftCube,PressButton \
        --eval.n_episodes=20 --eval.batch_size=10

The flag `--env.discover_packages_path` also registers the `razor` policy with LeRobot. The
environments are made by Gymnasium id. LeRobot's asynchronous workers import LeRobot for one of its
wrappers; this project's (`robo-razor ... --task lerobot:razor/LiftCube`) import neither LeRobot nor
torch.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

importlib.import_module(
    "lerobot_policy_razor"
)  # registers the policy: `--policy.path` leaves no flag for it

CAMERAS = ("front", "wrist")
SUITE_PACKAGE = "gym_razor"


@EnvConfig.register_subclass("razor")
@dataclass
class RazorEnvConfig(EnvConfig):  # type: ignore[misc]
    """Tasks of the table suite.

    Attributes:
        task: Task names (`LiftCube`) or Gymnasium ids, several with commas.
        fps: Control steps per second.
        image_size: Edge of the camera images in pixels, as the policy was trained with.
        episode_length: Time limit in control steps; 0 keeps each task's limit.
        render_size: Edge of the video frames in pixels.
    """

    task: str | None = "PlaceCanInBin"
    fps: int = 10
    image_size: int = 64
    episode_length: int = 0
    render_size: int = 256
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            ACTION: PolicyFeature(FeatureType.ACTION, (5,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (7,)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            **{f"{OBS_IMAGES}.{name}": f"{OBS_IMAGES}.{name}" for name in CAMERAS},
        }
    )

    def __post_init__(self) -> None:
        """Describe the camera images."""
        for name in CAMERAS:
            shape = (self.image_size, self.image_size, 3)
            self.features[f"{OBS_IMAGES}.{name}"] = PolicyFeature(FeatureType.VISUAL, shape)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of `gym.make`."""
        kwargs: dict[str, Any] = {
            "image_size": self.image_size,
            "render_mode": "rgb_array",
            "render_size": self.render_size,
        }
        if self.episode_length:
            kwargs["max_episode_steps"] = self.episode_length
        return kwargs

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv[Any, Any, Any]]]:
        """Return {"razor": {index: vector environment}} with one entry per task."""
        from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end

        envs: dict[int, Any] = {}
        for index, name in enumerate(filter(None, (self.task or "").split(","))):
            # Not a function of this module: a worker would import it, and with it LeRobot.
            make = functools.partial(
                gym.make, _task_id(name.strip()), disable_env_checker=True, **self.gym_kwargs
            )
            if use_async_envs and n_envs > 1:
                envs[index] = _LazyAsyncVectorEnv([make] * n_envs)
            else:
                envs[index] = gym.vector.SyncVectorEnv(
                    [freeze_after_episode_end(make)] * n_envs,
                    autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
                )
        return {self.type: envs}


def _task_id(name: str) -> str:
    """Return the Gymnasium id of a task's name, with the package that registers it."""
    return f"{SUITE_PACKAGE}:{name if '/' in name else f'{SUITE_PACKAGE}/{name}-v0'}"
