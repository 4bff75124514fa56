"""Measure how many minutes of training a policy needs until it has learnt a new task.

Example: `python benchmarks/minutes_to_success.py --seeds 5 --json minutes.json`

Every seed is a run of `robo-razor finetune`, which stops once the policy succeeds, with greedy
actions, on 85 % of the validation start states. Nothing is trained on these states, and they are
not the ones that results are reported on, so settings may be chosen by them. The figure is the time
of the rollouts and of the updates up to that point; measuring is not in it. At the end the policy's
prior skills are compared with the base's, on the same validation start states.

Words that the benchmark does not know are passed on to `robo-razor finetune`, for example
`--ppo.learning-rate 2e-4`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from env_throughput import machine

from robo_razor.cli.arguments import parse as parse_flags
from robo_razor.core.metrics import Summary
from robo_razor.core.run.listener import Listener
from robo_razor.core.settings.config import (
    VALIDATION_SEED,
    FinetuneConfig,
    TrackingConfig,
    replace,
)
from robo_razor.evaluation.evaluate import chosen_skills, evaluate
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy
from robo_razor.rollout.environments import make_fitting_env
from robo_razor.rollout.groups import VectorEnv
from robo_razor.training.trainer import finetune

LEVEL = 0.85


class Reached(Exception):
    """The policy has learnt the task."""


@dataclass
class Measurements:
    """Environments of the new task and of the prior skills, for a policy and those tuned from it.

    Attributes:
        env: The environments.
        task: The new task.
        prior: Skill -> task.
        episodes: Episodes of the new task per measurement.
        prior_episodes: Episodes of each prior skill.
    """

    env: VectorEnv
    task: str
    prior: dict[str, str]
    episodes: int
    prior_episodes: int

    def success(self, policy: Policy) -> float:
        """Return the share of the validation start states on which a policy succeeds, greedily."""
        result = evaluate(policy, self.env, {"new": self.task}, self.episodes, VALIDATION_SEED)
        return result["new"].success_rate

    def prior_successes(self, policy: Policy) -> dict[str, int]:
        """Return the number of episodes of every prior skill in which a policy succeeds."""
        if not self.prior_episodes or not self.prior:
            return {}
        results = evaluate(policy, self.env, self.prior, self.prior_episodes, VALIDATION_SEED)
        return {skill: round(r.success_rate * r.n) for skill, r in results.items()}


@dataclass
class Watch(Listener):
    """Measures the checkpoints of a run on validation start states, and stops it at the level.

    Attributes:
        run: The run's directory.
        measurements: How to measure.
        level: Success at which to stop.
        curve: One entry for each checkpoint so far.
    """

    run: Path
    measurements: Measurements
    level: float
    curve: list[dict[str, float]] = field(default_factory=list)

    def measured(self, summary: Summary) -> None:
        """Measure the checkpoint that was just saved.

        Raises:
            Reached: The policy succeeds often enough.
        """
        policy = load_policy(str(self.run / "checkpoints" / "last" / "pretrained_model"))
        entry = {
            "update": summary.step,
            "minutes": training_minutes(self.run),
            "success": self.measurements.success(policy),
        }
        self.curve.append(entry)
        print("  update {update:3d}: {minutes:5.2f} min, {success:.3f}".format(**entry), flush=True)
        if entry["success"] >= self.level:
            raise Reached

    def warn(self, text: str) -> None:
        """Show a warning."""
        print(f"  {text}", file=sys.stderr)


def training_minutes(run: Path) -> float:
    """Return the minutes that a run's rollouts and updates took."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    updates = [json.loads(line) for line in lines]
    keys = ("time/rollout_s", "time/update_s")
    return sum(update.get(key, 0.0) for update in updates for key in keys) / 60.0


def run_settings(settings: argparse.Namespace, seed: int, out: Path) -> FinetuneConfig:
    """Return the settings of a seed's run: the user's, and next to no tracking."""
    config = parse_flags("finetune", FinetuneConfig, settings.flags, "")
    tracking = TrackingConfig(
        every=settings.every,
        early=0,
        episodes_new=1,
        episodes_new_sampled=0,
        episodes_prior=0,
        final_episodes_new=1,
        kl_states=1,
        alarm_retention=0.0,
        max_share=1.0,
    )
    return replace(
        config, seed=seed, out=str(out), task=settings.task, tracking=tracking, prior_tasks="none"
    )


