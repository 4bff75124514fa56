"""Observers of a rollout, and the one recorder of its decisions.

Axis letters as in `types`: E episodes, M decisions; n environments of one group, L landmark slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.types import DecisionRecord, Observation
from robo_razor.rollout.actors import Actor, Decision, Request
from robo_razor.rollout.boundary import LANDMARKS, LANDMARKS_PRESENT
from robo_razor.rollout.groups import VectorEnv, concatenate, take

Landmarks = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Positions float32 [n, L, 3] in metres, and bool [n, L], True if the landmark is present."""


@dataclass(frozen=True)
class EpisodeStart:
    """Episodes right after their reset; all lists have one entry per environment.

    Attributes:
        env: The environment.
        env_ids: The sub-environments that were reset.
        episodes: Their episodes, as positions in the list of rows.
        instructions: The policy's instructions.
        infos: The environment's infos.
    """

    env: VectorEnv
    env_ids: NDArray[np.int64]
    episodes: NDArray[np.int64]
    instructions: Sequence[str]
    infos: dict[str, Any]


@dataclass(frozen=True)
class StepOutcome:
    """The results of one decision, and the episodes' totals so far; rows as in the request.

    Attributes:
        request: The environments that waited for the decision, with their observations.
        episodes: Their episodes, as positions in the list of rows.
        decision: The decision.
        observation: The observations after it.
        rewards: Sum over the executed chunk.
        terminated: Whether the task ended.
        truncated: Whether the time limit ended the episode.
        success: Whether the episode succeeded at any of its steps so far.
        infos: The environment's infos.
        decisions: Decisions of the episode so far.
        control_steps: Its control steps so far.
        episode_return: Its undiscounted sum of rewards so far.
    """

    request: Request
    episodes: NDArray[np.int64]
    decision: Decision
    observation: Observation
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    infos: dict[str, Any]
    decisions: NDArray[np.int64]
    control_steps: NDArray[np.int64]
    episode_return: NDArray[np.float64]

    @property
    def cut(self) -> NDArray[np.bool_]:
        """Return which episodes the time limit ended, bool [n]."""
        return self.truncated & ~self.terminated


class Observer(Protocol):
    """Watches episodes from outside."""

    def on_start(self, start: EpisodeStart) -> None:
        """Called right after the reset of some episodes."""

    def on_step(self, outcome: StepOutcome) -> None:
        """Called right after some episodes have executed a decision."""


class LandmarkTracker:
    """Tracks the present landmarks of every environment."""

    def __init__(self) -> None:
        self._latest: dict[int, Landmarks] = {}

    def update(self, env_ids: NDArray[np.int64], infos: dict[str, Any]) -> None:
        """Store the landmarks in the infos of some environments, if the infos have them."""
        if LANDMARKS in infos:
            for row, i in enumerate(env_ids):
                self._latest[int(i)] = (
                    infos[LANDMARKS][row].copy(),
                    infos[LANDMARKS_PRESENT][row].copy(),
                )

    def of(self, env_ids: NDArray[np.int64]) -> Landmarks | None:
        """Return the landmarks of some environments; None if those of one are not known."""
        if any(int(i) not in self._latest for i in env_ids):
            return None
        positions, present = zip(*(self._latest[int(i)] for i in env_ids), strict=True)
        return np.stack(positions), np.stack(present)


