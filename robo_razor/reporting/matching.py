"""Compare arms at equal success on the new task.

The rule: along each run, the prior success (retention, KL) is read off where the new task's success
first reaches the level, by linear interpolation between checkpoints. A level counts for an arm only
where every seed of the compared setting reaches it, and only above the base's own success. The mean
and the interval of an arm are over its seeds (Student's t), of a difference over the seeds of both
(Welch); episodes are never pooled.

An arm with several settings (a grid) is compared by the one with the highest prior success at that
level, chosen for each seed on the *other* seeds, so that choosing among many is no advantage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from robo_razor.files import finite
from robo_razor.reporting.arms import Arm, Setting
from robo_razor.reporting.runs import FORWARD_KL, RunSeries, mean
from robo_razor.statistics import Estimate, interpolate_at

LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""New-task success rates at which arms are compared where they reach them."""
QUANTITIES = ("prior", "retention", "kl")

RULE = (
    "Prior success and retention are read off where a run's new-task success first reaches the "
    "level, interpolated linearly between checkpoints. An arm counts at a level only if every "
    "seed reaches it, and only above the base's own success. Intervals (95%) are over seeds."
)
GRID_RULE = (
    "An arm with several settings is compared by the one that keeps most at that level, chosen "
    "for each seed on the other seeds."
)


@dataclass(frozen=True)
class Matched:
    """One run at a level of new-task success; None where the run never reaches it."""

    run: str
    level: float
    interpolated: bool
    step: float | None
    prior: float | None
    retention: float | None
    kl: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmMatch:
    """One arm at a level of new-task success, or the reason why there is no number."""

    arm: str
    level: float
    runs: tuple[Matched, ...] = ()
    """One per seed."""
    setting: str = ""
    """The setting compared; several with `;` where the other seeds chose differently."""
    choice: str = "only setting"
    reason: str | None = None

    def values(self, quantity: str) -> list[float]:
        """Return one number per seed: `prior`, `retention`, or `kl` (the paper's predictor)."""
        if quantity == "kl":
            found = [run.kl.get(FORWARD_KL) for run in self.runs]
        else:
            found = [getattr(run, quantity) for run in self.runs]
        return [value for value in found if value is not None]

    def estimate(self, quantity: str) -> Estimate:
        """Return the mean over seeds and its interval (NaN: unknown, or one seed)."""
        from robo_razor.statistics import seed_interval

        values = self.values(quantity)
        if not values:
            return Estimate(math.nan, math.nan, math.nan)
        return seed_interval(values)


@dataclass(frozen=True)
class Pair:
    """Two arms over the levels that both reach, or the reason for refusing."""

    first: str
    second: str
    low: float
    high: float
    levels: tuple[tuple[ArmMatch, ArmMatch], ...] = ()
    reason: str | None = None


def match(run: RunSeries, level: float) -> Matched:
    """Return what is left of the prior skills when a run first reaches a new-task success rate."""
    new = run.series("new")
    found = {
        key: interpolate_at(level, new, values)
        for key, values in {
            "step": [float(checkpoint.step) for checkpoint in run.checkpoints],
            "prior": run.series("prior"),
            "retention": run.series("retention"),
            **{key: run.series(key) for key in sorted(run.last.kl)},
        }.items()
    }
    step = found["step"]
    if step is None:
        return Matched(run.name, level, False, None, None, None)
    values = {key: value[0] for key, value in found.items() if value is not None}
    return Matched(
        run=run.name,
        level=level,
        interpolated=step[1],
        step=values["step"],
        prior=finite(values["prior"]),
        retention=finite(values["retention"]),
        kl={k: v for k, v in values.items() if "/" in k and math.isfinite(v)},
    )


def top(run: RunSeries) -> float:
    """Return the highest new-task success along a run."""
    return max(run.series("new"))


def reach(setting: Setting) -> float:
    """Return the highest level that every seed of a setting reaches."""
    return min(top(run) for run in setting.runs)


def overlap(arms: Sequence[Arm]) -> tuple[float, float]:
    """Return the new-task success rates that all arms pass through, as (above, up to)."""
    low = max(run.first.new for arm in arms for run in arm.runs)
    high = min(max(reach(setting) for setting in arm.settings) for arm in arms)
    return low, high


def levels_between(low: float, high: float) -> tuple[float, ...]:
    """Return the usual levels in (low, high], and the highest round one."""
    highest = math.floor(high * 20 + 1e-9) / 20  # people compare at round numbers
    levels = [level for level in LEVELS if low < level < highest]
    return (*levels, highest) if highest > low else tuple(levels)


def matching_levels(arms: Sequence[Arm]) -> tuple[float, ...]:
    """Return the levels at which any two arms can be compared (or the only arm be read off)."""
    groups = [[arms[i], arms[j]] for i in range(len(arms)) for j in range(i + 1, len(arms))]
    found = {level for pair in groups or [list(arms)] for level in levels_between(*overlap(pair))}
    return tuple(sorted(found))


