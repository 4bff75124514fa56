"""The mechanism of settings: frozen dataclasses with checked ranges, read from strict YAML.

An unknown key, a wrong type, a value out of range or a key given twice is an error that names the
key's full path. The settings themselves are in `robo_razor.core.settings.config`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import numbers
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from robo_razor.core.errors import ConfigError, did_you_mean, shown
from robo_razor.core.settings.strict_yaml import dump_yaml, parse_yaml
from robo_razor.core.settings.strict_yaml import (
    read_yaml as read_yaml,  # exported: settings are read with it
)

MAPPING = "mapping"
"""Metadata of fields that hold a mapping as text."""
PATH, OR_NAME = "path", "or_name"
"""Metadata of fields that hold a path: its optional prefix, and whether it may be a name."""
MAIN = "main"
"""Metadata of the fields that a short help shows; where a class marks none, it shows all."""

MAX_COUNT = 1_000_000
"""Bound of whole numbers without a bound of their own: all that is counted fits in memory."""
MAX_NUMBER = 1e12
"""Bound of other numbers without one. Infinity is never allowed: `None` means "no limit"."""
MAX_TEXT = 10_000
ABBREVIATIONS = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay"}
"""Common short names of settings."""
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""The limits of Linux and macOS."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def setting[T](
    default: T,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    main: bool = False,
) -> T:
    """Declare a field with a default and the range its value must lie in.

    Numbers are bounded and finite in any case, see `MAX_COUNT` and `MAX_NUMBER`.

    Args:
        default: The field's default.
        low: Smallest value allowed.
        high: Largest value allowed.
        above: The value must be greater than this.
        main: Whether a short help shows it.
    """
    bounds = {"low": low, "high": high, "above": above}
    metadata: dict[str, Any] = {k: v for k, v in bounds.items() if v is not None}
    if main:
        metadata[MAIN] = True
    result: T = field(default=default, metadata=metadata)
    return result


def mapping(default: str = "") -> str:
    """Declare a field that holds keys and values as text, `{a: b}`; a YAML file may nest them."""
    result: str = field(default=default, metadata={MAPPING: True})
    return result


def path[T](default: T, *, prefix: str = "", or_name: bool = False, main: bool = False) -> T:
    """Declare a field that holds a path; `~` becomes the home directory.

    Args:
        default: The field's default.
        prefix: Optional prefix of the path, such as `policy:`.
        or_name: Whether a text without `/` may be a name of any length.
        main: Whether a short help shows it.
    """
    metadata = {PATH: prefix, OR_NAME: or_name, MAIN: main}
    result: T = field(default=default, metadata=metadata)
    return result


def parse_mapping(key: str, text: str) -> dict[str, Any]:
    """Return the keys and values of a `mapping` field; none for an empty text.

    Raises:
        ConfigError: It is not a mapping of names.
    """
    try:
        values = parse_yaml(text, f"`{key}` = {shown(text)}") if text.strip() else {}
    except ConfigError as error:
        raise ConfigError(error.problem, "'{name: value, name: value}'", error.remedy) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"`{key}` = {shown(text)} is not a mapping of names",
            allowed="'{name: value, name: value}'",
        )
    for value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"`{key}` = {shown(text)} holds {value}, which is not finite")
    return values


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def check_path(key: str, text: str, prefix: str = "") -> str:
    """Return a path with `~` expanded. The file need not exist.

    Args:
        key: The setting, named in errors.
        text: A path, or a name that may be one.
        prefix: Its optional prefix.

    Raises:
        ConfigError: No file can have this name.
    """
    before, bare = (prefix, text.removeprefix(prefix)) if text.startswith(prefix) else ("", text)
    if not bare.strip():
        raise ConfigError(
            f"`{key}` = {shown(text)} names nothing", remedy="Leave it out, or name it."
        )
    expanded = os.path.expanduser(bare)
    if expanded.startswith("~"):
        raise ConfigError(
            f"`{key}` = {shown(text)}: there is no home directory for {shown(bare.split('/')[0])}",
            remedy=f"For a folder of that name write {shown('./' + bare)}.",
        )
    encoded = expanded.encode(errors="replace")
    if len(encoded) > MAX_PATH_BYTES or max(map(len, encoded.split(b"/"))) > MAX_NAME_BYTES:
        raise ConfigError(
            f"`{key}` = {shown(text)} is longer than a path may be",
            allowed=f"{MAX_NAME_BYTES} bytes per name, {MAX_PATH_BYTES} in all",
        )
    return before + expanded


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: checks ranges and choices when built."""

    SECTION: ClassVar[str] = ""
    REMOVED: ClassVar[Mapping[str, str]] = {}
    """Keys of the past, and what to write instead."""

    def __post_init__(self) -> None:
        """Check every field's type, range and choices, then the fields together."""
        hints = _hints(type(self))
        for item in fields(self):
            key, given = self._key(item.name), getattr(self, item.name)
            if given is item.default:  # may be a value that users cannot give: an empty path
                continue
            value = given
            if item.metadata.get(MAPPING) and isinstance(given, dict):
                value = _mapping_text(key, given)
            value = _convert(key, value, hints[item.name])
            if item.metadata.get(MAPPING):
                parse_mapping(key, value)
            elif value != item.default:
                value = _checked(key, value, item.metadata)
            _check_choice(key, value, hints[item.name])
            if value is not given:
                object.__setattr__(self, item.name, value)  # frozen from here on
        self._check_together()

    def _check_together(self) -> None:
        """Check conditions on several fields; subclasses override it."""

    @classmethod
    def sections(cls) -> dict[str, type[Settings]]:
        """Return the sections that are not fields, by their keys."""
        return {}

    @classmethod
    def keys_beside(cls, data: Mapping[str, Any]) -> list[str]:
        """Return all keys that may stand beside the given ones."""
        return describe_fields(cls)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return a file's content as arguments of the constructor; sections stay dictionaries."""
        return data

    def to_plain(self) -> dict[str, Any]:
        """Return nested plain values, as a file holds them."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    def _key(self, name: str) -> str:
        return f"{self.SECTION}.{name}" if self.SECTION else name


def load_yaml[C: Settings](config_class: type[C], path: str | Path) -> C:
    """Read a config from a YAML file; keys that are absent keep their defaults.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value has the wrong type.
    """
    remedy = "Check the path given to `--config`."
    return from_dict(config_class, read_yaml(path, remedy), source=str(path))


def from_dict[C: Settings](
    config_class: type[C], data: dict[str, Any], source: str | None = None
) -> C:
    """Build a config from nested dictionaries, strictly.

    Args:
        config_class: Which settings to build.
        data: Keys and values; nested dictionaries for sections.
        source: Named in errors, e.g. the file the data come from.

    Raises:
        ConfigError: A key is unknown (with its full path and a suggestion), a value has the wrong
            type or is out of range, or a section belongs to a method that is not chosen.
    """
    try:
        return build(config_class, data)
    except ConfigError as error:
        raise ConfigError(_from(source) + str(error)) from error


def to_dict(config: Settings) -> dict[str, Any]:
    """Return a config as nested plain values."""
    return config.to_plain()


def to_yaml(config: Settings) -> str:
    """Return a config as YAML that `load_yaml` reads back to an equal config."""
    return dump_yaml(to_dict(config))


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings where `second` overrides `first`."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merged(old, value)
        result[key] = value
    return result


def describe_fields(config_class: type[Settings]) -> list[str]:
    """Return all keys of a config with their sections, e.g. `ppo.learning_rate`."""
    keys: list[str] = []
    inner = _inner(config_class)
    for item in fields(config_class):
        if item.name not in inner:
            keys.append(item.name)
    for name, section in inner.items():
        keys += [f"{name}.{key}" for key in describe_fields(section)]
    return keys


def _inner(config_class: type[Settings]) -> dict[str, type[Settings]]:
    """Return all sections by their keys."""
    sections = {
        name: hint
        for name, hint in _hints(config_class).items()
        if isinstance(hint, type) and issubclass(hint, Settings) and hint.SECTION
    }
    return sections | config_class.sections()


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested plain values by their keys' paths: `{"ppo": {"gamma": 1}}` -> `ppo.gamma`."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def replace[C: Settings](config: C, **changes: Any) -> C:
    """Return a copy of `config` with some fields changed and all checks run again."""
    return dataclasses.replace(config, **changes)


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def build[C: Settings](config_class: type[C], data: dict[str, Any], path: str = "") -> C:
    """Build settings from nested dictionaries.

    Args:
        config_class: Which settings.
        data: Keys and values.
        path: Prefix of the keys in errors, e.g. `ppo.`.

    Raises:
        ConfigError: A key is unknown, or a value cannot be used.
    """
    hints = _hints(config_class)
    names = [item.name for item in fields(config_class)]
    values: dict[str, Any] = {}
    for key, value in config_class.from_plain(data).items():
        full = f"{path}{key}"
        if key in config_class.REMOVED:
            raise removed(full, config_class.REMOVED[key])
        if key not in names:
            problem = _unknown_key(full, str(key), data, config_class)
            raise ConfigError(problem, allowed=", ".join(names))
        hint = hints[key]
        if is_dataclass(hint) and not isinstance(value, Settings):
            section = typing.cast("type[Settings]", hint)
            given = _with_defaults(config_class, key, as_section(full, value))
            values[key] = build(section, given, f"{full}.")
        else:
            values[key] = value
    return config_class(**values)


def as_section(key: str, value: Any) -> dict[str, Any]:
    """Return a section's keys and values.

    Raises:
        ConfigError: Something else was given.
    """
    if not isinstance(value, dict):
        raise ConfigError(
            f"`{key}` is a section with keys of its own, but was given {shown(value)}"
        )
    return value


def removed(key: str, instead: str) -> ConfigError:
    """Return the error for a setting that was removed."""
    return ConfigError(f"The setting `{key}` does not exist any more", remedy=instead)


def _with_defaults(config_class: type[Settings], key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Fill a section from the owner's default section (which may differ from the class's)."""
    default = next(item.default for item in fields(config_class) if item.name == key)
    return {**to_dict(default), **value} if isinstance(default, Settings) else value


