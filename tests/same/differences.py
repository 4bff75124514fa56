"""What differs between the files of two runs, number by number and bit by bit.

A file becomes a mapping from a place in it to a value: a line and a dotted key of JSON, or the name
of a tensor. Times are left out. Deliberate changes, see `Expected`, are taken away from what is
left, and every one of them counts how often it was needed.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COMPARED = (
    "*metrics.jsonl",
    "*eval/*/summary.json",
    "*eval/*/episodes.jsonl",
    "*eval/*/action_kl.json",
    "*.safetensors",
    "*checkpoints/*.json",
    "*report.json",
)
"""Files that are compared, by their path below the folder of a case; links are too."""
LEFT_OUT = ("*/checksums.json",)
"""Files of those above that follow from others."""
TIMES = ("time/*", "*tracking_s", "*elapsed_s", "*wall_s", "*share_of_tracking")
"""Keys that are times, which differ from run to run; a report has only those of its runs."""
CHANGES = ("renamed", "gone", "new", "value", "text")

Place = tuple[int, str]
"""A line, counted from 1 (0 where a file has none), and a key."""


class UsageError(Exception):
    """Something that the user gave cannot be used."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file.

    Attributes:
        dtype: As the file calls it, e.g. "BF16".
        shape: Its shape.
        data: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    def numbers(self) -> np.ndarray:
        """Return its values, float64."""
        if self.dtype == "BF16":
            wide = np.frombuffer(self.data, np.uint16).astype(np.uint32) << 16
            return wide.view(np.float32).astype(np.float64)
        kind = {"BOOL": "?", "F16": "f2", "F32": "f4", "F64": "f8", "U8": "u1", "I8": "i1"}
        kind |= {f"{sign}{8 * n}": f"{sign.lower()}{n}" for sign in "IU" for n in (2, 4, 8)}
        return np.frombuffer(self.data, np.dtype(f"<{kind[self.dtype]}")).astype(np.float64)


@dataclass(frozen=True)
class Difference:
    """One difference between two sides.

    Attributes:
        case: The case.
        file: The file, relative to the folder of the case.
        change: "gone", "new" or "value".
        key: The key or tensor; empty where the whole file is meant.
        line: The line, counted from 1; 0 where the file has none.
        old: The value of the revision, None where it has none.
        new: The value of the working tree, likewise.
        size: Relative size >= 0 of a change of numbers; infinite where it is not one of numbers.
        note: More about it.
    """

    case: str
    file: str
    change: str
    key: str = ""
    line: int = 0
    old: Any = None
    new: Any = None
    size: float = math.inf
    note: str = ""

    def __str__(self) -> str:
        place = f"{self.case}: {self.file}" + (f":{self.line}" if self.line else "")
        what = f"{place}: {self.key}" if self.key else place
        if self.change == "gone":
            return f"{what} is gone" + (f" (was {_short(self.old)})" if self.key else "")
        if self.change == "new":
            return f"{what} is new" + (f" ({_short(self.new)})" if self.key else "")
        size = "" if math.isinf(self.size) else f" (relative {self.size:.3g})"
        note = f"; {self.note}" if self.note else ""
        return f"{what}: {_short(self.old)} -> {_short(self.new)}{size}{note}"


