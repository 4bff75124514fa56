"""YAML as settings need it: mappings, lists, texts, numbers, true, false and null; bounded.

A file may come from a stranger, so a small file must not cost much. Aliases count as the items that
they stand for (nine levels of nine aliases are 10^9 items), and nesting is bounded. Differences
from YAML 1.1: dates and numbers to the base 60 are texts, `010` is ten, `1e-4` is a number, unknown
tags are refused, and so is a key given twice. Merge keys (`<<: *defaults`) work; a key of the
mapping itself overrides a merged one.
"""

from __future__ import annotations

import copy
import functools
import re
import stat
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ConfigError, shown
from robo_razor.core.files import read_text

MAX_BYTES = 256 * 2**10
MAX_ITEMS = 10_000
"""Most keys and values of a file; an alias counts as the items that it stands for."""
MAX_DEPTH = 32
MAX_KEY = 200
MAX_DIGITS = 400
"""Longer numbers mean nothing as a setting, and Python reads them slowly."""
MAX_PROBLEM = 300

_TAG = "tag:yaml.org,2002:"
_BOOL = re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")
_TRUE = ("yes", "true", "on")
_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?(?:\d[\d_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    re.ASCII,
)
_RESOLVERS = (("bool", _BOOL), ("null", _NULL), ("int", _INT), ("float", _FLOAT))


def read_yaml(path: str | Path, remedy: str | None = None) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; an empty file gives an empty one.

    Args:
        path: The file.
        remedy: What to do where there is none.

    Raises:
        ConfigError: It cannot be read, is not a plain file, or holds more than settings may.
    """
    data = parse_yaml(_text_of(path, remedy), str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values, but holds {_kind(data)}")
    return data


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: One document.
        source: Named in errors, e.g. the file.

    Raises:
        ConfigError: It is not YAML, or holds what settings may not.
    """
    import yaml

    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source} is larger than {MAX_BYTES // 2**10} KiB")
    try:
        return copy.deepcopy(_parsed(text))
    except _NotSettings as error:
        raise ConfigError(
            f"{source} cannot be read as settings{_at(error.mark)}: {error}",
            remedy=_hint(text, error.mark),
        ) from None
    except yaml.MarkedYAMLError as error:
        parts = [error.context, error.problem]
        problem = ", ".join(part for part in parts if part)
        mark = error.problem_mark or error.context_mark
    except yaml.reader.ReaderError as error:  # a control character
        code = f"#x{error.character:04x}" if isinstance(error.character, int) else error.character
        problem = f"the character {code} at position {error.position} is not allowed in a text"
        mark = None
    raise ConfigError(
        f"{source} is not valid YAML{_at(mark)}: {' '.join(problem.split())[:MAX_PROBLEM]}",
        remedy=_hint(text, mark) or "Mend that place; `key: value` needs the space.",
    )


@functools.lru_cache(maxsize=32)
def _parsed(text: str) -> Any:
    """Return the value of a YAML text; kept, since a run often reads its own settings."""
    loader = _loader()(text)
    try:
        node = loader.get_single_node()
    finally:
        loader.dispose()
    return None if node is None else _value(node)


def dump_yaml(data: Any) -> str:
    """Return plain values as YAML that `parse_yaml` reads back to equal ones."""
    import yaml

    text: str = yaml.dump(data, Dumper=_dumper(), sort_keys=False, allow_unicode=True)
    return text


class _NotSettings(Exception):
    """YAML that settings may not contain, and its place."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem)
        self.mark = mark


def _text_of(path: str | Path, remedy: str | None) -> str:
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):  # reading a pipe or a device might never end
            kind = "a directory" if stat.S_ISDIR(mode) else "not a plain file"
            raise ConfigError(f"The config file {shown(str(path))} is {kind}", remedy=remedy)
        return read_text(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(
            f"The config file {shown(str(path))} does not exist", None, remedy
        ) from error
    except OSError as error:
        raise ConfigError(
            f"The config file {shown(str(path))} cannot be read ({error.strerror})", remedy=remedy
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{shown(str(path))} cannot be read as settings: {error}",
            remedy="Settings are a small text file, saved as UTF-8.",
        ) from error


def _at(mark: Any) -> str:
    return "" if mark is None else f" at line {mark.line + 1}"


def _hint(text: str, mark: Any) -> str | None:
    """Return what to do if the line is a template that nobody filled in; None: it is not one."""
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "{{" in line or "{%" in line:
        return (
            f"{shown(line.strip())} looks like a template that nobody filled in: write the value "
            "there."
        )
    return None


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{shown(value)} alone"


# --- From nodes to values -------------------------------------------------------------------------


@functools.cache
def _loader() -> Any:
    """Return a loader that counts its nodes; its constructors are not used."""
    import yaml

    class BoundedLoader(yaml.SafeLoader):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self._depth = 0
            self._sizes: dict[int, tuple[int, int]] = {}  # of nodes: items and levels in them
            self._nodes: list[Any] = []

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if self._depth > MAX_DEPTH:
                raise _NotSettings(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
            self._depth += 1
            if len(self._sizes) > MAX_ITEMS:
                raise _NotSettings(f"more than {MAX_ITEMS} items", event.start_mark)
            node = super().compose_node(parent, index)
            self._depth -= 1
            if isinstance(event, yaml.AliasEvent) and id(node) not in self._sizes:
                raise _NotSettings(
                    f"the alias `*{str(event.anchor)[:50]}` contains itself",
                    event.start_mark,
                )
            self._measure(node, event.start_mark)
            return node

        def _measure(self, node: Any, mark: Any) -> None:
            if id(node) in self._sizes:
                return
            children = [] if isinstance(node, yaml.ScalarNode) else node.value
            if isinstance(node, yaml.MappingNode):
                children = [item for pair in children for item in pair]
            sizes = [self._sizes[id(child)] for child in children]
            items, levels = 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)
            if items > MAX_ITEMS:
                raise _NotSettings(f"more than {MAX_ITEMS} items, aliases counted in full", mark)
            if levels > MAX_DEPTH:
                raise _NotSettings(f"nested more than {MAX_DEPTH} levels deep", mark)
            self._sizes[id(node)] = items, levels
            self._nodes.append(node)  # while it lives, no other node has its id

    BoundedLoader.yaml_implicit_resolvers = {}
    for name, pattern in _RESOLVERS:
        whole = re.compile(f"(?:{pattern.pattern})\\Z", pattern.flags)
        BoundedLoader.add_implicit_resolver(_TAG + name, whole, None)
    return BoundedLoader


def _value(node: Any) -> Any:
    """Return the value of a node."""
    import yaml

    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "null"):
        return _scalar(node, kind)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node)
    raise _NotSettings(f"the tag `{node.tag[:50]}` is not one of settings", node.start_mark)


def _scalar(node: Any, kind: str) -> Any:
    text = node.value
    if kind == "str":
        return text
    pattern = dict(_RESOLVERS)[kind]
    if not pattern.fullmatch(text) or len(text) > MAX_DIGITS:
        what = "number" if kind in ("int", "float") else kind
        raise _NotSettings(f"{shown(text)} cannot be read as a {what}", node.start_mark)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in _TRUE
    digits = text.replace("_", "").lower()
    if kind == "float":
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    based = digits.lstrip("+-")[:2] in ("0x", "0o", "0b")
    try:
        return int(digits, 0 if based else 10)
    except ValueError as error:
        raise _NotSettings(f"{shown(text)} cannot be read as a number", node.start_mark) from error


def _mapping(node: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    seen: set[str] = set()
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node.value, str) or not key_node.tag.startswith(_TAG):
            raise _NotSettings("a key must be a text", key_node.start_mark)
        key = key_node.value  # as it is written: `on` and `1` are keys, too
        if not key.strip():
            raise _NotSettings("a key is empty", key_node.start_mark)
        if len(key) > MAX_KEY:
            raise _NotSettings(f"the key {shown(key)} is too long", key_node.start_mark)
        if key in seen:
            raise _NotSettings(f"the key `{key}` is given twice (line {line})", None)
        seen.add(key)
        if key == "<<" and key_node.style is None:
            merged = _to_merge(value_node)
        else:
            values[key] = _value(value_node)
    return {**merged, **values}


def _to_merge(node: Any) -> dict[str, Any]:
    """Return the keys and values of `<<: *a` or `<<: [*a, *b]`; the first one wins."""
    value = _value(node)
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, dict) for part in parts):
        raise _NotSettings("`<<` merges mappings, and this is not one", node.start_mark)
    result: dict[str, Any] = {}
    for part in parts:
        result = {**part, **result}
    return result


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes every text that this module or another YAML reader could read as a number or such.

        For example `3e-4`, which is a text in YAML 1.1, and `1:30`, which is a text here.
        """

        def ignore_aliases(self, data: Any) -> bool:
            return True

    for name, pattern in _RESOLVERS:
        whole = re.compile(f"(?:{pattern.pattern})\\Z", pattern.flags)
        Dumper.add_implicit_resolver(_TAG + name, whole, None)
    return Dumper
