"""What is measured at step 0 and at every checkpoint, and written to `eval/<step>/`.

The base is measured once, at step 0: its outcomes are read back from `eval/000000/episodes.jsonl`
and its observations from `eval/000000/probes.safetensors`, so a resumed run compares with the same.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from robo_razor.checkpoint import EPISODES, SUMMARY, RunDirectory
from robo_razor.config import FinetuneConfig
from robo_razor.environment import skill_name
from robo_razor.evaluation import episode_entries, manifest, result_entry, skill_result
from robo_razor.files import read_json, write_json
from robo_razor.forgetting import (
    DIRECTIONS,
    ProbeSet,
    SkillForgetting,
    divergence_entry,
    make_probe,
    mean_entropy,
    measure_kl,
    skill_forgetting,
)
from robo_razor.rollout import Progress, run_episodes
from robo_razor.seeding import derive
from robo_razor.statistics import wilson_interval
from robo_razor.training_state import load_tensors
from robo_razor.types import EpisodeBatch, SkillResult

ACTION_KL = "action_kl.json"
PROBES = "probes.safetensors"
NEW_BASE, NEW_TUNED, PRIOR = "new_base_visited", "new_tuned_visited", "prior"

Outcomes = dict[tuple[str, str, int], bool]
"""(mode, task, seed) -> success."""


class Tracker:
    """Measures a policy against its base at the checkpoints of one run.

    Args:
        config: The run's settings.
        run: Where results are written and the base's are read back.
        env: Vector environment that can switch to every task.
        base: `PolicyHandle` of the frozen base.
        prior: Skill name -> task id of the skills that may be forgotten.
    """

    def __init__(
        self, config: FinetuneConfig, run: RunDirectory, env: Any, base: Any, prior: dict[str, str]
    ) -> None:
        self.config, self.run, self.env, self.base = config, run, env, base
        self.new = {skill_name(config.task): config.task}
        self.prior = prior if config.tracking.episodes_prior else {}
        self.base_outcomes: Outcomes = {}
        self.probes: dict[str, ProbeSet] = {}
        self.sampled_success: tuple[bool, ...] = ()

    def is_measured(self, step: int) -> bool:
        """Tell whether the step's summary is on disk."""
        return (self.run.evaluation(step) / SUMMARY).is_file()

    def load_base(self) -> None:
        """Read back what step 0 measured."""
        directory = self.run.evaluation(0)
        for line in (directory / EPISODES).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            self.base_outcomes[row["mode"], row["task"], row["seed"]] = row["success"]
        self.sampled_success = tuple(
            success
            for (mode, task, _), success in self.base_outcomes.items()
            if mode == "sample" and task == self.config.task
        )
        if (directory / PROBES).is_file():
            self.probes = _load_probes(directory / PROBES)

    def measure(
        self,
        policy: Any,
        step: int,
        *,
        final: bool = False,
        extra: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Measure a policy and write `eval/<step>/`.

        Args:
            policy: `PolicyHandle` as it is at this step; at step 0 equal to the base.
            step: Updates done.
            final: Whether this is the run's last checkpoint, which gets more episodes.
            extra: Further entries of the summary.
            progress: Called as episodes finish.

        Returns:
            What was written to `summary.json`.
        """
        start = time.perf_counter()
        policy.module.eval()
        greedy = self._run_greedy(policy, final=final, record=step == 0, progress=progress)
        sampled = self._run_sampled(policy, progress)
        if step == 0:
            self._keep_base(greedy, sampled)
        kl = self._measure_kl(policy, sampled)
        summary = self._summary(step, greedy, sampled, kl)
        if policy.has_density and NEW_BASE in self.probes:
            summary["entropy"] = mean_entropy(policy, self.probes[NEW_BASE])
        summary["tracking_s"] = time.perf_counter() - start
        summary |= extra or {}
        self._write(step, summary, kl, [(greedy, "greedy"), (sampled, "sample")])
        return summary

    def alarms(self, summary: dict[str, Any]) -> list[str]:
        """Return a warning for every prior skill that is certainly below the alarm's retention."""
        threshold = self.config.tracking.alarm_retention
        return [
            f"{skill} is being forgotten: {entry['success_rate']:.0%} against "
            f"{entry['base_success_rate']:.0%} of the base (retention {entry['retention']:.2f}, at "
            f"most {entry['retention_interval'][1]:.2f}; alarm below {threshold:g})"
            for skill, entry in summary["prior"].items()
            if entry.get("retention_interval") and entry["retention_interval"][1] < threshold
        ]

    def score(self, step: int) -> float:
        """Return what `best` maximises: the lower end of the new task's interval.

        Always over the start states that every checkpoint runs, so that more episodes at the last
        one are no advantage.
        """
        rows = (self.run.evaluation(step) / EPISODES).read_text(encoding="utf-8").splitlines()
        found = [json.loads(row) for row in rows]
        successes = [
            row["success"]
            for row in found
            if row["task"] == self.config.task and row["mode"] == "greedy"
        ][: self.config.tracking.episodes_new]
        return wilson_interval(sum(successes), len(successes))[0]

    def _run_greedy(
        self, policy: Any, *, final: bool, record: bool, progress: Progress | None
    ) -> EpisodeBatch:
        tracking = self.config.tracking
        n = max(tracking.episodes_new, tracking.final_episodes_new if final else 0)
        episodes = {skill: n for skill in self.new}
        episodes |= {skill: tracking.episodes_prior for skill in self.prior}
        rows = manifest(self.new | self.prior, episodes)
        keep: Literal["inputs", False] = "inputs" if record else False
        return run_episodes(self.env, policy, rows, "greedy", keep, progress)

    def _run_sampled(self, policy: Any, progress: Progress | None) -> EpisodeBatch | None:
        n = self.config.tracking.episodes_new_sampled
        if not policy.has_density or n == 0:
            return None
        seed = derive(self.config.seed, "tracking actions")
        rows = manifest(self.new, n)
        return run_episodes(
            self.env, policy, rows, "sample", "inputs", progress, sampling_seed=seed
        )

    def _keep_base(self, greedy: EpisodeBatch, sampled: EpisodeBatch | None) -> None:
        """Keep the base's outcomes and observations."""
        for batch, mode in ((greedy, "greedy"), (sampled, "sample")):
            if batch is not None:
                for row, success in zip(batch.rows, batch.success, strict=True):
                    self.base_outcomes[mode, row.task, row.seed] = bool(success)
        if sampled is not None:
            self.sampled_success = tuple(bool(x) for x in sampled.success)
        if not self.base.has_density:
            return
        n = self.config.tracking.kl_states
        visited = sampled or greedy
        assert visited.record is not None
        assert greedy.record is not None
        new = visited.of_task(self.config.task)
        self.probes[NEW_BASE] = make_probe(visited.record, n, new)
        if self.prior:
            prior = np.concatenate([greedy.of_task(task) for task in self.prior.values()])
            self.probes[PRIOR] = make_probe(greedy.record, n, np.sort(prior))
        _save_probes(self.run.evaluation(0) / PROBES, self.probes)

    def _measure_kl(self, policy: Any, sampled: EpisodeBatch | None) -> dict[str, dict[str, Any]]:
        """Return probe set -> direction -> divergence; empty for policies without density."""
        if not policy.has_density:
            return {}
        probes = dict(self.probes)
        if sampled is not None and sampled.record is not None:
            n = self.config.tracking.kl_states
            probes[NEW_TUNED] = make_probe(sampled.record, n, sampled.of_task(self.config.task))
        return {name: measure_kl(self.base, policy, probe) for name, probe in probes.items()}

    def _summary(
        self,
        step: int,
        greedy: EpisodeBatch,
        sampled: EpisodeBatch | None,
        kl: dict[str, dict[str, Any]],
    ) -> dict[str, Any]:
        new = {skill: self._entry(greedy, task, "new") for skill, task in self.new.items()}
        if sampled is not None:
            for skill, task in self.new.items():
                result = skill_result(sampled, task, "new")
                new[skill]["sampled"] = {
                    "success_rate": result.success_rate,
                    "n": result.n,
                    "interval": list(result.interval),
                }
        prior = {skill: self._entry(greedy, task, "prior") for skill, task in self.prior.items()}
        sets = (NEW_BASE, NEW_TUNED, PRIOR)
        summary: dict[str, Any] = {
            "step": step,
            "method": self.config.method,
            "task": self.config.task,
            "seed": self.config.seed,
            "policy": self.config.policy,
            "new": new,
            "prior": prior,
            "prior_mean": _prior_mean(prior),
        }
        for direction in DIRECTIONS:
            summary[direction] = {
                name: kl[name][direction].mean if name in kl else None for name in sets
            }
            summary[f"{direction}_standard_error"] = {
                name: _finite(kl[name][direction].standard_error) if name in kl else None
                for name in sets
            }
        kinds = {item[direction].kind for item in kl.values() for direction in DIRECTIONS}
        summary["kl_kind"] = kinds.pop() if kinds else None
        return summary

    def _entry(self, batch: EpisodeBatch, task: str, role: str) -> dict[str, Any]:
        result = skill_result(batch, task, role)
        entry = result_entry(result)
        change = self._change(batch, task, result)
        if change is not None:
            numbers = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(change).items()
            }
            if role == "new":  # one does not forget what one is learning
                numbers = {"base_success_rate": change.base_success_rate}
            entry |= numbers
        return entry

    def _change(
        self, batch: EpisodeBatch, task: str, result: SkillResult
    ) -> SkillForgetting | None:
        """Compare with the base on the start states that both have run."""
        seeds = [batch.rows[i].seed for i in batch.of_task(task)]
        pairs = [
            (self.base_outcomes["greedy", task, seed], after)
            for seed, after in zip(seeds, result.successes, strict=True)
            if ("greedy", task, seed) in self.base_outcomes
        ]
        if not pairs:
            return None
        return skill_forgetting([p[0] for p in pairs], [p[1] for p in pairs])

    def _write(
        self,
        step: int,
        summary: dict[str, Any],
        kl: dict[str, dict[str, Any]],
        batches: list[tuple[EpisodeBatch | None, str]],
    ) -> None:
        rows = [row for batch, mode in batches if batch for row in episode_entries(batch, mode)]
        self.run.write_rows(step, rows)
        entries = {
            name: {direction: divergence_entry(item[direction]) for direction in DIRECTIONS}
            for name, item in kl.items()
        }
        write_json(self.run.evaluation(step) / ACTION_KL, entries)
        self.run.write_summary(step, summary)  # last: its presence says that the step is measured