def measure_seed(
    settings: argparse.Namespace, seed: int, measurements: Measurements, base_prior: dict[str, int]
) -> dict[str, Any]:
    """Train with one seed until the level is reached, and measure the prior skills."""
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = (settings.out / f"seed_{seed}") if settings.out else Path(folder) / "run"
        watch = Watch(out, measurements, settings.level)
        began = time.perf_counter()
        with contextlib.suppress(Reached):
            finetune(run_settings(settings, seed, out), watch)
        wall_min = (time.perf_counter() - began) / 60.0
        last = watch.curve[-1]
        reached = last["success"] >= settings.level
        tuned = load_policy(str(out / "checkpoints" / "last" / "pretrained_model"))
        prior = measurements.prior_successes(tuned)
    kept = sum(prior.values()) / max(1, sum(base_prior.values()))
    shown = f"{last['minutes']:.2f} minutes" if reached else "not reached"
    print(f"  {shown}" + (f"; prior skills kept: {kept:.3f}" if prior else ""), flush=True)
    return {
        "seed": seed,
        "reached": reached,
        "minutes": last["minutes"] if reached else None,
        "updates": last["update"],
        "wall_minutes_with_measuring": wall_min,
        "prior_kept": kept if prior else None,
        "prior_successes": prior,
        "curve": watch.curve,
    }


@contextlib.contextmanager
def measuring(settings: argparse.Namespace) -> Iterator[tuple[Measurements, dict[str, int]]]:
    """Make the environments that measure; yield them, and the base's successes on prior skills."""
    config = parse_flags("finetune", FinetuneConfig, settings.flags, "")
    base = load_policy(config.policy)
    skills = chosen_skills("prior", config.env.env_packages)
    prior = {skill: task for skill, task in skills.items() if task != settings.task}
    tasks = [settings.task, *prior.values()]
    env = make_fitting_env(base, tasks, config.env)
    try:
        measurements = Measurements(
            env, settings.task, prior, settings.episodes, settings.prior_episodes
        )
        yield measurements, measurements.prior_successes(base)
    finally:
        env.close()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, help="write the results to this file")
    add("--seeds", type=int, default=5, help="runs, with the seeds 0, 1, ...")
    add("--first-seed", type=int, default=0, help="seed of the first run")
    add("--task", default="gym_razor/PlaceCanInBin-v0", help="the new task")
    add("--level", type=float, default=LEVEL, help="greedy success at which a run stops")
    add("--every", type=int, default=2, help="updates between measurements")
    add("--episodes", type=int, default=200, help="validation start states of the new task")
    add("--prior-episodes", type=int, default=50, help="of each prior skill; 0: none")
    add("--out", type=Path, help="keep the runs in this folder")
    settings, flags = parser.parse_known_args(arguments)
    settings.flags = flags
    return settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse(arguments)
    with measuring(settings) as (measurements, base_prior):
        runs = [
            measure_seed(settings, seed, measurements, base_prior)
            for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        ]
    minutes = [run["minutes"] for run in runs if run["reached"]]
    kept = [run["prior_kept"] for run in runs if run["prior_kept"] is not None]
    median = statistics.median(minutes) if len(minutes) == len(runs) else None
    shown = "not reached by all seeds" if median is None else f"median {median:.2f}"
    print(
        f"minutes to {settings.level:.0%} on {settings.task}: {shown}; "
        f"{', '.join(f'{m:.2f}' for m in minutes)}"
        + (f"; prior skills kept, least: {min(kept):.3f}" if kept else "")
    )
    if settings.json:
        results = {
            "machine": machine(),
            "task": settings.task,
            "level": settings.level,
            "flags": settings.flags,
            "median_minutes": median,
            "base_prior_successes": base_prior,
            "runs": runs,
        }
        settings.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
