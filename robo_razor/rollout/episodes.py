"""Run a policy in a vector environment: every row of a manifest exactly once.

Axis letters as in `types`: N environments, E episodes, M decisions, H chunk, A action dimensions.

What an episode does depends on (task, seed, sample, policy) only: its start state is a pure
function of (task, seed), its sampling noise is keyed by the same numbers, and policies infer in
batches of one size. So scores do not depend on the number of environments or workers, nor on which
episode ends first. While one worker group of the environment moves, the policy thinks about
another.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import rich.progress
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from robo_razor.core.types import DecisionRecord, EpisodeBatch, EpisodeRow, Observation
from robo_razor.rollout.actors import Actor, Decision, ExpertActor, Mode, PolicyActor, Request
from robo_razor.rollout.environments import (
    GroupDriver,
    concatenate,
    make_env,
    put,
    take,
    time_limit,
)
from robo_razor.rollout.start_states import start_states

__all__ = [
    "EpisodeRow",
    "ExpertActor",
    "Mode",
    "PolicyActor",
    "episode_bar",
    "make_env",
    "run_actor",
    "run_episodes",
]

Progress = Callable[[int, int, int], None]
"""Called with (episodes finished, episodes in all, successes so far)."""


@contextlib.contextmanager
def episode_bar(console: Console, title: str) -> Iterator[Progress]:
    """Show a progress bar of episodes and successes; yields what `run_episodes` calls."""
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[shown]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(escape(title), total=None, shown="")

        def progress(finished: int, total: int, successes: int) -> None:
            bar.update(
                task, completed=finished, total=total, shown=f"success {successes / finished:.0%}"
            )

        yield progress


@dataclass(frozen=True)
class StepOutcome:
    """What one decision led to, and the episode's totals so far; rows as in the request."""

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_]
    infos: dict[str, Any]
    decisions: NDArray[np.int64]
    control_steps: NDArray[np.int64]
    episode_return: NDArray[np.float64]


