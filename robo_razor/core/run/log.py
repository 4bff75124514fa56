"""What a run says while it runs: its numbers to sinks, its progress to a console."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType

from robo_razor.core.metrics import Summary, summary_metrics
from robo_razor.core.plugins import SINKS
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.run.display import Display
from robo_razor.core.sinks import Sink
from robo_razor.core.sinks.jsonl import JsonLines


class MetricLog:
    """Writes a run's numbers: to `metrics.jsonl` always, and to the sinks that are named.

    `metrics.jsonl` is the record. The others are views: one that cannot write is left out, and the
    run goes on.

    Args:
        run: Where the numbers belong.
        sinks: Names from `SINKS`.
        start: Updates already done. What a killed run logged after them is dropped.
        warn: Is given a sentence about a sink that is left out.
    """

    def __init__(
        self, run: RunDirectory, sinks: Sequence[str], start: int, warn: Callable[[str], None]
    ) -> None:
        self._run, self._start, self._warn = run, start, warn
        self._lines = JsonLines()
        names = [name for name in dict.fromkeys(sinks) if name != "jsonl"]
        self._views: list[Sink] = [SINKS.get(name)() for name in names]
        self._broken: list[Sink] = []

    def open(self) -> None:
        """Start all sinks."""
        config = self._run.config_data() if self._run.has_config() else {}
        with contextlib.ExitStack() as undo:
            for sink in (self._lines, *self._views):
                undo.callback(sink.close)
                sink.start(self._run.path, config, self._start)
            undo.pop_all()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line of numbers."""
        self._lines.log(step, metrics)
        self._show(lambda view: view.log(step, metrics))

    def summary(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a checkpoint's numbers, in place of those that its step may have."""
        self._lines.summary(step, metrics)
        self._show(lambda view: view.summary(step, metrics))

    def flush(self) -> None:
        """Bring `metrics.jsonl` to disk."""
        self._lines.flush()

    def close(self) -> None:
        """Close all sinks."""
        self._lines.close()
        self._show(lambda view: view.close())
        for view in self._broken:
            with contextlib.suppress(Exception):
                view.close()

    def _show(self, act: Callable[[Sink], None]) -> None:
        for view in list(self._views):
            try:
                act(view)
            except Exception as error:  # a disk, a network, or a mistake in somebody's sink
                self._views.remove(view)
                self._broken.append(view)
                self._warn(f"{view.title} cannot be written ({error}); metrics.jsonl goes on.")


class RunLog:
    """Writes a run's numbers and shows its progress; use it as a context manager.

    Example:
        with RunLog(run, total=60) as log:
            log.metrics(3, {"train/loss": 0.2})
            log.progress(3, success=0.41, kl=0.8, episodes=768)
    """

    def __init__(
        self,
        run: RunDirectory | None,
        *,
        total: int,
        unit: str = "update",
        start: int = 0,
        console: Console | None = None,
        sinks: Sequence[str] = ("tensorboard",),
    ) -> None:
        """Open the log.

        Args:
            run: Where metrics are written; None: nowhere.
            total: Updates in the whole run.
            unit: What one step of the bar is.
            start: Updates already done. Lines that a killed run wrote after its last checkpoint
                (steps beyond `start`) are dropped, so no step is there twice.
            console: Where progress is shown; default: standard output.
            sinks: Where metrics go besides `metrics.jsonl`, see `core.sinks`.
        """
        self._display = Display(total=total, unit=unit, start=start, console=console)
        self._metrics = None if run is None else MetricLog(run, sinks, start, self.warn)

    @property
    def console(self) -> Console:
        """Where progress is shown."""
        return self._display.console

    def __enter__(self) -> Self:
        """Open the files and start the bar."""
        if self._metrics is not None:
            self._metrics.open()
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bar and close the files."""
        self._display.stop()
        if self._metrics is not None:
            self._metrics.close()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics; a value that is not finite is written as null."""
        if self._metrics is not None:
            self._metrics.log(step, {key: float(value) for key, value in values.items()})

    def evaluation(self, summary: Summary, more: Mapping[str, float]) -> None:
        """Write a checkpoint's numbers as metrics, in place of those that its step may have.

        Args:
            summary: What `eval/<step>/summary.json` holds.
            more: Further numbers of the checkpoint.
        """
        if self._metrics is not None:
            self._metrics.summary(summary.step, summary_metrics(summary))
        self.metrics(summary.step, more)

    def flush(self) -> None:
        """Bring the metrics to disk."""
        if self._metrics is not None:
            self._metrics.flush()

    def progress(
        self,
        completed: int,
        *,
        success: float | None = None,
        kl: float | None = None,
        episodes: float | None = None,
        **more: float,
    ) -> None:
        """Move the bar, see `Display.progress`."""
        self._display.progress(completed, success=success, kl=kl, episodes=episodes, **more)

    def show(self, renderable: RenderableType) -> None:
        """Print something above the bar, e.g. a table."""
        self._display.show(renderable)

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        self._display.note(text)

    def warn(self, text: str) -> None:
        """Print a warning above the bar."""
        self._display.warn(text)
