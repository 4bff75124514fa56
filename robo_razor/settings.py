"""The mechanism of settings: frozen dataclasses with checked ranges, read from strict YAML.

An unknown key, a wrong type, a value out of range or a key given twice is an error that names the
key's full path. The settings themselves are in `robo_razor.config`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from robo_razor.errors import ConfigError, did_you_mean

MAPPING = "mapping"
"""Metadata of fields that hold a mapping as text."""


def setting[T](
    default: T, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> T:
    """Declare a field with a default and the range its value must lie in.

    Args:
        default: The field's default.
        low: Smallest value allowed.
        high: Largest value allowed.
        above: The value must be greater than this.
    """
    bounds = {"low": low, "high": high, "above": above}
    result: T = field(default=default, metadata={k: v for k, v in bounds.items() if v is not None})
    return result


def mapping(default: str = "") -> str:
    """Declare a field that holds keys and values as text, `{a: b}`; a YAML file may nest them."""
    result: str = field(default=default, metadata={MAPPING: True})
    return result


def parse_mapping(key: str, text: str) -> dict[str, Any]:
    """Return the keys and values of a `mapping` field; none for an empty text.

    Raises:
        ConfigError: It is no mapping of names.
    """
    import yaml

    try:
        found = yaml.load(text, Loader=_strict_loader()) if text.strip() else {}
    except yaml.YAMLError as error:
        raise ConfigError(
            f"`{key}` = {text!r} cannot be read: {' '.join(str(error).split())}",
            allowed="'{name: value, name: value}'",
        ) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(
            f"`{key}` = {text!r} is no mapping of names", allowed="'{name: value, name: value}'"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: checks ranges and choices when built."""

    SECTION: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check every field's range and choices, then what fields must fulfil together."""
        hints = typing.get_type_hints(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            if item.metadata.get(MAPPING):
                parse_mapping(self._key(item.name), value)
            else:
                _check_range(self._key(item.name), value, item.metadata)
            _check_choice(self._key(item.name), value, hints[item.name])
        self._check_together()

    def _check_together(self) -> None:
        """Check what fields must fulfil together; overridden where there is something to check."""

    def inactive_sections(self) -> tuple[str, ...]:
        """Return the names of sections that nothing reads, given the other settings."""
        return ()

    def _key(self, name: str) -> str:
        return f"{self.SECTION}.{name}" if self.SECTION else name


def load_yaml[C: Settings](config_class: type[C], path: str | Path) -> C:
    """Read a config from a YAML file; keys that are absent keep their defaults.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value has the wrong type.
    """
    return from_dict(config_class, read_yaml(path), source=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; a key that occurs twice is an error."""
    import yaml

    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"The config file {str(path)!r} does not exist",
            remedy="Check the path given to `--config`.",
        )
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_strict_loader())
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}",
            remedy="Mend the place that is named; `key: value` needs the space.",
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values, but holds a {type(data).__name__}")
    return data


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
        config = _build(config_class, data, path="")
    except ConfigError as error:
        raise ConfigError(_from(source) + str(error)) from error
    _refuse_inactive(config, data, source)
    return config


def to_dict(config: Settings) -> dict[str, Any]:
    """Return a config as nested plain values; inactive sections are left out."""
    names = [item.name for item in fields(config) if item.name not in config.inactive_sections()]
    return {name: _plain(getattr(config, name)) for name in names}


def to_yaml(config: Settings) -> str:
    """Return a config as YAML that `load_yaml` reads back to an equal config."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes every text that the loader would read as something else, such as `3e-4`."""

        yaml_implicit_resolvers = _strict_loader().yaml_implicit_resolvers

    text: str = yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


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
    hints = typing.get_type_hints(config_class)
    for item in fields(config_class):
        hint = hints[item.name]
        if is_dataclass(hint):
            keys += [
                f"{item.name}.{key}" for key in describe_fields(typing.cast("type[Settings]", hint))
            ]
        else:
            keys.append(item.name)
    return keys


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


def _build[C: Settings](config_class: type[C], data: dict[str, Any], path: str) -> C:
    hints = typing.get_type_hints(config_class)
    names = [item.name for item in fields(config_class)]
    mappings = [item.name for item in fields(config_class) if item.metadata.get(MAPPING)]
    values: dict[str, Any] = {}
    for key, value in data.items():
        full = f"{path}{key}"
        if key in mappings and isinstance(value, dict):
            values[key] = json.dumps(value)
            continue
        if key not in names:
            raise ConfigError(
                _unknown_key(full, str(key), names, config_class), allowed=", ".join(names)
            )
        hint = hints[key]
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"`{full}` is a section with keys of its own, but was given {value!r}"
                )
            values[key] = _build(
                typing.cast("type[Settings]", hint),
                _with_defaults(config_class, key, value),
                f"{full}.",
            )
        else:
            values[key] = _convert(full, value, hint)
    return config_class(**values)


def _with_defaults(config_class: type[Settings], key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Fill a section from the owner's default section (which may differ from the class's)."""
    default = next(item.default for item in fields(config_class) if item.name == key)
    return {**to_dict(default), **value} if isinstance(default, Settings) else value


def _unknown_key(full: str, key: str, names: list[str], config_class: type[Settings]) -> str:
    hint = did_you_mean(key, names)
    if not hint:  # perhaps it belongs into a section
        inside = [name for name in describe_fields(config_class) if name.rsplit(".", 1)[-1] == key]
        hint = f" Did you mean {inside[0]!r}?" if inside else ""
    return f"Unknown key `{full}`.{hint}"


def _from(source: str | None) -> str:
    return f"{source}: " if source else ""


def _refuse_inactive(config: Settings, data: dict[str, Any], source: str | None) -> None:
    for name in config.inactive_sections():
        if name in data:
            raise ConfigError(
                f"{_from(source)}nothing would read the section `{name}`, given the other settings",
                remedy=f"Remove the section `{name}` or set `method: {name}`.",
            )


def _convert(key: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint` says, or raise with the key's full path."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(key, value, next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(f"{key}[{i}]", item, args[0]) for i, item in enumerate(items))
    if origin is Literal:
        return value  # checked when the object is built
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(
        f"`{key}` must be {_TYPE_NAMES.get(hint, hint.__name__)}, "
        f"but was given {value!r} ({type(value).__name__})"
    )


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def _check_range(key: str, value: Any, bounds: typing.Mapping[str, float]) -> None:
    if not bounds or value is None:
        return
    low, high, above = bounds.get("low"), bounds.get("high"), bounds.get("above")
    too_low = (low is not None and not value >= low) or (above is not None and not value > above)
    if too_low or (high is not None and not value <= high):
        limits = [
            f">= {low:g}" if low is not None else "",
            f"> {above:g}" if above is not None else "",
            f"<= {high:g}" if high is not None else "",
        ]
        raise ConfigError(
            f"`{key}` = {value!r} is out of range", allowed=" and ".join(x for x in limits if x)
        )


def _check_choice(key: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is not Literal:
        return
    options = typing.get_args(hint)
    if value not in options:
        raise ConfigError(
            f"`{key}` = {value!r} is not possible.{did_you_mean(str(value), options)}",
            allowed=", ".join(map(str, options)),
        )


def _strict_loader() -> Any:
    """Return a safe YAML loader that reads `1e-4` as a number and refuses a key given twice."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise ConfigError(
                        f"The key `{key}` is given twice (line {key_node.start_mark.line + 1})"
                    )
                seen.add(key)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    number = re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$")
    StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return StrictLoader


def field_help(config_class: type[Settings]) -> dict[str, str]:
    """Return the line under each field of a settings class, as written in the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_class)))
    body = typing.cast("ast.ClassDef", tree.body[0]).body
    lines: dict[str, str] = {}
    for statement, following in itertools.pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            lines[statement.target.id] = " ".join(str(following.value.value).split())
    return lines
