"""What an environment reports about success: one rule for every kind of environment.

`info["is_success"]` counts, else `info["success"]`, and nothing else. In particular, an episode
that terminated has not necessarily succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_razor.vector.faults import Breach

IS_SUCCESS = "is_success"
KEYS = (IS_SUCCESS, "success")


def reported_success(info: Mapping[str, Any]) -> bool | None:
    """Return whether an info reports success, None if it reports neither success nor failure.

    Args:
        info: Of one environment's step.

    Raises:
        Breach: A value is neither true nor false, or the two keys contradict each other.
    """
    reports = {key: _as_bool(key, info[key]) for key in KEYS if key in info}
    if len(set(reports.values())) > 1:
        both = " and ".join(f"{key!r} {value}" for key, value in reports.items())
        raise Breach(f"contradicts itself in its info: {both}")
    return next(iter(reports.values()), None)


def no_success_message(info: Mapping[str, Any]) -> str:
    """Return the text for an episode that ended without a report of success or failure."""
    return (
        "does not report success: an episode ended, and its info had "
        f"{sorted(map(str, info))}, but neither {KEYS[0]!r} nor {KEYS[1]!r}"
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
