"""The report in words, numbers first. `**...**` marks arms and numbers, as in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robo_razor.core.plain_text import skill_name
from robo_razor.report.analysis import Laws
from robo_razor.report.arms import Arm
from robo_razor.report.equal_success import (
    ArmMatch,
    Pair,
    difference,
    difference_over_episodes,
    match_arm,
    shown_setting,
    top,
)
from robo_razor.report.format import (
    interval,
    listing,
    number,
    percent,
    plural,
    points,
    predictor_parts,
    with_interval,
)
from robo_razor.report.load import RunSeries, mean
from robo_razor.statistics.hill import Falloff
from robo_razor.statistics.intervals import Estimate
from robo_razor.statistics.law import Law

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
    arms: Sequence[Arm],
    level: float | None,
    laws: Laws,
    pairs: Sequence[Pair] = (),
    asked: Sequence[float] = (),
) -> Statement:
    """Return what came out, in words.

    Args:
        arms: What is compared.
        level: New-task success at which; None where nothing can be compared.
        laws: The fits of the forgetting law.
        pairs: The comparison of every two arms.
        asked: Levels that the user asked for; empty: they were chosen from the runs.
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
        headline = _alone(task, arms[0]) if len(arms) == 1 else _nothing(task, arms, pairs, asked)
    sentences += [
        f"**{m.arm}** is not compared there: {m.reason}." for m in found if m.reason is not None
    ]
    sentences += _law(laws)
    return Statement(headline, tuple(sentences))


def skill_of(task: str) -> str:
    """Return a task's short name: `gym_razor/PlaceCanInBin-v0` -> `PlaceCanInBin`."""
    return skill_name(task)


def _compared(task: str, level: float, reached: Sequence[ArmMatch]) -> str:
    start = f"At {percent(level)} success on {task}, "
    over = _single_runs(reached)
    if len(reached) <= MOST_NAMED:
        parts = [f"**{m.arm}** keeps {_kept(m)}" for m in reached]
        parts[0] += " of the prior skills"
        return f"{start}{listing(parts)}{over}."
    best, worst = reached[0], reached[-1]
    return (
        f"{start}**{best.arm}** keeps most of the prior skills, {_kept(best)}, and "
        f"**{worst.arm}** least, {_kept(worst)}, of {len(reached)} arms{over}."
    )


def _single_runs(reached: Sequence[ArmMatch]) -> str:
    """Return a remark on the arms with one seed, whose intervals are over episodes."""
    single = [f"**{m.arm}**" for m in reached if m.over_episodes("retention")]
    if not single:
        return ""
    if len(single) == len(reached):
        return " (single runs, intervals over episodes)"
    if len(single) == 1:
        return f" ({single[0]} is a single run, its interval is over episodes)"
    return f" ({listing(single)} are single runs, their intervals are over episodes)"


def _between(reached: Sequence[ArmMatch]) -> list[str]:
    """Return the arms that the headline has no room for."""
    if len(reached) <= MOST_NAMED:
        return []
    parts = [f"**{m.arm}** {percent(m.estimate('retention').value)}" for m in reached[1:-1]]
    return [f"In between: {listing(parts)}."]


def _kept(match: ArmMatch) -> str:
    kept = match.estimate("retention")
    ends = match.over_episodes("retention") or kept.interval
    return f"**{percent(kept.value)}** {interval(ends)}".rstrip()


def _difference(reached: Sequence[ArmMatch]) -> list[str]:
    best, worst = reached[0], reached[-1]
    one, two = best.values("retention"), worst.values("retention")
    gap = points(sum(one) / len(one) - sum(two) / len(two)).replace("+", "") if one and two else ""
    if not gap:
        return []
    if (len(one) < 2) != (len(two) < 2):
        lone = best if len(one) < 2 else worst
        return [
            f"That is a difference of **{gap} points**; **{lone.arm}** has one seed, so there is "
            "no interval over seeds, and another seed may say something else."
        ]
    if len(one) < 2:
        ends = interval(difference_over_episodes(best, worst, "retention"))
        over = f" {ends} over episodes" if ends else ""
        return [
            f"That is a difference of **{gap} points**{over} between single runs: with one seed "
            "there is no interval over seeds, and another seed may say something else."
        ]
    found = difference(best, worst, "retention")
    if found is None:
        return []
    text = (
        f"The difference between **{best.arm}** and **{worst.arm}** is **{gap} points** "
        f"{interval(found.interval)} over {_seeds(len(one), len(two))}"
    )
    if found.low <= 0 <= found.high:
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
        kept = f"**{percent(run.last.retention)}** {interval(run.last.retention_interval)}".rstrip()
        over = ", both over episodes" if interval(run.last.retention_interval) else ""
        return f"{text} and keeps {kept} of the prior skills{over}."
    return f"{text}. No prior skills were measured."