def _unknown_key(full: str, key: str, data: dict[str, Any], config_class: type[Settings]) -> str:
    names = [item.name for item in fields(config_class)]
    hint = suggest_key(key, names) or suggest_key(
        key, config_class.keys_beside(data)
    )  # perhaps in a section
    return f"Unknown key `{full}`.{hint}"


def suggest_key(name: str, keys: Iterable[str]) -> str:
    """Return `" Did you mean 'ppo.learning_rate'?"` for a mistyped name, or an empty text.

    Names are matched by their last part: by the part itself, its initials (`lr`), a similar
    spelling, or one of its words (`steps`). Of several equal matches up to three are named.

    Args:
        name: The mistyped name.
        keys: The possible keys, or options with their dashes.
    """
    name_words = _words(name)[:80]
    name_words = ABBREVIATIONS.get(name_words, name_words)
    last = {key: _words(key) for key in keys}
    rules: tuple[Callable[[str], bool], ...] = (
        lambda words: words == name_words,
        lambda words: (
            "_" in words and "".join(word[0] for word in words.split("_") if word) == name_words
        ),
        lambda words: words in difflib.get_close_matches(name_words, set(last.values()), 3, 0.75),
        lambda words: name_words in words.split("_"),
        lambda words: (
            min(len(words), len(name_words)) > 2 and (words in name_words or name_words in words)
        ),
    )
    for rule in rules:
        if matches := [key for key, words in last.items() if rule(words)]:
            return f" Did you mean {' or '.join(map(repr, matches[:3]))}?"
    return ""