def headline_level(arms: Sequence[Arm], levels: Sequence[float]) -> float | None:
    """Return the level that the report speaks of first.

    The highest one that all arms reach; where that is less than half way from the base to the
    highest level of any two arms, one arm less is asked for, and so on down to two.
    """
    counts = {level: sum(match_arm(arm, level).reason is None for arm in arms) for level in levels}
    least = min(2, len(arms))
    top_level = max((level for level, count in counts.items() if count >= least), default=None)
    if top_level is None:
        return None
    start = max(run.first.new for arm in arms for run in arm.runs)
    for needed in range(len(arms), least - 1, -1):
        level = max((x for x, count in counts.items() if count >= needed), default=0.0)
        if level >= (start + top_level) / 2:
            return level
    return top_level


def match_arm(arm: Arm, level: float) -> ArmMatch:
    """Return an arm's runs at a level, of the setting chosen as the module says."""
    start = max(run.first.new for run in arm.runs)
    if level <= start:
        return ArmMatch(arm.name, level, reason=f"the base already has {start:.0%}")
    reaching = [setting for setting in arm.settings if reach(setting) >= level]
    if not reaching:
        return ArmMatch(arm.name, level, reason=_why_not(arm, level))
    most = max(len(setting.runs) for setting in reaching)
    settings = [setting for setting in reaching if len(setting.runs) == most]
    table = [[match(run, level) for run in setting.runs] for setting in settings]
    if len(settings) == 1:
        label = settings[0].label
        choice = "only setting" if len(arm.settings) == 1 else "only setting that reaches it"
        return ArmMatch(arm.name, level, tuple(table[0]), label, choice)
    picks = [_choose(table, leave_out=seed) for seed in range(most)]
    labels = dict.fromkeys(settings[pick].label for pick in picks)
    return ArmMatch(
        arm=arm.name,
        level=level,
        runs=tuple(table[pick][seed] for seed, pick in enumerate(picks)),
        setting="; ".join(labels),
        choice=f"best of {len(settings)} settings, "
        + ("chosen on the other seeds" if most > 1 else "chosen on the same seed (optimistic)"),
    )


def _choose(table: Sequence[Sequence[Matched]], leave_out: int) -> int:
    """Return the row with the highest mean prior success over the other columns."""

    def score(row: Sequence[Matched]) -> float:
        others = [m for seed, m in enumerate(row) if seed != leave_out or len(row) == 1]
        return mean([m.prior for m in others if m.prior is not None])

    scores = [score(row) for row in table]
    best = max((s for s in scores if math.isfinite(s)), default=math.nan)
    return scores.index(best) if math.isfinite(best) else 0


def _why_not(arm: Arm, level: float) -> str:
    tops = [top(run) for run in arm.runs]
    count = sum(value >= level for value in tops)
    if count == 0:
        return f"no run reaches it; the best has {max(tops):.0%}"
    if len(arm.settings) == 1:
        return f"only {count} of {len(tops)} seeds reach it"
    return f"no setting reaches it with every seed ({count} of {len(tops)} runs do)"


def shown_setting(arm: Arm, level: float | None) -> Setting:
    """Return the setting that stands for an arm in tables of single checkpoints.

    The one with the highest mean prior success at the level; where none reaches it, the one that
    gets furthest on the new task.
    """
    if level is not None:
        reaching = [setting for setting in arm.settings if reach(setting) >= level]
        if reaching:
            return max(reaching, key=lambda setting: _mean_prior(setting, level))
    return max(arm.settings, key=reach)


def _mean_prior(setting: Setting, level: float) -> float:
    found = [match(run, level).prior for run in setting.runs]
    value = mean([prior for prior in found if prior is not None])
    return value if math.isfinite(value) else 0.0


def compare_pair(first: Arm, second: Arm, levels: Sequence[float]) -> Pair:
    """Compare two arms at all levels that both reach; refuse where their ranges do not overlap.

    Args:
        first: One arm.
        second: The other.
        levels: New-task success rates asked for.
    """
    low, high = overlap([first, second])
    matches = [(match_arm(first, level), match_arm(second, level)) for level in levels]
    both = tuple((a, b) for a, b in matches if a.reason is None and b.reason is None)
    if both:
        return Pair(first.name, second.name, low, high, both)
    if high <= low:
        reason = (
            f"their ranges of new-task success do not overlap above the base: "
            f"{_range(first)}, {_range(second)}"
        )
    else:
        reason = f"none of the levels asked for lies in ({low:.0%}, {high:.0%}]"
    return Pair(first.name, second.name, low, high, (), reason)


def _range(arm: Arm) -> str:
    low = min(run.first.new for run in arm.runs)
    return f"{arm.name} {low:.0%} to {max(reach(setting) for setting in arm.settings):.0%}"