def _nothing(task: str, arms: Sequence[Arm], pairs: Sequence[Pair], asked: Sequence[float]) -> str:
    if not any(run.last.skills for arm in arms for run in arm.runs):
        return f"No prior skills were measured, so nothing is known about forgetting on {task}."
    if not any(math.isfinite(run.last.retention) for arm in arms for run in arm.runs):
        return (
            f"The base succeeds at none of the prior skills, so nothing is known about what is "
            f"kept of them on {task}."
        )
    ranges = [pair for pair in pairs if pair.high > pair.low]
    if asked and ranges:
        widest = max(ranges, key=lambda pair: pair.high)
        levels = listing([percent(level) for level in sorted(asked)])
        return (
            f"Nothing can be compared at {levels} success on {task}: {widest.first} and "
            f"{widest.second} can be compared above {percent(widest.low)} and up to "
            f"{percent(math.floor(100 * widest.high) / 100)}."
        )
    start = max(run.first.new for arm in arms for run in arm.runs)
    best = max((run for arm in arms for run in arm.runs), key=top)
    return (
        f"Nothing can be compared at equal success: no two arms rise above the base's "
        f"{percent(start)} on {task} together. The best run is {best.name} with "
        f"{percent(top(best))}."
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
    return [*sentences, *_lost(shown)]


def _lost(shown: Sequence[tuple[Arm, Sequence[RunSeries]]]) -> list[str]:
    """Return which skills the worst arm lost entirely, or the one of which most is lost."""
    losses = [
        (mean([run.last.skills[skill]["retention"] for run in runs]), skill, arm)
        for arm, runs in shown
        for skill in runs[0].last.skills
        if all(run.last.skills[skill].get("retention") is not None for run in runs)
    ]
    kept, skill, worst = min(losses, key=lambda loss: loss[0], default=(1.0, "", None))
    if worst is None or kept >= NOTABLE_RETENTION:
        return []
    least = min(kept, 0.0)
    gone = {
        arm.name: [name for value, name, of in losses if of is arm and value <= least]
        for arm, _ in shown
    }
    name, skills = max(gone.items(), key=lambda item: len(item[1]))
    if not skills:
        return [
            f"Most is lost of {skill} after **{worst.name}**: {percent(kept)} of the base's "
            "success is left."
        ]
    total = sum(arm.name == name for _, _, arm in losses)
    verb = "is" if len(skills) == 1 else "are"
    return [
        f"After **{name}** {len(skills)} of {total} prior skills {verb} lost entirely: "
        f"{listing(skills)}."
    ]


def _law(laws: Laws) -> list[str]:
    law = laws.main
    if law.n_points == 0:
        return []
    if law.r2 is None:
        reason = law.reason or "the points do not determine it"
        return [f"No law of forgetting is fitted: {reason.rstrip('.')}."]
    size = f"{plural(law.n_points, 'checkpoint')} of {plural(law.n_runs, 'run')}"
    if law.gap is not None:
        low, high = (number(end) for end in law.gap)
        return [
            f"No law of forgetting can be told from these runs: no checkpoint lies between {low} "
            f"and {high} nats of KL(base ‖ tuned) on the new task, so the R² of {number(law.r2)} "
            f"({size}) says that the two groups differ, not how prior success falls with the "
            f"distance.{_inside(law)}"
        ]
    sentences = [
        f"KL(base ‖ tuned) on the new task explains {_share(law)} of the variation in prior "
        f"success (R² of a second-degree polynomial, {size}).{_inside(law)}",
        *_falloff(laws.falloff),
    ]
    fitted = [p for p in laws.table if p.r2 is not None and p.n_points == law.n_points]
    if laws.best_minus_main is None or not fitted:
        if len(fitted) > 1:
            sentences.append(f"That is the most of {len(fitted)} predictors.")
        return sentences
    gap = laws.best_minus_main
    difference = f"{number(gap.value)} [{number(gap.low)}, {number(gap.high)}]"
    verdict = (
        f"R² is not told apart from that of KL: the difference is {difference}"
        if not gap.low > 0
        else f"the difference in R² to KL is {difference}"
    )
    return [
        *sentences,
        f"Of {len(fitted)} predictors, {_named(fitted[0])} explains most: {_share(fitted[0])}; "
        f"{verdict}, runs resampled.",
    ]


def _falloff(fit: Falloff) -> list[str]:
    """Return where half is lost, if a curve that is level and then falls tells it."""
    if fit.half is None or fit.half_interval is None or fit.minus_parabola is None:
        return []
    low, high = (number(end) for end in fit.half_interval)
    gap = fit.minus_parabola
    difference = f"{number(gap.value)} [{number(gap.low)}, {number(gap.high)}]"
    return [
        f"Half of prior success is gone at {number(fit.half)} nats [{low}, {high}], by a curve "
        f"that is level at first (Hill's: R² {number(fit.r2)}, minus that of the polynomial "
        f"{difference})."
    ]


def _inside(law: Law) -> str:
    """Return what the fit is worth inside of arms, and on an arm that it has not seen."""
    parts = []
    if law.within_r2 is not None:
        parts.append(f"within arms it explains {percent(law.within_r2)}")
    if law.leave_one_arm_out_rmse is not None:
        error = 100 * law.leave_one_arm_out_rmse
        text = f"{error:.0f}" if error < 100 else "more than 100"
        parts.append(f"an arm left out of the fit is missed by {text} points (RMS)")
    if not parts:
        return ""
    text = "; ".join(parts)
    return f" {text[0].upper()}{text[1:]}."


def _named(fit: Law) -> str:
    """Return a predictor's name as it stands within a sentence."""
    quantity, states = predictor_parts(fit.predictor)
    if quantity[1:2].islower():
        quantity = quantity[0].lower() + quantity[1:]
    return f"{quantity} ({states})" if states else quantity


def _share(fit: Law) -> str:
    return f"**{percent(fit.r2)}** {interval(fit.r2_interval)}".rstrip()


def _order(estimate: Estimate) -> float:
    return estimate.value if math.isfinite(estimate.value) else -1.0
