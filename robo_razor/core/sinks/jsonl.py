"""`metrics.jsonl`: one JSON object of numbers per line. It is always written."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from robo_razor.core.files import parse_json, write_bytes
from robo_razor.core.metrics import ELAPSED, STEP, is_evaluation
from robo_razor.core.plugins import SINKS
from robo_razor.core.run.directory import METRICS


@SINKS.register("jsonl")
class JsonLines:
    """Writes every line immediately, so that a killed run loses none."""

    title = METRICS

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._start = 0
        self._path = Path()
        self._file: TextIO | None = None

    def start(self, directory: Path, config: Mapping[str, Any], step: int) -> None:
        """Open the file; drop lines of a killed run beyond `step`, so that no step occurs twice."""
        self._path, self._start = directory / METRICS, step
        self._keep(lambda line: line[STEP] <= step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line; a value that is not finite is written as null."""
        assert self._file is not None
        finite = {key: x if math.isfinite(x) else None for key, x in metrics.items()}
        line = {STEP: step, ELAPSED: round(time.monotonic() - self._began, 3), **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def summary(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a checkpoint's line, in place of those that an interrupted run wrote."""
        if step == self._start:
            self._keep(lambda line: line[STEP] != step or not is_evaluation(line))
        self.log(step, metrics)

    def flush(self) -> None:
        """Bring the lines to disk."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop unwanted, incomplete and foreign lines; open the file for more."""
        self.close()
        if self._path.is_file():
            lines = []
            for line in self._path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    if wanted(parse_json(line.decode("utf-8"))):
                        lines.append(line)
            write_bytes(self._path, b"".join(line + b"\n" for line in lines))
        self._file = self._path.open("a", encoding="utf-8")
