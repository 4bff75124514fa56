"""Signals that ask a run to stop, while it does work that must not be cut in half."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, a scheduler's notice, a closed terminal, and the notice that Slurm sends on request."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


class Interrupts:
    """Turns signals into `Interrupted`, at once or after the running update.

    Attributes:
        postponed: Set to True where an interruption has to wait for `release`; a second one does
            not wait.
        pending: An interruption is waiting.
    """

    def __init__(self) -> None:
        self.postponed = False
        self.pending = False
        self._number: int = signal.SIGINT

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise `Interrupted` now, or leave it to `release`; a signal handler."""
        self._number = number
        if self.postponed and not self.pending:
            self.pending = True
            return
        raise Interrupted(number)

    def release(self, *, also: bool = False) -> None:
        """Raise what was postponed, and postpone no more.

        Args:
            also: Raise even if nothing is pending here: another rank was interrupted.
        """
        self.postponed = False
        if self.pending or also:
            self.pending = False
            raise Interrupted(self._number)


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Handle the signals inside the block; does nothing outside the main thread."""
    interrupts = Interrupts()
    with handling(interrupts.handle):
        yield interrupts


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call a function on the signals inside the block; does nothing outside the main thread.

    A process that was started with `nohup` keeps ignoring a closed terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    has_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    handled = [number for number in SIGNALS if not (has_nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
