"""Sinks, to which a run's metrics are written: one module per sink, registered under its name.

`metrics.jsonl` is always written; the setting `log` of a run names the others. A sink of your own
is a class with the four methods of `Sink`::

    from robo_razor.core.plugins import SINKS

    @SINKS.register("print")
    class Print:
        title = "The printed metrics"

        def start(self, directory, config, step): ...
        def log(self, step, metrics): print(step, dict(metrics))
        def summary(self, step, metrics): print(step, dict(metrics))
        def close(self): ...

The run finds it by `--plugins my_module`, or by an entry point `print = "my_module:Print"` in the
group `robo_razor.sinks` of an installed package. `--log print` then turns it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Something that takes a run's numbers; a class whose constructor takes no arguments.

    Only `start` may stop a run. If a sink fails later, the run warns and goes on without it.
    """

    title: str
    """Its name in warnings, e.g. `TensorBoard's file`."""

    def start(self, directory: Path, config: Mapping[str, Any], step: int) -> None:
        """Begin, or go on with a run that was interrupted.

        Args:
            directory: The run's directory.
            config: The run's settings as nested plain values.
            step: Updates done (>= 0). The run repeats the updates after it, and logs them again.
        """
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take numbers of one step; there may be several calls for a step.

        Args:
            step: Updates done.
            metrics: Key -> number, which may be NaN or infinite; `core.metrics` has the keys.
        """
        ...

    def summary(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of a checkpoint; they replace earlier ones of the same step.

        Args:
            step: Updates done.
            metrics: Key -> number, see `core.metrics.summary_metrics`.
        """
        ...

    def close(self) -> None:
        """Finish; the run has ended or was interrupted."""
        ...
