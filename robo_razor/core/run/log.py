"""The numbers of a run: to `metrics.jsonl` always, and to the sinks that its settings name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from robo_razor.core.metrics import Summary, summary_metrics
from robo_razor.core.plugins import SINKS
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.sinks import Sink
from robo_razor.core.sinks.jsonl import JsonLines


class RunLog:
    """Writes a run's numbers; use it as a context manager.

    `metrics.jsonl` is the record. The other sinks are views: when one cannot write, the run goes on
    without it.

    Args:
        run: The run that the numbers belong to.
        sinks: Names from `SINKS`.
        start: Updates already done. Lines that a killed run wrote after its last checkpoint (steps
            beyond `start`) are dropped, so no step is there twice.
        warn: Receives a sentence about a sink that cannot write.

    Raises:
        UnknownNameError: A sink is not registered.

    Example:
        with RunLog(run) as log:
            log.metrics(3, {"train/loss": 0.2})
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        sinks: Sequence[str] = ("tensorboard",),
        start: int = 0,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._run, self._start, self._warn = run, start, warn
        self._lines = JsonLines()
        names = [name for name in dict.fromkeys(sinks) if name != "jsonl"]
        self._views: list[Sink] = [SINKS.get(name)() for name in names]
        self._broken: list[Sink] = []

    def __enter__(self) -> Self:
        """Start all sinks."""
        config = self._run.config_data() if self._run.has_config() else {}
        with contextlib.ExitStack() as undo:
            for sink in (self._lines, *self._views):
                undo.callback(sink.close)
                sink.start(self._run.path, config, self._start)
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all sinks."""
        self._lines.close()
        self._to_views(lambda view: view.close())
        for view in self._broken:
            with contextlib.suppress(Exception):
                view.close()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics; a value that is not finite is written as null."""
        numbers = {key: float(value) for key, value in values.items()}
        self._lines.log(step, numbers)
        self._to_views(lambda view: view.log(step, numbers))

    def evaluation(self, summary: Summary, more: Mapping[str, float]) -> None:
        """Write a checkpoint's numbers as metrics, in place of those that its step may have.

        Args:
            summary: What `eval/<step>/summary.json` holds.
            more: Further numbers of the checkpoint.
        """
        numbers = summary_metrics(summary)
        self._lines.summary(summary.step, numbers)
        self._to_views(lambda view: view.summary(summary.step, numbers))
        self.metrics(summary.step, more)

    def flush(self) -> None:
        """Bring `metrics.jsonl` to disk."""
        self._lines.flush()

    def _to_views(self, write: Callable[[Sink], None]) -> None:
        for view in list(self._views):
            try:
                write(view)
            except Exception as error:  # a disk, a network, or a mistake in somebody's sink
                self._views.remove(view)
                self._broken.append(view)
                if self._warn is not None:
                    self._warn(f"{view.title} cannot be written ({error}); metrics.jsonl goes on.")
