"""The report in sentences. `**...**` marks arms and numbers, as in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robo_razor.core.plain_text import skill_name
from robo_razor.report.analysis import Laws
from robo_razor.report.arms import Arm
from robo_razor.report.equal_success import (
    ONLY_REACHES,
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
from robo_razor.report.load import mean, retentions_of
from robo_razor.statistics.hill import Falloff
from robo_razor.statistics.intervals import Estimate
from robo_razor.statistics.law import Law

NOTABLE_RETENTION = 0.8
"""A skill of which less is left is worth a sentence."""
MOST_NAMED = 4
"""Arms that one sentence can name with their numbers."""
FIRST = 2
"""Sentences that stand beside the headline; the others are folded away."""


@dataclass(frozen=True)
class Statement:
    """The results in sentences, the most important first."""

    headline: str
    sentences: tuple[str, ...]


def make_statement(
    arms: Sequence[Arm],
    level: float | None,
    laws: Laws,
    pairs: Sequence[Pair] = (),
    requested: Sequence[float] = (),
) -> Statement:
    """Return the results in sentences.

    Args:
        arms: The arms of the comparison.
        level: New-task success at which they are compared; None: they cannot be compared.
        laws: The fits of the forgetting law.
        pairs: The comparison of every two arms.
        requested: Levels that the user chose; empty: they were chosen from the runs.
    """
    task = skill_of(str(arms[0].runs[0].config.get("task")))
    matches = [] if level is None else [match_arm(arm, level) for arm in arms]
    reached = sorted(
        (m for m in matches if m.reason is None), key=lambda m: -_order(m.estimate("retention"))
    )
    excluded = _excluded([m for m in matches if m.reason is not None])
    if len(reached) >= 2 and level is not None and reached[0].values("retention"):
        headline = _compared(task, level, reached)
        sentences = [*_difference(reached), *excluded, *_between(reached), *_distance(reached)]
        sentences += [*_last(arms, level), *_lost(arms, level)]
    elif len(arms) == 1:
        headline, sentences = _alone(task, arms[0]), excluded
    else:
        headline, sentences = _unmatched(task, arms, pairs, requested)
        sentences += excluded
    return Statement(headline, (*sentences, *_law(laws)))


def skill_of(task: str) -> str:
    """Return a task's short name: `gym_razor/PlaceCanInBin-v0` -> `PlaceCanInBin`."""
    return skill_name(task)