def _words(key: str) -> str:
    return key.lstrip("-").rsplit(".", 1)[-1].replace("-", "_").lower()


def _from(source: str | None) -> str:
    return f"{source}: " if source else ""


def _hints(config_class: type) -> dict[str, Any]:
    """Return the types of the fields; they are computed once per class."""
    if config_class not in _HINTS:
        _HINTS[config_class] = typing.get_type_hints(config_class)
    return _HINTS[config_class]


_HINTS: dict[type, dict[str, Any]] = {}


def _mapping_text(key: str, value: dict[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"`{key}` = {shown(value)} cannot be written as text: {error}",
            allowed="names with texts, finite numbers, true, false, lists and mappings of these",
        ) from error


def _convert(key: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint` says, or raise with the key's full path."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        choices = [choice for arg in args for choice in typing.get_args(arg)]  # of a Literal
        if isinstance(value, str) and value in choices:
            return value
        plain = [arg for arg in args if arg is not type(None) and not typing.get_args(arg)]
        return _convert_plain(key, value, (plain or args)[0], choices)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(f"{key}[{i}]", item, args[0]) for i, item in enumerate(items))
    if origin is Literal:
        return value  # checked by `_check_choice`
    return _convert_plain(key, value, hint)


def _convert_plain(key: str, value: Any, hint: Any, choices: Sequence[str] = ()) -> Any:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if hint is float and is_number:
        with contextlib.suppress(OverflowError):  # a whole number with hundreds of digits
            return float(value)
        return math.inf  # the check of the range refuses it
    if hint is int and is_number and not isinstance(value, int) and value == value // 1:
        return int(value)
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = " or ".join([_TYPE_NAMES.get(hint, hint.__name__), *choices])
    raise ConfigError(
        f"`{key}` must be {name}, but was given {shown(value)} ({type(value).__name__})"
    )


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def _checked(key: str, value: Any, metadata: Mapping[str, Any]) -> Any:
    """Check the range or the text of a value; return it with `~` expanded."""
    if isinstance(value, tuple):
        return tuple(_checked(f"{key}[{i}]", item, metadata) for i, item in enumerate(value))
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ConfigError(
                f"`{key}` is a text of {len(value)} characters", allowed=f"at most {MAX_TEXT}"
            )
        if character := _UNPRINTABLE.search(value):
            raise ConfigError(
                f"`{key}` = {shown(value)} holds the unprintable character {character[0]!r}"
            )
        is_path = PATH in metadata and (not metadata[OR_NAME] or "/" in value or value[:1] == "~")
        return check_path(key, value, metadata[PATH]) if is_path else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(key, value, metadata)
    return value


def _check_range(key: str, value: float, bounds: Mapping[str, float]) -> None:
    widest = MAX_COUNT if isinstance(value, int) else MAX_NUMBER
    low, high, above = bounds.get("low"), bounds.get("high"), bounds.get("above")
    too_low = (low is not None and not value >= low) or (above is not None and not value > above)
    lowest, highest = (-widest if low is None else low), (widest if high is None else high)
    if not too_low and lowest <= value <= highest:
        return
    limits = [
        f">= {_number(low)}" if low is not None else "",
        f"> {_number(above)}" if above is not None else "",
        f"<= {_number(highest)}" if high is not None or not value <= highest else "",
    ]
    raise ConfigError(
        f"`{key}` = {shown(value)} is out of range",
        allowed=" and ".join(x for x in limits if x) or f">= {_number(lowest)}",
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _check_choice(key: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is not Literal:
        return
    options = typing.get_args(hint)
    if value not in options:
        text = value if isinstance(value, str) and len(value) <= MAX_NAME_BYTES else ""
        raise ConfigError(
            f"`{key}` = {shown(value)} is not possible.{did_you_mean(text, options)}",
            allowed=", ".join(map(str, options)),
        )


def path_keys(config_class: type[Settings]) -> dict[str, str]:
    """Return key -> prefix of the settings that hold paths."""
    keys = {i.name: i.metadata[PATH] for i in fields(config_class) if PATH in i.metadata}
    for name, section in _inner(config_class).items():
        keys |= {f"{name}.{key}": prefix for key, prefix in path_keys(section).items()}
    return keys


def field_help(config_class: type[Settings]) -> dict[str, str]:
    """Return the line under each field of a settings class, as written in the source.

    A field that is inherited has the line of the class that it comes from.
    """
    lines: dict[str, str] = {}
    for owner in reversed(config_class.__mro__):
        if is_dataclass(owner) and fields(owner):
            lines |= _lines_of(owner)
    return lines


def _lines_of(owner: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    body = typing.cast("ast.ClassDef", tree.body[0]).body
    lines: dict[str, str] = {}
    for statement, following in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            lines[statement.target.id] = " ".join(str(following.value.value).split())
    return lines
