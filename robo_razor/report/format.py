"""Numbers, intervals and names as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from robo_razor.core.metrics import DEMONSTRATIONS, NEW_BASE, NEW_TUNED, PRIOR
from robo_razor.core.quantities import quantity

STATES = {
    NEW_BASE: "new task, base's states",
    NEW_TUNED: "new task, tuned's states",
    DEMONSTRATIONS: "demonstrations' states",
    PRIOR: "prior skills' states",
}
UNKNOWN = "\u2013"


def percent(value: float | None) -> str:
    """Return a rate as `94%`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{round(100 * value):d}%"


def points(value: float | None) -> str:
    """Return a difference of rates in points with its sign: `+33`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    rounded = round(100 * value)
    return f"{rounded:+d}".replace("-", "\u2212") if rounded else "0"


def interval(ends: Sequence[float] | None, *, signed: bool = False) -> str:
    """Return an interval of rates as `[91, 96]`, in percent; empty where there is none."""
    if ends is None or not all(math.isfinite(end) for end in ends):
        return ""
    low, high = (
        points(end) if signed else f"{round(100 * end):d}".replace("-", "\u2212") for end in ends
    )
    return f"[{low},\u00a0{high}]"


def with_interval(value: float | None, ends: Sequence[float] | None) -> str:
    """Return `94% [91, 96]`."""
    return f"{percent(value)}\u00a0{interval(ends)}".rstrip("\u00a0")


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with two significant decimals, large ones without."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def predictor_parts(name: str) -> tuple[str, str]:
    """Return a predictor's label and its states: `KL(base ‖ tuned)`, `prior skills' states`.

    The states are empty for distances between weights.
    """
    kind, _, states = name.partition("/")
    label = quantity(kind).label
    if not states:
        return label, ""
    skill = states.removeprefix(f"{PRIOR}/")
    return label, STATES.get(states, f"states of {skill}" if skill != states else states)


def predictor_name(name: str) -> str:
    """Return label and states in one text: `KL(base ‖ tuned), new task, base's states`."""
    return ", ".join(part for part in predictor_parts(name) if part)


def listing(items: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def plural(count: int, noun: str) -> str:
    """Return `1 seed` or `3 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
