"""Who hears how a run goes on: nobody, or a display that the caller passes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from robo_razor.core.metrics import Summary


class Listener:
    """Hears how a run goes on. This one shows nothing; a display overrides what it shows."""

    @property
    def console(self) -> Console | None:
        """Where parts of a run may draw bars of their own; None: nowhere."""
        return None

    def begin(self, total: int, *, unit: str = "update", start: int = 0) -> None:
        """Hear that the updates begin.

        Args:
            total: Updates in the whole run.
            unit: What one step of the run is.
            start: Updates already done.
        """

    def end(self) -> None:
        """Hear that there are no more updates."""

    def progress(
        self,
        completed: int,
        *,
        success: float | None = None,
        kl: float | None = None,
        episodes: float | None = None,
        **more: float,
    ) -> None:
        """Hear how far the run is.

        Args:
            completed: Updates done, those of an interrupted run included.
            success: Success rate of the last rollouts, [0, 1].
            kl: KL(base || tuned) on the new task, nats per decision.
            episodes: Episodes run by this process so far.
            **more: Further numbers, by name.
        """

    def measured(self, summary: Summary) -> None:
        """Hear what was measured at a checkpoint."""

    def note(self, text: str) -> None:
        """Hear a sentence about the run."""

    def warn(self, text: str) -> None:
        """Hear a warning about the run."""
