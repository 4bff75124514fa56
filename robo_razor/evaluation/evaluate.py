"""Success of a policy on skills, over a manifest of fixed start states.

Every skill has a quota of episodes, one per start state, and every episode counts. Averages over
the first episodes to finish would favour fast ones, and successful episodes are fast.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from robo_razor.core.errors import ConfigError
from robo_razor.core.files import check_writable, finite, without_nan, write_text
from robo_razor.core.fingerprint import fingerprint
from robo_razor.core.machine import resolve_device, torch_threads
from robo_razor.core.metrics import NEW, PRIOR, EpisodeEntry, SkillSummary
from robo_razor.core.plain_text import printable, skill_name
from robo_razor.core.ranks import Ranks, launched
from robo_razor.core.settings.config import HELD_OUT_SEED, EvaluateConfig, replace
from robo_razor.core.types import EpisodeBatch, EpisodeRow, SkillResult
from robo_razor.evaluation.episode_log import EpisodeLog
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Mode
from robo_razor.rollout.environments import make_fitting_env, named_tasks, resolve_tasks, role_of
from robo_razor.rollout.episodes import Progress, episode_bar, run_episodes
from robo_razor.rollout.groups import VectorEnv, workers_beside
from robo_razor.rollout.start_states import EPISODES, Manifest, held_out_rows
from robo_razor.statistics.intervals import wilson_interval
from robo_razor.statistics.stopping import SequentialInterval

EPISODES_UNTIL_WIDTH = 2000
"""Most episodes per skill of an evaluation that stops by itself, by default."""
LOOK_EVERY = 50
"""Fewest episodes of a skill between two looks at its interval."""
MOST_LOOKS = 40
"""Most looks at an interval: the width that covers takes longer to compute with every look."""


def skill_result(
    task: str,
    successes: Sequence[Any],
    control_steps: Sequence[Any] | NDArray[Any],
    role: str | None = None,
    interval: tuple[float, float] | None = None,
) -> SkillResult:
    """Return the result of one task from its episodes, in the order of the start states.

    Args:
        task: Its id.
        successes: Whether each episode succeeded.
        control_steps: Length of each episode.
        role: "prior" or "new"; None: as registered.
        interval: Interval of the success rate; None: Wilson's.
    """
    outcomes = tuple(bool(success) for success in successes)
    steps = float(np.mean(control_steps)) if len(outcomes) else float("nan")
    interval = interval or wilson_interval(sum(outcomes), len(outcomes))
    return SkillResult(task, role or role_of(task), outcomes, interval, steps)


def batch_result(batch: EpisodeBatch, task: str, role: str | None = None) -> SkillResult:
    """Return the result of one task of a batch."""
    index = batch.of_task(task)
    return skill_result(task, batch.success[index].tolist(), batch.control_steps[index], role)


def evaluate(
    policy: Policy,
    env: VectorEnv,
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
        policy: The policy.
        env: Vector environment that can switch to every one of the tasks.
        tasks: Skill name -> Gymnasium id.
        episodes: Episodes per skill, for all or by skill name.
        seed_offset: Seed of the first start state; seeds from `HELD_OUT_SEED` on are held out.
        mode: "greedy" or "sample".
        sampling_seed: Seed of sampled actions.
        progress: Called as episodes finish.

    Returns:
        Skill name -> result; outcomes in the order of the start states.
    """
    rows = held_out_rows(tasks, episodes, seed_offset)
    batch = run_episodes(env, policy, rows, mode, progress=progress, sampling_seed=sampling_seed)
    return {skill: batch_result(batch, task) for skill, task in tasks.items()}


def result_entry(result: SkillResult) -> SkillSummary:
    """Return a result in the format of files: success_rate, n, interval and more."""
    return SkillSummary(
        task=result.task,
        role=result.role,
        success_rate=result.success_rate,
        n=result.n,
        interval=result.interval,
        mean_control_steps=finite(result.mean_control_steps),
        nulls=frozenset({"mean_control_steps"}),
    )


def episode_entries(
    batch: EpisodeBatch,
    mode: str,
    new_task: str | None = None,
    skills: Mapping[str, str] | None = None,
) -> list[EpisodeEntry]:
    """Return one entry per episode, for `episodes.jsonl`.

    Args:
        batch: The episodes.
        mode: "greedy" or "sample".
        new_task: The task that is being learnt, all others are prior; None: as registered.
        skills: Skill name -> task id, for tasks with other names than their short ones.
    """
    names = {task: skill for skill, task in (skills or {}).items()}
    return [
        EpisodeEntry(
            row=row.row_id,
            skill=names.get(row.task) or skill_name(row.task),
            role=role_of(row.task) if new_task is None else _role(row.task, new_task),
            task=row.task,
            seed=row.seed,
            sample=row.sample,
            mode=mode,
            instruction=batch.instructions[i],
            start_state=batch.start_states[i] if batch.start_states else None,
            success=bool(batch.success[i]),
            episode_return=float(batch.episode_return[i]),
            decisions=int(batch.decisions[i]),
            control_steps=int(batch.control_steps[i]),
            terminated=bool(batch.terminated[i]),
            truncated=bool(batch.truncated[i]),
            nulls=frozenset({"start_state"}),
        )
        for i, row in enumerate(batch.rows)
    ]