@dataclass
class Expected:
    """A deliberate change.

    Attributes:
        change: "renamed", "gone", "new", "value" of a number, or "text" that reads otherwise.
        reason: Why it is meant.
        case: Pattern of cases, as in `fnmatch`.
        file: Pattern of files.
        key: Pattern of keys; empty: whole files.
        to: The new name of a key or file that is renamed. Every `*` in it stands for what the `*`
            at the same place of the old pattern matched.
        within: Largest relative change of a value, (0, 1].
        uses: How often it was needed.
        largest: The largest relative change of a value that it allowed.
    """

    change: str
    reason: str
    case: str = "*"
    file: str = "*"
    key: str = ""
    to: str = ""
    within: float = 0.0
    uses: int = field(default=0, compare=False)
    largest: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if self.change not in CHANGES:
            raise UsageError(f"`change` is {self.change!r}, not one of {', '.join(CHANGES)}")
        if not self.reason:
            raise UsageError(f"{self} has no `reason`")
        if (self.change == "renamed") != bool(self.to):
            raise UsageError(f"{self}: `to` belongs to `change: renamed`")
        if (self.change == "value") != (0.0 < self.within <= 1.0):
            raise UsageError(f"{self}: `within`, from 0 to 1, belongs to `change: value`")
        if self.change in ("value", "text") and not self.key:
            raise UsageError(f"{self}: `change: {self.change}` needs a `key`")
        if not self.key and self.file == "*":
            raise UsageError(f"{self} names neither a `file` nor a `key`")

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.case, self.file, self.key)))
        goal = f" to {self.to}" if self.to else f" within {self.within:g}" if self.within else ""
        return f"{self.change} {what}{goal}"

    def names(self, case: str, file: str) -> bool:
        """Say whether it is about a file of a case."""
        return fnmatch.fnmatchcase(case, self.case) and fnmatch.fnmatchcase(file, self.file)

    def allows(self, difference: Difference) -> bool:
        """Say whether it covers a difference, and count it if so."""
        both_texts = isinstance(difference.old, str) and isinstance(difference.new, str)
        kind = "text" if difference.change == "value" and both_texts else difference.change
        if self.change != kind or not self.names(difference.case, difference.file):
            return False
        if bool(self.key) != bool(difference.key):
            return False
        if not fnmatch.fnmatchcase(difference.key, self.key):
            return False
        if self.change == "value":
            if not difference.size <= self.within:
                return False
            self.largest = max(self.largest, difference.size)
        self.uses += 1
        return True

    def renamed(self, name: str) -> str | None:
        """Return the new name of a key or file; None where it is not about that one."""
        pattern = self.key or self.file
        parts = (re.escape(part) for part in pattern.split("*"))
        match = re.fullmatch("(.*)".join(parts), name)
        if match is None:
            return None
        stars = iter(match.groups())
        return re.sub(r"\*", lambda _: next(stars, ""), self.to)


def read_expected(file: Path) -> list[Expected]:
    """Read the file of deliberate changes.

    Raises:
        UsageError: It holds something else.
    """
    entries = yaml.safe_load(file.read_text(encoding="utf-8")) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{file} is not a list of changes")
    try:
        return [Expected(**entry) for entry in entries]
    except (TypeError, UsageError) as error:
        raise UsageError(f"{file}: {error}") from error


def compare(case: str, old: Path, new: Path, expected: Iterable[Expected] = ()) -> list[Difference]:
    """Compare the folders that two sides left.

    Args:
        case: Name of the case.
        old: Folder of the revision.
        new: Folder of the working tree.
        expected: Deliberate changes; those that are needed count it.

    Returns:
        The differences that are not expected.
    """
    expected = list(expected)
    differences = _compare_files(case, old, new, expected)
    return [d for d in differences if not any(entry.allows(d) for entry in expected)]


def _compare_files(
    case: str, old: Path, new: Path, expected: list[Expected]
) -> Iterator[Difference]:
    olds = {name: name for name in files(old)}
    news = set(files(new))
    olds = _rename(olds, news, [e for e in expected if not e.key and e.names(case, e.file)])
    for name in sorted(olds.keys() | news):
        if name not in news:
            yield Difference(case, name, "gone")
        elif name not in olds:
            yield Difference(case, name, "new")
        else:
            entries = [entry for entry in expected if entry.key and entry.names(case, name)]
            one, two = content(old / olds[name], old), content(new / name, new)
            yield from compare_contents(case, name, one, two, entries)


