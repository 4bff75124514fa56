"""Batch and result dataclasses, and the legend of axis letters that the whole package uses.

Axis letters: T decisions in time, N environments, E episodes, M recorded decisions (all episodes,
flat), B batch, H executed chunk (control steps per decision), A action dimensions, K bins,
S proprioception, F frames of demonstrations.

A *decision* is one look of the policy: it sees one observation and commands a chunk of H actions.
`terminated` and `truncated` are kept apart everywhere: termination ends the task (there is no
future), truncation only ends the patience (the time limit), so the value of the true final
observation counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        instruction: The user's own words, or None for the task's instruction.
        row_id: Number of the row in its manifest.
        sample: Tells apart several episodes with sampled actions from the same start state.
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
            of each of its denoising steps, or None.
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
        """Return those of the given decisions whose inputs and actions are here."""
        return index if self.place is None else index[self.place[index] >= 0]

    def select(self, index: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the policy inputs of the given decisions, tensors of first axis len(index)."""
        rows = self._rows(index)
        return {name: value.index_select(0, rows) for name, value in self.inputs.items()}

    def select_actions(self, index: NDArray[np.int64]) -> Tensor:
        """Return what the policy drew at the given decisions, first axis len(index)."""
        return self.actions.index_select(0, self._rows(index))

    def _rows(self, index: NDArray[np.int64]) -> Tensor:
        import torch

        rows = index if self.place is None else self.place[index]
        return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))


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
        record: All decisions, if recording was asked for.
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
        decision_stride: Frames per decision of whoever demonstrated: a policy's chunk, or 1 for an
            expert that decides anew at every frame. Training windows start at decisions only.
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
        """Say of which episode, and which frame of it, a frame is."""
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
