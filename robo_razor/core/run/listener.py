"""The listener of a run: the trainer reports its progress to it, and the caller passes it in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from robo_razor.core.metrics import Summary


class Listener:
    """Receives the progress of a run. This one shows nothing; a display overrides its methods."""

    @property
    def console(self) -> Console | None:
        """The console on which parts of a run may draw bars of their own; None: there is none."""
        return None

    def begin(self, total: int, *, unit: str = "update", start: int = 0) -> None:
        """The updates begin.

        Args:
            total: Updates in the whole run.
            unit: What one step of the run is.
            start: Updates already done.
        """

    def end(self) -> None:
        """The updates have ended."""

    def progress(
        self,
        completed: int,
        *,
        success: float | None = None,
        kl: float | None = None,
        episodes: float | None = None,
        **more: float,
    ) -> None:
        """The run has come so far.

        Args:
            completed: Updates done, those of an interrupted run included.
            success: Success rate of the last rollouts, [0, 1].
            kl: KL(base || tuned) on the new task, nats per decision.
            episodes: Episodes run by this process so far.
            **more: Further numbers, by name.
        """

    def measured(self, summary: Summary) -> None:
        """A checkpoint was measured."""

    def note(self, text: str) -> None:
        """The run has a message for the user."""

    def warn(self, text: str) -> None:
        """The run has a warning for the user."""
