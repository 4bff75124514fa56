"""TensorBoard's event files, in the run's folder `tensorboard/`."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.plain_text import printable
from robo_razor.core.plugins import SINKS
from robo_razor.core.run.directory import TENSORBOARD

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@SINKS.register("tensorboard")
class TensorBoard:
    """Draws every number along the steps."""

    title = "TensorBoard's file"

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._excepthook = threading.excepthook

    def start(self, directory: Path, config: Mapping[str, Any], step: int) -> None:
        """Open the files; points that a killed run drew beyond `step` are removed."""
        with warnings.catch_warnings():  # tensorboard's own deprecations
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter

            self._excepthook = threading.excepthook
            threading.excepthook = _without_writer(self._excepthook)
            self._writer = SummaryWriter(
                str(directory / TENSORBOARD), purge_step=step + 1 if step else None
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Draw numbers at a step."""
        assert self._writer is not None
        try:
            for key, value in metrics.items():
                self._writer.add_scalar(printable(key), value, global_step=step)
        except OSError:
            self._writer = None  # its thread has ended, and closing it would wait for that thread
            raise

    def summary(self, step: int, metrics: Mapping[str, float]) -> None:
        """Draw a checkpoint's numbers."""
        self.log(step, metrics)

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        threading.excepthook = self._excepthook


def _without_writer(
    report: Callable[[threading.ExceptHookArgs], Any],
) -> Callable[[threading.ExceptHookArgs], Any]:
    """Return a `threading.excepthook` that ignores TensorBoard's writer.

    The writer raises its thread's error at the next call; a traceback would repeat it.
    """

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            report(arguments)

    return hook
