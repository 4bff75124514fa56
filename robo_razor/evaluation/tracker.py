"""The measurements at step 0 and at every checkpoint, written to `eval/<step>/`.

The base is measured once, at step 0. A resumed run reads its outcomes from
`eval/000000/episodes.jsonl` and the observations of the probe sets from
`eval/000000/probes.safetensors` (checked against their hashes), so it compares with the same base.

Besides success, `summary.json` has the KL divergences on the three main probe sets and, in
`distances` (name -> number), everything else that may predict forgetting. For a policy without a
density the KL divergences are null, and `surrogate` and `surrogate_kind` take their place.
`action_kl.json` has every measure on every probe set, per decision and per action dimension.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from robo_razor.core.files import finite, read_json, without_nan, write_json
from robo_razor.core.metrics import (
    DEMONSTRATIONS,
    GREEDY,
    MAIN_STATES,
    NEW,
    NEW_BASE,
    NEW_TUNED,
    PRIOR,
    SAMPLE,
    SURROGATE,
    OnStates,
    PriorMeans,
    SampledSuccess,
    SkillSummary,
    Summary,
)
from robo_razor.core.plain_text import skill_name
from robo_razor.core.ranks import ALONE, Ranks
from robo_razor.core.run.directory import DAMAGED_EVALUATION, RunDirectory
from robo_razor.core.seeding import derive
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DemonstrationSet, EpisodeBatch, SkillResult
from robo_razor.evaluation.divergences import (
    CHUNK_DISTANCE,
    DIRECTIONS,
    ENTROPY_BASE,
    ENTROPY_CHANGE,
    PREDICTORS,
    Behaviour,
)
from robo_razor.evaluation.evaluate import batch_result, episode_entries, result_entry
from robo_razor.evaluation.forgetting import (
    ProbeResult,
    SkillForgetting,
    behaviour,
    measure_probe,
    probe_entry,
    skill_forgetting,
)
from robo_razor.evaluation.predictors import Comparison, measure_predictors
from robo_razor.evaluation.probes import (
    ProbeSet,
    demonstration_probe,
    encode_probe,
    load_probes,
    make_probe,
    prior_states,
    save_probes,
)
from robo_razor.policies.policy import Policy
from robo_razor.rollout.episodes import Progress
from robo_razor.rollout.groups import VectorEnv
from robo_razor.rollout.shared import run_shared
from robo_razor.rollout.start_states import held_out_rows

ACTION_KL = "action_kl.json"
PROBES = "probes.safetensors"
SURROGATE_KIND = "mean squared distance of action chunks in normalised units, not a KL divergence"
"""What `surrogate` is for policies without a density."""

Outcomes = dict[tuple[str, str, int], bool]
"""(mode, task, seed) -> success."""


class Tracker:
    """Measures a policy against its base at the checkpoints of one run.

    Args:
        config: The run's settings.
        run: Where results are written, and the base's results are read.
        env: Vector environment that can switch to every task.
        base: The frozen base.
        prior: Skill name -> task id of the skills that may be forgotten.
        ranks: This process among the processes of the run, which divide the episodes.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        run: RunDirectory,
        env: VectorEnv,
        base: Policy,
        prior: dict[str, str],
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.run, self.env, self.base = config, run, env, base
        self.ranks = ranks
        name = skill_name(config.task)
        self.new = {config.task if name in prior else name: config.task}
        self.prior = prior if config.tracking.episodes_prior else {}
        self.base_outcomes: Outcomes = {}
        self.probes: dict[str, ProbeSet] = {}
        self.demonstrations: ProbeSet | None = None
        self._of_base: dict[str, dict[str, Tensor]] = {}
        self._base_behaviour: dict[str, list[Behaviour]] = {}
        self.sampled_success: tuple[bool, ...] = ()

    def is_measured(self, step: int) -> bool:
        """Return whether the step's evaluation is on disk and whole."""
        return self.run.is_measured(step)

    def load_base(self) -> None:
        """Read back what step 0 measured."""
        directory = self.run.evaluation(0)
        for row in self.run.episodes(0):
            self.base_outcomes[row.mode, row.task, row.seed] = row.success
        self.sampled_success = tuple(
            success
            for (mode, task, _), success in self.base_outcomes.items()
            if mode == SAMPLE and task == self.config.task
        )
        hashes = _hashes(directory / ACTION_KL)
        if (directory / PROBES).is_file() or hashes:
            self.probes = load_probes(directory / PROBES, hashes)

    def see_demonstrations(self, demonstrations: DemonstrationSet) -> None:
        """Make a probe set of a few states of the demonstrations, unless step 0 is measured.

        A set that is added later could not be compared along the run.
        """
        if not self.is_measured(0):
            n = self.config.tracking.kl_states
            self.demonstrations = demonstration_probe(demonstrations, self.base, n)

    def measure(
        self,
        policy: Policy,
        step: int,
        *,
        final: bool = False,
        extra: Callable[[], dict[str, Any]] = dict,
        progress: Progress | None = None,
    ) -> Summary:
        """Measure a policy and write `eval/<step>/`.

        Args:
            policy: The policy as it is at this step; at step 0 equal to the base.
            step: Updates done.
            final: Whether this is the run's last checkpoint, which gets more episodes.
            extra: Returns further entries of the summary; called when everything is measured.
            progress: Called as episodes finish.

        Returns:
            What was written to `summary.json`.
        """
        start = time.perf_counter()
        policy.module.eval()
        greedy = self._run_greedy(policy, step, final=final, progress=progress)
        sampled = self._run_sampled(policy, progress)
        if step == 0:
            self._keep_base(policy, greedy, sampled)
        visited = greedy if sampled is None and not policy.has_density else sampled
        results = self._measure_probes(policy, visited)
        summary = self._summary(step, greedy, sampled, results)
        distances = self._distances(policy, results)
        tracking_s = time.perf_counter() - start
        summary = replace(summary, distances=distances, tracking_s=tracking_s, **extra())
        self._write(step, summary, results, [(greedy, GREEDY), (sampled, SAMPLE)])
        return summary

    def alarm(self, summary: Summary) -> str | None:
        """Return a warning of prior skills whose retention interval is below the alarm's value."""
        threshold = self.config.tracking.alarm_retention
        forgotten = [
            f"{skill} {entry.base_success_rate:.0%} -> {entry.success_rate:.0%}"
            for skill, entry in summary.prior.items()
            if entry.retention_interval and entry.retention_interval[1] < threshold
        ]
        if not forgotten:
            return None
        skills_are = "skill is" if len(forgotten) == 1 else "skills are"
        return (
            f"{len(forgotten)} of {len(summary.prior)} prior {skills_are} being forgotten "
            f"(retention below {threshold:g} beyond its 95 % interval): {', '.join(forgotten)}"
        )

    def _run_greedy(
        self, policy: Policy, step: int, *, final: bool, progress: Progress | None
    ) -> EpisodeBatch:
        tracking = self.config.tracking
        # The base runs the last checkpoint's episodes too: both are compared on the same starts.
        n = max(tracking.episodes_new, tracking.final_episodes_new if final or step == 0 else 0)
        episodes = {skill: n for skill in self.new}
        episodes |= {skill: tracking.episodes_prior for skill in self.prior}
        rows = held_out_rows(self.new | self.prior, episodes)
        record: Literal["inputs", False] = False
        if step == 0 or not policy.has_density:  # without a density there are no sampled episodes
            record = "inputs"
        return run_shared(
            self.ranks, self.env, policy, rows, "greedy", record, progress, whole=True
        )

    def _run_sampled(self, policy: Policy, progress: Progress | None) -> EpisodeBatch | None:
        n = self.config.tracking.episodes_new_sampled
        if not policy.has_density or n == 0:
            return None
        seed = derive(self.config.seed, "tracking actions")
        rows = held_out_rows(self.new, n)
        return run_shared(
            self.ranks,
            self.env,
            policy,
            rows,
            "sample",
            "inputs",
            progress,
            sampling_seed=seed,
            whole=True,
        )

    def _keep_base(
        self, policy: Policy, greedy: EpisodeBatch, sampled: EpisodeBatch | None
    ) -> None:
        """Remember the base's outcomes and make the probe sets, which do not change later."""
        for batch, mode in ((greedy, GREEDY), (sampled, SAMPLE)):
            if batch is not None:
                for row, success in zip(batch.rows, batch.success, strict=True):
                    self.base_outcomes[mode, row.task, row.seed] = bool(success)
        if sampled is not None:
            self.sampled_success = tuple(bool(x) for x in sampled.success)
        n = self.config.tracking.kl_states
        visited = sampled or greedy
        new = visited.of_task(self.config.task)
        self.probes[NEW_BASE] = make_probe(visited.record, n, new)
        if self.prior:
            prior = np.concatenate([greedy.of_task(task) for task in self.prior.values()])
            self.probes[PRIOR] = make_probe(greedy.record, n, np.sort(prior))
        for skill, task in self.prior.items():
            probe = make_probe(greedy.record, n, greedy.of_task(task))
            self.probes[prior_states(skill)] = probe
        if self.demonstrations is not None:
            self.probes[DEMONSTRATIONS] = encode_probe(self.demonstrations, policy)
        save_probes(self.run.evaluation(0) / PROBES, self.probes)

    def _measure_probes(
        self, policy: Policy, visited: EpisodeBatch | None
    ) -> dict[str, ProbeResult]:
        """Return the measures on each probe set, and on states that the tuned policy visited."""
        probes = dict(self.probes)
        if visited is not None and visited.record is not None:
            n = self.config.tracking.kl_states
            probes[NEW_TUNED] = make_probe(visited.record, n, visited.of_task(self.config.task))
        for name, probe in self.probes.items():
            if name not in self._base_behaviour:
                self._base_behaviour[name] = behaviour(self.base, probe)
        return {
            name: measure_probe(self.base, policy, probe, self._base_behaviour.get(name))
            for name, probe in probes.items()
        }

    def _distances(self, policy: Policy, results: dict[str, ProbeResult]) -> dict[str, float]:
        """Return what may predict forgetting besides the KL divergences of the summary."""
        distances: dict[str, float | None] = {}
        for states, result in results.items():
            names = PREDICTORS if states in MAIN_STATES else DIRECTIONS + PREDICTORS
            distances |= {f"{name}/{states}": result.mean(name) for name in names}
        comparison = Comparison(self.base, policy, self.probes, self._of_base)
        distances |= measure_predictors(comparison, expensive=self.config.tracking.distances)
        return {name: value for name, value in distances.items() if value is not None}

    def _summary(
        self,
        step: int,
        greedy: EpisodeBatch,
        sampled: EpisodeBatch | None,
        results: dict[str, ProbeResult],
    ) -> Summary:
        new = {skill: self._entry(greedy, task, NEW) for skill, task in self.new.items()}
        if sampled is not None:
            for skill, task in self.new.items():
                result = batch_result(sampled, task, NEW)
                success = SampledSuccess(
                    success_rate=result.success_rate, n=result.n, interval=result.interval
                )
                new[skill] = replace(new[skill], sampled=success)
        prior = {skill: self._entry(greedy, task, PRIOR) for skill, task in self.prior.items()}
        on_states: dict[str, Any] = {}
        for direction in DIRECTIONS:
            on_states |= _main_states(direction, direction, results)
        if not self.base.has_density:
            on_states |= _main_states(SURROGATE, CHUNK_DISTANCE, results)
        measures = [result.measures.get(DIRECTIONS[0]) for result in results.values()]
        entropy = results[NEW_BASE].mean(ENTROPY_BASE) if NEW_BASE in results else None
        if entropy is not None:
            entropy += results[NEW_BASE].mean(ENTROPY_CHANGE) or 0.0
        return Summary(
            step=step,
            method=self.config.method.name,
            task=self.config.task,
            seed=self.config.seed,
            policy=self.config.policy,
            new=new,
            prior=prior,
            prior_mean=_prior_mean(prior),
            **on_states,
            kl_kind=next((kl.kind for kl in measures if kl is not None), None),
            surrogate_kind=None if self.base.has_density else SURROGATE_KIND,
            entropy=entropy,
            nulls=frozenset({"kl_kind"}),
        )

    def _entry(self, batch: EpisodeBatch, task: str, role: str) -> SkillSummary:
        result = batch_result(batch, task, role)
        entry = result_entry(result)
        change = self._change(batch, task, result)
        if change is None:
            return entry
        if role == NEW:  # forgetting is measured on prior skills only
            return replace(entry, base_success_rate=change.base_success_rate)
        numbers = asdict(change)
        return replace(entry, **numbers, nulls=entry.nulls | numbers.keys())

    def _change(
        self, batch: EpisodeBatch, task: str, result: SkillResult
    ) -> SkillForgetting | None:
        """Compare with the base on the start states that both have run."""
        seeds = [batch.rows[i].seed for i in batch.of_task(task)]
        pairs = [
            (self.base_outcomes[GREEDY, task, seed], after)
            for seed, after in zip(seeds, result.successes, strict=True)
            if (GREEDY, task, seed) in self.base_outcomes
        ]
        if not pairs:
            return None
        return skill_forgetting([p[0] for p in pairs], [p[1] for p in pairs])

    def _write(
        self,
        step: int,
        summary: Summary,
        results: dict[str, ProbeResult],
        batches: list[tuple[EpisodeBatch | None, str]],
    ) -> None:
        task, skills = self.config.task, self.new | self.prior
        entries_of = [
            episode_entries(batch, mode, task, skills) for batch, mode in batches if batch
        ]
        self.run.write_episodes(step, [entry for entries in entries_of for entry in entries])
        total_s = float(summary.tracking_s or 0.0)
        entries = {name: probe_entry(result, total_s) for name, result in results.items()}
        write_json(self.run.evaluation(step) / ACTION_KL, without_nan(entries))
        self.run.write_summary(step, summary)  # last: it marks the step as measured


