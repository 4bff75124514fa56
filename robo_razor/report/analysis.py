"""Analyses beyond matched success: the law, the frontier, skills, paired episodes, notes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robo_razor.core.files import finite
from robo_razor.core.metrics import NEW, PRIOR
from robo_razor.report.arms import Arm, RunSet, Setting
from robo_razor.report.episodes import read_rows
from robo_razor.report.load import FORWARD_KL, RunSeries, mean, retentions_of
from robo_razor.statistics.bootstrap import paired_bootstrap
from robo_razor.statistics.hill import Falloff, fit_falloff
from robo_razor.statistics.intervals import Estimate, detectable_difference, mcnemar_exact
from robo_razor.statistics.law import Law, LawPoint, fit_law, predictor_table, r2_difference
from robo_razor.statistics.seeds import seed_interval
from robo_razor.statistics.tradeoffs import frontier, hypervolume, pareto

FRONTIER_TOLERANCE = 0.02
"""Distance to the Pareto frontier up to which a checkpoint counts as on it, as in the paper."""
SINGLE_SKILL = f"/{PRIOR}/"
"""Part of the names of distances on one prior skill's states."""
MAX_PAIRED = 12
"""Most pairs of runs whose episodes are compared one by one; a sweep has hundreds."""


# --- The forgetting law ---------------------------------------------------------------------------


def law_points(runs: RunSet) -> list[LawPoint]:
    """Return one point per checkpoint; `fit_law` counts the base, which runs share, once.

    Distances on the states of single prior skills are left out: there are a dozen times as many,
    and the mean over skills (`.../prior`) represents them.
    """
    return [
        LawPoint(
            run.name,
            checkpoint.step,
            checkpoint.prior,
            {name: x for name, x in checkpoint.predictors.items() if SINGLE_SKILL not in name},
            arm.name,
        )
        for arm in runs.arms
        for run in arm.runs
        for checkpoint in run.checkpoints
    ]


@dataclass(frozen=True)
class Laws:
    """The forgetting law in the paper's predictor and in all others."""

    main: Law
    table: tuple[Law, ...]
    """All predictors, best R2 first."""
    falloff: Falloff
    """A Hill curve in the paper's predictor: level, then falling."""
    best_minus_main: Estimate | None = None
    """R2 of the best predictor minus the paper's, paired; None where they are the same."""


def fit_laws(runs: RunSet) -> Laws:
    """Fit all predictors, and compare the best one with the paper's on the same resampled runs."""
    points = law_points(runs)
    table = predictor_table(points)
    fitted = next((entry for entry in table if entry.predictor == FORWARD_KL), None)
    main = fitted or fit_law(points, FORWARD_KL)
    best = next((p for p in table if p.r2 is not None and p.n_points == main.n_points), None)
    paired = None
    if best is not None and main.r2 is not None and best.predictor != FORWARD_KL:
        paired = r2_difference(points, best.predictor, FORWARD_KL)
    return Laws(main, tuple(table), fit_falloff(points, FORWARD_KL), paired)


def law_entry(fit: Law) -> dict[str, Any]:
    """Return a law as plain values."""
    return {
        "predictor": fit.predictor,
        "coefficients": None if fit.coefficients is None else list(fit.coefficients),
        "r2": fit.r2,
        "r2_interval": None if fit.r2_interval is None else list(fit.r2_interval),
        "leave_one_run_out_rmse": fit.leave_one_run_out_rmse,
        "within_r2": fit.within_r2,
        "leave_one_arm_out_rmse": fit.leave_one_arm_out_rmse,
        "gap": None if fit.gap is None else list(fit.gap),
        "n_arms": fit.n_arms,
        "n_points": fit.n_points,
        "n_runs": fit.n_runs,
        "reason": fit.reason,
    }


def falloff_entry(fit: Falloff) -> dict[str, Any]:
    """Return a Hill curve as plain values."""
    entry = dataclasses.asdict(fit)
    difference = fit.minus_parabola
    entry["minus_parabola"] = difference and estimate_entry(difference, [])
    return {key: list(x) if isinstance(x, tuple) else x for key, x in entry.items()}


def falloff_of(report: dict[str, Any]) -> Falloff | None:
    """Return the Hill curve of a report, to draw it; None: there is none."""
    entry = report["falloff"]
    if entry["half"] is None:
        return None
    return Falloff(**{key: entry[key] for key in ("predictor", "top", "half", "steepness", "r2")})


