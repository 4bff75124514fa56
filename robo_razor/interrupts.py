"""Ctrl-C and SIGTERM during work that must be done whole or not at all."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Literal


class Interrupts:
    """Turns Ctrl-C and SIGTERM into KeyboardInterrupt, at once or after the running update.

    Attributes:
        postponed: Set to True where an interruption has to wait for `release`; a second one does
            not wait.
        pending: An interruption is waiting.
    """

    def __init__(self) -> None:
        self.postponed = False
        self.pending = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, or keep it for `release`; a signal handler."""
        if self.postponed and not self.pending:
            self.pending = True
            return
        raise KeyboardInterrupt

    def release(self, *, also: bool = False) -> None:
        """Raise what was postponed, and postpone no more.

        Args:
            also: Raise even if nothing is pending here: another rank was interrupted.
        """
        self.postponed = False
        if self.pending or also:
            self.pending = False
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Handle both signals inside the block; does nothing outside the main thread."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers: tuple[Literal[signal.Signals.SIGINT], Literal[signal.Signals.SIGTERM]]
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupts.handle) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
