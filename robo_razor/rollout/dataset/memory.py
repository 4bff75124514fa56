"""A check that demonstrations fit in memory, before they fill it."""

from __future__ import annotations

from collections.abc import Callable

from robo_razor.core.errors import DemonstrationError
from robo_razor.core.machine import available_bytes


def require_memory(
    needed: float, problem: Callable[[str], str], remedy: str | Callable[[int], str]
) -> None:
    """Check that data fit in free memory; without information about free memory they do.

    Args:
        needed: Size of the data, bytes.
        problem: Returns the message from the size as text.
        remedy: The advice, or a function that returns it from the free memory in bytes.

    Raises:
        DemonstrationError: They do not fit.
    """
    available = available_bytes()
    if available is None or needed <= available:
        return
    raise DemonstrationError(
        f"{problem(_gib(needed))}, but {_gib(available)} are free",
        remedy=remedy if isinstance(remedy, str) else remedy(available),
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
