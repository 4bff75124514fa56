"""Whether demonstrations fit in memory, checked before they fill it."""

from __future__ import annotations

from collections.abc import Callable

from robo_razor.core.errors import DemonstrationError
from robo_razor.core.machine import available_bytes


def require_memory(
    needed: float, problem: Callable[[str], str], remedy: str | Callable[[int], str]
) -> None:
    """Check that something fits in free memory, where the system says how much that is.

    Args:
        needed: Its size, bytes.
        problem: Says what does not fit, given its size in words.
        remedy: What to do, or a function of the free memory, bytes, that says it.

    Raises:
        DemonstrationError: It does not fit.
    """
    available = available_bytes()
    if available is None or needed <= available:
        return
    raise DemonstrationError(
        f"{problem(_gib(needed))}, and {_gib(available)} are free",
        remedy=remedy if isinstance(remedy, str) else remedy(available),
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