def _main_states(key: str, name: str, results: dict[str, ProbeResult]) -> dict[str, OnStates]:
    """Return a measure and its standard error on the main probe sets; None: not measured."""
    measures = {
        states: results[states].measures.get(name) if states in results else None
        for states in MAIN_STATES
    }
    return {
        key: {states: None if x is None else x.mean for states, x in measures.items()},
        f"{key}_standard_error": {
            states: None if x is None else finite(x.standard_error)
            for states, x in measures.items()
        },
    }


def _prior_mean(prior: dict[str, SkillSummary]) -> PriorMeans:
    """Return the means over prior skills of success, retention and forgetting (NBT)."""
    skills = prior.values()
    return PriorMeans(
        success_rate=_mean([skill.success_rate for skill in skills]),
        base_success_rate=_mean([skill.base_success_rate for skill in skills]),
        retention=_mean([skill.retention for skill in skills]),
        forgetting=_mean([skill.forgetting for skill in skills]),
        nulls=frozenset({"success_rate", "base_success_rate", "retention", "forgetting"}),
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _hashes(path: Path) -> dict[str, str]:
    """Return probe set -> hash from `action_kl.json`; empty where the file has no hashes."""
    entries = read_json(path, DAMAGED_EVALUATION) if path.is_file() else {}
    return {name: entry["hash"] for name, entry in entries.items() if "hash" in entry}
