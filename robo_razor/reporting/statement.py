"""The report in words, numbers first. `**...**` marks arms and numbers, as in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robo_razor.law import Law
from robo_razor.reporting.arms import Arm
from robo_razor.reporting.matching import ArmMatch, match_arm, shown_setting
from robo_razor.reporting.runs import FORWARD_KL, mean
from robo_razor.reporting.words import (
    interval,
    listing,
    number,
    percent,
    plural,
    points,
    predictor_parts,
    with_interval,
)
from robo_razor.statistics import Estimate, seed_difference

NOTABLE_RETENTION = 0.8
"""A skill of which less is left is worth a sentence."""
MOST_NAMED = 4
"""Arms that one sentence can name with their numbers."""


@dataclass(frozen=True)
class Statement:
    """What came out, in words."""

    headline: str
    sentences: tuple[str, ...]


def make_statement(
    arms: Sequence[Arm], level: float | None, law: Law, predictors: Sequence[Law]
) -> Statement:
    """Return what came out, in words.

    Args:
        arms: What is compared.
        level: New-task success at which; None where nothing can be compared.
        law: The fit in the paper's predictor.
        predictors: Fits in all predictors, best first.
    """
    task = skill_of(str(arms[0].runs[0].config.get("task")))
    found = [] if level is None else [match_arm(arm, level) for arm in arms]
    reached = sorted(
        (m for m in found if m.reason is None), key=lambda m: -_order(m.estimate("retention"))
    )
    sentences: list[str] = []
    if len(reached) >= 2 and level is not None and reached[0].values("retention"):
        headline = _compared(task, level, reached)
        sentences += _between(reached)
        sentences += _difference(reached)
        sentences += _distance(reached)
        sentences += _ends(arms, level)
    else:
        headline = _alone(task, arms[0]) if len(arms) == 1 else _nothing(task, arms)
    sentences += [
        f"**{m.arm}** is not compared there: {m.reason}." for m in found if m.reason is not None
    ]
    sentences += _law(law, predictors)
    return Statement(headline, tuple(sentences))


def skill_of(task: str) -> str:
    """Return a task's short name: `gym_razor/PlaceCanInBin-v0` -> `PlaceCanInBin`."""
    return task.rsplit("/", 1)[-1].rsplit("-v", 1)[0]


def _compared(task: str, level: float, reached: Sequence[ArmMatch]) -> str:
    start = f"At {percent(level)} success on {task}, "
    if len(reached) <= MOST_NAMED:
        parts = [f"**{m.arm}** keeps {_kept(m)}" for m in reached]
        parts[0] += " of the prior skills"
        return f"{start}{listing(parts)}."
    best, worst = reached[0], reached[-1]
    return (
        f"{start}**{best.arm}** keeps most of the prior skills, {_kept(best)}, and "
        f"**{worst.arm}** least, {_kept(worst)}, of {len(reached)} arms."
    )


def _between(reached: Sequence[ArmMatch]) -> list[str]:
    """Return the arms that the headline has no room for."""
    if len(reached) <= MOST_NAMED:
        return []
    parts = [f"**{m.arm}** {percent(m.estimate('retention').value)}" for m in reached[1:-1]]
    return [f"In between: {listing(parts)}."]


def _kept(match: ArmMatch) -> str:
    kept = match.estimate("retention")
    return f"**{percent(kept.value)}** {interval(kept.interval)}".rstrip()


def _difference(reached: Sequence[ArmMatch]) -> list[str]:
    best, worst = reached[0], reached[-1]
    one, two = best.values("retention"), worst.values("retention")
    gap = points(sum(one) / len(one) - sum(two) / len(two)).replace("+", "") if one and two else ""
    if not gap:
        return []
    if len(one) < 2 or len(two) < 2:
        return [
            f"That is a difference of **{gap} points** between single runs: with one seed there is "
            "no interval, and another seed may say something else."
        ]
    difference = seed_difference(one, two)
    text = (
        f"The difference between **{best.arm}** and **{worst.arm}** is **{gap} points** "
        f"{interval(difference.interval)} over {_seeds(len(one), len(two))}"
    )
    if difference.low <= 0 <= difference.high:
        return [f"{text}: it may be none."]
    return [f"{text}."]


def _seeds(first: int, second: int) -> str:
    return f"{first} seeds each" if first == second else f"{first} and {second} seeds"


