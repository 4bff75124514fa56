"""What runs leave behind, read back and checked: summaries, metrics, episodes, sweeps.

The files may have been copied, cut, edited or sent by a stranger. So everything that is read again
is checked here once, and whoever reads it may rely on it: numbers are numbers and finite, rates lie
in [0, 1], the ends of intervals are in order, names are short and can be printed, and there are no
more of anything than a person could mean. What is wrong is told with the file, the place in it and
what is allowed. Entries that nobody reads are not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from robo_razor.core.errors import CheckpointError, SweepError, shown
from robo_razor.core.files import open_file, parse_json, read_json

MAX_NAME = 200
"""Characters of a name: of a skill, a task, an arm, a run."""
MAX_SKILLS = 1000
"""Prior skills of a run; every table and figure has a line for each."""
MAX_PREDICTORS = 200
"""Distances that are fitted, those on the states of single skills apart."""
MAX_EPISODES = 200_000
"""Episodes of one evaluation."""
MAX_RUNS = 10_000
"""Runs of a sweep."""
MAX_COUNT = 10**9
"""Steps, updates and episodes; more than that is a slip."""
MAX_NUMBER = 1e30
"""Size of a measured number; the powers of larger ones do not fit into a float."""
MAX_ELAPSED_S = 1e10
MAX_FILE_BYTES = 8 * 2**20
"""Size of a summary or a fingerprint."""
MAX_LINE_BYTES = 2**20
"""Length of one line of metrics or episodes."""
MAX_VALUES, MAX_DEPTH, MAX_TEXT = 5000, 8, 20_000
"""Bounds on settings and fingerprints: values, levels of nesting, characters of one text."""
STATES = ("pending", "running", "finished", "failed", "blocked", "interrupted")
"""Where a run of a sweep can stand."""
DAMAGED_EVALUATION = (
    "It was cut off by a crash or a full disk, or changed by hand: delete that evaluation "
    "(`eval/STEP`; the others stay usable), or leave the run out."
)
"""What to do about an evaluation that cannot be read."""

Check = Callable[[Any, str], None]
"""Looks at a value at a place in a file; raises ValueError where it is not what it must be."""


# --- Files ----------------------------------------------------------------------------------------


def read_summary(file: Path, step: int) -> dict[str, Any]:
    """Read what was measured at one step, `eval/<step>/summary.json`.

    Args:
        file: The file.
        step: The step that its directory is named for.

    Raises:
        CheckpointError: It is missing, damaged, of another step, or holds what nobody measured.
    """
    data = _json(file, DAMAGED_EVALUATION)
    _checked(_SUMMARY, data, file, DAMAGED_EVALUATION)
    if data["step"] != step:
        raise CheckpointError(
            f"{file} is the summary of step {data['step']}, but its directory says step {step}",
            remedy="Give the directory its old name, or leave the run out.",
        )
    found: dict[str, Any] = data
    return found


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl`; none where there is no file.

    The last line is left out if it was cut off, as in a run that was killed while writing it.

    Raises:
        CheckpointError: Another line is damaged, or one holds something else than metrics.
    """
    if file.is_file():
        for _, line in _lines(file, _METRICS, may_be_cut=True):
            yield line


def rollout_steps(file: Path) -> dict[int, float]:
    """Return update -> control steps of its rollouts; empty where the method has none."""
    steps: dict[int, float] = {}
    for line in read_metrics(file):
        length, episodes = line.get("rollout/mean_control_steps"), line.get("rollout/episodes")
        if length is not None and episodes is not None:
            steps[line["step"]] = length * episodes
    return steps


def read_episodes(file: Path) -> list[dict[str, Any]]:
    """Read the lines of `episodes.jsonl`, one per episode; none where there is no file.

    Raises:
        CheckpointError: A line is damaged, cut off, repeats another one or holds something else.
    """
    if not file.is_file():
        return []
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    number = 0
    try:
        for number, line in _lines(file, _EPISODE):
            key = (line.get("mode", "greedy"), line["task"], line["seed"], line.get("sample"))
            if key in found:
                raise CheckpointError(
                    f"{file} cannot be read: line {number} is damaged (it repeats the episode of "
                    f"{shown(line['task'])} with seed {line['seed']})"
                )
            if number > MAX_EPISODES:
                raise CheckpointError(f"{file} has more than {MAX_EPISODES} episodes")
            found[key] = {"mode": "greedy", **line}
        if len({line["task"] for line in found.values()}) > MAX_SKILLS + 1:
            raise CheckpointError(f"{file} has episodes of more than {MAX_SKILLS} skills")
    except CheckpointError as error:
        raise CheckpointError(
            f"The episodes in {error.problem}",
            error.allowed,
            "Copy the file again, or delete it: without it a report has no intervals over this "
            "checkpoint's episodes.",
        ) from error
    return list(found.values())


