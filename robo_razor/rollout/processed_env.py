"""A vector environment whose observations go through LeRobot's pipeline of its type.

Some types need one: LIBERO's joins position, rotation and fingers into the state that its policies
were trained on and turns its images upright. The pipeline runs in the main process, on whole
batches, and its output is brought back to this toolkit's host observation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array

from robo_razor.core.types import Observation
from robo_razor.policies.inputs import (
    AGENT_POS,
    IMAGE_PREFIX,
    PREFIX,
    STATE,
    camera_name,
    state_name,
)


class ProcessedVectorEnv:
    """Passes everything on to a vector environment, and its observations through a pipeline.

    Args:
        env: Vector environment that keeps the contract of `environment`.
        processor: LeRobot's `PolicyProcessorPipeline` of observations.
    """

    def __init__(self, env: Any, processor: Any) -> None:
        self._env, self._processor = env, processor
        blank: Any = create_empty_array(env.single_observation_space, n=1)
        sample = self._process(blank)
        self.single_observation_space = _space_of(sample)

    def __getattr__(self, name: str) -> Any:
        """Return what this class does not change: groups, tasks, rendering, ..."""
        return getattr(self._env, name)

    def reset(self, **given: Any) -> tuple[Observation, dict[str, Any]]:
        """Reset as the environment does."""
        observation, infos = self._env.reset(**given)
        return self._process(observation), infos

    def step(self, actions: Any, mask: Any = None) -> Any:
        """Step as the environment does."""
        observation, *rest = self._env.step(actions, mask)
        return self._process(observation), *rest

    def step_wait(self) -> Any:
        """Return the rows of the next group that is ready."""
        env_ids, observation, *rest = self._env.step_wait()
        return env_ids, self._process(observation), *rest

    def _process(self, observation: Observation) -> Observation:
        from lerobot.envs.utils import preprocess_observation

        given = {
            key: value for key, value in observation.items() if np.size(value) or key != AGENT_POS
        }
        processed = self._processor(preprocess_observation(given))
        pixels: dict[str, Any] = {}
        found: Observation = {"pixels": pixels}
        for key, value in processed.items():
            if key.startswith(IMAGE_PREFIX):
                image = value.permute(0, 2, 3, 1).mul(255.0).round()
                pixels[camera_name(key)] = image.clamp(0, 255).byte().cpu().numpy()
            elif key == STATE or (key.startswith(PREFIX) and hasattr(value, "cpu")):
                found[state_name(key)] = np.asarray(value.cpu().numpy(), np.float32)
        if AGENT_POS not in found:
            found[AGENT_POS] = np.zeros((len(next(iter(pixels.values()))), 0), np.float32)
        return found


def _space_of(batch: Observation) -> spaces.Dict:
    """Return the space of one row of a batch."""
    images: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(0, 255, image.shape[1:], np.uint8)
        for name, image in batch["pixels"].items()
    }
    rest = {
        name: spaces.Box(-np.inf, np.inf, value.shape[1:], np.float32)
        for name, value in batch.items()
        if name != "pixels"
    }
    return spaces.Dict({"pixels": spaces.Dict(images), **rest})
