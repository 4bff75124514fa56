"""Compare arms at equal success on the new task.

The rule: the new task's success along a run is smoothed to the closest curve that never falls
(isotonic regression, episodes as weights). Prior success (retention, KL) is read off where that
curve first reaches the level, by linear interpolation between checkpoints. The first crossing of
the raw curve would come too early: a run whose true rate is 85 % almost surely shows 90 % in one of
several evaluations of 50 episodes. So a single lucky evaluation does not count as reaching a level.
A level counts for an arm only where every seed of the compared setting reaches it, and only above
the base's own success. The mean and the interval of an arm are over its seeds (Student's t), those
of a difference over the seeds of both (Welch). Both are at least as wide as the interval from the
episodes alone; episodes are never pooled.

An arm with several settings (a grid) is represented by the setting with the highest prior success
at that level. It is chosen for each seed on the *other* seeds, so that a choice among many is not
an advantage. A setting with fewer seeds than another one of its arm is not compared: it is easier
for few seeds to all reach a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from robo_razor.core.files import finite
from robo_razor.report.arms import Arm, Setting
from robo_razor.report.format import plural
from robo_razor.report.load import FORWARD_KL, RunSeries, mean
from robo_razor.statistics.intervals import Estimate
from robo_razor.statistics.tradeoffs import interpolate_at, isotonic

LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""New-task success rates at which arms are compared where they reach them."""
BOUNDS = {"prior": (0.0, 1.0), "retention": (0.0, math.inf), "kl": (0.0, math.inf)}
"""The compared quantities, and their possible ranges."""
QUANTITIES = tuple(BOUNDS)

