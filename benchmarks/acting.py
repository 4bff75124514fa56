"""Measure how near a rollout comes to the time of its environments and its policy alone.

Example: `python benchmarks/acting.py --json acting.json`

The bound is the time of the environments alone (the same actions again, from a list) plus the time
of the policy alone (the same observations again, one after another), both spread over all cores:
`(environments * cores + policy) / cores`. The share is the bound divided by the time of the
rollout. All three are measured in turn in one process. A rollout is what `robo-razor finetune
--method ppo` does: whole episodes, sampled actions, everything recorded. What keeps it from the
bound is waiting: of a core for the last episodes, and of policy and environments for one another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from env_throughput import machine
from torch import Tensor

from robo_razor.core.machine import cpu_count, keep_freed_memory, torch_threads
from robo_razor.core.seeding import training_seeds
from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.types import Observation, make_rows
from robo_razor.policies.load import load_policy
from robo_razor.rollout.actors import Decision, PolicyActor, Request
from robo_razor.rollout.environments import make_fitting_env
from robo_razor.rollout.episodes import run_actor
from robo_razor.rollout.groups import workers_beside

AIM = 0.90
TASK = "gym_razor/PlaceCanInBin-v0"


class Recording:
    """Lets a policy act, and remembers every request and decision."""

    def __init__(self, actor: PolicyActor) -> None:
        self.actor = actor
        self.requests: list[Request] = []
        self.chunks: dict[tuple[int, int, int], Any] = {}

    def decide(self, request: Request) -> Decision:
        """Return the policy's chunks."""
        decision = self.actor.decide(request)
        self.requests.append(request)
        for row, step, chunk in zip(request.rows, request.steps, decision.actions, strict=True):
            self.chunks[row.seed, row.sample, int(step)] = chunk
        return decision

    def final_values(self, observation: Observation, instructions: Sequence[str]) -> Tensor | None:
        """Return the policy's values."""
        return self.actor.final_values(observation, instructions)

    def decide_again(self) -> None:
        """Let the policy decide on all requests once more."""
        for request in self.requests:
            self.actor.decide(request)


class Replay:
    """Returns the chunks of a recording at once."""

    def __init__(self, recording: Recording) -> None:
        self.chunks = recording.chunks

    def decide(self, request: Request) -> Decision:
        """Return the recorded chunks."""
        keys = zip(request.rows, request.steps, strict=True)
        return Decision(np.stack([self.chunks[row.seed, row.sample, int(s)] for row, s in keys]))

    def final_values(self, observation: Observation, instructions: Sequence[str]) -> Tensor | None:
        """Return None: nothing is learnt here."""
        return None


def seconds(work: Any) -> float:
    """Return the wall time of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Measure rollout, environments alone and policy alone in turn."""
    policy = load_policy(settings.policy, "cpu")
    policy.freeze_vision()
    policy.module.eval()
    policy.temperature = 0.6
    env = make_fitting_env(
        policy, [settings.task], EnvConfig(num_envs=settings.num_envs, num_workers=settings.workers)
    )
    rows = make_rows(settings.task, training_seeds(settings.episodes, "acting benchmark").tolist())
    times: list[tuple[float, float, float]] = []
    cores = cpu_count()
    try:
        with torch_threads(settings.threads, beside=workers_beside(env)) as threads:
            actor = PolicyActor(policy, "sample", record=True)
            again = Recording(actor)
            run_actor(env, again, rows, record=True)  # it also warms everything up
            for _ in range(settings.repeats):
                rollout = seconds(lambda: run_actor(env, actor, rows, record=True))
                alone = seconds(lambda: run_actor(env, Replay(again), rows))
                times.append((rollout, alone, seconds(again.decide_again)))
    finally:
        env.close()
    shares = [(env_s + policy_s * threads / cores) / all_s for all_s, env_s, policy_s in times]
    rollout_s, env_s, policy_s = (statistics.median(c) for c in zip(*times, strict=True))
    decisions = len(again.chunks)
    return {
        "share": statistics.median(shares),
        "range": [min(shares), max(shares)],
        "decisions": decisions,
        "rollout_s": rollout_s,
        "environments_s": env_s,
        "policy_s": policy_s,
        "policy_threads": threads,
        "decisions_per_s": decisions / rollout_s,
        "requests": len(again.requests),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, help="write the results to this file")
    add("--repeats", type=int, default=5, help="interleaved repetitions")
    add("--policy", default="razor-base")
    add("--task", default=TASK)
    add("--episodes", type=int, default=256, help="of one rollout")
    add("--num-envs", type=int, default=EnvConfig().num_envs, help="environments in parallel")
    add("--workers", type=int, default=EnvConfig().num_workers, help="worker processes")
    add("--threads", type=int, help="CPU threads of torch; default: those the workers leave")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    result = measure(settings)
    low, high = result["range"]
    print(
        f"bound / rollout: {result['share']:.2f} [{low:.2f}, {high:.2f}], aim {AIM}; "
        f"{result['decisions_per_s']:.0f} decisions per s; rollout {result['rollout_s']:.2f} s, "
        f"environments alone {result['environments_s']:.2f} s, policy alone "
        f"{result['policy_s']:.2f} s on {result['policy_threads']} thread"
    )
    if settings.json:
        document = {"machine": machine(), "aim": AIM, **result}
        settings.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
