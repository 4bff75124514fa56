"""Run directories with made-up numbers, for tests of what is read from run directories.

Nothing here was measured: success rises along a logistic curve, and the prior skills fall with the
KL divergence along a parabola that is known exactly.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from robo_razor.core.settings.config import FinetuneConfig, replace, to_yaml
from robo_razor.statistics.intervals import wilson_interval

ENVIRONMENT = {
    "python": "3.12.0",
    "platform": "made up",
    "cpu": "made up",
    "cpu_cores": 2,
    "packages": {"robo-razor": "0.1.0", "torch": "2.7.0", "mujoco": "3.8.0", "numpy": "2.2.0"},
}
TASK = "gym_razor/PlaceCanInBin-v0"
SKILLS = {
    "OpenDrawer": 1.0,
    "CloseDrawer": 0.98,
    "PressButton": 1.0,
    "PushBlock": 0.7,
    "LiftCube": 0.95,
    "LiftCan": 0.96,
    "PlaceCubeInBin": 0.9,
    "PlaceBottleInBin": 0.88,
}
BASE_NEW = 0.4
LAW = (-0.016, -0.0002)
"""Retention = 1 + LAW[0] KL + LAW[1] KL^2."""
ARMS = {
    # name: method, section's settings, KL at the end, speed, highest new-task success
    "oracle": ("bc", {}, 4.0, 2.0, 0.9),
    "ppo_kl": ("ppo", {"ent_coef": 0.1}, 6.0, 1.4, 0.88),
    "ppo": ("ppo", {}, 11.0, 1.6, 0.94),
    "bc_b": ("bc", {}, 45.0, 3.0, 0.92),
}


def entry(rate, n, **more):
    return {
        "success_rate": rate,
        "n": n,
        "interval": list(wilson_interval(round(rate * n), n)),
        **more,
    }


def make_run(path, points, task=TASK, method="ppo", skills=None, seed=0, section=None):
    """Write a run whose checkpoints have (new success, retention of every skill, KL)."""
    config = replace(FinetuneConfig(method=method), out=str(path), task=task, seed=seed)
    if section:
        config = replace(config, method=replace(config.method, **section))
    skills = {"LiftCube": 1.0, "OpenDrawer": 0.8} if skills is None else skills
    run = begin_run(config)
    for i, (new, retention, kl) in enumerate(points):
        write_checkpoint(run, config, 10 * i, new, skills, [retention] * len(skills), kl)
    return str(path)


def begin_run(config):
    """Write what a run writes first; unlike a run's own files, these need not survive a crash."""
    run = Path(config.out)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(config))
    write(run / "environment.json", ENVIRONMENT)
    return run


def write(file, data):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))