def read_environment(file: Path) -> dict[str, Any]:
    """Read a run's fingerprint, `environment.json`; empty where there is no file.

    Raises:
        CheckpointError: It is damaged or holds something else.
    """
    if not file.is_file():
        return {}
    remedy = "Copy it again, or delete it: without it the versions of the run are unknown."
    data = _json(file, remedy)
    _checked(_ENVIRONMENT, data, file, remedy)
    found: dict[str, Any] = data
    return found


def check_settings(data: Mapping[str, Any], file: Path) -> None:
    """Check a run's settings as far as reports read them.

    Raises:
        CheckpointError: A value is of another type, or there is more than a person would write.
    """
    _checked(_SETTINGS, data, file, "Mend it, or leave the run out.")


def check_sweep(data: Any, file: Path) -> None:
    """Check what `sweep.json` says; its runs must lie within the sweep's directory.

    Raises:
        SweepError: It is damaged, or holds something else than a sweep.
    """
    remedy = "Copy the file again, or name the runs one by one."
    try:
        _SWEEP(data, "")
        arms, seen = set(data["arms"]), set()
        for i, run in enumerate(data["runs"]):
            if run["arm"] not in arms:
                raise ValueError(f"`runs[{i}].arm` = {shown(run['arm'])} is not one of `arms`")
            if run["path"] in seen:
                raise ValueError(f"`runs[{i}].path` = {shown(run['path'])} is there twice")
            seen.add(run["path"])
    except ValueError as error:
        raise SweepError(f"{file} is damaged: {error}", remedy=remedy) from error


def _lines(
    file: Path, check: Check, *, may_be_cut: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, value) of every line of JSON lines that is not empty."""
    number = 0
    try:
        with open_file(file) as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                number += 1
                if line.strip():
                    value = _line(line, check, may_be_cut=may_be_cut and not line.endswith(b"\n"))
                    if value is not None:
                        yield number, value
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read: line {number} is damaged ({error})",
            remedy="Copy the file again, or leave the run out.",
        ) from error


def _line(line: bytes, check: Check, *, may_be_cut: bool) -> dict[str, Any] | None:
    """Return the value of one line; None where it ends too early and that may be."""
    if len(line) == MAX_LINE_BYTES:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
    try:
        value = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {line[error.start]:#04x} at {error.start}") from error
    except ValueError:
        if may_be_cut:
            return None
        raise
    check(value, "")
    found: dict[str, Any] = value
    return found


def _json(file: Path, remedy: str) -> Any:
    """Return what a JSON file holds that is small if it is ours."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(
                f"{file} is larger than {MAX_FILE_BYTES / 2**20:g} MiB", remedy=remedy
            )
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})", remedy=remedy) from error
    return read_json(file, remedy)


def _checked(check: Check, data: Any, file: Path, remedy: str) -> None:
    try:
        check(data, "")
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}", remedy=remedy) from error


# --- What values must be --------------------------------------------------------------------------


def _wrong(place: str, value: Any, allowed: str) -> ValueError:
    what = f"`{place}` is" if place else "it holds"
    return ValueError(f"{what} {shown(value)}, where {allowed} is expected")


