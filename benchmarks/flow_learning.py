"""Train a small SmolVLA from scratch, tune it by PPO and by cloning, and measure forgetting.

Example: `python benchmarks/flow_learning.py --out runs/flow-learning --json learning.json`

The published weights are not needed: the benchmark first makes a base. A new SmolVLA of 0.7 M
parameters (64 px cameras) clones the scripted expert on two skills, and on a few demonstrations of
a third. The two are the prior skills, and the third is the new task of PPO with the flow-SDE
kernel. For comparison the same base clones the expert's other style on the new task. Every stage is
a run of the toolkit in a folder of its own below `--out`. A second call continues the stages there.

This tests whether the gradient is right on a simulated robot's pictures, not how well a real
SmolVLA learns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from env_throughput import machine

NOISE = 0.15
"""Noise on the scripted expert's actions, in action units; labels stay clean (as in DART)."""
TESTS = Path(__file__).parents[1] / "tests" / "toys"
SHAPE: dict[str, Any] = {
    "vision": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
    "text": {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
    },
    "image_size": 64,
    "resize_imgs_with_padding": (64, 64),
    "tokenizer_max_length": 32,
    "num_vlm_layers": 3,
    "num_steps": 5,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/flow-learning"), help="folder of all stages")
    add("--json", type=Path, help="write the results to this file")
    add("--new-task", default="gym_razor/CloseDrawer-v0", help="the task that PPO learns")
    add("--prior-tasks", default="PressButton,OpenDrawer", help="skills that may be forgotten")
    add("--demonstrations", type=int, default=300, help="per prior skill, and of the BC run")
    add("--new-demonstrations", type=int, default=10, help="of the new task")
    add("--epochs", type=int, default=12, help="of cloning the base")
    add("--updates", type=int, default=20, help="of PPO")
    add("--episodes-per-update", type=int, default=256, help="of PPO")
    add("--learning-rate", type=float, default=1e-4, help="of PPO")
    add("--noise", type=float, default=0.5, help="level of the flow's noise")
    add("--test-episodes", type=int, default=100, help="per skill, checkpoint and mode")
    add("--kl-states", type=int, default=128, help="observations of each KL divergence")
    add("--threads", type=int, default=cores, help="CPU threads of torch")
    add("--workers", type=int, default=cores, help="environments' worker processes")
    add("--num-envs", type=int, default=64, help="environments in parallel")
    add("--reward-type", choices=("sparse", "shaped"), default="sparse", help="of PPO")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def collect(settings: argparse.Namespace, directory: Path) -> None:
    """Write demonstrations of all skills as one dataset; the directory appears when complete."""
    from robo_razor.rollout.actors import ExpertActor, GaussianNoise, NoisyActor
    from robo_razor.rollout.demonstrations import write_demonstrations
    from robo_razor.rollout.environments import make_env, named_tasks

    numbers = dict.fromkeys(
        named_tasks(settings.prior_tasks, ("gym_razor",)).values(), settings.demonstrations
    )
    numbers[settings.new_task] = settings.new_demonstrations
    env = make_env(settings.new_task, environment(settings), chunk_size=1, tasks=tuple(numbers))
    unfinished = directory.with_name(f"{directory.name}-begun")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        actor = NoisyActor(ExpertActor("a"), GaussianNoise(NOISE))
        write_demonstrations(env, actor, numbers, unfinished, first_seed=settings.seed)
    finally:
        env.close()
    unfinished.rename(directory)


def make_base(settings: argparse.Namespace) -> Path:
    """Collect demonstrations of both skills and clone them into a new SmolVLA."""
    from tiny_vla import save_tiny_smolvla

    from robo_razor.core.settings.config import FinetuneConfig, FlowConfig
    from robo_razor.training.methods.bc import BC
    from robo_razor.training.trainer import finetune

    demonstrations, run = settings.out / "demonstrations", settings.out / "base"
    if not demonstrations.is_dir():
        collect(settings, demonstrations)
    new = str(settings.out / "untrained")
    if not run.is_dir():
        save_tiny_smolvla(Path(new), seed=settings.seed, **SHAPE)
    finetune(
        FinetuneConfig(
            policy=new,
            out=str(run),
            resume=run.is_dir(),
            freeze_vision=False,
            method=BC(
                demonstrations=str(demonstrations),
                episodes=10**6,
                statistics="demonstrations",
                epochs=settings.epochs,
                learning_rate=1e-3,
            ),
            flow=FlowConfig(train="all", noise=settings.noise),
            **common(settings, every=1.0),
        )
    )
    return run


def tune(settings: argparse.Namespace, base: Path, method: str) -> Path:
    """Tune the base on the new task by PPO, or by cloning the expert's other style."""
    from robo_razor.core.settings.config import FinetuneConfig, FlowConfig
    from robo_razor.training.methods.bc import BC
    from robo_razor.training.methods.ppo import PPO
    from robo_razor.training.trainer import finetune

    methods = {
        "ppo": PPO(
            num_updates=settings.updates,
            episodes_per_update=settings.episodes_per_update,
            learning_rate=settings.learning_rate,
            update_epochs=3,
            warmup_updates=4,
            gae_lambda=0.95,
            target_kl=None,
        ),
        "bc": BC(episodes=settings.demonstrations),
    }
    run = settings.out / method
    finetune(
        FinetuneConfig(
            method=methods[method],
            policy=str(base),
            out=str(run),
            resume=run.is_dir(),
            flow=FlowConfig(train="all", noise=settings.noise),
            **common(settings, every=0.25),
        )
    )
    return run


def environment(settings: argparse.Namespace) -> Any:
    from robo_razor.core.settings.config import EnvConfig

    return EnvConfig(
        num_envs=settings.num_envs,
        num_workers=settings.workers,
        reward_type=settings.reward_type,
    )


def common(settings: argparse.Namespace, every: float) -> dict[str, Any]:
    """Return the settings that both runs share; `every` 1 tracks only the last checkpoint."""
    from robo_razor.core.settings.config import TrackingConfig

    episodes = settings.test_episodes
    tracking = TrackingConfig(
        every=10**9 if every == 1.0 else every,
        early=0,
        episodes_new=episodes,
        episodes_new_sampled=episodes,
        episodes_prior=episodes,
        final_episodes_new=episodes,
        kl_states=settings.kl_states,
        max_share=1.0,
    )
    return {
        "task": settings.new_task,
        "prior_tasks": settings.prior_tasks,
        "seed": settings.seed,
        "torch_threads": settings.threads,
        "device": "cpu",
        "env": environment(settings),
        "tracking": tracking,
    }


def checkpoints(run: Path) -> list[dict[str, Any]]:
    """Return the measurements of a run's checkpoints, in order."""
    entries = []
    for path in sorted((run / "eval").glob("*/summary.json")):
        summary = json.loads(path.read_text())
        (new,) = summary["new"].values()
        entries.append(
            {
                "update": int(path.parent.name),
                "greedy": new["success_rate"],
                "sampled": new["sampled"]["success_rate"],
                "episodes": new["n"],
                "prior": {k: prior["success_rate"] for k, prior in summary["prior"].items()},
                "kl_base_tuned": summary["kl_base_tuned"],
                "kl_tuned_base": summary["kl_tuned_base"],
                "kl_kind": summary["kl_kind"],
            }
        )
    return entries


def elapsed_s(run: Path) -> float:
    """Return the duration of a run without interruptions, with tracking."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(line["time/elapsed_s"] for line in lines)


def result_settings(settings: argparse.Namespace) -> dict[str, str]:
    """Return the settings that results depend on, as text."""
    free = ("out", "json", "threads", "workers", "num_envs")
    return {key: str(value) for key, value in vars(settings).items() if key not in free}


def refuse_other_settings(settings: argparse.Namespace) -> None:
    """Write the settings beside the runs; exit if the runs there have other settings."""
    file = settings.out / "settings.json"
    if not file.is_file():
        file.write_text(json.dumps(result_settings(settings), indent=2) + "\n")
    elif (before := json.loads(file.read_text())) != result_settings(settings):
        key = next(k for k, v in result_settings(settings).items() if before.get(k) != v)
        sys.exit(
            f"{settings.out} holds runs with {key} = {before.get(key)}, not "
            f"{result_settings(settings)[key]}: give another --out"
        )


def describe(checkpoint: dict[str, Any], settings: argparse.Namespace) -> str:
    """Return a checkpoint as text."""
    rates = {
        f"{settings.new_task} sampled": checkpoint["sampled"],
        "greedy": checkpoint["greedy"],
        **checkpoint["prior"],
    }
    divergence = checkpoint["kl_base_tuned"]["new_base_visited"]
    return (
        f"update {checkpoint['update']}: "
        + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
        + f"; KL(base || tuned) on the new task {divergence:.2f} ({checkpoint['kl_kind']})"
    )


def main(arguments: list[str] | None = None) -> int:
    settings = parse(arguments)
    for key, value in (("MUJOCO_GL", "egl"), ("LP_NUM_THREADS", "0"), ("HF_HUB_OFFLINE", "1")):
        os.environ.setdefault(key, value)
    sys.path.append(str(TESTS))
    settings.out.mkdir(parents=True, exist_ok=True)
    refuse_other_settings(settings)
    base = make_base(settings)
    for method in ("ppo", "bc"):
        tune(settings, base, method)
    from robo_razor.policies.load import load_policy

    runs = {name: checkpoints(settings.out / name) for name in ("base", "ppo", "bc")}
    document = {
        "parameters": sum(p.numel() for p in load_policy(str(base)).module.parameters()),
        "wall_s": {name: elapsed_s(settings.out / name) for name in runs},
        "machine": machine(),
        "settings": result_settings(settings),
        "checkpoints": runs,
    }
    for name, entries in runs.items():
        for checkpoint in entries:
            print(f"{name}, {describe(checkpoint, settings)}")
    if settings.json:
        settings.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