def _role(task: str, new_task: str) -> str:
    return NEW if task == new_task else PRIOR


@dataclass(frozen=True)
class _Plan:
    """The rows of an evaluation, and the names of their tasks."""

    manifest: Manifest
    skills: dict[str, str]
    """Skill name -> task id."""

    def rows_of(self, skill: str) -> list[EpisodeRow]:
        return [row for row in self.manifest.rows if row.task == self.skills[skill]]


@dataclass(frozen=True)
class Evaluation:
    """A policy's success on skills.

    Attributes:
        results: Skill name -> result.
        is_main: Whether this rank prints the results, where several have measured together.
    """

    results: dict[str, SkillResult]
    is_main: bool = True


def evaluate_as_set(config: EvaluateConfig, console: Console | None = None) -> Evaluation:
    """Evaluate a policy as the settings say, and write the result if they name a file.

    Args:
        config: Settings of `robo-razor evaluate`.
        console: Where progress is shown; None: nowhere.

    Raises:
        RoboRazorError: Unknown skills or policy, a policy that does not fit the environment, or a
            start state that differs from the manifest's.
        KeyboardInterrupt: With a note about the finished episodes.
    """
    if config.json is not None:
        check_writable(config.json, "json")
    plan = _plan(config)
    ranks = launched(config.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(config.torch_threads, ranks.size))
        if not ranks.is_main:
            console, config = None, replace(config, json=None)
        policy = load_policy(config.policy, resolve_device(config.device))
        policy.rename(config.rename)
        env = make_fitting_env(policy, plan.manifest.tasks, config.env)
        stack.callback(env.close)
        workers = workers_beside(env)
        stack.enter_context(torch_threads(config.torch_threads, ranks.size, workers))
        with _episode_log(config, plan, policy) as log:
            results = _measure(config, plan, policy, env, log, console, ranks)
            if config.json is not None:
                environment = fingerprint(policy=policy, env=env, config=config)
                data = evaluation_json(config, plan.manifest, results, log, environment)
                _write_result(Path(config.json), data)
                log.discard()
    return Evaluation(results, ranks.is_main)


def chosen_skills(skills: str, env_packages: Sequence[str]) -> dict[str, str]:
    """Return skill name -> task id of the skills in a setting.

    Raises:
        ConfigError: It names no skill.
    """
    tasks = named_tasks(skills, env_packages)
    if not tasks:
        raise ConfigError(
            f"`skills` = {skills!r} names no skill",
            allowed="prior, new, all, or names with commas",
        )
    return tasks


def _plan(config: EvaluateConfig) -> _Plan:
    """Choose the rows: from a manifest, or held-out seeds."""
    packages = config.env.env_packages
    if config.manifest is None:
        skills = chosen_skills(config.skills, packages)
        default = EPISODES if config.until_width is None else EPISODES_UNTIL_WIDTH
        rows = held_out_rows(skills, config.episodes or default, config.seed_offset)
        return _Plan(Manifest.of(rows), skills)
    manifest = Manifest.load(config.manifest)
    tasks = manifest.tasks if config.skills == "all" else resolve_tasks(config.skills, packages)
    missing = [task for task in tasks if task not in manifest.tasks]
    if missing or not tasks:
        reason = f"the manifest {config.manifest!r} has no rows of {', '.join(missing)}"
        if not missing:
            reason = "it names no skill"
        raise ConfigError(
            f"`skills` = {config.skills!r}: {reason}",
            allowed=", ".join(skill_name(task) for task in manifest.tasks),
        )
    return _Plan(manifest.select(tasks, config.episodes), named_tasks(",".join(tasks), packages))


def _episode_log(config: EvaluateConfig, plan: _Plan, policy: Policy) -> EpisodeLog:
    if config.json is None:
        return EpisodeLog(plan.manifest)
    environment = fingerprint(policy=policy, config=config)
    return EpisodeLog(
        plan.manifest,
        path=Path(f"{config.json}.unfinished"),
        identity={
            "policy": environment["policy_hash"],
            "rows": plan.manifest.hash,
            "mode": config.mode,
            "seed": config.seed,
            "until_width": config.until_width,  # a rule that changes after a look covers less
        },
        fingerprint=environment,
        resume=config.resume,
    )