def read_summary(run: RunDirectory, step: int) -> dict[str, Any]:
    """Return a step's `summary.json`."""
    summary: dict[str, Any] = read_json(run.evaluation(step) / SUMMARY)
    return summary


def _prior_mean(prior: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Return the means over prior skills of success, retention and forgetting (NBT)."""
    retentions = [e["retention"] for e in prior.values() if e.get("retention") is not None]
    return {
        "success_rate": _mean([e["success_rate"] for e in prior.values()]),
        "base_success_rate": _mean([e["base_success_rate"] for e in prior.values()]),
        "retention": _mean(retentions),
        "forgetting": _mean([e["forgetting"] for e in prior.values()]),
    }


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _save_probes(path: Path, probes: dict[str, ProbeSet]) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, probe in probes.items():
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in probe.inputs.items()}
        tensors[f"{name}/episode"] = torch.from_numpy(probe.episode.copy())
    save_file(tensors, path)


def _load_probes(path: Path) -> dict[str, ProbeSet]:
    tensors = load_tensors(path)
    names = dict.fromkeys(key.split("/", 1)[0] for key in tensors)
    probes = {}
    for name in names:
        inputs = {
            key.split("/", 1)[1]: value
            for key, value in tensors.items()
            if key.startswith(f"{name}/") and key != f"{name}/episode"
        }
        probes[name] = ProbeSet(inputs, tensors[f"{name}/episode"].numpy())
    return probes
