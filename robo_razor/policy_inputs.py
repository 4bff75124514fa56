"""Which of an environment's cameras and states a policy's inputs are read from.

Names follow LeRobot: camera `front` of a host observation is `observation.images.front`, its
`agent_pos` is `observation.state`, any other entry `x` is `observation.x`. A rename map, from those
names to the policy's, is kept where LeRobot keeps its own: in a step of the policy's preprocessor,
which is saved with every checkpoint, so that a run's checkpoints need no flag (`lerobot-eval` takes
its map from `--rename_map` all the same).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from robo_razor.errors import PolicyEnvMismatchError, PolicyError, did_you_mean

PREFIX = "observation."
IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
AGENT_POS = "agent_pos"


def image_key(camera: str) -> str:
    """Return LeRobot's name of a host observation's camera."""
    return camera if camera.startswith(PREFIX) else f"{IMAGE_PREFIX}{camera}"


def camera_name(key: str) -> str:
    """Return the host observation's name of a camera."""
    return key.removeprefix(IMAGE_PREFIX)


def state_name(key: str) -> str:
    """Return the host observation's entry that LeRobot calls `key`."""
    return AGENT_POS if key == STATE else key.removeprefix(PREFIX)


class InputSources:
    """Where each input of a policy is read from.

    Args:
        image_keys: The policy's cameras, by LeRobot's names.
        rename_map: LeRobot's names of an environment or data set -> the policy's.
    """

    def __init__(self, image_keys: Sequence[str], rename_map: Mapping[str, str]) -> None:
        self.image_keys, self.rename_map = list(image_keys), dict(rename_map)

    def candidates(self, key: str) -> list[str]:
        """Return LeRobot's names that an input may be read from, those of the map first."""
        renamed = [old for old, new in self.rename_map.items() if new == key]
        own = [] if key in self.rename_map else [key]
        return renamed + own

    def camera(self, key: str, offered: Collection[str] | None = None) -> str:
        """Return the first of the possible cameras that is offered, else the first of all."""
        names = [camera_name(name) for name in self.candidates(key)] or [camera_name(key)]
        return next((name for name in names if offered is None or name in offered), names[0])

    def state(self, offered: Collection[str] | None = None) -> str:
        """Return the entry of a host observation that is the policy's state; as `camera`."""
        names = [state_name(name) for name in self.candidates(STATE)] or [AGENT_POS]
        return next((name for name in names if offered is None or name in offered), names[0])

    def fed(self, key: str) -> str:
        """Return the name under which the preprocessor, which renames, must be given an input."""
        return self.candidates(key)[0] if key in self.rename_map and self.candidates(key) else key


def rename_step(preprocessor: Any) -> Any | None:
    """Return the preprocessor's step that renames observations, None where there is none."""
    return next((step for step in preprocessor.steps if hasattr(step, "rename_map")), None)


def full_rename_map(given: Mapping[str, Any], policy: Any) -> dict[str, str]:
    """Return a user's rename map with LeRobot's names; cameras may be named without a prefix.

    Raises:
        PolicyError: It names an input that the policy does not have.
    """
    wanted = [*policy.sources.image_keys, *([STATE] if policy.state_dim else [])]
    found = {}
    for old, new in given.items():
        key = new if new in wanted else image_key(str(new))
        if key not in wanted:
            raise PolicyError(
                f"`rename` gives the policy {policy.name!r} an input {new!r}, which it does not "
                f"have.{did_you_mean(str(new), wanted)}",
                allowed=", ".join(wanted),
                remedy="It reads '{name in the environment or data: name in the policy}'.",
            )
        found[image_key(old)] = key
    return found


def resizes_images(config: Any) -> bool:
    """Tell whether a policy brings images of any size to its own, as LeRobot's VLAs do."""
    names = ("resize_imgs_with_padding", "image_resolution", "resize_shape")
    return any(getattr(config, name, None) for name in names)