# --- Frontier -------------------------------------------------------------------------------------


def frontier_of(arm: Arm) -> list[tuple[RunSeries, int]]:
    """Return (run, index of the checkpoint) of an arm's checkpoints near its Pareto frontier.

    The base, every run's first checkpoint, does not count: all arms share it.
    """
    where = [
        (run, i)
        for run in arm.compared
        for i, checkpoint in enumerate(run.checkpoints)
        if math.isfinite(checkpoint.prior)
    ]
    points = [(run.checkpoints[i].new, run.checkpoints[i].prior) for run, i in where]
    near = [where[i] for i in frontier(points, FRONTIER_TOLERANCE)] if points else []
    return [(run, i) for run, i in near if run.checkpoints[i].step > 0]


def frontier_line(arm: Arm) -> list[tuple[float, float]]:
    """Return the Pareto frontier of an arm's checkpoints, the base included, as (new, prior)."""
    return pareto(
        [(c.new, c.prior) for r in arm.compared for c in r.checkpoints if math.isfinite(c.prior)]
    )


def frontier_entry(arm: Arm) -> dict[str, Any]:
    """Return an arm's frontier as plain values, and the area under it, per seed.

    Only settings that every seed has count: an additional one would be an additional try.
    """
    volumes = []
    for seed in dict.fromkeys(run.seed for run in arm.compared):
        points = [
            (checkpoint.new, checkpoint.prior)
            for run in arm.compared
            if run.seed == seed
            for checkpoint in run.checkpoints
            if math.isfinite(checkpoint.prior)
        ]
        if points:
            volumes.append(hypervolume(points))
    return {
        "arm": arm.name,
        "tolerance": FRONTIER_TOLERANCE,
        "points": [
            {
                "run": run.name,
                "step": run.checkpoints[i].step,
                "new": run.checkpoints[i].new,
                "prior": run.checkpoints[i].prior,
            }
            for run, i in frontier_of(arm)
        ],
        "hypervolume": estimate_entry(
            seed_interval(volumes, bounds=(0.0, 1.0)) if volumes else None, volumes
        ),
    }


def estimate_entry(estimate: Estimate | None, values: Sequence[float]) -> dict[str, Any]:
    """Return an estimate over seeds as plain values, with the values of the seeds."""
    if estimate is None:
        return {"value": None, "interval": None, "values": list(values)}
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return {
        "value": finite(estimate.value),
        "interval": [estimate.low, estimate.high] if known else None,
        "values": list(values),
    }


def nbt_entry(run: RunSeries) -> dict[str, Any] | None:
    """Return a run's negative backward transfer at its last checkpoint, over episodes, or None.

    NBT is the mean over prior skills of success before - success after, on the same start states.
    """
    transfer = run.last_pairs().nbt()
    if not math.isfinite(transfer.value):
        return None
    return {
        "value": transfer.value,
        "interval": list(transfer.interval),
        "interval_over": "episodes",
    }


# --- Skills ---------------------------------------------------------------------------------------


def skill_entry(setting: Setting, skill: str) -> dict[str, Any]:
    """Return the retention of one skill at the last checkpoints of one setting's runs.

    With several seeds the interval is over seeds, and at least as wide as that over episodes alone.
    With one seed it is over episodes, and `interval_over` says so.
    """
    entries = [run.last.skills[skill] for run in setting.runs]
    retentions = retentions_of(setting.runs, skill)
    interval, over = None, None
    if len(retentions) > 1:
        within = [
            entry.retention_interval or (math.nan, math.nan)
            for entry in entries
            if entry.retention is not None
        ]
        estimate = seed_interval(retentions, within=within, bounds=(0.0, math.inf))
        interval, over = [estimate.low, estimate.high], "seeds"
    elif retentions and entries[0].retention_interval is not None:
        interval, over = list(entries[0].retention_interval), "episodes"
    return {
        "skill": skill,
        "success_rate": finite(mean([entry.success_rate for entry in entries])),
        "retention": finite(mean(retentions)),
        "interval": interval,
        "interval_over": over,
        "values": retentions,
        "n": sum(entry.n for entry in entries),
    }


def base_success(run: RunSeries, skill: str) -> float | None:
    """Return the base's success on a prior skill: from step 0, or from a later summary."""
    if run.first.step == 0 and skill in run.first.skills:
        return float(run.first.skills[skill].success_rate)
    value = run.last.skills[skill].base_success_rate
    return None if value is None else float(value)


