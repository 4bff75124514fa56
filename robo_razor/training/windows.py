"""Windows of demonstrations: the observation at a decision, and the actions that followed.

Axis letters as in `types`: F frames, W windows, B batch, H chunk, A action dimensions.

A window starts at a decision of the demonstrator (any frame of a reactive expert) and holds the
next H actions of its episode. Beyond the end it repeats the last action, marked as padding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.types import DemonstrationSet
from robo_razor.policies.policy import Policy

ENCODING_BATCH = 512
TARGETS = (
    "action",
    "action_is_pad",
    "observation.landmarks",
    "observation.landmarks_present",
)
"""Keys of a batch that are not the policy's inputs."""


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy's inputs in a batch of windows."""
    return {key: tensor for key, tensor in batch.items() if key not in TARGETS}


def chunk_windows(
    offsets: NDArray[np.int64], chunk_size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the frames of every window, int64 [F, H], and where they are padding, bool [F, H].

    Args:
        offsets: int64 [E + 1]; episode e owns frames offsets[e]:offsets[e + 1].
        chunk_size: Actions that the policy predicts at once (it may execute fewer).
    """
    frames = np.arange(int(offsets[-1]))
    ends = np.repeat(offsets[1:], np.diff(offsets))
    window = frames[:, None] + np.arange(chunk_size)
    return np.minimum(window, ends[:, None] - 1), window >= ends[:, None]


class WindowSampler:
    """Prepared policy inputs and targets of all windows, in RAM.

    Args:
        demonstrations: Demonstrations with frames at control rate.
        policy: The policy that prepares the inputs.
    """

    def __init__(self, demonstrations: DemonstrationSet, policy: Policy) -> None:
        windows, is_pad = chunk_windows(demonstrations.offsets, policy.predicted_actions)
        lengths = np.diff(demonstrations.offsets)
        position = np.arange(len(windows)) - np.repeat(demonstrations.offsets[:-1], lengths)
        self.frames = np.flatnonzero(position % demonstrations.decision_stride == 0)
        self.windows, self.is_pad = windows[self.frames], is_pad[self.frames]
        self.actions = demonstrations.actions
        self.demonstrations = demonstrations
        self.policy = policy
        self.encoded: dict[str, Tensor] | None = None
        if policy.vision_frozen:
            self.encoded = self._encode()
            self.demonstrations = replace(demonstrations, images={})  # a gigabyte by default

    def __len__(self) -> int:
        return len(self.windows)

    def weight(self, rows: NDArray[np.int64]) -> int:
        """Return the weight of some windows in the policy's loss."""
        return int(self.policy.loss_weight(self.is_pad[rows]))

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the training batch of the windows `rows`, int64 [B]."""
        demos, policy, frames = self.demonstrations, self.policy, self.frames[rows]
        if self.encoded is None:
            batch = self._prepare(rows)
        else:
            batch = {key: value[torch.from_numpy(rows)] for key, value in self.encoded.items()}
        batch["action"] = torch.from_numpy(self.actions[self.windows[rows]]).to(policy.device)
        batch["action_is_pad"] = torch.from_numpy(self.is_pad[rows]).to(policy.device)
        if demos.landmarks is not None and demos.landmarks_present is not None:
            batch["observation.landmarks"] = torch.from_numpy(demos.landmarks[frames]).to(
                policy.device
            )
            batch["observation.landmarks_present"] = torch.from_numpy(
                demos.landmarks_present[frames]
            ).to(policy.device)
        return batch

    def _prepare(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        demos, frames = self.demonstrations, self.frames[rows]
        observation = {
            "pixels": {name: images[frames] for name, images in demos.images.items()},
            "agent_pos": demos.state[frames],
        }
        instructions = demos.words(frames)
        return dict(self.policy.prepare(observation, instructions))

    def _encode(self) -> dict[str, Tensor]:
        """Run the frozen image encoder once over all frames."""
        parts = np.array_split(np.arange(len(self)), max(1, len(self) // ENCODING_BATCH))
        encoded = [self.policy.encode(self._prepare(rows)) for rows in parts]
        return {key: torch.cat([part[key] for part in encoded]) for key in encoded[0]}
