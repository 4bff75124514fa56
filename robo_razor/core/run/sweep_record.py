"""The record of a sweep, `sweep.json`: its arms, its runs, and the state of each.

`{"kind": "robo-razor sweep", "version": 1, "name", "arms": [], "about": {}, "runs": []}` with
`about` (arm -> a sentence about it; absent in older records) and, per run, `arm`,
`name`, `path` (relative to the sweep's directory), `state` (one of `STATES`), `method`, `seed`,
`changed` (key -> value of the settings that its arm sets), `needs` (`ARM/NAME` of the runs before
it), `starts`, `exit_status`, `error`, `wall_s` (seconds that its processes took).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from robo_razor.core.errors import SweepError, shown
from robo_razor.core.files import read_json
from robo_razor.core.records import (
    MAX_ELAPSED_S,
    MAX_NAME,
    entries,
    many,
    name,
    number,
    one_of,
    optional,
    plain_values,
    text,
    whole,
    wrong,
)

RECORD = "sweep.json"
EXPERIMENT = "experiment.yaml"
"""A copy of the experiment file, beside the record."""
KIND = "robo-razor sweep"
VERSION = 1
MAX_RUNS = 10_000
"""Runs of a sweep."""
STATES = ("pending", "running", "finished", "failed", "blocked", "interrupted")
"""The states of a run of a sweep."""


def is_sweep(path: str | Path) -> bool:
    """Return whether a directory holds the record of a sweep."""
    return (Path(path) / RECORD).is_file()


def read_sweep(path: str | Path) -> dict[str, Any]:
    """Return the content of `sweep.json` in a sweep's directory.

    Raises:
        SweepError: The file is missing or damaged.
    """
    file = Path(path) / RECORD
    data = read_json(file) if file.is_file() else {}
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise SweepError(
            f"{str(path)!r} is not a sweep's directory: it holds no {RECORD}",
            remedy="Name a directory that `robo-razor sweep` made.",
        )
    if data.get("version") != VERSION:
        raise SweepError(f"{file} has version {shown(data.get('version'))}", allowed=str(VERSION))
    _check(data, file)
    return data


def _check(data: Any, file: Path) -> None:
    """Check the content of `sweep.json`; its runs must lie within the sweep's directory."""
    remedy = "Copy the file again, or name the runs one by one."
    try:
        _SWEEP(data, "")
        arms, seen = set(data["arms"]), set()
        for i, run in enumerate(data["runs"]):
            if run["arm"] not in arms:
                raise ValueError(f"`runs[{i}].arm` = {shown(run['arm'])} is not one of `arms`")
            if run["path"] in seen:
                raise ValueError(f"`runs[{i}].path` = {shown(run['path'])} occurs twice")
            seen.add(run["path"])
    except ValueError as error:
        raise SweepError(f"{file} is damaged: {error}", remedy=remedy) from error


def _path_within(value: Any, place: str) -> None:
    """Check that a value is a relative path that stays within the sweep's directory."""
    if (
        not isinstance(value, str)
        or len(value) > 5 * MAX_NAME
        or not value.isprintable()
        or "\\" in value
        or re.match(r"[A-Za-z]:", value)
        or PurePosixPath(value).is_absolute()
        or not PurePosixPath(value).parts
        or ".." in PurePosixPath(value).parts
    ):
        raise wrong(place, value, "a path below the sweep's directory")


_SWEEP = entries(
    {
        "name": name,
        "arms": many(name, MAX_RUNS),
        "runs": many(
            entries(
                {"arm": name, "name": name, "path": _path_within, "state": one_of(*STATES)},
                {
                    "method": name,
                    "seed": whole(-(2**63), 2**63),
                    "changed": plain_values,
                    "needs": many(text, MAX_RUNS),
                    "starts": whole(),
                    "exit_status": optional(whole(-(2**31), 2**31)),
                    "error": optional(text),
                    "wall_s": number(0.0, MAX_ELAPSED_S),
                },
            ),
            MAX_RUNS,
        ),
    },
    {"about": plain_values},
)
