"""Measure the speed of robo-razor against LeRobot and Stable-Baselines3.

Example: `python benchmarks/peers.py --json peers.json`

The results are ratios of samples per second: medians of interleaved repetitions, with every
contestant in a process of its own. The headline is the ratio to the fastest peer with its defaults.
Ratios to peers with other settings, or with less work, are reported beside it. All contestants
compute on the CPU.

(a) Cloning: samples of gradient steps of `robo-razor finetune --method bc` against `lerobot-train`,
    with its default data loader (4 workers) and other numbers of workers. All weights are trained.
    The default of `finetune`, a frozen image encoder, is an extra figure.
(b) Evaluation: episodes of `robo-razor evaluate` against `lerobot-eval`. Both have their defaults,
    except for LeRobot's number of episodes on both sides, and one worker of `evaluate` per core.
    `lerobot-eval` with `--num-envs` environments, and without the videos that it always makes, is
    reported beside it.
(c) Replay of a flow policy's denoising paths (a tiny SmolVLA), forward and backward: one batched
    call against one call per denoising step. Both sides are robo-razor; no peer has this.
(d) PPO: decisions of `robo-razor finetune --method ppo` against Stable-Baselines3, rollout and
    update together, with a frozen image encoder on both sides, which is the default. The peer has
    its own vector envs of registered environments: DummyVecEnv, which its `make_vec_env` makes, and
    SubprocVecEnv, a process per environment. They render at every control step or, with `--spared`,
    once per decision like robo-razor's. Stable-Baselines3 on robo-razor's vector env is reported
    beside it, and so is `--ppo.bf16` if the processor has bfloat16.
(e) As (d), with all weights trained on both sides.

Start-up, imports and checkpoints do not count. The modules in `contestants/` describe both sides of
each comparison. Both sides must do the same number of samples with as many trained parameters;
otherwise the result is an error instead of a ratio. Ratios of wall times need a quiet machine;
`cpu_ratio` is the ratio of the processor times of all processes involved.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contestants.meter import Comparison, compare
from env_throughput import machine

from robo_razor.training.update import bf16_is_fast

PACKAGES = ("torch", "lerobot", "accelerate", "stable-baselines3", "transformers", "gymnasium")


def run_cloning(settings: argparse.Namespace, meter: Any, ours: bool, **arguments: Any) -> None:
    from contestants import cloning

    (cloning.clone_ours if ours else cloning.clone_lerobot)(settings, meter, **arguments)


def run_evaluation(settings: argparse.Namespace, meter: Any, ours: bool, **arguments: Any) -> None:
    from contestants import evaluating

    (evaluating.evaluate_ours if ours else evaluating.evaluate_lerobot)(
        settings, meter, **arguments
    )


def run_replay(settings: argparse.Namespace, meter: Any, sequential: bool) -> None:
    from contestants import replaying

    replaying.replay(settings, meter, sequential)


def run_ppo(settings: argparse.Namespace, meter: Any, ours: bool, **arguments: Any) -> None:
    from contestants import reinforcing

    (reinforcing.train_ours if ours else reinforcing.train_sb3)(settings, meter, **arguments)


def prepare(name: str, settings: argparse.Namespace) -> None:
    """Write the files that a comparison's contestants read."""
    from contestants import cloning, reinforcing, replaying

    makers: dict[str, Callable[[Any], None]] = {
        "a": cloning.write_dataset,
        "c": replaying.write_policy,
        "d": reinforcing.write_policy,
        "e": reinforcing.write_policy,
    }
    with contextlib.redirect_stdout(sys.stderr):  # LeRobot prints what it builds
        makers.get(name, lambda _: None)(settings)