def _distance(reached: Sequence[ArmMatch]) -> list[str]:
    known = [(m.arm, m.estimate("kl").value) for m in reached if m.values("kl")]
    if len(known) < 2 or len(known) > MOST_NAMED:
        return []
    parts = [f"**{arm}** {number(value)}" for arm, value in known]
    return [
        f"Distance from the base there, KL(base ‖ tuned) on the new task: {listing(parts)} nats "
        "per decision."
    ]


def _alone(task: str, arm: Arm) -> str:
    run = max(arm.runs, key=lambda run: run.last.new)
    others = f" (the best of {len(arm.runs)} runs)" if len(arm.runs) > 1 else ""
    text = (
        f"**{arm.name}** brings {task} from {percent(run.first.new)} to "
        f"**{with_interval(run.last.new, run.last.new_interval)}**{others}"
    )
    if math.isfinite(run.last.retention):
        return f"{text} and keeps **{percent(run.last.retention)}** of the prior skills."
    return f"{text}. No prior skills were measured."


def _nothing(task: str, arms: Sequence[Arm]) -> str:
    start = max(run.first.new for arm in arms for run in arm.runs)
    if not any(run.last.skills for arm in arms for run in arm.runs):
        return f"No prior skills were measured, so nothing is known about forgetting on {task}."
    best = max((run for arm in arms for run in arm.runs), key=lambda run: max(run.series("new")))
    return (
        f"Nothing can be compared at equal success: no two arms rise above the base's "
        f"{percent(start)} on {task} together. The best run is {best.name} with "
        f"{percent(max(best.series('new')))}."
    )


def _ends(arms: Sequence[Arm], level: float) -> list[str]:
    """Return where the arms get to, and the skill that most is lost of on the way."""
    shown = [(arm, shown_setting(arm, level).runs) for arm in arms]
    sentences = []
    if len(arms) <= MOST_NAMED:
        parts = [
            f"**{arm.name}** has {percent(mean([run.last.new for run in runs]))} and keeps "
            f"{percent(mean([run.last.retention for run in runs]))}"
            for arm, runs in shown
        ]
        sentences.append(f"At the last checkpoint {listing(parts)}.")
    losses = [
        (mean([run.last.skills[skill].get("retention") or 0.0 for run in runs]), skill, arm)
        for arm, runs in shown
        for skill in runs[0].last.skills
        if all(run.last.skills[skill].get("retention") is not None for run in runs)
    ]
    kept, skill, arm = min(losses, key=lambda loss: loss[0], default=(1.0, "", arms[0]))
    if kept < NOTABLE_RETENTION:
        sentences.append(
            f"Most is lost of {skill} after **{arm.name}**: {percent(kept)} of the base's success "
            "is left."
        )
    return sentences


def _law(law: Law, predictors: Sequence[Law]) -> list[str]:
    if law.n_points == 0:
        return []
    if law.r2 is None:
        reason = law.reason or "the points do not determine it"
        return [f"No law of forgetting is fitted: {reason.rstrip('.')}."]
    sentences = [
        f"KL(base ‖ tuned) on the new task explains {_share(law)} of the variation in prior "
        f"success (R² of a second-degree polynomial, {plural(law.n_points, 'checkpoint')} of "
        f"{plural(law.n_runs, 'run')})."
    ]
    fitted = [p for p in predictors if p.r2 is not None and p.n_points == law.n_points]
    if not fitted or fitted[0].predictor == FORWARD_KL:
        if len(fitted) > 1:
            sentences[0] = sentences[0][:-2] + f"), the most of {len(fitted)} predictors."
        return sentences
    close = " Their intervals overlap." if _overlap(fitted[0], law) else ""
    return [
        *sentences,
        f"Of {len(fitted)} predictors, {_named(fitted[0])} explains most: {_share(fitted[0])}."
        f"{close}",
    ]


def _named(fit: Law) -> str:
    """Return a predictor's name as it stands within a sentence."""
    quantity, states = predictor_parts(fit.predictor)
    if quantity[1:2].islower():
        quantity = quantity[0].lower() + quantity[1:]
    return f"{quantity} ({states})" if states else quantity


def _share(fit: Law) -> str:
    return f"**{percent(fit.r2)}** {interval(fit.r2_interval)}".rstrip()


def _overlap(first: Law, second: Law) -> bool:
    one, two = first.r2_interval, second.r2_interval
    return one is not None and two is not None and one[0] <= two[1] and two[0] <= one[1]


def _order(estimate: Estimate) -> float:
    return estimate.value if math.isfinite(estimate.value) else -1.0
