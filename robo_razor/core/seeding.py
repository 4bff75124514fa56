"""Random streams that are pure functions of their purpose.

No stream keeps a state between uses: each is derived from (run seed, purpose, update, ...). So a
resumed run draws the same numbers as an uninterrupted one, and has nothing to save for that.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from robo_razor.core.settings.config import HELD_OUT_SEED


def derive(*parts: int | str) -> int:
    """Return a 63-bit number derived from integers >= 0 and strings, e.g. (seed, "ppo", update)."""
    state = np.random.SeedSequence(_numbers(parts)).generate_state(1, dtype=np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator derived from integers >= 0 and strings."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(_numbers(parts))))


def training_seeds(n: int, *parts: int | str) -> NDArray[np.int64]:
    """Return `n` start-state seeds int64 [n] below those held out for evaluation.

    Seed i does not depend on `n`.
    """
    return np.array([derive(*parts, i) % HELD_OUT_SEED for i in range(n)], dtype=np.int64)


def held_out_seeds(n: int, offset: int = HELD_OUT_SEED) -> NDArray[np.int64]:
    """Return the first `n` start-state seeds int64 [n] of an evaluation."""
    return np.arange(offset, offset + n, dtype=np.int64)


def _numbers(parts: tuple[int | str, ...]) -> list[int]:
    return [zlib.crc32(w.encode()) if isinstance(w, str) else int(w) for w in parts]
