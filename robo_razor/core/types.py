"""Batch and result dataclasses, and the legend of axis letters that the whole package uses.

Axis letters: T decisions in time, N environments, E episodes, M recorded decisions (all episodes,
flat), B batch, H executed chunk (control steps per decision), A action dimensions, K bins,
S proprioception, F frames of demonstrations.

A *decision*: the policy sees one observation and commands a chunk of H actions. `terminated` and
`truncated` are separate everywhere. Termination ends the task, so there is no future. Truncation is
only the time limit, so the value of the true final observation counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Observation = dict[str, Any]
"""Host observation: {"pixels": {camera: uint8 [N, H, W, 3]}, "agent_pos": float32 [N, S]}."""

PolicyBatch = dict[str, Any]
"""Prepared policy inputs (tensors, first axis B), as `Policy.prepare` returns them."""


@dataclass(frozen=True)
class EpisodeRow:
    """One episode to run: a line of the manifest of start states.

    Attributes:
        task: Gymnasium id.
        seed: Seed of the start state, which is a pure function of (task, seed).
        instruction: The user's own instruction; None: the task's.
        row_id: Number of the row in its manifest.
        sample: Number that separates episodes with sampled actions from the same start state.
    """

    task: str
    seed: int
    instruction: str | None = None
    row_id: int = 0
    sample: int = 0


@dataclass(frozen=True)
class DecisionRecord:
    """Every decision of a batch of episodes, flat and grouped by episode in row order.

    Attributes:
        inputs: Prepared policy inputs, tensors of first axis M; images stay uint8.
        actions: What the policy drew: float32 [M, H, A], the commanded chunk, or for a policy that
            denoises, the path to it, float32 [M, K + 1, ...].
        log_prob: float32 [M], log-density of the sample under the acting policy (nats), or [M, K]
            of each random step (token of an action, or denoising step), or None.
        value: float32 [M], the acting policy's value, or None.
        reward: float32 [M], sum over the executed chunk.
        offsets: int64 [E + 1]; episode e owns decisions offsets[e]:offsets[e + 1].
        final_value: float32 [E], value of the true final observation of a truncated episode,
            0 where the episode terminated; None without values.
        place: int64 [M], the row of `inputs` and `actions` that belongs to a decision, -1 where
            another rank holds it; None: all are here, in order.
    """

    inputs: dict[str, Tensor]
    actions: Tensor
    log_prob: Tensor | None
    value: Tensor | None
    reward: Tensor
    offsets: NDArray[np.int64]
    final_value: Tensor | None
    place: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def episode(self) -> NDArray[np.int64]:
        """Return the episode number of every decision, int64 [M]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def held(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the given decisions whose inputs and actions this record holds."""
        return index if self.place is None else index[self.place[index] >= 0]

    def select(self, index: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the policy inputs of the given decisions, tensors of first axis len(index)."""
        rows = self._rows(index)
        return {name: value.index_select(0, rows) for name, value in self.inputs.items()}

    def select_actions(self, index: NDArray[np.int64]) -> Tensor:
        """Return what the policy drew at the given decisions, first axis len(index)."""
        return self.actions.index_select(0, self._rows(index))

    def take(self, episodes: NDArray[np.int64]) -> Self:
        """Return the decisions of some episodes, in the order given."""
        starts, lengths = self.offsets[episodes], np.diff(self.offsets)[episodes]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        rows = _index(index)
        holds_all = self.place is None
        return replace(
            self,
            inputs={key: value[rows] for key, value in self.inputs.items()}
            if holds_all
            else self.inputs,
            actions=self.actions[rows] if holds_all else self.actions,
            log_prob=None if self.log_prob is None else self.log_prob[rows],
            value=None if self.value is None else self.value[rows],
            reward=self.reward[rows],
            offsets=offsets,
            final_value=None if self.final_value is None else self.final_value[_index(episodes)],
            place=None if self.place is None else self.place[index],
        )

    def elsewhere(self) -> Self:
        """Return the record without inputs and actions, to send it to another process."""
        # Copies: sending an empty view would send all of its memory.
        return replace(
            self,
            inputs={key: value[:0].clone() for key, value in self.inputs.items()},
            actions=self.actions[:0].clone(),
            place=np.full(len(self), -1, dtype=np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put the episodes of several records behind one another."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        held = [part for part in parts if part.place is None or (part.place >= 0).any()]
        head, *others = held or parts
        place = None
        if any(part.place is not None for part in parts):
            places, start = [], 0
            for part in parts:
                places_of_part = np.arange(len(part)) if part.place is None else part.place
                places.append(np.where(places_of_part >= 0, places_of_part + start, -1))
                start += len(part.actions)
            place = np.concatenate(places)
        return cls(
            inputs={
                key: _cat([value, *(part.inputs[key] for part in others)])
                for key, value in head.inputs.items()
            },
            actions=_cat([head.actions, *(part.actions for part in others)]),
            log_prob=_cat_all([part.log_prob for part in parts]),
            value=_cat_all([part.value for part in parts]),
            reward=_cat([part.reward for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            final_value=_cat_all([part.final_value for part in parts]),
            place=place,
        )

    def _rows(self, index: NDArray[np.int64]) -> Tensor:
        return _index(index if self.place is None else self.place[index])


def _index(index: NDArray[np.int64]) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64))


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    import torch

    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))  # inputs are large


def _cat_all(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return _cat(present) if len(present) == len(tensors) else None


@dataclass(frozen=True)
class EpisodeBatch:
    """What happened in a list of episodes; all arrays have first axis E, in row order.

    Attributes:
        rows: The rows that were run, each exactly once.
        instructions: The instruction the policy read in each episode.
        success: bool [E], success at the end of the episode.
        decisions: int64 [E], number of decisions.
        control_steps: int64 [E], number of control steps.
        episode_return: float64 [E], undiscounted sum of rewards.
        terminated: bool [E].
        truncated: bool [E].
        record: All decisions, if they were recorded.
        wall_s: Wall time that the batch took, in seconds.
        start_states: Hash of each start state, None where the environment gives none.
    """

    rows: tuple[EpisodeRow, ...]
    instructions: tuple[str, ...]
    success: NDArray[np.bool_]
    decisions: NDArray[np.int64]
    control_steps: NDArray[np.int64]
    episode_return: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    record: DecisionRecord | None = None
    wall_s: float = 0.0
    start_states: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def success_rate(self) -> float:
        """Return the share of successful episodes, in [0, 1]."""
        return float(np.mean(self.success)) if len(self.rows) else float("nan")

    def of_task(self, task: str) -> NDArray[np.int64]:
        """Return the indices of the episodes of one task id."""
        return np.flatnonzero(np.array([row.task == task for row in self.rows]))

    def take(self, episodes: NDArray[np.int64]) -> Self:
        """Return some of the episodes, in the order given."""
        return replace(
            self,
            rows=tuple(self.rows[e] for e in episodes),
            instructions=tuple(self.instructions[e] for e in episodes),
            success=self.success[episodes],
            decisions=self.decisions[episodes],
            control_steps=self.control_steps[episodes],
            episode_return=self.episode_return[episodes],
            terminated=self.terminated[episodes],
            truncated=self.truncated[episodes],
            record=None if self.record is None else self.record.take(episodes),
            start_states=tuple(self.start_states[e] for e in episodes if self.start_states),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put several batches behind one another; they ran at the same time."""
        records = [part.record for part in parts if part.record is not None]
        return cls(
            rows=tuple(row for part in parts for row in part.rows),
            instructions=tuple(text for part in parts for text in part.instructions),
            success=np.concatenate([part.success for part in parts]),
            decisions=np.concatenate([part.decisions for part in parts]),
            control_steps=np.concatenate([part.control_steps for part in parts]),
            episode_return=np.concatenate([part.episode_return for part in parts]),
            terminated=np.concatenate([part.terminated for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
            record=DecisionRecord.concatenate(records) if len(records) == len(parts) else None,
            wall_s=max(part.wall_s for part in parts),
            start_states=tuple(state for part in parts for state in part.start_states),
        )


@dataclass(frozen=True)
class SkillResult:
    """Success of one policy on one skill over a manifest of start states.

    Attributes:
        task: Gymnasium id.
        role: "prior" or "new".
        successes: bool per row, in row order, so that two policies pair up.
        interval: 95 % Wilson interval of the success rate.
        mean_control_steps: Mean episode length, in control steps.
    """

    task: str
    role: str
    successes: tuple[bool, ...]
    interval: tuple[float, float]
    mean_control_steps: float = float("nan")

    @property
    def n(self) -> int:
        """Return the number of episodes."""
        return len(self.successes)

    @property
    def success_rate(self) -> float:
        """Return the share of successful episodes, in [0, 1]."""
        return sum(self.successes) / self.n if self.n else float("nan")


@dataclass(frozen=True)
class DemonstrationSet:
    """Demonstrations in RAM, one row per control step (frame), episodes one after another.

    Attributes:
        images: Camera name -> uint8 [F, H, W, 3].
        state: float32 [F, S].
        actions: float32 [F, A].
        offsets: int64 [E + 1]; episode e owns frames offsets[e]:offsets[e + 1].
        instructions: One instruction per episode, that of its first frame.
        fps: Control steps per second.
        rewards: float32 [F], for the action executed at the frame.
        success: bool [F], True where the task was done after the frame's action.
        landmarks: float32 [F, L, 3] in metres, if the simulator gave them.
        landmarks_present: bool [F, L], True where the landmark exists.
        decision_stride: Frames per decision of the demonstrator: a policy's chunk, or 1 for an
            expert that decides at every frame. Training windows start at decisions only.
        frame_instructions: One instruction per frame, where they change within an episode.
        source_index: int64 [F, 2], episode and frame in the data set that it was read from.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    offsets: NDArray[np.int64]
    instructions: tuple[str, ...]
    rewards: NDArray[np.float32]
    success: NDArray[np.bool_]
    fps: float = 10
    landmarks: NDArray[np.float32] | None = None
    landmarks_present: NDArray[np.bool_] | None = None
    decision_stride: int = 1
    frame_instructions: tuple[str, ...] | None = None
    source_index: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def words(self, frames: NDArray[np.int64]) -> list[str]:
        """Return the instruction of each of some frames, int64."""
        if self.frame_instructions is not None:
            return [self.frame_instructions[i] for i in frames]
        return [self.instructions[e] for e in self._owner(frames)]

    def place(self, frame: int) -> str:
        """Return a frame's place, `episode 3, frame 12`."""
        if self.source_index is not None:
            episode, number = self.source_index[frame].tolist()
        else:
            episode = int(self._owner(np.array([frame]))[0])
            number = frame - int(self.offsets[episode])
        return f"episode {episode}, frame {number}"

    def _owner(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        owner: NDArray[np.int64] = np.searchsorted(self.offsets, frames, side="right") - 1
        return owner

    @property
    def num_episodes(self) -> int:
        """Return the number of episodes."""
        return len(self.offsets) - 1


def make_rows(
    task: str,
    seeds: Sequence[int],
    *,
    instruction: str | None = None,
    samples: Sequence[int] | None = None,
    first_row_id: int = 0,
) -> list[EpisodeRow]:
    """Return one row per seed, numbered from `first_row_id`."""
    samples = samples if samples is not None else [0] * len(seeds)
    return [
        EpisodeRow(task, int(seed), instruction, first_row_id + i, int(sample))
        for i, (seed, sample) in enumerate(zip(seeds, samples, strict=True))
    ]