def _compared(task: str, level: float, reached: Sequence[ArmMatch]) -> str:
    start = f"At {percent(level)} success on {task}, "
    over = _single_runs(reached)
    if len(reached) <= MOST_NAMED:
        parts = [f"**{m.arm}** keeps {_retention(m)}" for m in reached]
        parts[0] += " of the prior skills"
        return f"{start}{listing(parts)}{over}."
    best, worst = reached[0], reached[-1]
    return (
        f"{start}**{best.arm}** keeps most of the prior skills, {_retention(best)}, and "
        f"**{worst.arm}** least, {_retention(worst)}, of {len(reached)} arms{over}."
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
    """Return a sentence about the arms that the headline leaves out."""
    if len(reached) <= MOST_NAMED:
        return []
    parts = [f"**{m.arm}** {percent(m.estimate('retention').value)}" for m in reached[1:-1]]
    return [f"In between: {listing(parts)}."]


def _retention(match: ArmMatch) -> str:
    retention = match.estimate("retention")
    ends = match.over_episodes("retention") or retention.interval
    return f"**{percent(retention.value)}** {interval(ends)}".rstrip()


def _difference(reached: Sequence[ArmMatch]) -> list[str]:
    best, worst = reached[0], reached[-1]
    best_values, worst_values = best.values("retention"), worst.values("retention")
    if not best_values or not worst_values:
        return []
    gap = points(mean(best_values) - mean(worst_values)).replace("+", "")
    if (len(best_values) < 2) != (len(worst_values) < 2):
        lone = best if len(best_values) < 2 else worst
        return [
            f"That is a difference of **{gap} points**. **{lone.arm}** has one seed, so there is "
            "no interval over seeds: another seed may come out differently."
        ]
    if len(best_values) < 2:
        ends = interval(difference_over_episodes(best, worst, "retention"))
        over = f" {ends} over episodes" if ends else ""
        return [
            f"That is a difference of **{gap} points**{over} between single runs. With one seed "
            "there is no interval over seeds: another seed may come out differently."
        ]
    estimate = difference(best, worst, "retention")
    if estimate is None:
        return []
    text = (
        f"The difference between **{best.arm}** and **{worst.arm}** is **{gap} points** "
        f"{interval(estimate.interval)} over {_seeds(len(best_values), len(worst_values))}"
    )
    if estimate.low <= 0 <= estimate.high:
        return [f"{text}; it may be 0."]
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
    among = f" (the best of {len(arm.runs)} runs)" if len(arm.runs) > 1 else ""
    text = (
        f"**{arm.name}** brings {task} from {percent(run.first.new)} to "
        f"**{with_interval(run.last.new, run.last.new_interval)}**{among}"
    )
    if math.isfinite(run.last.retention):
        retention = (
            f"**{percent(run.last.retention)}** {interval(run.last.retention_interval)}".rstrip()
        )
        over = ", both over episodes" if interval(run.last.retention_interval) else ""
        return f"{text} and keeps {retention} of the prior skills{over}."
    return f"{text}. No prior skills were measured."


def _unmatched(
    task: str, arms: Sequence[Arm], pairs: Sequence[Pair], requested: Sequence[float]
) -> tuple[str, list[str]]:
    """Return the headline and sentences where no arms can be compared at equal success."""
    runs = [run for arm in arms for run in arm.runs]
    if not any(run.last.skills for run in runs):
        text = f"No prior skills were measured, so nothing is known about forgetting on {task}."
        return text, []
    if not any(math.isfinite(run.last.retention) for run in runs):
        text = (
            f"The base succeeds at none of the prior skills, so nothing is known about what is "
            f"kept of them on {task}."
        )
        return text, []
    ranges = [pair for pair in pairs if pair.high > pair.low]
    if requested and ranges:
        widest = max(ranges, key=lambda pair: pair.high)
        levels = listing([percent(level) for level in sorted(requested)])
        text = (
            f"Nothing can be compared at {levels} success on {task}: {widest.first} and "
            f"{widest.second} can be compared above {percent(widest.low)} and up to "
            f"{percent(math.floor(100 * widest.high) / 100)}."
        )
        return text, [*_last(arms, None), *_lost(arms, None)]
    start = max(run.first.new for run in runs)
    return (
        _kept_in_the_end(arms),
        [_why_unmatched(task, arms, start), *_lost(arms, None)],
    )


def _kept_in_the_end(arms: Sequence[Arm]) -> str:
    """Return how much of the prior skills the arms keep at the last checkpoints, most first."""
    retentions = [
        (mean([run.last.retention for run in shown_setting(arm, None).runs]), arm) for arm in arms
    ]
    known = sorted(
        ((k, arm) for k, arm in retentions if math.isfinite(k)), key=lambda item: -item[0]
    )
    if len(known) > MOST_NAMED:
        (most, best), (least, worst) = known[0], known[-1]
        return (
            f"At the last checkpoint **{best.name}** keeps most of the prior skills, "
            f"**{percent(most)}**, and **{worst.name}** least, **{percent(least)}**, of "
            f"{len(known)} arms."
        )
    parts = [f"**{arm.name}** **{percent(value)}**" for value, arm in known]
    parts[0] = parts[0].replace("** **", "** keeps **", 1) + " of the prior skills"
    return f"At the last checkpoint {listing(parts)}."


def _why_unmatched(task: str, arms: Sequence[Arm], start: float) -> str:
    """Return why there is no comparison at equal success, and which arms improved on the base."""
    best = [(max(arm.runs, key=top), arm) for arm in arms]
    improved = [(run, arm) for run, arm in best if top(run) > start]
    if len(improved) == 1:
        run, arm = improved[0]
        text = (
            f"No matched comparison: only **{arm.name}** improved on the base on {task} "
            f"({percent(run.first.new)} → {percent(top(run))})"
        )
        lasts = [mean([run.last.new for run in other.runs]) for other in arms if other is not arm]
        others = [f"**{other.name}**" for other in arms if other is not arm]
        if len(others) > MOST_NAMED:
            return f"{text}."
        return f"{text}; {listing(others)} ended at {listing([percent(x) for x in lasts])}."
    run = max((run for run, _ in best), key=top)
    reason = "no arm improved" if not improved else "no two arms rise together"
    return (
        f"No matched comparison: {reason} above the base's {percent(start)} on {task}. "
        f"The best run is {run.title} with {percent(top(run))}."
    )


def _excluded(matches: Sequence[ArmMatch]) -> list[str]:
    """Return why arms have no number at the level, equal reasons in one sentence."""
    short = [m for m in matches if str(m.reason).startswith(ONLY_REACHES)]
    others = [m for m in matches if m not in short]
    sentences = [f"**{m.arm}** is excluded at this level: {m.reason}." for m in others]
    if len(short) == 1:
        sentences.insert(0, f"**{short[0].arm}** is excluded at this level: {short[0].reason}.")
    elif short:
        names = listing([f"**{m.arm}**" for m in short])
        rates = listing([str(m.reason).removeprefix(ONLY_REACHES).strip() for m in short])
        sentences.insert(
            0, f"{names} are excluded at this level: their best runs reach only {rates}."
        )
    return sentences


def _last(arms: Sequence[Arm], level: float | None) -> list[str]:
    """Return a sentence about the last checkpoints of the arms."""
    if len(arms) > MOST_NAMED:
        return []
    parts = []
    for arm in arms:
        runs = shown_setting(arm, level).runs
        retention = percent(mean([run.last.retention for run in runs]))
        new = percent(mean([run.last.new for run in runs]))
        parts.append(f"**{arm.name}** has {new} and keeps {retention}")
    return [f"At the last checkpoint {listing(parts)}."]


def _lost(arms: Sequence[Arm], level: float | None) -> list[str]:
    """Return the skills that the worst arm lost entirely, or the one of which it lost most."""
    selection = [(arm, shown_setting(arm, level).runs) for arm in arms]
    losses = [
        (mean(retentions), skill, arm)
        for arm, runs in selection
        for skill in runs[0].last.skills
        if (retentions := retentions_of(runs, skill)) and len(retentions) == len(runs)
    ]
    retention, skill, worst = min(losses, key=lambda loss: loss[0], default=(1.0, "", None))
    if worst is None or retention >= NOTABLE_RETENTION:
        return []
    least = min(retention, 0.0)
    gone = {
        arm.name: [name for value, name, owner in losses if owner is arm and value <= least]
        for arm, _ in selection
    }
    name, skills = max(gone.items(), key=lambda item: len(item[1]))
    if not skills:
        return [
            f"The largest loss is that of {skill} after **{worst.name}**: {percent(retention)} of "
            "the base's success is left."
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
            f"These runs show no law of forgetting: no checkpoint lies between {low} and {high} "
            "nats of KL(base ‖ tuned) on the new task. The R² of "
            f"{number(law.r2)} ({size}) merely separates two clusters.{_inside(law)}"
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
        f"Its R² is higher than that of KL by {difference}"
        if gap.low > 0
        else f"Its R² is not clearly higher than that of KL: the difference is {difference}"
    )
    return [
        *sentences,
        f"Of {len(fitted)} predictors, {_named(fitted[0])} explains most: {_share(fitted[0])}. "
        f"{verdict}, runs resampled.",
    ]


def _falloff(fit: Falloff) -> list[str]:
    """Return a sentence about the half-loss point, if a Hill curve could be fitted."""
    if fit.half is None or fit.half_interval is None or fit.minus_parabola is None:
        return []
    low, high = (number(end) for end in fit.half_interval)
    return [
        f"A Hill curve (R² {number(fit.r2)}, {against_parabola(fit.minus_parabola.interval)}) puts "
        f"the half-loss point at {number(fit.half)} nats [{low}, {high}]."
    ]


def against_parabola(difference: Sequence[float]) -> str:
    """Return how a curve's R² compares with the polynomial's, from the difference's interval."""
    low, high = difference
    if low > 0:
        return "better than the polynomial"
    return "worse than the polynomial" if high < 0 else "about as good as the polynomial"


def _inside(law: Law) -> str:
    """Return how well the fit explains the variation within arms, and predicts an unseen arm."""
    text = ""
    if law.within_r2 is not None:
        text += f" Within arms it explains {percent(law.within_r2)}."
    if law.leave_one_arm_out_rmse is not None:
        error = 100 * law.leave_one_arm_out_rmse
        text += (
            f" On an arm that was left out of the fit it errs by {error:.0f} points (RMS)."
            if error < 100
            else " It does not extrapolate: predicting an arm that was left out of the fit fails "
            "(error above 100 points)."
        )
    return text


def _named(fit: Law) -> str:
    """Return a predictor's name within a sentence."""
    quantity, states = predictor_parts(fit.predictor)
    if quantity[1:2].islower():
        quantity = quantity[0].lower() + quantity[1:]
    return f"{quantity} ({states})" if states else quantity


def _share(fit: Law) -> str:
    return f"**{percent(fit.r2)}** {interval(fit.r2_interval)}".rstrip()


def _order(estimate: Estimate) -> float:
    return estimate.value if math.isfinite(estimate.value) else -1.0
