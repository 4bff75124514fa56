"""Run a policy in a vector environment: every row of a manifest exactly once.

Axis letters as in `types`: N environments, E episodes, M decisions, H chunk, A action dimensions.

An episode depends only on (task, seed, sample, policy): its start state is a pure function of
(task, seed), the same numbers seed its sampling noise, and policies infer in batches of one size.
So scores do not depend on the number of environments or workers, nor on which episode ends first.
While one worker group of the environment moves, the policy decides for another.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import rich.progress
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from robo_razor.core.types import EpisodeBatch, EpisodeRow
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Actor, Decision, Mode, PolicyActor, Request
from robo_razor.rollout.boundary import ELAPSED_STEPS, IS_SUCCESS
from robo_razor.rollout.environments import time_limit
from robo_razor.rollout.groups import GroupDriver, LatestObservations, StepResult, VectorEnv
from robo_razor.rollout.recorders import EpisodeStart, Observer, Recorder, StepOutcome
from robo_razor.rollout.start_states import start_states

Progress = Callable[[int, int, int], None]
"""Called with (episodes finished, episodes in all, successes so far)."""


@contextlib.contextmanager
def episode_bar(console: Console | None, title: str) -> Iterator[Progress]:
    """Show a progress bar of episodes and successes; yields what `run_episodes` calls.

    Args:
        console: Where to show it; nothing is shown if it is None or not a terminal.
        title: Text before the bar.
    """
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[shown]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console is None or not console.is_terminal,
    )
    with bar:
        task = bar.add_task(escape(title), total=None, shown="")

        def progress(finished: int, total: int, successes: int) -> None:
            bar.update(
                task, completed=finished, total=total, shown=f"success {successes / finished:.0%}"
            )

        yield progress


def run_episodes(
    env: VectorEnv,
    policy: Policy,
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
        env: Vector environment.
        policy: Who acts.
        rows: Manifest of start states.
        mode: "greedy" takes the most likely chunk, "sample" draws from the policy.
        record: Record every decision. True records inputs, actions, log-probabilities and values.
            "inputs" records inputs and actions, also of policies without density or value.
        progress: Called after every finished group of episodes.
        sampling_seed: Seed of the sampling noise.
        observer: Watches resets and steps.

    Returns:
        Outcomes in row order, with the record if `record` is not False.
    """
    actor = PolicyActor(policy, mode, sampling_seed=sampling_seed, record=record)
    return run_actor(env, actor, rows, record=bool(record), progress=progress, observer=observer)


def run_actor(
    env: VectorEnv,
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
    """One call of `run_actor`: the episode of each environment, and the outcomes so far."""

    def __init__(
        self,
        env: VectorEnv,
        actor: Actor,
        rows: list[EpisodeRow],
        *,
        record: bool,
        progress: Progress | None,
        observer: Observer | None,
    ) -> None:
        self.env, self.actor, self.rows = env, actor, rows
        self.progress = progress
        self.recorder = Recorder() if record else None
        self.observers = [x for x in (observer, self.recorder) if x is not None]
        self.driver = GroupDriver(env)
        # The longest first, so that few environments are idle while the last ones run.
        limits = [time_limit(row.task) for row in rows]
        self.queue = deque(sorted(range(len(rows)), key=lambda e: -limits[e]))
        n, e = self.driver.num_envs, len(rows)
        self.episode = np.full(n, -1, dtype=np.int64)
        self.steps = np.zeros(n, dtype=np.int64)
        self.env_instructions = [""] * n
        self.observations = LatestObservations(n)
        self.moving: dict[int, tuple[Request, Decision]] = {}
        """First environment id of a group that moves -> its request and decision."""
        self.success = np.zeros(e, dtype=bool)
        self.decisions = np.zeros(e, dtype=np.int64)
        self.control_steps = np.zeros(e, dtype=np.int64)
        self.episode_return = np.zeros(e)
        self.ends = np.zeros((2, e), dtype=bool)
        self.instructions = [""] * e
        self.start_states: list[str | None] = [None] * e
        self.finished = 0

    def execute(self) -> EpisodeBatch:
        start = time.perf_counter()
        for k, group in enumerate(self.driver.groups):
            fair_share = math.ceil(len(self.queue) / (len(self.driver.groups) - k))
            self._start(group[:fair_share])
            self._submit(group)
        while self.moving:
            result = self.driver.wait()
            env_ids, _, _, terminated, truncated, _ = result
            self._account(result)
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
        observation, instructions, infos = self.driver.reset(
            env_ids,
            [row.seed for row in rows],
            [row.task for row in rows],
            [row.instruction for row in rows],
        )
        self.observations.update(env_ids, observation)
        self.episode[env_ids], self.steps[env_ids] = episodes, 0
        hashes = start_states(infos, len(env_ids))
        for i, e, text, state in zip(env_ids, episodes, instructions, hashes, strict=True):
            self.env_instructions[i] = self.instructions[e] = text
            self.start_states[e] = state
        start = EpisodeStart(self.env, env_ids, episodes, instructions, infos)
        for observer in self.observers:
            observer.on_start(start)

    def _submit(self, group: NDArray[np.int64]) -> None:
        """Let the actor decide for a group's running episodes, and start its chunks."""
        env_ids = group[self.episode[group] >= 0]
        if len(env_ids) == 0:
            return
        request = Request(
            env=self.env,
            env_ids=env_ids,
            observation=self.observations.of(env_ids),
            instructions=[self.env_instructions[i] for i in env_ids],
            rows=[self.rows[e] for e in self.episode[env_ids]],
            steps=self.steps[env_ids].copy(),
        )
        decision = self.actor.decide(request)
        self.driver.submit(decision.actions, env_ids)
        self.moving[int(env_ids[0])] = (request, decision)

    def _account(self, result: StepResult) -> None:
        """Account for the results of a group's decisions."""
        env_ids, observation, rewards, terminated, truncated, infos = result
        request, decision = self.moving.pop(int(env_ids[0]))
        episodes = self.episode[env_ids]
        success = infos[IS_SUCCESS]
        self.observations.update(env_ids, observation)
        self.steps[env_ids] += 1
        self.decisions[episodes] += 1
        self.episode_return[episodes] += rewards
        self.control_steps[episodes] = infos.get(ELAPSED_STEPS, self.steps[env_ids])
        over = terminated | truncated
        self.success[episodes[over]] = success[over]
        self.ends[0, episodes[over]] = terminated[over]
        self.ends[1, episodes[over]] = (truncated & ~terminated)[over]
        outcome = StepOutcome(
            request,
            episodes,
            decision,
            observation,
            rewards,
            terminated,
            truncated,
            success,
            infos,
            self.decisions[episodes],
            self.control_steps[episodes],
            self.episode_return[episodes],
        )
        for observer in self.observers:
            observer.on_step(outcome)
        if over.any():
            self.finished += int(over.sum())
            if self.progress:
                self.progress(self.finished, len(self.rows), int(self.success.sum()))

    def _result(self, wall_s: float) -> EpisodeBatch:
        record = None
        if self.recorder:
            record = self.recorder.record(self.actor, self.decisions)
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