ONLY_REACHES = "its best run reaches only"
"""Begins the reason for an arm whose runs all miss a level."""
RULE = (
    "Prior success and retention are read off where a run's new-task success first reaches the "
    "level, interpolated linearly between checkpoints. Success along a run is first smoothed to "
    "the closest curve that never falls (isotonic regression, episodes as weights), so a single "
    "lucky evaluation does not count as reaching a level. An arm counts at a level only if every "
    "seed reaches it, and only above the base's own success. Intervals (95%) are over seeds. They "
    "are at least as wide as the interval from the finite number of episodes alone, and do not "
    "include the uncertainty of where the curve crosses the level."
)
GRID_RULE = (
    "An arm with several settings is represented by the one that keeps most at that level, chosen "
    "for each seed on the other seeds. Settings with fewer seeds than others are left out."
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
    prior_interval: tuple[float, float] | None = None
    """95 % over this run's episodes; interpolated as the value is."""
    retention_interval: tuple[float, float] | None = None
    new: float | None = None
    """New-task success as measured at the first checkpoint at or after the crossing."""
    new_interval: tuple[float, float] | None = None
    new_n: int | None = None
    """Episodes behind it."""


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
        return [value for value, _ in self._pairs(quantity)]

    def within(self, quantity: str) -> list[tuple[float, float]]:
        """Return each seed's interval over its own episodes, in the order of `values`."""
        return [ends or (math.nan, math.nan) for _, ends in self._pairs(quantity)]

    def _pairs(self, quantity: str) -> list[tuple[float, tuple[float, float] | None]]:
        if quantity == "kl":
            pairs = [(run.kl.get(FORWARD_KL), None) for run in self.runs]
        else:
            pairs = [
                (getattr(run, quantity), getattr(run, f"{quantity}_interval")) for run in self.runs
            ]
        return [(value, ends) for value, ends in pairs if value is not None]

    def estimate(self, quantity: str) -> Estimate:
        """Return the mean over seeds and its interval (NaN: unknown, or one seed)."""
        from robo_razor.statistics.seeds import seed_interval

        values = self.values(quantity)
        if not values:
            return Estimate(math.nan, math.nan, math.nan)
        return seed_interval(values, within=self.within(quantity), bounds=BOUNDS[quantity])

    def over_episodes(self, quantity: str) -> tuple[float, float] | None:
        """Return the interval of a single seed over its episodes; None: several, or unknown."""
        ends = self.within(quantity)
        return ends[0] if len(ends) == 1 and math.isfinite(ends[0][0]) else None


def difference(first: ArmMatch, second: ArmMatch, quantity: str) -> Estimate | None:
    """Return one arm minus another over their seeds; None where one has no number."""
    from robo_razor.statistics.seeds import seed_difference

    first_values, second_values = first.values(quantity), second.values(quantity)
    if not first_values or not second_values:
        return None
    return seed_difference(
        first_values,
        second_values,
        first_within=first.within(quantity),
        second_within=second.within(quantity),
        bounds=(-1.0, 1.0) if quantity == "prior" else (-math.inf, math.inf),
    )


def difference_over_episodes(
    first: ArmMatch, second: ArmMatch, quantity: str
) -> tuple[float, float] | None:
    """Return the interval of two single runs' difference over their episodes, or None.

    It takes the runs as independent, see `seed_difference`, and says nothing about other seeds.
    """
    first_ends, second_ends = first.over_episodes(quantity), second.over_episodes(quantity)
    if first_ends is None or second_ends is None:
        return None
    a, b = first.values(quantity)[0], second.values(quantity)[0]
    low = math.hypot(a - first_ends[0], second_ends[1] - b)
    high = math.hypot(first_ends[1] - a, b - second_ends[0])
    return a - b - low, a - b + high


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
    """Return how much of the prior skills is left where a run reaches a new-task success rate."""
    new = smoothed(run)
    steps = interpolate_at(level, new, [float(checkpoint.step) for checkpoint in run.checkpoints])
    if steps is None:
        return Matched(run.name, level, False, None, None, None)

    def at(values: Sequence[float]) -> float:
        crossing = interpolate_at(level, new, values)
        return math.nan if crossing is None else crossing[0]

    def ends(name: str) -> tuple[float, float] | None:
        pairs = [getattr(checkpoint, name) for checkpoint in run.checkpoints]
        low, high = at([pair[0] for pair in pairs]), at([pair[1] for pair in pairs])
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    after = next(c for c, value in zip(run.checkpoints, new, strict=True) if value >= level)
    kl = {key: at(run.series(key)) for key in sorted(run.last.kl)}
    return Matched(
        run=run.name,
        level=level,
        interpolated=steps[1],
        step=steps[0],
        prior=finite(at(run.series("prior"))),
        retention=finite(at(run.series("retention"))),
        kl={key: value for key, value in kl.items() if math.isfinite(value)},
        prior_interval=ends("prior_interval"),
        retention_interval=ends("retention_interval"),
        new=after.new,
        new_interval=after.new_interval,
        new_n=after.new_n,
    )


def smoothed(run: RunSeries) -> list[float]:
    """Return the new-task success along a run as the closest curve that never falls."""
    rates = isotonic(run.series("new"), [max(1, c.new_n) for c in run.checkpoints])
    return [float(rate) for rate in rates]


def top(run: RunSeries) -> float:
    """Return the highest new-task success that a run reaches and does not fall from."""
    return smoothed(run)[-1]


def reach(setting: Setting) -> float:
    """Return the highest level that every seed of a setting reaches."""
    return min(top(run) for run in setting.runs)


def overlap(arms: Sequence[Arm]) -> tuple[float, float]:
    """Return the range of new-task success that all arms pass through, as (above, up to)."""
    low = max(run.first.new for arm in arms for run in arm.runs)
    high = min(max(reach(setting) for setting in arm.complete) for arm in arms)
    return low, high


def levels_between(low: float, high: float) -> tuple[float, ...]:
    """Return the usual levels in (low, high], and the highest round one."""
    highest = math.floor(high * 20 + 1e-9) / 20  # people compare at round numbers
    levels = [level for level in LEVELS if low < level < highest]
    return (*levels, highest) if highest > low else tuple(levels)


def matching_levels(arms: Sequence[Arm]) -> tuple[float, ...]:
    """Return the levels at which two arms can be compared, or at which the only arm is shown."""
    groups = [[arms[i], arms[j]] for i in range(len(arms)) for j in range(i + 1, len(arms))]
    levels = {level for pair in groups or [list(arms)] for level in levels_between(*overlap(pair))}
    return tuple(sorted(levels))


def headline_level(arms: Sequence[Arm], levels: Sequence[float]) -> float | None:
    """Return the level of the report's headline.

    It is the highest level that all arms reach. If that is less than half way from the base to the
    highest level of any two arms, one arm may miss it, and so on, until two arms remain.
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
    """Return an arm's runs at a level, of the setting that the module's rule chooses."""
    start = max(run.first.new for run in arm.runs)
    if level <= start:
        return ArmMatch(arm.name, level, reason=f"the base already has {start:.0%}")
    settings = [setting for setting in arm.complete if reach(setting) >= level]
    if not settings:
        return ArmMatch(arm.name, level, reason=_why_not(arm, level))
    most = len(settings[0].runs)
    table = [[match(run, level) for run in setting.runs] for setting in settings]
    if len(settings) == 1:
        choice = "only setting" + (" that reaches it" if len(arm.complete) > 1 else "")
        if len(arm.complete) < len(arm.settings):
            choice += f" with {plural(most, 'seed')}"
        return ArmMatch(arm.name, level, tuple(table[0]), settings[0].label, choice)
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
    tops = [top(run) for run in arm.compared]
    count = sum(value >= level for value in tops)
    if count == 0:
        best = max(tops)
        text = f"{best:.0%}" if round(best, 2) < level else f"{best:.1%}"
        return f"{ONLY_REACHES} {text}"
    if len(arm.complete) == 1:
        return f"only {count} of {len(tops)} seeds reach it"
    return f"no setting reaches it with every seed ({count} of {len(tops)} runs do)"


def shown_setting(arm: Arm, level: float | None) -> Setting:
    """Return the setting that represents an arm in tables of single checkpoints.

    It is the one with the highest mean prior success at the level, of those that `match_arm`
    chooses from. If none reaches the level, it is the one that gets furthest on the new task.
    """
    if level is not None:
        reaching = [setting for setting in arm.complete if reach(setting) >= level]
        if reaching:
            return max(reaching, key=lambda candidate: _mean_prior(candidate, level))
    return max(arm.complete, key=reach)


def _mean_prior(setting: Setting, level: float) -> float:
    priors = [match(run, level).prior for run in setting.runs]
    value = mean([prior for prior in priors if prior is not None])
    return value if math.isfinite(value) else 0.0


def compare_pair(first: Arm, second: Arm, levels: Sequence[float]) -> Pair:
    """Compare two arms at all levels that both reach; refuse if their ranges do not overlap.

    Args:
        first: One arm.
        second: The other.
        levels: New-task success rates.
    """
    low, high = overlap([first, second])
    matches = [(match_arm(first, level), match_arm(second, level)) for level in levels]
    both = tuple((a, b) for a, b in matches if a.reason is None and b.reason is None)
    if both:
        return Pair(first.name, second.name, low, high, both)
    if high <= low:
        reason = (
            f"their ranges of success on the new task do not overlap above the base: "
            f"{_range(first)}, {_range(second)}"
        )
    else:
        reason = f"none of the requested levels is above {low:.0%} and at most {high:.0%}"
    return Pair(first.name, second.name, low, high, (), reason)


def _range(arm: Arm) -> str:
    low = min(run.first.new for run in arm.runs)
    return f"{arm.name} {low:.0%} to {max(reach(setting) for setting in arm.complete):.0%}"
