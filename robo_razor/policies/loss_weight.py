"""What a policy's own loss is a mean of: several ranks must weigh their parts of a batch by it.

As read in LeRobot 0.6.1. Some losses leave padding out and average over all actions that are left
(ACT, SmolVLA, Diffusion with `do_mask_loss_for_padding`). The others weigh every decision alike:
pi0, pi0.5 and Diffusion as it comes average over padding too, and razor averages each decision's
actions first. ACT's latent divergence is a mean over decisions within a loss over actions, and is
weighed as the rest of it.

Axis letters as in `types`: B batch, H chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

OVER_ACTIONS = ("act", "smolvla")
"""LeRobot's names of policies whose loss is a mean over the actions that are not padding."""


def loss_weight(config: Any, is_pad: NDArray[np.bool_]) -> int:
    """Return how many of the equal parts of a policy's loss a batch has: actions or decisions.

    Args:
        config: The policy's LeRobot configuration.
        is_pad: bool [B, H], True where an action of the batch is padding.
    """
    masks = config.type in OVER_ACTIONS or getattr(config, "do_mask_loss_for_padding", False)
    return int((~is_pad).sum()) if masks else len(is_pad)
