"""The schedule of learning rates: a warm-up, then constant, cosine or linear.

Both functions return factors on the peak rate, so they multiply.
"""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["constant", "cosine", "linear"]


def warm_up(step: int, over: int) -> float:
    """Return the factor of a rate that rises from 0 to 1, in [0, 1].

    Args:
        step: Number of the step, from 1; below that the factor is 0.
        over: Steps that the rise takes; 0 or 1: none.
    """
    return min(1.0, max(0, step) / max(1, over))


def decay(shape: Shape, done: int, total: int) -> float:
    """Return the factor of a rate that falls from 1 to 0, or stays, in [0, 1].

    Args:
        shape: How it falls.
        done: Steps that are done.
        total: Steps in all.
    """
    progress = min(1.0, done / max(1, total))
    if shape == "cosine":
        return cosine(progress)
    return 1.0 - progress if shape == "linear" else 1.0


def cosine(done: float, total: float = 1.0) -> float:
    """Return half a cosine wave, from 1 at `done` = 0 to 0 at `total`."""
    return 0.5 * (1.0 + math.cos(math.pi * done / total))