def compare_contents(
    case: str,
    file: str,
    old: Mapping[Place, Any],
    new: Mapping[Place, Any],
    expected: Iterable[Expected] = (),
) -> Iterator[Difference]:
    """Yield what differs between two contents of a file, renamed keys apart."""
    before: dict[Place, Any] = {}
    there = _by_line(new)
    for line, values in _by_line(old).items():
        renamed = _rename(values, there.get(line, {}), expected)
        before |= {(line, key): value for key, value in renamed.items()}
    for line, key in sorted(before.keys() | new.keys()):
        place = (line, key)
        if place not in new:
            yield Difference(case, file, "gone", key, line, old=before[place])
        elif place not in before:
            yield Difference(case, file, "new", key, line, new=new[place])
        elif not _same(before[place], new[place]):
            one, two = before[place], new[place]
            size, note = _size(one, two)
            yield Difference(case, file, "value", key, line, one, two, size, note)


def _by_line(values: Mapping[Place, Any]) -> dict[int, dict[str, Any]]:
    """Return line -> key -> value."""
    lines: dict[int, dict[str, Any]] = {}
    for (line, key), value in values.items():
        lines.setdefault(line, {})[key] = value
    return lines


def _rename(
    old: Mapping[str, Any], new: Iterable[str], expected: Iterable[Expected]
) -> dict[str, Any]:
    """Return old names -> values by their new names, where the new side has those instead."""
    there, renamed = set(new), dict(old)
    for entry in expected:
        if entry.change != "renamed":
            continue
        for name in list(renamed):
            other = entry.renamed(name)
            if other in there and name not in there and other not in renamed:
                renamed[other] = renamed.pop(name)
                entry.uses += 1
    return renamed


def files(folder: Path) -> list[str]:
    """Return the files and links below a folder that are compared, relative to it."""
    names = []
    for place, folders, others in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in others + links]
    return sorted(name for name in names if _is_compared(folder / name, name))


def _is_compared(path: Path, name: str) -> bool:
    if path.is_symlink():
        return True
    wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in COMPARED)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def content(path: Path, folder: Path) -> dict[Place, Any]:
    """Return what a file holds, without times and with the folder of its case named CASE."""
    if path.is_symlink():
        return {(0, "link"): os.readlink(path)}
    if path.suffix == ".safetensors":
        return {(0, name): tensor for name, tensor in read_tensors(path).items()}
    text = path.read_text(encoding="utf-8").replace(str(folder), "CASE")
    ignored = () if path.name == "report.json" else TIMES
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    first = 1 if path.suffix == ".jsonl" else 0
    return {
        (number, key): value
        for number, line in enumerate(lines, first)
        for key, value in _leaves(json.loads(line))
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored)
    }


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of everything in JSON that holds nothing else."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key or ".", value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file as bytes; its metadata are left out."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: Tensor(
            entry["dtype"],
            tuple(entry["shape"]),
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return repr(old) == repr(new)  # -0.0 is not 0.0, nan is nan
    return type(old) is type(new) and old == new


def _size(old: Any, new: Any) -> tuple[float, str]:
    """Return the relative size of a change, and a note about it."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return _tensor_size(old, new)
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new)):
        largest = max(abs(old), abs(new))
        return (abs(old - new) / largest if largest else 0.0), ""
    return math.inf, ""


def _tensor_size(old: Tensor, new: Tensor) -> tuple[float, str]:
    """Return the largest change, relative to the largest value of the tensor, and where it is."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return math.inf, "another type or shape"
    one, two = old.numbers(), new.numbers()
    changed = int((one != two).sum())
    apart = np.abs(one - two)
    if not np.isfinite(apart).all():
        return math.inf, f"{changed} of {one.size} values, not all of them finite"
    where = int(apart.argmax())
    index = [int(i) for i in np.unravel_index(where, old.shape)]
    scale = max(float(np.abs(one).max()), float(np.abs(two).max()))
    note = f"{changed} of {one.size} values, largest difference {apart[where]:.3g} at {index}"
    note += f": {float(one[where])!r} -> {float(two[where])!r}"
    return (float(apart[where]) / scale if scale else 0.0), note


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, Tensor) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