class Recorder:
    """Records every decision of a rollout (an observer of `run_actor`).

    All lists have one entry for each group's decisions, in the order of their arrival. `in_order`
    puts them in the order of the rows.

    Args:
        observations: Record also the observation before each decision.
        landmarks: Record also the landmarks, if the environment's infos have them.
    """

    def __init__(self, *, observations: bool = False, landmarks: bool = False) -> None:
        self.records_observations, self.records_landmarks = observations, landmarks
        self.decisions: list[Decision] = []
        self.episodes: list[NDArray[np.int64]] = []
        self.rewards: list[NDArray[np.float64]] = []
        self.success: list[NDArray[np.bool_]] = []
        self.observations: list[Observation] = []
        self.landmarks: list[Landmarks | None] = []
        self.instructions: dict[int, str] = {}
        """Episode -> instruction."""
        self._cut: list[tuple[NDArray[np.int64], Observation, list[str]]] = []
        self._tracker = LandmarkTracker()

    def on_start(self, start: EpisodeStart) -> None:
        """Record instructions and landmarks."""
        if self.records_landmarks:
            self._tracker.update(start.env_ids, start.infos)
        for episode, text in zip(start.episodes, start.instructions, strict=True):
            self.instructions[int(episode)] = text

    def on_step(self, outcome: StepOutcome) -> None:
        """Record a decision, the landmarks before it, and its results."""
        request = outcome.request
        self.decisions.append(outcome.decision)
        self.episodes.append(outcome.episodes.copy())
        self.rewards.append(np.asarray(outcome.rewards, dtype=np.float64).copy())
        self.success.append(outcome.success.copy())
        if self.records_landmarks:
            self.landmarks.append(self._tracker.of(request.env_ids))
            self._tracker.update(request.env_ids, outcome.infos)
        if self.records_observations:
            self.observations.append(request.observation)
        if (rows := np.flatnonzero(outcome.cut)).size:
            texts = [request.instructions[row] for row in rows]
            self._cut.append((outcome.episodes[rows], take(outcome.observation, rows), texts))

    @property
    def order(self) -> NDArray[np.int64]:
        """Return the indices that sort the decisions by row and time, int64 [M].

        Decisions of one episode arrive in time order, so a stable sort by episode is enough. The
        result does not depend on which worker was faster.
        """
        return np.argsort(np.concatenate(self.episodes), kind="stable")

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Join one tensor per group's decisions, in the order of the rows."""
        return torch.cat(list(parts))[torch.from_numpy(self.order)]

    def inputs(self) -> dict[str, Tensor]:
        """Remove the policy inputs from all decisions and return them.

        They are the encoded ones if every decision has these.
        """
        encoded = all(decision.encoded is not None for decision in self.decisions)
        parts = [(d.encoded if encoded else d.inputs) or {} for d in self.decisions]
        # Key by key, because encoded observations are too large to be in memory twice.
        return {key: self.in_order([part.pop(key) for part in parts]) for key in [*parts[0]]}

    def record(self, actor: Actor, lengths: NDArray[np.int64]) -> DecisionRecord:
        """Return all decisions with inputs, for an update; removes the inputs from the decisions.

        Args:
            actor: The actor, which estimates the values of final observations.
            lengths: Decisions of each episode, int64 [E].
        """
        decisions = self.decisions
        samples = [torch.from_numpy(d.actions) if d.sample is None else d.sample for d in decisions]
        rewards = torch.from_numpy(np.concatenate(self.rewards).astype(np.float32))
        return DecisionRecord(
            inputs=self.inputs(),
            actions=self.in_order(samples),
            log_prob=self._optional([d.log_prob for d in decisions]),
            value=self._optional([d.value for d in decisions]),
            reward=self.in_order([rewards]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            final_value=self._final_values(actor, len(lengths))
            if decisions[0].value is not None
            else None,
        )

    def _optional(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        return self.in_order(tensors) if tensors else None

    def _final_values(self, actor: Actor, num_episodes: int) -> Tensor:
        """Return the values of true final observations, float32 [E]; 0 for other episodes."""
        values = torch.zeros(num_episodes)
        if self._cut:
            episodes = np.concatenate([part for part, _, _ in self._cut])
            texts = [text for _, _, part in self._cut for text in part]
            # In row order, so that the batches of the inference do not depend on timing.
            order = np.argsort(episodes, kind="stable")
            observation = take(concatenate([part for _, part, _ in self._cut]), order)
            final = actor.final_values(observation, [texts[i] for i in order])
            if final is not None:
                values[torch.from_numpy(episodes[order])] = final
        return values
