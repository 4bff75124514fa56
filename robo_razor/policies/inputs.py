"""From host observations to a policy's inputs: their names, and how they are prepared.

Names follow LeRobot: camera `front` of a host observation is `observation.images.front`, its
`agent_pos` is `observation.state`, any other entry `x` is `observation.x`. A rename map, from these
names to the policy's, is stored where LeRobot stores its own: in a step of the policy's
preprocessor. It is saved with every checkpoint, so a run's checkpoints need no flag (`lerobot-eval`
still takes its map from `--rename_map`).

Cameras that LeRobot adds to a policy by `empty_cameras` have no source: LeRobot's code masks them.
The name `none` in the map leaves out another camera that LeRobot can mask.

A host observation is `{"pixels": {camera: uint8 [N, W, W, 3]}, "agent_pos": float [N, S]}`. A
policy's inputs share no memory with it.

Axis letters: N environments, W width of an image, S state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from robo_razor.core.errors import (
    PolicyEnvMismatchError,
    PolicyError,
    RoboRazorError,
    did_you_mean,
)

if TYPE_CHECKING:
    from robo_razor.policies.policy import Policy

PREFIX = "observation."
IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
AGENT_POS = "agent_pos"
LONE_CAMERA = "observation.image"
"""LeRobot's name of the image of an environment with one camera."""
NOTHING = "none"
"""In a rename map, in place of a camera: the policy's camera is left out."""


def image_key(camera: str) -> str:
    """Return LeRobot's name of a host observation's camera."""
    return camera if camera.startswith(PREFIX) else f"{IMAGE_PREFIX}{camera}"


def camera_name(key: str) -> str:
    """Return the host observation's name of a camera."""
    return key.removeprefix(IMAGE_PREFIX)


def state_name(key: str) -> str:
    """Return the host observation's entry that LeRobot calls `key`."""
    return AGENT_POS if key == STATE else key.removeprefix(PREFIX)


def real_cameras(config: Any) -> list[str]:
    """Return the cameras of a policy's configuration, without those that LeRobot always masks."""
    number = int(getattr(config, "empty_cameras", 0) or 0)
    empty = {f"{IMAGE_PREFIX}empty_camera_{i}" for i in range(number)}
    return [key for key in config.image_features if key not in empty]


class InputSources:
    """Where each input of a policy is read from.

    Args:
        cameras: The policy's cameras, by LeRobot's names.
        rename_map: LeRobot's names of an environment or data set -> the policy's.
    """

    def __init__(self, cameras: Sequence[str], rename_map: Mapping[str, str]) -> None:
        self.cameras, self.rename_map = list(cameras), dict(rename_map)
        self.image_keys = [key for key in cameras if _left_out(key) not in self.rename_map]
        """The cameras that are read: all but those that the map leaves out."""

    def candidates(self, key: str) -> list[str]:
        """Return LeRobot's names that an input may be read from, the map's names first."""
        renamed = [old for old, new in self.rename_map.items() if new == key]
        unchanged = [] if key in self.rename_map else [key]
        return renamed + unchanged

    def camera(self, key: str, offered: Collection[str] | None = None) -> str:
        """Return the first possible camera that is offered, else the first possible camera."""
        names = [camera_name(name) for name in self.candidates(key)] or [camera_name(key)]
        return next((name for name in names if offered is None or name in offered), names[0])

    def state(self, offered: Collection[str] | None = None) -> str:
        """Return the entry of a host observation to read the state from, chosen as in `camera`."""
        names = [state_name(name) for name in self.candidates(STATE)] or [AGENT_POS]
        return next((name for name in names if offered is None or name in offered), names[0])

    def fed(self, key: str) -> str:
        """Return the name under which the preprocessor, which renames, expects an input."""
        return self.candidates(key)[0] if key in self.rename_map and self.candidates(key) else key


def rename_step(preprocessor: Any) -> Any | None:
    """Return the preprocessor's step that renames observations, if it has one."""
    return next((step for step in preprocessor.steps if hasattr(step, "rename_map")), None)