def write_checkpoint(run, config, step, new, skills, retentions, kl, n_new=100, n_prior=20, **more):
    """Write one step's summary and episodes."""
    prior = {
        skill: entry(rate * kept, n_prior, retention=kept, base_success_rate=rate, task=skill)
        for (skill, rate), kept in zip(skills.items(), retentions, strict=True)
    }
    directory = run / "eval" / f"{step:06d}"
    write(
        directory / "summary.json",
        {
            "step": step,
            "method": config.method.name,
            "task": config.task,
            "seed": config.seed,
            "policy": config.policy,
            "new": {"PlaceCanInBin": entry(new, n_new)},
            "prior": prior,
            "kl_base_tuned": {"new_base_visited": kl, "new_tuned_visited": kl, "prior": None},
            "kl_tuned_base": {"new_base_visited": kl and 2 * kl, "new_tuned_visited": kl},
            **more,
        },
    )
    rows = [
        {
            "task": config.task,
            "seed": s,
            "mode": "greedy",
            "success": s < n_new * new,
            "start_state": f"{s:x}",
        }
        for s in range(n_new)
    ]
    for skill, summary in prior.items():
        successes = n_prior * summary["success_rate"]
        rows += [
            {"task": f"gym_razor/{skill}-v0", "seed": s, "mode": "greedy", "success": s < successes}
            for s in range(n_prior)
        ]
    (directory / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_sweep(path, arms=None, seeds=3, rates=(1, 3), checkpoints=6, noise=1.0):
    """Write a sweep: `ARM/RUN/` directories and `sweep.json`.

    Args:
        path: Directory to make.
        arms: Names from `ARMS`; None: all.
        seeds: Runs per setting.
        rates: Learning rates of the arms `ppo` and `bc_b`, relative to the default; the others
            have one.
        checkpoints: Checkpoints per run, the base included.
        noise: Scale of the noise on what is measured; 0: exactly the curves.
    """
    generator = np.random.default_rng(7)
    runs = []
    for name in arms or ARMS:
        for rate in rates if name in ("ppo", "bc_b") else rates[:1]:
            for seed in range(seeds):
                run = f"rate={rate:g},seed={seed}"
                factor = rate / rates[0]
                _make_curve(path / name / run, name, factor, seed, checkpoints, noise, generator)
                entry = {"arm": name, "name": run, "path": f"{name}/{run}", "state": "finished"}
                runs.append(entry)
    record = {"kind": "robo-razor sweep", "version": 1, "name": path.name}
    write(path / "sweep.json", {**record, "arms": list(arms or ARMS), "runs": runs})
    return str(path)


def _make_curve(directory, name, factor, seed, checkpoints, noise, generator):
    method, section, kl_end, speed, top = ARMS[name]
    config = replace(FinetuneConfig(method=method), out=str(directory), task=TASK, seed=seed)
    every = 1 / (checkpoints - 1)
    config = replace(config, tracking=replace(config.tracking, every=every, early=0))
    rate = config.method.learning_rate * factor
    config = replace(config, method=replace(config.method, learning_rate=rate, **section))
    run = begin_run(config)
    steps = [0, *config.tracking.checkpoints(24)]
    for i, step in enumerate(steps):
        share = i / (checkpoints - 1)
        kl = kl_end * factor**0.5 * share**0.8 * math.exp(0.1 * noise * generator.normal())
        rise = 1 - math.exp(-speed * factor**0.5 * 1.6 * share)
        last = i == checkpoints - 1
        n_new, n_prior = (200 if last else 50), 20
        new = (
            BASE_NEW
            if i == 0
            else _drawn(BASE_NEW + (top - BASE_NEW) * rise, n_new, noise, generator)
        )
        kept = max(0.05, 1 + LAW[0] * kl + LAW[1] * kl * kl) if i else 1.0
        retentions = [
            _drawn(rate * kept * (1 + (-1) ** k * 0.3 * (1 - kept)), n_prior, noise, generator)
            / rate
            if i
            else 1.0
            for k, rate in enumerate(SKILLS.values())
        ]
        write_checkpoint(
            run,
            config,
            step,
            new,
            SKILLS,
            retentions,
            kl if i else 0.0,
            n_new,
            n_prior,
            entropy=26.0 - 3.0 * share * (3.0 if method == "bc" else 1.0),
            elapsed_s=20.0 + 600.0 * share * (0.5 if method == "bc" else 1.0),
            updates=24,
            distances={
                "total_variation/new_base_visited": 1 - math.exp(-kl / 20) if i else 0.0,
                "greedy_disagreement/new_base_visited": 1 - math.exp(-kl / 15) if i else 0.0,
                "weight_l2": share * (3.0 + generator.normal() * 0.3),
                "weight_l1": share * (40.0 + generator.normal() * 15.0),
            },
        )
    if method == "ppo":
        lines = [
            {"step": s, "rollout/mean_control_steps": 50.0, "rollout/episodes": 256.0}
            for s in range(1, 25)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _drawn(rate, n, noise, generator):
    """Return a rate as n episodes would show it."""
    if noise == 0:
        return rate
    return float(generator.binomial(n, min(1.0, max(0.0, rate))) / n)
