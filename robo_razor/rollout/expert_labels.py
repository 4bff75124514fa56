"""Decisions labelled by a scripted expert, on the states that the expert or a policy visits.

Axis letters: M labelled decisions, N environments, H chunk, A action dimensions, L landmark slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robo_razor.core.errors import EnvError
from robo_razor.core.plain_text import skill_name
from robo_razor.core.types import EpisodeRow
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Actor, ExpertActor, LabellingActor
from robo_razor.rollout.episodes import Progress, run_actor
from robo_razor.rollout.groups import VectorEnv
from robo_razor.rollout.recorders import Recorder


@dataclass
class LabelledDecisions:
    """Labelled decisions in memory.

    Attributes:
        inputs: Prepared policy inputs, first axis M; images stay uint8.
        actions: The expert's chunks float32 [M, H, A].
        landmarks: float32 [M, L, 3], metres.
        landmarks_present: bool [M, L].
        success: Per skill, the share of episodes that succeeded while collecting.
    """

    inputs: dict[str, Tensor]
    actions: Tensor
    landmarks: Tensor
    landmarks_present: Tensor
    success: dict[str, float]

    def __len__(self) -> int:
        return len(self.actions)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return a training batch of the given rows."""
        return {
            **{key: value[rows] for key, value in self.inputs.items()},
            "action": self.actions[rows],
            "observation.landmarks": self.landmarks[rows],
            "observation.landmarks_present": self.landmarks_present[rows],
        }


def join(parts: Sequence[LabelledDecisions]) -> LabelledDecisions:
    """Concatenate several collections; `success` is that of the last."""
    return LabelledDecisions(
        inputs={key: torch.cat([part.inputs[key] for part in parts]) for key in parts[0].inputs},
        actions=torch.cat([part.actions for part in parts]),
        landmarks=torch.cat([part.landmarks for part in parts]),
        landmarks_present=torch.cat([part.landmarks_present for part in parts]),
        success=parts[-1].success,
    )


def collect_labelled(
    env: VectorEnv,
    policy: Policy,
    actor: Actor,
    rows: Sequence[EpisodeRow],
    *,
    style: str,
    progress: Progress | None = None,
) -> LabelledDecisions:
    """Run every row once with `actor` and label every visited state with the expert's next chunk.

    Args:
        env: Vector environment with a scripted expert and landmarks in its infos.
        policy: Prepares the inputs.
        actor: The actor: the expert with a `Disturbance`, or a policy.
        rows: Start states.
        style: The labelling expert's style.
        progress: Called with (finished, all, successful) episodes.

    Raises:
        EnvError: The environment has no expert, or no landmarks.
    """
    recorder = Recorder(landmarks=True)
    labelling = LabellingActor(actor, ExpertActor(style), policy)
    batch = run_actor(env, labelling, rows, progress=progress, observer=recorder)
    names = np.array([skill_name(row.task) for row in rows])
    rates = {str(name): float(batch.success[names == name].mean()) for name in np.unique(names)}
    return _labelled(recorder, rates)


def _labelled(recorder: Recorder, success: dict[str, float]) -> LabelledDecisions:
    landmarks = [part for part in recorder.landmarks if part is not None]
    if len(landmarks) < len(recorder.landmarks):
        raise EnvError(
            "The environment reports no landmarks, but the image encoder learns them",
            remedy="Choose tasks of gym_razor.",
        )
    labels = [d.label for d in recorder.decisions if d.label is not None]
    return LabelledDecisions(
        inputs=recorder.inputs(),
        actions=recorder.in_order([torch.from_numpy(label) for label in labels]),
        landmarks=recorder.in_order([torch.from_numpy(positions) for positions, _ in landmarks]),
        landmarks_present=recorder.in_order([torch.from_numpy(x) for _, x in landmarks]),
        success=success,
    )