def number(low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> Check:
    """Return a check for a finite number within bounds."""
    allowed = f"a number in [{low:g}, {high:g}]"

    def check(value: Any, place: str) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise _wrong(place, value, allowed)

    return check


def whole(low: int = 0, high: int = MAX_COUNT) -> Check:
    """Return a check for a whole number within bounds."""

    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(place, value, f"a whole number in [{low}, {high}]")

    return check


def boolean(value: Any, place: str) -> None:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise _wrong(place, value, "true or false")


def name(value: Any, place: str) -> None:
    """Check that a value is a short text that can be printed."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise _wrong(place, value, f"a printable name of at most {MAX_NAME} characters")


def words(value: Any, place: str) -> None:
    """Check that a value is a text, of any characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise _wrong(place, value, f"a text of at most {MAX_TEXT} characters")


def one_of(*choices: str) -> Check:
    """Return a check for one of some texts."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or value not in choices:
            raise _wrong(place, value, f"one of {', '.join(choices)}")

    return check


def interval(low: float, high: float) -> Check:
    """Return a check for two numbers within bounds, the lower one first."""
    end = number(low, high)

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) != 2:
            raise _wrong(place, value, "[low, high]")
        for i, item in enumerate(value):
            end(item, f"{place}[{i}]")
        if value[0] > value[1]:
            raise _wrong(place, value, "[low, high] with low <= high")

    return check


def optional(inner: Check) -> Check:
    """Return a check that lets null pass."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def table(inner: Check, most: int, least: int = 0) -> Check:
    """Return a check for an object whose keys are names and whose values are alike."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(place, value, "an object")
        if not least <= len(value) <= most:
            raise ValueError(f"`{place}` has {len(value)} entries; {least} to {most} are expected")
        for key, item in value.items():
            name(key, f"{place}, a key")
            inner(item, f"{place}.{key}")

    return check


def many(inner: Check, most: int) -> Check:
    """Return a check for a list of values that are alike."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _wrong(place, value, f"a list of at most {most}")
        for i, item in enumerate(value):
            inner(item, f"{place}[{i}]")

    return check


def entries(required: Mapping[str, Check], known: Mapping[str, Check] | None = None) -> Check:
    """Return a check for an object with some keys that must and some that may be there."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(place, value, "an object")
        begin = f"{place}." if place else ""
        for key, inner in required.items():
            if key not in value:
                raise ValueError(f"`{begin}{key}` is missing")
            inner(value[key], f"{begin}{key}")
        for key, inner in (known or {}).items():
            if key in value:
                inner(value[key], f"{begin}{key}")

    return check


def both(first: Check, second: Check) -> Check:
    """Return a check that looks twice."""

    def check(value: Any, place: str) -> None:
        first(value, place)
        second(value, place)

    return check


def plain_values(value: Any, place: str) -> None:
    """Check that a value is an object of plain values, neither deep nor large."""
    if not isinstance(value, dict):
        raise _wrong(place, value, "an object")
    left = MAX_VALUES

    def look(item: Any, where: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values, or nested too deeply")
        if isinstance(item, dict | list):
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            for key, inner in pairs:
                words(str(key), f"{where}, a key")
                look(inner, f"{where}.{key}" if where else str(key), depth + 1)
        elif isinstance(item, str):
            words(item, where)
        elif isinstance(item, bool) or item is None:
            return
        elif isinstance(item, int):
            whole(-(2**63), 2**64)(item, where)
        elif not isinstance(item, float) or not math.isfinite(item):
            raise _wrong(where, item, "a text, a finite number, true, false or null")

    look(value, place, 0)


def _path_within(value: Any, place: str) -> None:
    """Check that a value is a relative path that leads to nowhere else."""
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
        raise _wrong(place, value, "a path below the sweep's directory")


def _few_predictors(value: Any, place: str) -> None:
    count = sum("/prior/" not in key for key in value)
    if count > MAX_PREDICTORS:
        raise ValueError(f"`{place}` has {count} names; at most {MAX_PREDICTORS} are expected")


_RATE = number(0.0, 1.0)
_RATE_INTERVAL = interval(0.0, 1.0)
_MEASURED = optional(number())
_SECONDS = optional(number(0.0, MAX_ELAPSED_S))
_SAMPLED = entries({"success_rate": _RATE, "n": whole(1)}, {"interval": _RATE_INTERVAL})
_SKILL = entries(
    {"success_rate": _RATE, "n": whole(1), "interval": _RATE_INTERVAL},
    {
        "base_success_rate": optional(_RATE),
        "retention": optional(number(0.0)),
        "retention_interval": optional(interval(0.0, MAX_NUMBER)),
        "forgetting": optional(number(-1.0, 1.0)),
        "forgetting_interval": optional(interval(-1.0, 1.0)),
        "sampled": optional(_SAMPLED),
    },
)
_DIVERGENCES = optional(table(_MEASURED, MAX_SKILLS))
_SUMMARY = entries(
    {"step": whole(), "new": table(_SKILL, 10, least=1)},
    {
        "updates": optional(whole()),
        "prior": table(_SKILL, MAX_SKILLS),
        "prior_mean": optional(table(_MEASURED, 50)),
        **dict.fromkeys(
            (
                *("kl_base_tuned", "kl_base_tuned_standard_error"),
                *("kl_tuned_base", "kl_tuned_base_standard_error"),
                *("surrogate", "surrogate_standard_error"),
            ),
            _DIVERGENCES,
        ),
        "kl_kind": optional(name),
        "surrogate_kind": optional(words),
        "distances": optional(both(table(_MEASURED, 20 * MAX_SKILLS), _few_predictors)),
        "entropy": _MEASURED,
        "elapsed_s": _SECONDS,
        "tracking_s": _SECONDS,
    },
)
_METRICS = entries(
    {"step": whole()},
    {
        "rollout/mean_control_steps": optional(number(0.0, MAX_COUNT)),
        "rollout/episodes": optional(number(0.0, MAX_COUNT)),
    },
)
_EPISODE = entries(
    {"task": name, "seed": whole(0, 2**63), "success": boolean},
    {
        "mode": one_of("greedy", "sample"),
        "sample": optional(whole()),
        "role": optional(one_of("new", "prior")),
        "instruction": optional(words),
        "start_state": optional(words),
    },
)
_ENVIRONMENT = both(plain_values, entries({}, {"policy_hash": optional(name)}))
_SETTINGS = both(
    plain_values,
    entries(
        {},
        {
            **{"method": name, "task": name, "policy": words, "seed": whole(-(2**63), 2**63)},
            **{"env": plain_values, "tracking": plain_values},
        },
    ),
)
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
                    "needs": many(words, MAX_RUNS),
                    "starts": whole(),
                    "exit_status": optional(whole(-(2**31), 2**31)),
                    "error": optional(words),
                    "wall_s": number(0.0, MAX_ELAPSED_S),
                },
            ),
            MAX_RUNS,
        ),
    }
)