class LandmarkWatch:
    """Remembers where every environment's landmarks are now, for observers that record them."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}

    def see(self, env_ids: NDArray[np.int64], infos: dict[str, Any]) -> None:
        """Take over the landmarks in the infos of some environments, if there are any."""
        if "landmarks" in infos:
            for row, i in enumerate(env_ids):
                self._now[int(i)] = (
                    infos["landmarks"][row].copy(),
                    infos["landmarks_present"][row].copy(),
                )

    def of(self, env_id: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """Return positions float32 [L, 3] and bool [L], True if present; None if never seen."""
        return self._now.get(int(env_id))


class Observer(Protocol):
    """Watches episodes from outside, for videos and demonstrations."""

    def on_start(
        self,
        env: Any,
        env_ids: NDArray[np.int64],
        episodes: NDArray[np.int64],
        instructions: Sequence[str],
        infos: dict[str, Any],
    ) -> None:
        """See episodes right after their reset."""
        ...

    def on_step(
        self,
        request: Request,
        episodes: NDArray[np.int64],
        decision: Decision,
        outcome: StepOutcome,
    ) -> None:
        """See episodes right after a decision was executed."""
        ...


def run_episodes(
    env: Any,
    policy: Any,
    rows: Sequence[EpisodeRow],
    mode: Mode = "greedy",
    record: bool | Literal["inputs"] = False,
    progress: Progress | None = None,
    *,
    sampling_seed: int = 0,
    observer: Observer | None = None,
) -> EpisodeBatch:
    """Run every row exactly once with a policy.

    Args:
        env: Vector environment that keeps the contract of `environment`.
        policy: A `Policy`.
        rows: Manifest of start states.
        mode: "greedy" takes the most likely chunk, "sample" draws from the policy.
        record: Keep every decision: inputs, actions, log-probabilities and values with True, inputs
            and actions only with "inputs" (works for policies without density or value).
        progress: Called after every finished group of episodes.
        sampling_seed: Seed of the sampling noise.
        observer: Watches resets and steps.

    Returns:
        Outcomes in row order, with the record if one was asked for.
    """
    actor = PolicyActor(policy, mode, sampling_seed=sampling_seed, record=record)
    return run_actor(env, actor, rows, record=bool(record), progress=progress, observer=observer)


def run_actor(
    env: Any,
    actor: Actor,
    rows: Sequence[EpisodeRow],
    *,
    record: bool = False,
    progress: Progress | None = None,
    observer: Observer | None = None,
) -> EpisodeBatch:
    """Run every row exactly once with any actor (see `run_episodes`)."""
    run = _Run(env, actor, list(rows), record=record, progress=progress, observer=observer)
    return run.execute()


class _Run:
    """One call of `run_actor`: which episode each environment is in, and what was recorded."""

    def __init__(
        self,
        env: Any,
        actor: Actor,
        rows: list[EpisodeRow],
        *,
        record: bool,
        progress: Progress | None,
        observer: Observer | None,
    ) -> None:
        self.env, self.actor, self.rows = env, actor, rows
        self.progress, self.observer = progress, observer
        self.driver = GroupDriver(env)
        # The longest first: when the last ones run, few environments are left without work.
        limits = [time_limit(row.task) for row in rows]
        self.queue = deque(sorted(range(len(rows)), key=lambda e: -limits[e]))
        n, e = self.driver.num_envs, len(rows)
        self.episode = np.full(n, -1, dtype=np.int64)
        self.steps = np.zeros(n, dtype=np.int64)
        self.words = [""] * n
        self.observation: Observation | None = None
        self.thinking: dict[int, tuple[Request, Decision]] = {}
        self.success = np.zeros(e, dtype=bool)
        self.decisions = np.zeros(e, dtype=np.int64)
        self.control_steps = np.zeros(e, dtype=np.int64)
        self.episode_return = np.zeros(e)
        self.ends = np.zeros((2, e), dtype=bool)
        self.instructions = [""] * e
        self.start_states: list[str | None] = [None] * e
        self.finished = 0
        self.recorder = _Recorder() if record else None

    def execute(self) -> EpisodeBatch:
        start = time.perf_counter()
        for k, group in enumerate(self.driver.groups):
            fair_share = math.ceil(len(self.queue) / (len(self.driver.groups) - k))
            self._start(group[:fair_share])
            self._submit(group)
        while self.thinking:
            env_ids, observation, rewards, terminated, truncated, infos = self.driver.wait()
            self._account(env_ids, observation, rewards, terminated, truncated, infos)
            done = env_ids[terminated | truncated]
            self.episode[done] = -1
            self._start(done[: len(self.queue)])
            self._submit(self._group_of(env_ids))
        return self._result(time.perf_counter() - start)

    def _group_of(self, env_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return next(group for group in self.driver.groups if env_ids[0] in group)

    def _start(self, env_ids: NDArray[np.int64]) -> None:
        """Give the next rows to idle environments."""
        if len(env_ids) == 0:
            return
        episodes = np.array([self.queue.popleft() for _ in env_ids], dtype=np.int64)
        rows = [self.rows[e] for e in episodes]
        observation, words, infos = self.driver.reset(
            env_ids,
            [row.seed for row in rows],
            [row.task for row in rows],
            [row.instruction for row in rows],
        )
        self._see(env_ids, observation)
        self.episode[env_ids], self.steps[env_ids] = episodes, 0
        hashes = start_states(infos, len(env_ids))
        for i, e, text, state in zip(env_ids, episodes, words, hashes, strict=True):
            self.words[i] = self.instructions[e] = text
            self.start_states[e] = state
        if self.observer:
            self.observer.on_start(self.env, env_ids, episodes, words, infos)

    def _submit(self, group: NDArray[np.int64]) -> None:
        """Let the actor decide for a group's running episodes and set them moving."""
        env_ids = group[self.episode[group] >= 0]
        if len(env_ids) == 0:
            return
        assert self.observation is not None
        request = Request(
            env=self.env,
            env_ids=env_ids,
            observation=take(self.observation, env_ids),
            instructions=[self.words[i] for i in env_ids],
            rows=[self.rows[e] for e in self.episode[env_ids]],
            steps=self.steps[env_ids].copy(),
        )
        decision = self.actor.decide(request)
        self.driver.submit(decision.actions, env_ids)
        self.thinking[int(env_ids[0])] = (request, decision)

    def _account(
        self,
        env_ids: NDArray[np.int64],
        observation: Observation,
        rewards: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        infos: dict[str, Any],
    ) -> None:
        """Note what a group's decisions led to."""
        request, decision = self.thinking.pop(int(env_ids[0]))
        episodes = self.episode[env_ids]
        success = infos["is_success"]
        self._see(env_ids, observation)
        self.steps[env_ids] += 1
        self.decisions[episodes] += 1
        self.episode_return[episodes] += rewards
        self.control_steps[episodes] = infos.get("elapsed_steps", self.steps[env_ids])
        over = terminated | truncated
        self.success[episodes[over]] = success[over]
        self.ends[0, episodes[over]] = terminated[over]
        self.ends[1, episodes[over]] = (truncated & ~terminated)[over]
        outcome = StepOutcome(
            rewards,
            terminated,
            truncated,
            success,
            infos,
            self.decisions[episodes],
            self.control_steps[episodes],
            self.episode_return[episodes],
        )
        if self.observer:
            self.observer.on_step(request, episodes, decision, outcome)
        if self.recorder:
            cut = truncated & ~terminated
            final = take(observation, np.flatnonzero(cut))
            words = [self.words[i] for i in env_ids[cut]]
            self.recorder.add(decision, episodes, rewards, episodes[cut], final, words)
        if over.any():
            self.finished += int(over.sum())
            if self.progress:
                self.progress(self.finished, len(self.rows), int(self.success.sum()))

    def _see(self, env_ids: NDArray[np.int64], observation: Observation) -> None:
        if self.observation is None:
            first = np.zeros(self.driver.num_envs, dtype=np.int64)
            self.observation = take(observation, first)
        put(self.observation, env_ids, observation)

    def _result(self, wall_s: float) -> EpisodeBatch:
        record = None
        if self.recorder:
            record = self.recorder.finish(self.actor, self.decisions)
        return EpisodeBatch(
            rows=tuple(self.rows),
            instructions=tuple(self.instructions),
            success=self.success,
            decisions=self.decisions,
            control_steps=self.control_steps,
            episode_return=self.episode_return,
            terminated=self.ends[0],
            truncated=self.ends[1],
            record=record,
            wall_s=wall_s,
            start_states=tuple(self.start_states),
        )