def full_rename_map(given: Mapping[str, Any], policy: Policy) -> dict[str, str]:
    """Return a user's rename map with LeRobot's names; cameras may be named without a prefix.

    Raises:
        PolicyError: It names an input that the policy does not have, or leaves out one that the
            policy needs.
    """
    full: dict[str, str] = {}
    for old, new in given.items():
        if old == NOTHING:
            keys = [_input(name, policy) for name in (new if isinstance(new, list) else [new])]
            full |= {_left_out(key): key for key in keys}
        else:
            full[image_key(old)] = _input(new, policy)
    if any(old == _left_out(new) for old, new in full.items()):
        _check_left_out(full, policy)
    return full


def _left_out(key: str) -> str:
    """Return the key of a full rename map that leaves a camera out; no input has this name."""
    return f"{NOTHING}:{key}"


def _input(name: Any, policy: Policy) -> str:
    """Return LeRobot's name of a policy's input."""
    wanted = [*policy.sources.cameras, *([STATE] if policy.state_dim else [])]
    key = name if name in wanted else image_key(str(name))
    if key not in wanted:
        raise PolicyError(
            f"`rename` gives the policy {policy.name!r} an input {name!r}, which it does not "
            f"have.{did_you_mean(str(name), wanted)}",
            allowed=", ".join(wanted),
            remedy="Write it as '{name in the environment or data: name in the policy}'.",
        )
    return key


def _check_left_out(full: Mapping[str, str], policy: Policy) -> None:
    """Check that a policy does not need the cameras that a full rename map leaves out."""
    out = [new for old, new in full.items() if old == _left_out(new)]
    listed = ", ".join(out)
    if not policy.family.masks_cameras or STATE in out:
        raise PolicyError(
            f"`rename` leaves {listed} out, which the policy {policy.name!r} (type "
            f"{policy.config.type!r}) needs",
            allowed=f"`{NOTHING}` for cameras of flow-matching policies (smolvla, pi0, pi05): "
            "LeRobot masks those that are missing",
        )
    renamed = [new for old, new in full.items() if new in out and old != _left_out(new)]
    if renamed:
        raise PolicyError(f"`rename` leaves {renamed[0]} out and gives it a camera")
    if set(policy.sources.cameras) <= set(out):
        raise PolicyError(
            f"`rename` leaves out all cameras of the policy {policy.name!r}: {listed}",
            allowed="at least one camera that is read",
        )


def prepare(
    policy: Policy, observation: dict[str, Any], instructions: Sequence[str]
) -> dict[str, Tensor]:
    """Prepare everything, images as float32 [N, 3, W, W] that the preprocessor may normalise.

    Args:
        policy: The policy that reads them.
        observation: Host observations of N environments.
        instructions: One instruction per environment.
    """
    host = _host_batch(policy, observation, instructions)
    for key in policy.sources.image_keys:
        images = torch.from_numpy(np.asarray(_images(policy, observation, key)))
        host[_fed(policy, key)] = images.permute(0, 3, 1, 2).float().div_(255.0)
    return _only_observations(_preprocessed(policy, host))


def prepare_bytes(
    policy: Policy, observation: dict[str, Any], instructions: Sequence[str]
) -> dict[str, Tensor]:
    """Prepare all but the images, which stay uint8 [N, W, W, 3] to save memory.

    Args:
        policy: The policy that reads them.
        observation: Host observations of N environments.
        instructions: One instruction per environment.
    """
    batch = _only_observations(
        _preprocessed(policy, _host_batch(policy, observation, instructions))
    )
    for key in policy.sources.image_keys:
        images = np.array(_images(policy, observation, key))
        batch[key] = torch.from_numpy(images).to(policy.device)
    return batch


