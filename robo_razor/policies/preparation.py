"""From host observations to a policy's inputs: read where `policy_inputs` says, preprocessed.

A host observation is `{"pixels": {camera: uint8 [N, W, W, 3]}, "agent_pos": float [N, S]}`. What is
returned shares no memory with it.

Axis letters: N environments, W width of an image, S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robo_razor.core.errors import PolicyError, RoboRazorError
from robo_razor.policies.inputs import STATE, rename_step


def prepare(
    policy: Any, observation: dict[str, Any], instructions: Sequence[str]
) -> dict[str, Tensor]:
    """Prepare everything, images as float32 [N, 3, W, W] that the preprocessor may normalise.

    Args:
        policy: `Policy`.
        observation: Host observations of N environments.
        instructions: One instruction per environment.
    """
    host = _host_batch(policy, observation, instructions)
    for key in policy.sources.image_keys:
        images = torch.from_numpy(np.asarray(_seen(policy, observation, key)))
        host[_fed(policy, key)] = images.permute(0, 3, 1, 2).float().div_(255.0)
    return _observations(_preprocessed(policy, host))


def prepare_bytes(
    policy: Any, observation: dict[str, Any], instructions: Sequence[str]
) -> dict[str, Tensor]:
    """Prepare all but the images, which stay uint8 [N, W, W, 3]: smaller to keep.

    Args:
        policy: `Policy`.
        observation: Host observations of N environments.
        instructions: One instruction per environment.
    """
    batch = _observations(_preprocessed(policy, _host_batch(policy, observation, instructions)))
    for key in policy.sources.image_keys:
        images = np.array(_seen(policy, observation, key))
        batch[key] = torch.from_numpy(images).to(policy.device)
    return batch


def _preprocessed(policy: Any, host: dict[str, Any]) -> dict[str, Any]:
    """Return what a policy's preprocessor makes of a batch.

    Raises:
        PolicyError: If it fails: its steps may be of another policy, or in another order.
    """
    try:
        batch: dict[str, Any] = policy.preprocessor(host)
    except RoboRazorError:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise PolicyError(
            f"The preprocessor of the policy {policy.name!r} fails on an observation: "
            f"{type(error).__name__}: {text}",
            remedy="Its `policy_preprocessor.json` does not fit the policy: take another "
            "checkpoint.",
        ) from error
    return batch


def with_time(module: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return observations with an axis of time where a LeRobot policy's own code wants one."""
    if not _looks_back(module):
        return batch
    return {
        key: value[:, None] if key.startswith("observation.") else value
        for key, value in batch.items()
    }


def _looks_back(module: Any) -> bool:
    """Say whether a LeRobot policy queues observations, and so wants them with an axis of time."""
    queues = getattr(module, "_queues", None) or {}
    return any(key.startswith("observation.") for key in queues)


def _host_batch(
    policy: Any, observation: dict[str, Any], instructions: Sequence[str]
) -> dict[str, Any]:
    """Return all but the images, as a preprocessor wants it."""
    host: dict[str, Any] = {"task": list(instructions)}
    if policy.state_dim:
        state = np.array(observation[policy.sources.state(observation)], dtype=np.float32)
        host[_fed(policy, STATE)] = torch.from_numpy(state)
    return host


def _seen(policy: Any, observation: dict[str, Any], key: str) -> Any:
    """Return the images of a host observation that an input is read from."""
    pixels = observation["pixels"]
    return pixels[policy.sources.camera(key, pixels)]


def _fed(policy: Any, key: str) -> str:
    """Return the name under which the preprocessor must be given an input."""
    fed: str = key if rename_step(policy.preprocessor) is None else policy.sources.fed(key)
    return fed


def _observations(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in batch.items()
        if key.startswith("observation.") and isinstance(value, Tensor)
    }
