"""What an environment says about success: one rule for every kind of environment.

`info["is_success"]` is read, else `info["success"]`, and nothing else: that an episode terminated
never means that it succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_razor.vector.faults import Breach

KEYS = ("is_success", "success")


def told_success(info: Mapping[str, Any]) -> bool | None:
    """Return what an info says about success, None where it says nothing.

    Args:
        info: Of one environment's step.

    Raises:
        Breach: A value is neither true nor false, or the two keys contradict each other.
    """
    told = {key: _as_bool(key, info[key]) for key in KEYS if key in info}
    if len(set(told.values())) > 1:
        both = " and ".join(f"{key!r} {value}" for key, value in told.items())
        raise Breach(f"contradicts itself in its info: {both}")
    return next(iter(told.values()), None)


def silent_text(info: Mapping[str, Any]) -> str:
    """Return the sentence for an episode that ended and never said whether it succeeded."""
    return (
        f"tells no success: an episode ended, and its info had {sorted(map(str, info))}, but "
        "neither 'is_success' nor 'success'"
    )


def _as_bool(key: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind in "biuf" and array.item() in (0, 1):
        return bool(array.item())
    raise Breach(f"gives info[{key!r}] as {_short(value)}, which is neither True nor False")


def _short(value: Any) -> str:
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."
