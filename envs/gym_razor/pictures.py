"""Scaling of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def into_square(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale a picture uint8 [h, w, 3] to [side, side, 3]; its aspect is kept by black bars."""
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
    before = len(values)
    sums = np.zeros((before + 1, *values.shape[1:]), np.float64)
    np.cumsum(values, axis=0, out=sums[1:])
    ends = np.arange(number + 1) * (before / number)
    whole = np.minimum(ends.astype(np.intp), before)
    part = (ends - whole).reshape(-1, *[1] * (values.ndim - 1))
    at = sums[whole] + part * values[np.minimum(whole, before - 1)]
    averages: NDArray[np.float64] = np.diff(at, axis=0) / (before / number)
    return averages
