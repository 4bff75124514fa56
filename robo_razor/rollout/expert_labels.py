"""Decisions labelled by a scripted expert, on the states that the expert or a policy visits.

The environment's expert looks ahead in a copy of the state, so every visited state gets a clean
label, whatever action is then executed there: the expert's own, a disturbed one (as in DART, Laskey
et al. 2017), or a policy's (as in DAgger, Ross et al. 2011).

Axis letters: M labelled decisions, N environments, H chunk, A action dimensions, L landmark slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.types import EpisodeRow
from robo_razor.rollout.actors import Actor, Decision, ExpertActor, Request, decision_generator
from robo_razor.rollout.environments import skill_name
from robo_razor.rollout.episodes import LandmarkWatch, Progress, StepOutcome, run_actor


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
    """Put several collections behind one another; `success` is that of the last."""
    return LabelledDecisions(
        inputs={key: torch.cat([part.inputs[key] for part in parts]) for key in parts[0].inputs},
        actions=torch.cat([part.actions for part in parts]),
        landmarks=torch.cat([part.landmarks for part in parts]),
        landmarks_present=torch.cat([part.landmarks_present for part in parts]),
        success=parts[-1].success,
    )


def disturb(
    chunk: NDArray[np.float32], rng: np.random.Generator, *, probability: float, noise: float
) -> NDArray[np.float32]:
    """Return what is executed instead of the expert's chunk float32 [H, A].

    With `probability` a push that lasts the whole chunk is added (standard deviation `noise` per
    motion dimension), and in one case in eight the gripper does the opposite; small independent
    noise is always there.
    """
    executed = chunk.copy()
    motion = executed[:, :-1]
    motion += rng.normal(0.0, 0.15 * noise, motion.shape)
    if rng.random() < probability:
        motion += rng.normal(0.0, noise, motion.shape[1])
        if rng.random() < 0.125:
            executed[:, -1] *= -1.0
    clipped: NDArray[np.float32] = np.clip(executed, -1.0, 1.0).astype(np.float32)
    return clipped


class DisturbedActor:
    """Executes another actor's chunks with disturbances (see `disturb`)."""

    def __init__(self, actor: Actor, *, probability: float, noise: float, seed: int) -> None:
        self.actor, self.probability, self.noise, self.seed = actor, probability, noise, seed

    def decide(self, request: Request) -> Decision:
        """Return the disturbed chunks, with the clean ones as labels."""
        clean = self.actor.decide(request).actions
        executed = [
            disturb(
                chunk,
                decision_generator(row, int(step), self.seed),
                probability=self.probability,
                noise=self.noise,
            )
            for chunk, row, step in zip(clean, request.rows, request.steps, strict=True)
        ]
        return Decision(np.stack(executed), label=clean)

    def final_values(self, observation: Any, instructions: Sequence[str]) -> None:
        """Return None: labels need no values."""


class LabellingActor:
    """Adds the expert's label and the policy's inputs to another actor's decisions."""

    def __init__(self, actor: Actor, expert: Actor, policy: Any) -> None:
        self.actor, self.expert, self.policy = actor, expert, policy

    def decide(self, request: Request) -> Decision:
        """Return the actor's decision with `label` and `inputs`."""
        decision = self.actor.decide(request)
        label = decision.label
        if label is None:
            label = self.expert.decide(request).actions
        inputs = decision.inputs
        if inputs is None:
            inputs = self.policy.prepare(request.observation, request.instructions)
            inputs = {key: value.cpu() for key, value in inputs.items()}
        return Decision(decision.actions, label=label.copy(), inputs=inputs)

    def final_values(self, observation: Any, instructions: Sequence[str]) -> None:
        """Return None: labels need no values."""


class _Gatherer:
    """Keeps every decision with the landmarks of its state (an observer of `run_actor`)."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.episodes: list[NDArray[np.int64]] = []
        self.landmarks: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
        self._watch = LandmarkWatch()

    def on_start(
        self,
        env: Any,
        env_ids: NDArray[np.int64],
        episodes: NDArray[np.int64],
        instructions: Sequence[str],
        infos: dict[str, Any],
    ) -> None:
        self._watch.see(env_ids, infos)

    def on_step(
        self,
        request: Request,
        episodes: NDArray[np.int64],
        decision: Decision,
        outcome: StepOutcome,
    ) -> None:
        seen = [found for i in request.env_ids if (found := self._watch.of(i)) is not None]
        self.decisions.append(decision)
        self.episodes.append(episodes.copy())
        self.landmarks.append((np.stack([p for p, _ in seen]), np.stack([q for _, q in seen])))
        self._watch.see(request.env_ids, outcome.infos)

    def finish(self, success: dict[str, float]) -> LabelledDecisions:
        # Decisions of one episode arrive in time order, so a stable sort by episode is enough to
        # make the order independent of which worker was faster.
        order = torch.from_numpy(np.argsort(np.concatenate(self.episodes), kind="stable"))
        decisions, self.decisions = self.decisions, []
        inputs = [decision.inputs or {} for decision in decisions]
        labels = np.concatenate([decision.label for decision in decisions])
        positions, present = zip(*self.landmarks, strict=True)
        return LabelledDecisions(
            {key: torch.cat([part[key] for part in inputs])[order] for key in inputs[0]},
            torch.from_numpy(labels)[order],
            torch.from_numpy(np.concatenate(positions))[order],
            torch.from_numpy(np.concatenate(present))[order],
            success,
        )


def collect_labelled(
    env: Any,
    policy: Any,
    actor: Actor,
    rows: Sequence[EpisodeRow],
    *,
    style: str,
    progress: Progress | None = None,
) -> LabelledDecisions:
    """Run every row once with `actor` and label every visited state with the expert's next chunk.

    Args:
        env: Vector environment with `expert_actions` and landmarks in its infos.
        policy: Policy handle that prepares the inputs.
        actor: Who acts: a `DisturbedActor` around the expert, or a policy.
        rows: Start states.
        style: The labelling expert's style.
        progress: Called with (finished, all, successful) episodes.
    """
    gatherer = _Gatherer()
    labelling = LabellingActor(actor, ExpertActor(style), policy)
    batch = run_actor(env, labelling, rows, progress=progress, observer=gatherer)
    names = np.array([skill_name(row.task) for row in rows])
    rates = {str(name): float(batch.success[names == name].mean()) for name in np.unique(names)}
    return gatherer.finish(rates)
