"""A metric sink of your own: a CSV file with one number per line."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robo_razor.core.plugins import SINKS

FILE = "metrics.csv"


@SINKS.register("my_sink")
class MySink:
    """Writes step, key and value of every number. Of two equal steps and keys the last counts."""

    title = FILE

    def start(self, directory: Path, config: Mapping[str, Any], step: int) -> None:
        """Open the file. A run that goes on at `step` will log all later steps again."""
        path, lines = directory / FILE, [["step", "key", "value"]]
        if step and path.exists():
            with path.open(newline="") as file:
                lines = [line for line in csv.reader(file) if _is_before(line, step)]
        self.file = path.open("w", newline="")
        self.lines = csv.writer(self.file)
        self.lines.writerows(lines)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the numbers of an update."""
        self.lines.writerows((step, key, value) for key, value in metrics.items())
        self.file.flush()  # a run that is killed loses none

    def summary(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write what was measured at a checkpoint."""
        self.log(step, metrics)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _is_before(line: list[str], step: int) -> bool:
    return line[0] == "step" or int(line[0]) <= step
