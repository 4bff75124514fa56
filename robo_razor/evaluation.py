"""Success of a policy on skills, over a manifest of fixed start states.

Every skill has a quota of episodes, one per start state, and every episode counts: averages over
the first episodes to finish would favour the fast ones, which are the successful ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from robo_razor.config import HELD_OUT_SEED, EvaluateConfig
from robo_razor.device import resolve_device, torch_threads
from robo_razor.environment import make_env, named_tasks, role_of, skill_name
from robo_razor.errors import ConfigError
from robo_razor.files import write_json
from robo_razor.rollout import Mode, Progress, episode_bar, run_episodes
from robo_razor.seeding import held_out_seeds
from robo_razor.statistics import wilson_interval
from robo_razor.types import EpisodeBatch, EpisodeRow, SkillResult, make_rows


def manifest(
    tasks: Mapping[str, str], episodes: int | Mapping[str, int], seed_offset: int = HELD_OUT_SEED
) -> list[EpisodeRow]:
    """Return the rows of an evaluation: per skill, one episode for each of its start states.

    Args:
        tasks: Skill name -> Gymnasium id.
        episodes: Episodes per skill, for all or by skill name.
        seed_offset: Seed of the first start state.
    """
    rows: list[EpisodeRow] = []
    for skill, task in tasks.items():
        n = episodes if isinstance(episodes, int) else episodes[skill]
        seeds = held_out_seeds(n, seed_offset).tolist()
        rows += make_rows(task, seeds, first_row_id=len(rows))
    return rows


def skill_result(batch: EpisodeBatch, task: str, role: str | None = None) -> SkillResult:
    """Return the result of one task of a batch."""
    index = batch.of_task(task)
    successes = tuple(bool(x) for x in batch.success[index])
    steps = float(batch.control_steps[index].mean()) if len(index) else float("nan")
    interval = wilson_interval(sum(successes), len(successes))
    return SkillResult(task, role or role_of(task), successes, interval, steps)


def evaluate(
    policy: Any,
    env: Any,
    tasks: Mapping[str, str],
    episodes: int | Mapping[str, int],
    seed_offset: int = HELD_OUT_SEED,
    mode: Mode = "greedy",
    *,
    sampling_seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, SkillResult]:
    """Measure a policy's success on skills.

    Args:
        policy: A `PolicyHandle`.
        env: Vector environment that can switch to every one of the tasks.
        tasks: Skill name -> Gymnasium id.
        episodes: Episodes per skill, for all or by skill name.
        seed_offset: Seed of the first start state; from `HELD_OUT_SEED` on they are held out.
        mode: "greedy" or "sample".
        sampling_seed: Seed of sampled actions.
        progress: Called as episodes finish.

    Returns:
        Skill name -> result; outcomes in the order of the start states.
    """
    rows = manifest(tasks, episodes, seed_offset)
    batch = run_episodes(env, policy, rows, mode, progress=progress, sampling_seed=sampling_seed)
    return {skill: skill_result(batch, task) for skill, task in tasks.items()}


def result_entry(result: SkillResult) -> dict[str, Any]:
    """Return a result as plain values: success_rate, n, interval and more."""
    return {
        "task": result.task,
        "role": result.role,
        "success_rate": result.success_rate,
        "n": result.n,
        "interval": list(result.interval),
        "mean_control_steps": result.mean_control_steps,
    }


def episode_entries(batch: EpisodeBatch, mode: str) -> list[dict[str, Any]]:
    """Return one plain dictionary per episode, for `episodes.jsonl`."""
    return [
        {
            "skill": skill_name(row.task),
            "role": role_of(row.task),
            "task": row.task,
            "seed": row.seed,
            "sample": row.sample,
            "mode": mode,
            "instruction": batch.instructions[i],
            "success": bool(batch.success[i]),
            "return": float(batch.episode_return[i]),
            "decisions": int(batch.decisions[i]),
            "control_steps": int(batch.control_steps[i]),
            "terminated": bool(batch.terminated[i]),
            "truncated": bool(batch.truncated[i]),
        }
        for i, row in enumerate(batch.rows)
    ]


def results_table(results: Mapping[str, SkillResult], title: str = "") -> Table:
    """Return a table of skills with success rates and 95 % Wilson intervals."""
    table = Table(title=title or None, title_justify="left")
    table.add_column("skill")
    table.add_column("role")
    for name in ("success", "95 % interval", "n", "mean steps"):
        table.add_column(name, justify="right")
    for skill, result in results.items():
        low, high = result.interval
        table.add_row(
            skill,
            result.role,
            f"{result.success_rate:.1%}",
            f"{low:.1%} - {high:.1%}",
            str(result.n),
            f"{result.mean_control_steps:.0f}",
        )
    for role in ("prior", "new"):
        rates = [r.success_rate for r in results.values() if r.role == role]
        if len(rates) > 1:
            table.add_section()
            table.add_row(f"mean of {len(rates)}", role, f"{np.mean(rates):.1%}", "", "", "")
    return table


def run_evaluate(config: EvaluateConfig, console: Console | None = None) -> dict[str, SkillResult]:
    """Evaluate a policy as the settings say, show a table, and write the result if a file is named.

    Args:
        config: Settings of `robo-razor evaluate`.
        console: Where progress and the table are shown; default: standard output.

    Returns:
        Skill name -> result.

    Raises:
        RoboRazorError: Unknown skills or policy, or a policy that does not fit the environment.
    """
    from robo_razor.policies import load_policy

    tasks = named_tasks(config.skills, config.env.env_packages)
    if not tasks:
        raise ConfigError(
            f"`skills` = {config.skills!r} names no skill",
            allowed="prior, new, all, or names with commas",
        )
    console = console or Console()
    with torch_threads(config.torch_threads):
        policy = load_policy(config.policy, resolve_device(config.device))
        env = make_env(next(iter(tasks.values())), config.env, chunk_size=policy.chunk_size)
        try:
            policy.check_env(env.single_observation_space, env.single_action_space)
            with episode_bar(console, f"evaluating {config.policy}") as progress:
                results = evaluate(
                    policy,
                    env,
                    tasks,
                    config.episodes,
                    config.seed_offset,
                    config.mode,
                    sampling_seed=config.seed,
                    progress=progress,
                )
        finally:
            env.close()
    title = f"{config.policy}, {config.mode}, start states from seed {config.seed_offset}"
    console.print(results_table(results, title))
    if config.json is not None:
        write_json(Path(config.json), evaluation_json(config, results))
    return results


def evaluation_json(config: EvaluateConfig, results: Mapping[str, SkillResult]) -> dict[str, Any]:
    """Return what `robo-razor evaluate --json` writes."""
    from robo_razor.fingerprint import fingerprint

    return {
        "skills": {skill: result_entry(result) for skill, result in results.items()},
        "policy": config.policy,
        "mode": config.mode,
        "episodes": config.episodes,
        "seed_offset": config.seed_offset,
        "environment": fingerprint(),
    }