def _preprocessed(policy: Policy, host: dict[str, Any]) -> dict[str, Any]:
    """Run a policy's preprocessor on a batch.

    Raises:
        PolicyError: It fails: its steps may be of another policy, or in another order.
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


def with_time(module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add an axis of time to observations where a LeRobot policy expects one."""
    if not _looks_back(module):
        return batch
    return {
        key: value[:, None] if key.startswith("observation.") else value
        for key, value in batch.items()
    }


def _looks_back(module: nn.Module) -> bool:
    """Return whether a LeRobot policy queues observations, and so expects an axis of time."""
    queues = getattr(module, "_queues", None) or {}
    return any(key.startswith("observation.") for key in queues)


def _host_batch(
    policy: Policy, observation: dict[str, Any], instructions: Sequence[str]
) -> dict[str, Any]:
    """Return all but the images, in the format of a preprocessor."""
    host: dict[str, Any] = {"task": list(instructions)}
    if policy.state_dim:
        state = np.array(observation[policy.sources.state(observation)], dtype=np.float32)
        host[_fed(policy, STATE)] = torch.from_numpy(state)
    return host


def _images(policy: Policy, observation: dict[str, Any], key: str) -> Any:
    """Return the images of a host observation that an input is read from."""
    pixels = observation["pixels"]
    return pixels[policy.sources.camera(key, pixels)]


def _fed(policy: Policy, key: str) -> str:
    """Return the name under which the preprocessor expects an input."""
    return key if rename_step(policy.preprocessor) is None else policy.sources.fed(key)


def _only_observations(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in batch.items()
        if key.startswith("observation.") and isinstance(value, Tensor)
    }


def resizes_images(config: Any) -> bool:
    """Return whether a policy resizes images itself, as LeRobot's VLAs do."""
    names = ("resize_imgs_with_padding", "image_resolution", "resize_shape")
    return any(getattr(config, name, None) for name in names)


def check_fit(
    policy: Policy,
    observation: spaces.Space[Any],
    action: spaces.Space[Any],
    also: Collection[str] = (),
) -> None:
    """Check that a policy's cameras, state and actions are those of an environment.

    Args:
        policy: The policy.
        observation: Space of one environment's observations.
        action: Space of its actions.
        also: LeRobot's names that only a data set offers; a rename map may name them too.

    Raises:
        PolicyEnvMismatchError: They are not; the message shows both sides with their shapes.
    """
    cameras, states = offered_inputs(observation)
    wanted = policy.wanted_image_shape
    if wanted is not None:
        _check_one_size(policy)
    offered = [*map(image_key, cameras), *map(_key, states), *also]
    _check_named(policy, list(dict.fromkeys(offered)))
    missing = []
    for key in policy.sources.image_keys:
        shape = cameras.get(policy.sources.camera(key, cameras))
        right = shape is not None and len(shape) == 3 and shape[2] == 3
        if not right or (wanted is not None and shape != (*wanted, 3)):
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
    has += [f"{_key(name)} {'x'.join(map(str, x))}" for name, x in states.items() if x != (0,)]
    raise PolicyEnvMismatchError(
        f"The policy {policy.name!r} does not fit the environment: it needs "
        f"{', '.join([*wants, f'action {policy.action_dim}'])}; the environment has "
        f"{', '.join([*has, f'action {size}'])}. Not found: {', '.join(missing)}",
        remedy=_remedy(policy, missing, cameras),
    )


