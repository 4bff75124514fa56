"""Decisions labelled by a scripted expert, on the states that the expert or a policy visits.

The environment's expert looks ahead in a copy of the state, so every visited state gets a clean
label, whatever action
is then executed there: the expert's own, a disturbed one (as in DART, Laskey et al. 2017), or a
policy's (as in DAgger,
Ross et al. 2011).

Axis letters: M labelled decisions, N environments, H chunk, A action dimensions, L landmark slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.environment import skill_name, take
from robo_razor.seeding import generator
from robo_razor.types import EpisodeRow

Progress = Callable[[int, int], None]


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
    motion dimension), and
    in one case in eight the gripper does the opposite; small independent noise is always there.
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


class _Store:
    """Gathers rows and stacks them once at the end."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]] = []

    def add(
        self, inputs: dict[str, Tensor], labels: NDArray[np.float32], infos: dict[str, Any]
    ) -> None:
        self.parts.append(
            (
                inputs,
                torch.from_numpy(labels.copy()),
                torch.from_numpy(infos["landmarks"].copy()),
                torch.from_numpy(infos["landmarks_present"].copy()),
            )
        )

    def finish(self, success: dict[str, float]) -> LabelledDecisions:
        inputs, actions, landmarks, present = zip(*self.parts, strict=True)
        self.parts = []
        return LabelledDecisions(
            {key: torch.cat([part[key] for part in inputs]) for key in inputs[0]},
            torch.cat(actions),
            torch.cat(landmarks),
            torch.cat(present),
            success,
        )


def collect_labelled(
    env: Any,
    policy: Any,
    rows: Sequence[EpisodeRow],
    *,
    style: str,
    disturbance: float = 0.0,
    noise: float = 0.0,
    act_with_policy: bool = False,
    sampling_seed: int = 0,
    progress: Progress | None = None,
) -> LabelledDecisions:
    """Run every row once and label every visited state with the expert's next chunk.

    Args:
        env: Vector environment with `expert_actions`.
        policy: Policy handle; prepares the inputs, and acts if `act_with_policy`.
        rows: Start states.
        style: The expert's style.
        disturbance: Probability that a decision of the expert is disturbed.
        noise: Size of disturbances, in action units.
        act_with_policy: Execute the policy's sampled chunks instead of the expert's.
        sampling_seed: Seed of disturbances and samples.
        progress: Called with (finished, all) episodes.
    """
    count = env.num_envs
    queue = deque(range(len(rows)))
    episode = np.full(count, -1, dtype=np.int64)
    random: list[np.random.Generator | None] = [None] * count
    success = np.zeros(len(rows), dtype=bool)
    store, finished = _Store(), 0
    observation: dict[str, Any] = {}
    infos: dict[str, Any] = {}

    def start(ids: NDArray[np.int64]) -> tuple[dict[str, Any], dict[str, Any]]:
        mask = np.zeros(count, dtype=bool)
        seeds = [0] * count
        tasks: list[str | None] = [None] * count
        for i in ids:
            e = queue.popleft()
            row = rows[e]
            mask[i], episode[i], seeds[i], tasks[i] = True, e, row.seed, row.task
            random[i] = generator(sampling_seed, row.task, row.seed)
        options = {"reset_mask": mask, "tasks": tasks}
        answer: tuple[dict[str, Any], dict[str, Any]] = env.reset(seed=seeds, options=options)
        return answer

    observation, infos = start(np.arange(min(count, len(queue))))
    while (episode >= 0).any():
        ids = np.flatnonzero(episode >= 0)
        seen = take(observation, ids)
        words = [env.instructions[i] for i in ids]
        labels = np.asarray(env.expert_actions(style=style, env_ids=ids), dtype=np.float32)
        inputs = policy.prepare(seen, words)
        inputs = {key: value.cpu() for key, value in inputs.items()}
        store.add(
            inputs, labels, {key: infos[key][ids] for key in ("landmarks", "landmarks_present")}
        )
        if act_with_policy:
            uniforms = np.stack([random[i].random(labels.shape[1:], dtype=np.float32) for i in ids])

            with torch.no_grad():
                clipped = torch.from_numpy(uniforms).clamp(1e-6, 1 - 1e-6)
                executed = policy.distribution(inputs).sample(clipped).numpy()
        else:
            executed = np.stack(
                [
                    disturb(label, random[i], probability=disturbance, noise=noise)
                    for label, i in zip(labels, ids, strict=True)
                ]
            )
        actions = np.zeros((count, *labels.shape[1:]), dtype=np.float32)
        actions[ids] = executed
        observation, _, terminated, truncated, infos = env.step(actions, mask=episode >= 0)
        over = (terminated | truncated) & (episode >= 0)
        success[episode[over]] = terminated[over] & infos["is_success"][over]
        finished += int(over.sum())
        episode[over] = -1
        free = np.flatnonzero(over)[: len(queue)]
        if len(free):
            observation, infos = start(free)
        if progress and over.any():
            progress(finished, len(rows))
    names = [skill_name(row.task) for row in rows]
    rates = {
        name: float(np.mean([s for s, n in zip(success, names, strict=True) if n == name]))
        for name in set(names)
    }
    return store.finish(dict(sorted(rates.items())))