def _measure(
    config: EvaluateConfig,
    plan: _Plan,
    policy: Policy,
    env: VectorEnv,
    log: EpisodeLog,
    console: Console | None,
    ranks: Ranks,
) -> dict[str, SkillResult]:
    """Run the rows that are not in the log yet, each skill until its stopping rule holds."""
    total = len(plan.manifest)

    def run(rows: Sequence[EpisodeRow]) -> None:
        before = len(log.entries)
        successes = sum(entry["success"] for entry in log.entries.values())
        block = log.begin(rows, ranks)
        run_episodes(
            env,
            policy,
            block,
            config.mode,
            progress=lambda done, _, new: progress(before + done, total, successes + new),
            sampling_seed=config.seed,
            observer=log,
        )
        log.end(ranks)

    try:
        with episode_bar(console, f"evaluating {printable(config.policy)}") as progress:
            rows = {skill: plan.rows_of(skill) for skill in plan.skills}
            if config.until_width is None:
                run(plan.manifest.rows)
                return {
                    skill: _log_result(log, rows_of_skill, plan.skills[skill])
                    for skill, rows_of_skill in rows.items()
                }
            return _run_until_width(config.until_width, plan.skills, rows, log, run)
    except KeyboardInterrupt as interrupt:
        if log.path is not None:
            interrupt.add_note(
                f"{len(log.entries)} finished episodes are saved in {log.path}; "
                "`--resume` continues with them."
            )
        raise


def _run_until_width(
    width: float,
    skills: Mapping[str, str],
    rows: Mapping[str, list[EpisodeRow]],
    log: EpisodeLog,
    run: Callable[[Sequence[EpisodeRow]], None],
) -> dict[str, SkillResult]:
    """Run each skill's rows in their order until its interval is narrow enough.

    Blocks of rows are run completely, in the order of the manifest. So the result does not depend
    on the number of environments, nor on which episode ends first.
    """
    rules = {skill: _rule(width, len(rows[skill])) for skill in rows}
    results: dict[str, SkillResult] = {}
    for look in itertools.count():
        ends = {skill: rule.looks[look] for skill, rule in rules.items() if skill not in results}
        if not ends:
            break
        run([row for skill, n in ends.items() for row in rows[skill][:n]])
        for skill, n in ends.items():
            successes = sum(entry["success"] for entry in log.of(rows[skill][:n]))
            if rules[skill].update(successes, n):  # true at the last look at the latest
                interval = rules[skill].interval(successes, n)
                results[skill] = _log_result(log, rows[skill][:n], skills[skill], interval)
    return {skill: results[skill] for skill in rows}


def _rule(width: float, max_n: int) -> SequentialInterval:
    look_every = max(LOOK_EVERY, math.ceil(max_n / MOST_LOOKS))
    return SequentialInterval(width, look_every=look_every, max_n=max_n)


def _log_result(
    log: EpisodeLog,
    rows: Sequence[EpisodeRow],
    task: str,
    interval: tuple[float, float] | None = None,
) -> SkillResult:
    """Return the result of one task from its finished rows."""
    entries = log.of(rows)
    successes = [entry["success"] for entry in entries]
    steps = [entry["control_steps"] for entry in entries]
    return skill_result(task, successes, steps, interval=interval)


def evaluation_json(
    config: EvaluateConfig,
    manifest: Manifest,
    results: Mapping[str, SkillResult],
    log: EpisodeLog,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the file of `robo-razor evaluate --json`; `rows` has an entry per row that counts."""
    counts = {result.task: result.n for result in results.values()}
    rows = [row for task, n in counts.items() for row in manifest.select([task], n).rows]
    entries = sorted(log.of(rows), key=lambda entry: int(entry["row"]))
    run_rows = Manifest.of_entries(entries)
    return {
        "skills": {skill: result_entry(result).to_json() for skill, result in results.items()},
        "policy": config.policy,
        "mode": config.mode,
        "episodes": max(counts.values()),
        "seed_offset": None if config.manifest else config.seed_offset,
        "until_width": config.until_width,
        "interval": "sequential" if config.until_width else "wilson",
        "manifest": {"name": manifest.name or None, "hash": manifest.source_hash or run_rows.hash},
        "environment": dict(environment),
        "rows": entries,
    }


def _write_result(path: Path, data: dict[str, Any]) -> None:
    """Write the result as JSON, one line per row."""
    data = without_nan(data)
    head = json.dumps({**data, "rows": []}, indent=2, allow_nan=False)
    rows = ",\n    ".join(json.dumps(entry, allow_nan=False) for entry in data["rows"])
    write_text(path, head.removesuffix("[]\n}") + f"[\n    {rows}\n  ]\n}}\n")