class _Recorder:
    """Gathers decisions as they come and puts them in row order at the end."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.episodes: list[NDArray[np.int64]] = []
        self.rewards: list[NDArray[np.float64]] = []
        self.final_episodes: list[NDArray[np.int64]] = []
        self.final_observations: list[Observation] = []
        self.final_words: list[str] = []

    def add(
        self,
        decision: Decision,
        episodes: NDArray[np.int64],
        rewards: NDArray[np.float64],
        cut_episodes: NDArray[np.int64],
        final_observation: Observation,
        final_words: list[str],
    ) -> None:
        self.decisions.append(decision)
        self.episodes.append(episodes.copy())
        self.rewards.append(np.asarray(rewards, dtype=np.float64).copy())
        if len(cut_episodes):
            self.final_episodes.append(cut_episodes)
            self.final_observations.append(final_observation)
            self.final_words += final_words

    def finish(self, actor: Actor, lengths: NDArray[np.int64]) -> DecisionRecord:
        # Decisions of one episode arrive in time order, so a stable sort by episode is enough.
        order = torch.from_numpy(np.argsort(np.concatenate(self.episodes), kind="stable"))
        first = self.decisions[0]
        encoded = all(decision.encoded is not None for decision in self.decisions)
        seen = [d.encoded if encoded else d.inputs for d in self.decisions]
        assert seen[0] is not None
        # One by one out of the decisions: encoded observations are too large to have twice.
        inputs = {key: torch.cat([_taken(part, key) for part in seen])[order] for key in [*seen[0]]}
        samples = [
            torch.from_numpy(d.actions) if d.sample is None else d.sample for d in self.decisions
        ]
        rewards = np.concatenate(self.rewards).astype(np.float32)
        return DecisionRecord(
            inputs=inputs,
            actions=torch.cat(samples)[order],
            log_prob=_joined([d.log_prob for d in self.decisions], order),
            value=_joined([d.value for d in self.decisions], order),
            reward=torch.from_numpy(rewards)[order],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            final_value=self._final_values(actor, len(lengths))
            if first.value is not None
            else None,
        )

    def _final_values(self, actor: Actor, num_episodes: int) -> Tensor:
        values = torch.zeros(num_episodes)
        if self.final_episodes:
            episodes = np.concatenate(self.final_episodes)
            # Row order, so that the blocks of the inference do not depend on timing.
            order = np.argsort(episodes, kind="stable")
            observation = take(concatenate(self.final_observations), order)
            found = actor.final_values(observation, [self.final_words[i] for i in order])
            if found is not None:
                values[torch.from_numpy(episodes[order])] = found
        return values


def _taken(inputs: dict[str, Tensor] | None, key: str) -> Tensor:
    assert inputs is not None
    return inputs.pop(key)


def _joined(parts: list[Tensor | None], order: Tensor) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors)[order] if tensors else None