def _check_one_size(policy: Policy) -> None:
    """Check that a policy that does not resize images expects all of them in one size."""
    shapes = {key: policy.config.image_features[key].shape for key in policy.sources.image_keys}
    if len({shape[1:] for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{key} {w}x{h} px" for key, (_, h, w) in shapes.items())
        raise PolicyEnvMismatchError(
            f"The policy {policy.name!r} needs images of several sizes ({listed}), but here all "
            "images of an environment or data set have one size",
            remedy="Train it on images of one size, or let it resize them itself (Diffusion's "
            "`resize_shape`).",
        )


def _check_named(policy: Policy, offered: Sequence[str]) -> None:
    """Check that every renamed input has a source with one of the user's names.

    Otherwise a misspelt name would go unnoticed where the input's name in the policy exists too.
    """
    for key in dict.fromkeys(policy.renamed.values()):
        names = [old for old, new in policy.renamed.items() if new == key]
        if not set(names) & {*offered, _left_out(key)}:
            raise PolicyEnvMismatchError(
                f"`rename` reads {key} from {' or '.join(names)}, which does not exist."
                f"{did_you_mean(names[0], offered)}",
                allowed=", ".join(offered) or "(nothing is offered)",
                remedy="Write it as '{name in the environment or data: name in the policy}'.",
            )


def check_unit_actions(name: str, action: spaces.Space[Any]) -> None:
    """Check that an environment's actions have the range [-1, 1], where they have bounds.

    Raises:
        PolicyEnvMismatchError: They have another range.
    """
    if not isinstance(action, spaces.Box):
        return
    low, high = action.low, action.high
    finite = np.isfinite(low) & np.isfinite(high)
    if not (np.allclose(low[finite], -1.0) and np.allclose(high[finite], 1.0)):
        same = (low == low.min()).all() and (high == high.max()).all()
        bounds = f"[{low.min():g}, {high.max():g}]"
        if not same:
            bounds = f"{low.tolist()} to {high.tolist()}"
        raise PolicyEnvMismatchError(
            f"The policy {name!r} commands actions in [-1, 1], but the environment takes {bounds}",
            remedy="Put a wrapper around the environment that scales them, or use a policy that "
            "normalises its actions (SmolVLA, pi0, ACT, ...).",
        )


def offered_inputs(
    observation: spaces.Space[Any],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the cameras and the number arrays of an observation space: name -> shape."""
    lone = "pixels" if len(observation.shape or ()) == 3 else AGENT_POS
    parts = observation.spaces if isinstance(observation, spaces.Dict) else {lone: observation}
    pixels = parts.get("pixels", spaces.Dict({}))
    images = pixels.spaces if isinstance(pixels, spaces.Dict) else {LONE_CAMERA: pixels}
    numbers = {name: tuple(space.shape or ()) for name, space in parts.items() if name != "pixels"}
    return {name: tuple(space.shape or ()) for name, space in images.items()}, numbers


def _remedy(policy: Policy, missing: Sequence[str], cameras: Mapping[str, Any]) -> str:
    """Return what to do: a rename map where only the cameras' names differ."""
    sources = policy.sources
    if any(_channels_first(shape) for shape in cameras.values()):
        return (
            "Images must be [height, width, 3]: put a wrapper around the environment that moves "
            "the axis (np.moveaxis(image, 0, -1), in the space and in the observation)."
        )
    absent = [key for key in missing if key in sources.image_keys]
    absent = [key for key in absent if sources.camera(key, cameras) not in cameras]
    taken = {sources.camera(key, cameras) for key in sources.image_keys}
    free = [image_key(name) for name in cameras if name not in taken]
    without = ""
    if absent and policy.family.masks_cameras and len(absent) < len(sources.image_keys):
        out = absent[0] if len(absent) == 1 else f"[{', '.join(absent)}]"
        without = f" Or leave the policy's camera out: --rename '{{{NOTHING}: {out}}}'."
    if absent and len(absent) <= len(free) and set(missing) == set(absent):
        pairs = ", ".join(f"{old}: {new}" for old, new in zip(free, absent, strict=False))
        return f"If these show the same, rename them: --rename '{{{pairs}}}'.{without}"
    return (
        "Choose a task with these observations (robo-razor list), set the image size of the "
        "environment, rename cameras (`--rename`), or use a policy that was trained for it."
        f"{without}"
    )


def _key(state: str) -> str:
    return STATE if state == AGENT_POS else f"{PREFIX}{state}"


def _pixels(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return str(shape)
    if _channels_first(shape):
        return f"{shape[2]}x{shape[1]} px with channels first"
    channels = "" if shape[2] == 3 else f" of {shape[2]} channels"
    return f"{shape[1]}x{shape[0]} px{channels}"


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