# --- Episodes of two runs on the same start states ------------------------------------------------


def paired_runs(runs: RunSet) -> list[tuple[RunSeries, RunSeries]]:
    """Return the pairs of runs whose episodes are compared.

    These are all pairs if there are few, else those of equal seed in different arms; no pair if
    that is still too many to read.
    """
    all_runs = list(runs.runs)
    pairs = [(a, b) for i, a in enumerate(all_runs) for b in all_runs[i + 1 :]]
    if len(pairs) > MAX_PAIRED:
        pairs = [
            (a, b) for a, b in pairs if a.seed == b.seed and runs.arm_of(a) is not runs.arm_of(b)
        ]
    return pairs if len(pairs) <= MAX_PAIRED else []


def paired_entry(first: RunSeries, second: RunSeries) -> dict[str, Any]:
    """Compare two runs' last checkpoints on the start states that both ran, greedily.

    Episodes of equal task and seed that began differently (`--allow-unlike`) are not pairs.
    """
    first_outcomes = read_rows(first.path, first.last.step)
    second_outcomes = read_rows(second.path, second.last.step)
    task = first.config.get("task")
    entry: dict[str, Any] = {"first": first.name, "second": second.name}
    shared = sorted(
        key
        for key in first_outcomes.keys() & second_outcomes.keys()
        if first_outcomes[key].same_start(second_outcomes[key])
    )
    for role in (NEW, PRIOR):
        keys = [key for key in shared if (key[0] == task) == (role == NEW)]
        if not keys:
            continue
        a, b = (
            [first_outcomes[key].success for key in keys],
            [second_outcomes[key].success for key in keys],
        )
        test = mcnemar_exact(a, b)
        difference = paired_bootstrap(a, b, resamples=2000)
        entry[role] = {
            "n": len(keys),
            "difference": difference.value,
            "interval": list(difference.interval),
            "only_first": test.only_first,
            "only_second": test.only_second,
            "p_value": test.p_value,
        }
    return entry


# --- Notes ----------------------------------------------------------------------------------------


def notes(runs: RunSet, unlike: Sequence[str]) -> list[str]:
    """Return what a reader must know before believing the tables."""
    lines = [f"The runs were made under different conditions: {text}." for text in unlike]
    counts = {arm.name: {len(s.runs) for s in arm.settings} for arm in runs.arms}
    if single := [name for name, sizes in counts.items() if max(sizes) == 1]:
        lines.append(
            f"One seed only: {', '.join(single)}. There is no interval over seeds. Another seed "
            "may differ by more than the intervals over episodes suggest."
        )
    all_runs = runs.runs
    cut = [run for run in all_runs if run.is_cut]
    if unfinished := [f"{run.title} (update {run.last.step} of {run.updates})" for run in cut]:
        lines.append(
            f"Not finished: {', '.join(unfinished)}. Their last checkpoint is not the end of the "
            "run."
        )
    n = min(checkpoint.new_n for run in all_runs for checkpoint in run.checkpoints)
    n_last = min(run.last.new_n for run in all_runs)
    least = detectable_difference(all_runs[0].last.new, n_last)
    if math.isfinite(least):
        sizes = f"{n_last}" if n == n_last else f"{n} ({n_last} at the last checkpoint)"
        lines.append(
            f"Success on the new task is measured in {sizes} episodes. With {n_last}, a "
            f"difference below {100 * least:.0f} points between two arms is detected less than "
            "four times out of five."
        )
    smallest = min((entry.n for run in all_runs for entry in run.last.skills.values()), default=0)
    if smallest:
        prior = all_runs[0].last.prior
        rate = min(1.0, max(0.0, prior)) if math.isfinite(prior) else 0.5
        least = detectable_difference(rate, smallest)
        if math.isfinite(least):
            lines.append(
                f"A single prior skill has {smallest} episodes per checkpoint, so only differences "
                f"above {100 * least:.0f} points are reliably detected in it."
            )
    if len(runs.arms) > 2:
        lines.append(
            f"The intervals hold for arms and pairs that are chosen beforehand. The best and the "
            f"worst of {len(runs.arms)} arms differ by more than two arms chosen at random."
        )
    if unplanned := [run.title for run in all_runs if run.unplanned]:
        lines.append(
            f"Checkpoints that exist only because a run was interrupted there are left out: "
            f"{', '.join(unplanned)}."
        )
    return [*lines, *runs.skipped]