def comparisons(settings: argparse.Namespace) -> dict[str, Comparison]:
    """Return all comparisons by letter."""
    partial = functools.partial
    steps = settings.gradient_steps
    run_frozen = partial(run_cloning, ours=True, freeze_vision=True)
    frozen = {"robo-razor finetune, image encoder frozen": (run_frozen, steps // 10)}
    return {
        "a": Comparison(
            title="BC: finetune / lerobot-train",
            unit="samples",
            aim=1.5,
            ours="robo-razor finetune",
            contestants={
                "robo-razor finetune": (partial(run_cloning, ours=True), steps // 10),
                **{
                    f"lerobot-train, {n} loader workers": (
                        partial(run_cloning, ours=False, loader_workers=n),
                        steps,
                    )
                    for n in settings.loader_workers
                },
                **({} if settings.no_extra else frozen),
            },
            extra=() if settings.no_extra else tuple(frozen),
        ),
        "b": evaluation_comparison(settings),
        "c": Comparison(
            title="replay of denoising paths: one call / one per step",
            unit="decisions",
            aim=1.4,
            ours="batched",
            contestants={
                "batched": (partial(run_replay, sequential=False), settings.replays),
                "sequential": (partial(run_replay, sequential=True), settings.replays),
            },
            same=("trained_parameters", "steps"),
        ),
        "d": ppo_comparison(settings, freeze_vision=True),
        "e": ppo_comparison(settings, freeze_vision=False),
    }


def evaluation_comparison(settings: argparse.Namespace) -> Comparison:
    """Return the comparison of evaluations: lerobot-eval with its defaults, and with less work."""
    run = functools.partial(run_evaluation, ours=False)
    tuned = f"lerobot-eval, {settings.num_envs} environments"
    helped: dict[str, dict[str, Any]] = {
        f"{tuned} in its process": {"num_envs": settings.num_envs, "asynchronous": False},
        f"{tuned} in its process, without its videos": {
            "num_envs": settings.num_envs,
            "asynchronous": False,
            "filmed": 0,
        },
    }
    if not settings.no_async:
        helped[f"{tuned} in processes"] = {"num_envs": settings.num_envs}
    peers = {"lerobot-eval": {}} | helped
    return Comparison(
        title="evaluation: evaluate / lerobot-eval",
        unit="episodes",
        aim=5.0,
        ours="robo-razor evaluate",
        contestants={
            "robo-razor evaluate": (functools.partial(run_evaluation, ours=True), 1),
            **{name: (functools.partial(run, **arguments), 1) for name, arguments in peers.items()},
        },
        relieved=tuple(helped),
    )


def ppo_comparison(settings: argparse.Namespace, freeze_vision: bool) -> Comparison:
    """Return the comparison of PPO, with the image encoder frozen or trained on both sides."""
    run = functools.partial(run_ppo, freeze_vision=freeze_vision)
    bf16 = "robo-razor finetune --ppo.bf16"
    extra = {bf16: (functools.partial(run, ours=True, bf16=True), settings.updates)}
    if not bf16_is_fast():  # emulated, it takes most of the benchmark's time
        extra = {}
    helped = "Stable-Baselines3 on our vector env"
    own_envs: dict[str, dict[str, Any]] = {"Stable-Baselines3, DummyVecEnv": {"envs": "dummy"}}
    if not settings.no_subprocesses:
        own_envs["Stable-Baselines3, SubprocVecEnv"] = {"envs": "subprocesses"}
    peers = {name: arguments | {"spared": settings.spared} for name, arguments in own_envs.items()}
    peers[helped] = {"envs": "ours"}
    trained = "image encoder frozen" if freeze_vision else "all weights"
    pictures = ", without pictures that no policy reads" if settings.spared else ""
    return Comparison(
        title=f"PPO, {trained}: finetune / SB3{pictures}",
        unit="decisions",
        aim=2.0,
        ours="robo-razor finetune",
        contestants={
            "robo-razor finetune": (functools.partial(run, ours=True), settings.updates),
            **extra,
            **{
                name: (functools.partial(run, ours=False, **arguments), settings.updates)
                for name, arguments in peers.items()
            },
        },
        extra=tuple(extra),
        relieved=(helped,),
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("--json", type=Path, help="write the results to this file")
    add("--only", default="abcde", help="which ratios, e.g. ac (default: abcde)")
    add("--repeats", type=int, default=5, help="interleaved repetitions")
    add("--threads", type=int, default=cores, help="CPU threads of torch; default: one per core")
    add("--workers", type=int, default=cores, help="robo-razor's environment workers")
    add("--policy", default="razor-base", help="policy of (a) and (b), shape of (d) and (e)")
    add("--task", default="gym_razor/PlaceCanInBin-v0")
    add("--max-episode-steps", type=int, help="time limit of (b), (d), (e); default: the task's")
    add("--demonstrations", type=int, default=60, help="(a): episodes of the dataset")
    add("--batch-size", type=int, default=64, help="(a): samples per gradient step")
    add("--gradient-steps", type=int, default=20, help="(a): per repetition, a multiple of 10")
    add("--loader-workers", type=int, nargs="+", default=[4, 2, 0], help="(a): of lerobot-train")
    add("--no-extra", action="store_true", help="(a): without the figure of the frozen encoder")
    add("--num-envs", type=int, default=32, help="(b), (d), (e): environments in parallel")
    add("--episodes", type=int, default=50, help="(b): per repetition; default: lerobot-eval's")
    add("--no-async", action="store_true", help="(b): without use_async_envs, a process per env")
    add("--denoising-steps", type=int, default=10, help="(c)")
    add("--replay-batch", type=int, default=16, help="(c): decisions per replay")
    add("--replays", type=int, default=20, help="(c): per repetition")
    add("--episodes-per-env", type=int, default=1, help="(d), (e): per update")
    add("--update-epochs", type=int, default=3, help="(d), (e)")
    add("--minibatches", type=int, default=2, help="(d), (e): per epoch")
    add("--updates", type=int, default=1, help="(d), (e): per repetition")
    add("--spared", action="store_true", help="(d), (e): SB3's own envs render once per decision")
    add("--no-subprocesses", action="store_true", help="(d), (e): without SB3's SubprocVecEnv")
    settings = parser.parse_args(arguments)
    if not settings.only or set(settings.only) - set("abcde"):
        parser.error(f"--only {settings.only}: give letters out of abcde")
    if settings.gradient_steps < 10 or settings.gradient_steps % 10:
        parser.error(f"--gradient-steps {settings.gradient_steps}: give a multiple of 10")
    return settings


def measure(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Prepare and run one comparison in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        placed = argparse.Namespace(**vars(settings) | {"folder": Path(folder)})
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(prepare, name, placed).result()
        return compare(comparisons(placed)[name], placed, Path(folder))


def describe(name: str, result: dict[str, Any]) -> str:
    """Return a comparison's ratios as text."""
    low, high = result["ratio_range"]
    unit, ours = result["unit"], result["contestants"][result["ours"]]
    lines = [
        f"({name}) {result['what']}: {result['ratio']:.2f} [{low:.2f}, {high:.2f}], "
        f"aim {result['target']}, by processor time {result['cpu_ratio']:.2f}; "
        f"{ours[f'{unit}_per_s']:.1f} {unit} per s"
    ]
    for peer, ratio in result["ratios"].items():
        rate = result["contestants"][peer][f"{unit}_per_s"]
        lines.append(
            f"      against {peer}: {ratio['ratio']:.2f}, by processor time "
            f"{ratio['cpu_ratio']:.2f}; {rate:.1f} {unit} per s"
        )
    for extra, ratio in result["extra"].items():
        lines.append(
            f"      {extra}: {ratio['ratio']:.2f}, by processor time {ratio['cpu_ratio']:.2f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    settings = parse(arguments)
    for key, value in (("MUJOCO_GL", "egl"), ("LP_NUM_THREADS", "0"), ("HF_HUB_OFFLINE", "1")):
        os.environ.setdefault(key, value)
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    results = {}
    for name in settings.only:
        results[name] = measure(name, settings)
        print(describe(name, results[name]), flush=True)
    if settings.json:
        chosen = {key: value for key, value in vars(settings).items() if key != "json"}
        versions = {package: importlib.metadata.version(package) for package in PACKAGES}
        document = {"machine": machine() | versions, "settings": chosen, "ratios": results}
        settings.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