def check_fit(policy: Any, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
    """Check that a policy's cameras, state and actions are those of an environment.

    Args:
        policy: `PolicyHandle`.
        observation: Space of one environment's observations.
        action: Space of its actions.

    Raises:
        PolicyEnvMismatchError: If not; the message shows both sides with their shapes.
    """
    cameras, states = offered_inputs(observation)
    wanted = policy.wanted_image_shape
    missing = []
    for key in policy.sources.image_keys:
        shape = cameras.get(policy.sources.camera(key, cameras))
        if shape is None or (wanted is not None and shape != (*wanted, 3)):
            missing.append(key)
    numbers = states.get(policy.sources.state(states))
    if policy.state_dim and numbers != (policy.state_dim,):
        missing.append(STATE)
    size = action.shape[-1] if action.shape else None
    if size != policy.action_dim:
        missing.append("action")
    if not missing:
        return
    px = "" if wanted is None else f" {wanted[1]}x{wanted[0]} px"
    wants = [f"{key}{px}" for key in policy.sources.image_keys]
    wants += [f"{STATE} {policy.state_dim}"] * bool(policy.state_dim)
    has = [f"{image_key(name)} {_pixels(shape)}" for name, shape in cameras.items()]
    has += [f"{_key(name)} {'x'.join(map(str, shape))}" for name, shape in states.items()]
    raise PolicyEnvMismatchError(
        f"The policy {policy.name!r} does not fit the environment: it wants "
        f"{', '.join([*wants, f'action {policy.action_dim}'])}; the environment has "
        f"{', '.join([*has, f'action {size}'])}. Not found: {', '.join(missing)}",
        remedy=_remedy(policy.sources, missing, cameras),
    )


def check_unit_actions(name: str, action: spaces.Space[Any]) -> None:
    """Check that an environment's actions have the range [-1, 1], as far as it tells one.

    Raises:
        PolicyEnvMismatchError: If not.
    """
    if not isinstance(action, spaces.Box):
        return
    low, high = float(action.low.min()), float(action.high.max())
    if np.isfinite([low, high]).all() and not np.allclose([low, high], [-1.0, 1.0]):
        raise PolicyEnvMismatchError(
            f"The policy {name!r} commands actions in [-1, 1], but the environment takes "
            f"[{low:g}, {high:g}]",
            remedy="Put a wrapper around the environment that scales them, or use a policy that "
            "normalises its actions (SmolVLA, pi0, ACT, ...).",
        )


def offered_inputs(
    observation: spaces.Space[Any],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the cameras and the number arrays of an observation space: name -> shape."""
    parts = observation.spaces if isinstance(observation, spaces.Dict) else {}
    pixels = parts.get("pixels")
    images = pixels.spaces if isinstance(pixels, spaces.Dict) else {}
    numbers = {name: tuple(space.shape or ()) for name, space in parts.items() if name != "pixels"}
    return {name: tuple(space.shape or ()) for name, space in images.items()}, numbers


def _remedy(sources: InputSources, missing: Sequence[str], cameras: Mapping[str, Any]) -> str:
    """Say what to do: a rename map where cameras are only called otherwise."""
    absent = [key for key in missing if key in sources.image_keys]
    absent = [key for key in absent if sources.camera(key, cameras) not in cameras]
    taken = {sources.camera(key, cameras) for key in sources.image_keys}
    free = [image_key(name) for name in cameras if name not in taken]
    if absent and len(absent) <= len(free) and set(missing) == set(absent):
        pairs = ", ".join(f"{old}: {new}" for old, new in zip(free, absent, strict=False))
        return f"If these show the same, rename them: --rename '{{{pairs}}}'."
    return (
        "Choose a task with these observations (robo-razor list), set the image size of the "
        "environment, rename cameras (`--rename`), or use a policy that was trained for it."
    )


def _key(state: str) -> str:
    return STATE if state == AGENT_POS else f"{PREFIX}{state}"


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} px" if len(shape) == 3 else str(shape)
