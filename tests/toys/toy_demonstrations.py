"""A few frames that nobody recorded."""

from __future__ import annotations

import numpy as np

from robo_razor.core.types import DemonstrationSet


def demonstrations(lengths=(9, 6), seed=0):
    random = np.random.default_rng(seed)
    frames = sum(lengths)
    images = random.integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8)
    return DemonstrationSet(
        images={"front": images, "wrist": images[:, ::-1].copy()},
        state=random.normal(size=(frames, 7)).astype(np.float32),
        actions=np.zeros((frames, 5), np.float32),
        offsets=np.cumsum([0, *lengths]),
        instructions=tuple(f"lift the {c} block" for c in ("red", "green")[: len(lengths)]),
        rewards=np.zeros(frames, np.float32),
        success=np.zeros(frames, bool),
    )
