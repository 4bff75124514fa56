"""Reading and scaling of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gym_razor.vector.faults import Breach

CHANNELS = (1, 3, 4)


def check_picture_space(name: str, space: spaces.Space[Any]) -> None:
    """Check that pictures of a space can be read as uint8 [height, width, 3].

    Bytes need no bounds. Other numbers are scaled by the bounds of their space: 0 to 255, and for
    floats also 0 to 1.

    Raises:
        Breach: They cannot; the text says what to do.
    """
    shape = space.shape or ()
    if len(shape) == 3 and shape[0] in CHANNELS and shape[2] not in CHANNELS:
        raise Breach(
            f"gives the picture {name!r} with its channels first ({_times(shape)}), but "
            "[height, width, 3] is needed. Wrap the environment in a wrapper that moves the axis "
            "(np.moveaxis(picture, 0, -1), in the space and in the observation)"
        )
    if len(shape) != 3 or shape[2] != 3:
        raise Breach(
            f"gives the picture {name!r} in the shape {_times(shape) or shape}, but "
            "[height, width, 3] in red, green and blue is needed. Wrap the environment in a "
            "wrapper that repeats a grey channel, or leaves out transparency"
        )
    if space.dtype == np.uint8:
        return
    if not isinstance(space, spaces.Box) or _largest(space) is None:
        low, high = getattr(space, "low", np.nan), getattr(space, "high", np.nan)
        raise Breach(
            f"gives the picture {name!r} in the type {space.dtype} and the bounds "
            f"{np.min(low):g} to {np.max(high):g}, which do not say how bright it is. Use uint8, "
            "or the bounds 0 to 255, or for floats 0 to 1"
        )


def as_bytes(name: str, picture: Any, space: spaces.Space[Any]) -> NDArray[np.uint8]:
    """Return a picture as uint8 [height, width, 3].

    Args:
        name: Its camera, for the error.
        picture: The environment's picture.
        space: Its space, which passed `check_picture_space`.

    Raises:
        Breach: The picture is not in its space.
    """
    array = np.asarray(picture)
    if array.shape != space.shape or array.dtype != space.dtype:
        raise Breach(
            f"gives the picture {name!r} as {array.dtype} {_times(array.shape)}, but its space "
            f"says {space.dtype} {_times(space.shape or ())}"
        )
    if array.dtype == np.uint8:
        return array
    assert isinstance(space, spaces.Box)
    largest = _largest(space)
    assert largest is not None
    if not (array.min() >= 0 and array.max() <= largest):  # also if any is NaN
        raise Breach(
            f"gives the picture {name!r} with values from {array.min():g} to {array.max():g}, "
            f"outside its space's bounds 0 to {largest}"
        )
    return np.rint(array * (255.0 / largest)).astype(np.uint8)


def _largest(space: spaces.Box) -> int | None:
    """Return the upper bound of a picture's numbers, None if the bounds are not a picture's."""
    if np.issubdtype(space.dtype, np.floating):
        allowed: tuple[int, ...] = (1, 255)
    elif np.issubdtype(space.dtype, np.integer):
        allowed = (255,)
    else:
        return None
    if not (space.low == 0).all():
        return None
    return next((bound for bound in allowed if (space.high == bound).all()), None)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def into_square(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale a picture uint8 [h, w, 3] to [side, side, 3], with black bars against distortion."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    small = resize(picture, max(1, round(height * scale)), max(1, round(width * scale)))
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale a picture by averaging the area that falls on each pixel.

    Args:
        image: uint8 [h, w, 3].
        height: Wanted height, pixels.
        width: Wanted width, pixels.
    """
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    rows = _averages(image, height)
    scaled = _averages(rows.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8))


def _averages(values: NDArray[Any], number: int) -> NDArray[np.float64]:
    """Average the first axis over `number` equal stretches, whose ends may cut an element."""
    length = len(values)
    sums = np.zeros((length + 1, *values.shape[1:]), np.float64)
    np.cumsum(values, axis=0, out=sums[1:])
    ends = np.arange(number + 1) * (length / number)
    full = np.minimum(ends.astype(np.intp), length)
    fraction = (ends - full).reshape(-1, *[1] * (values.ndim - 1))
    sums_at_ends = sums[full] + fraction * values[np.minimum(full, length - 1)]
    averages: NDArray[np.float64] = np.diff(sums_at_ends, axis=0) / (length / number)
    return averages
