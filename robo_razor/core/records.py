"""Checks for JSON objects that are read back, and dataclasses that stand for such objects.

A file may have been copied, cut, edited or sent by a stranger. So it is checked here once, and the
rest of the program may rely on it: numbers are finite, the ends of intervals are in order, names
are short and printable, and nothing occurs more often than makes sense. An error names the place
in the file and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from robo_razor.core.errors import shown

MAX_NAME = 200
"""Characters of a name: of a skill, a task, an arm, a run."""
MAX_COUNT = 10**9
"""Steps, updates and episodes; more than that is a slip."""
MAX_NUMBER = 1e30
"""Size of a measured number; the powers of larger ones do not fit into a float."""
MAX_ELAPSED_S = 1e10
MAX_VALUES, MAX_DEPTH, MAX_TEXT = 5000, 8, 20_000
"""Bounds on settings and fingerprints: values, levels of nesting, characters of one text."""

Check = Callable[[Any, str], None]
"""Takes a value and its place in a file; raises ValueError if the value is not allowed there."""


def wrong(place: str, value: Any, allowed: str) -> ValueError:
    """Return the error for a value that is not allowed."""
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
            raise wrong(place, value, allowed)

    return check


def whole(low: int = 0, high: int = MAX_COUNT) -> Check:
    """Return a check for a whole number within bounds."""

    def check(value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(place, value, f"a whole number in [{low}, {high}]")

    return check


def boolean(value: Any, place: str) -> None:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise wrong(place, value, "true or false")


def name(value: Any, place: str) -> None:
    """Check that a value is a short text that can be printed."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise wrong(place, value, f"a printable name of at most {MAX_NAME} characters")


def text(value: Any, place: str) -> None:
    """Check that a value is a text, of any characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise wrong(place, value, f"a text of at most {MAX_TEXT} characters")


def one_of(*choices: str) -> Check:
    """Return a check for one of some texts."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or value not in choices:
            raise wrong(place, value, f"one of {', '.join(choices)}")

    return check


def interval(low: float, high: float) -> Check:
    """Return a check for two numbers within bounds, the lower one first."""
    end = number(low, high)

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) != 2:
            raise wrong(place, value, "[low, high]")
        for i, item in enumerate(value):
            end(item, f"{place}[{i}]")
        if value[0] > value[1]:
            raise wrong(place, value, "[low, high] with low <= high")

    return check


def optional(inner: Check) -> Check:
    """Return a check that lets null pass."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def table(inner: Check, most: int, least: int = 0) -> Check:
    """Return a check for an object whose keys are names and whose values pass one check."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise wrong(place, value, "an object")
        if not least <= len(value) <= most:
            raise ValueError(f"`{place}` has {len(value)} entries; {least} to {most} are expected")
        for key, item in value.items():
            name(key, f"{place}, a key")
            inner(item, f"{place}.{key}")

    return check


def many(inner: Check, most: int) -> Check:
    """Return a check for a list whose values pass one check."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise wrong(place, value, f"a list of at most {most}")
        for i, item in enumerate(value):
            inner(item, f"{place}[{i}]")

    return check


def entries(required: Mapping[str, Check], known: Mapping[str, Check] | None = None) -> Check:
    """Return a check for an object with required and optional keys."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise wrong(place, value, "an object")
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
    """Return a check that runs two checks."""

    def check(value: Any, place: str) -> None:
        first(value, place)
        second(value, place)

    return check


def plain_values(value: Any, place: str) -> None:
    """Check that a value is an object of plain values, neither deep nor large."""
    if not isinstance(value, dict):
        raise wrong(place, value, "an object")
    remaining = MAX_VALUES

    def look(item: Any, where: str, depth: int) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0 or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values, or nested too deeply")
        if isinstance(item, dict | list):
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            for key, inner in pairs:
                text(str(key), f"{where}, a key")
                look(inner, f"{where}.{key}" if where else str(key), depth + 1)
        elif isinstance(item, str):
            text(item, where)
        elif isinstance(item, bool) or item is None:
            return
        elif isinstance(item, int):
            whole(-(2**63), 2**64)(item, where)
        elif not isinstance(item, float) or not math.isfinite(item):
            raise wrong(where, item, "a text, a finite number, true, false or null")

    look(value, place, 0)


# --- Objects --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """How a field of a `Record` stands in the file."""

    check: Check
    """Checks its value."""
    name: str = ""
    """The key in the file; empty: the field's name."""
    make: Callable[[Any], Any] | None = None
    """Turns the checked value into the field's; None: they are the same."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object: every field is a key, `Annotated` with its `Key`.

    A field with a default may be missing from the file. Unknown keys of a file are ignored.
    """

    nulls: frozenset[str] = field(default=frozenset(), compare=False)
    """Keys that are written as null; others without a value are left out."""

    @classmethod
    def check(cls, value: Any, place: str = "") -> None:
        """Check a JSON value that is to become a record.

        Raises:
            ValueError: The value is not allowed; the message names the place.
        """
        _check_of(cls)(value, place)

    @classmethod
    def from_json(cls, value: Any, place: str = "") -> Self:
        """Return the record that a JSON value holds.

        Raises:
            ValueError: The value is not allowed; the message names the place.
        """
        cls.check(value, place)
        return cls.made(value)

    @classmethod
    def made(cls, value: Mapping[str, Any]) -> Self:
        """Return the record for a checked JSON value."""
        fields: dict[str, Any] = {}
        nulls = []
        for name, key in keys_of(cls).items():
            if key.name in value:
                item = value[key.name]
                if item is None:
                    nulls.append(key.name)
                    continue
                fields[name] = item if key.make is None else key.make(item)
        return cls(**fields, nulls=frozenset(nulls))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value; its keys are in the order of the fields."""
        value = {}
        for name, key in keys_of(type(self)).items():
            item = getattr(self, name)
            if item is not None or key.name in self.nulls:
                value[key.name] = _plain(item)
        return value


_KEYS: dict[type, dict[str, Key]] = {}
_CHECKS: dict[type, Check] = {}


def keys_of(record: type[Record]) -> dict[str, Key]:
    """Return field -> key of a class of records, every key with its name."""
    if record not in _KEYS:
        _KEYS[record] = _find_keys(record)
    return _KEYS[record]


def _find_keys(record: type[Record]) -> dict[str, Key]:
    keys = {}
    for name, hint in typing.get_type_hints(record, include_extras=True).items():
        if typing.get_origin(hint) is Annotated:
            key = next(mark for mark in hint.__metadata__ if isinstance(mark, Key))
            keys[name] = dataclasses.replace(key, name=key.name or name)
    return keys


def _check_of(record: type[Record]) -> Check:
    if record not in _CHECKS:
        _CHECKS[record] = _make_check(record)
    return _CHECKS[record]


def _make_check(record: type[Record]) -> Check:
    keys = keys_of(record)
    needed = {item.name for item in dataclasses.fields(record) if _is_needed(item)}
    return entries(
        {key.name: key.check for name, key in keys.items() if name in needed},
        {key.name: key.check for name, key in keys.items() if name not in needed},
    )


def _is_needed(item: dataclasses.Field[Any]) -> bool:
    return item.default is item.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def record_key(record: type[Record]) -> Key:
    """Return the key of a field that is a record, or null."""
    return Key(optional(record.check), make=record.made)


def table_key(record: type[Record], most: int, least: int = 0) -> Key:
    """Return the key of a field that holds records by name."""

    def make(value: Mapping[str, Any]) -> dict[str, Any]:
        return {name: record.made(item) for name, item in value.items()}

    return Key(table(record.check, most, least), make=make)
