"""Damage to values of JSON and YAML: other types, extreme numbers, hostile text, deep nesting."""

from __future__ import annotations

import copy
import itertools
import json
import random
from typing import Any

import yaml

TRAP = "fuzz.trap.Trap"
"""A class that tells when it is imported or called: no file may name code to run."""

TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\n\n# Title\n",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "\ufeffx",
    "e\u0301" * 50,
    "\ud800",
    "\U0001f916" * 30,
    "x" * 300,
    "y" * 100_000,
    "../outside/secret.txt",
    "../../outside/secret.json",
    "../outside/secret.safetensors",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "/proc/self/mem",
    "/dev/zero",
    "~",
    "~root/x",
    "~nobody-there/x",
    "a/../../b",
    "C:\\x",
    "//host/x",
    "http://example.com/x",
    "file:///etc/passwd",
    "hub/some-policy",
    TRAP,
    "fuzz.trap:Trap",
    "subprocess.Popen",
    "os.system",
    "builtins.eval",
    "__import__('fuzz.trap')",
    "!!python/object/apply:os.system [true]",
    "{{ value }}",
    "${runs.a.seed}",
    "${oc.env:HOME}",
    "%s%n{0.__class__}",
    "<script>alert(1)</script>",
    "<!--<script>",
    "</script><img src=x onerror=alert(1)>",
    "=1+1",
    "@SUM(A1)",
    "[x](javascript:alert(1))",
    "`| a |`\n| - |",
    "nan",
    "Infinity",
    "1e999",
    "0x10",
    "2001-02-30",
    "true",
    "null",
    "[1, 2]",
    "a,b,,c",
    "[bold]x[/nothing]",
    "$x^{$",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    10**6,
    2**31,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
    -(10**18),
    0.5,
    -0.0,
    1.5,
    -1e-9,
    1e-320,
    1e308,
    -1e308,
)
PLAIN = (None, True, False, [], {}, [[]], [None], {"a": {}}, {"": ""}, [1, "a", None], [0] * 1000)

RAW_JSON = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 5000,
    "0." + "1" * 5000,
    "[" * 2_000 + "]" * 2_000,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 3_000 + "1" + "}" * 3_000,
    '{"a": 1, "a": [2]}',
    r'"\ud800"',
    r'"\u0000"',
    "01",
    "'x'",
    "nul",
    "{,}",
    "[1,",
    '"\t"',
    "",
)

_NINE = [f"&b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" if i else "&b0 [x, x]" for i in range(9)]
RAW_YAML = (
    f"!!python/object/apply:{TRAP} [true]",
    f"!!python/name:{TRAP}",
    "!!python/object/new:os.system [true]",
    "!!python/module:fuzz.trap",
    "!!binary aGk=",
    "!!binary '****'",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!int x",
    "!!float x",
    "!unknown x",
    "&a [*a]",
    "&a {b: *a}",
    "*nowhere",
    "[" + ", ".join(_NINE) + "]",
    "[" * 300 + "]" * 300,
    "[" * 20_000 + "]" * 20_000,
    "{a: " * 500 + "1" + "}" * 500,
    "2001-02-30",
    "2001-99-99",
    "2001-01-01",
    "2001-01-01T25:61:61Z",
    "{? [a] : 1}",
    "{? {a: b} : 1}",
    "{<<: {a: 1}, b: 2}",
    "{<<: [1, 2]}",
    "{<<: x}",
    "{a: 1, a: 2}",
    "{1: 2, true: 3, null: 4, 1.5: 6}",
    ".nan",
    ".inf",
    "-.INF",
    "1e999",
    "9" * 5000,
    "0x" + "f" * 5000,
    "0b" + "1" * 9000,
    ":".join(["59"] * 300),
    "@x",
    "%x",
    "`x`",
    "|",
    "- a",
    "? a",
    "a: b: c",
    "{{ lr }}",
    "'unclosed",
    '"\\ud800"',
    '"\\x00"',
    "\t",
    "[1, 2",
    "~",
    "=",
    "1_000",
    "---",
    "...",
)

_counter = itertools.count()


class _Raw:
    """Text that is put into a file as it is, where a value should be."""

    def __init__(self, text: str) -> None:
        self.text = text


def atom(rng: random.Random, raw: tuple[str, ...] = ()) -> Any:
    """Return a value that was hardly expected."""
    kind = rng.choice((TEXTS, NUMBERS, PLAIN, raw or PLAIN))
    chosen = rng.choice(kind)
    return _Raw(chosen) if kind is raw else copy.deepcopy(chosen)


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside of nested values."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            inner = list(item.items())
        else:
            inner = list(enumerate(item)) if isinstance(item, list) else []
        found += [(item, key) for key, _ in inner]
        waiting += [child for _, child in inner]
    return found


def damaged(rng: random.Random, value: Any, raw: tuple[str, ...] = ()) -> tuple[Any, str]:
    """Return nested values with one thing changed, and words for it."""
    value = copy.deepcopy(value)
    places = places_in(value)
    if not places or rng.random() < 0.03:
        new = atom(rng, raw)
        return new, f"everything = {_short(new)}"
    # Long lists, such as a vocabulary, would get most of the attention.
    container, key = rng.choice([p for p in places if isinstance(p[0], dict)] or places)
    if isinstance(container[key], list) and container[key] and rng.random() < 0.4:
        container = container[key]
        key = rng.randrange(len(container))
    act = rng.choice((_replace,) * 6 + (_drop, _rename, _add, _wrap, _bend, _bend, _repeat))
    return value, act(rng, container, key, raw)


def _replace(rng, container, key, raw):
    container[key] = atom(rng, raw)
    return f"{key!r} = {_short(container[key])}"


def _drop(rng, container, key, raw):
    del container[key]
    return f"{key!r} dropped"


def _rename(rng, container, key, raw):
    if not isinstance(container, dict):
        return _repeat(rng, container, key, raw)
    new = rng.choice((*TEXTS, str(key).upper(), f"{key}2"))
    container[new] = container.pop(key)
    return f"{key!r} renamed to {new[:40]!r}"


def _add(rng, container, key, raw):
    new = atom(rng, raw)
    if isinstance(container, dict):
        name = rng.choice((*TEXTS, "extra", "class", "__class__", "<<", "path", "auto_map"))
        container[name] = new
        return f"{name[:40]!r} added = {_short(new)}"
    container.insert(key, new)
    return f"[{key}] inserted {_short(new)}"


def _wrap(rng, container, key, raw):
    depth = rng.choice((1, 1, 2, 30, 300))
    for _ in range(depth):
        container[key] = [container[key]] if rng.random() < 0.5 else {str(key): container[key]}
    return f"{key!r} wrapped {depth} deep"


def _bend(rng, container, key, raw):
    """Stay near the old value, so that it goes further than a wrong type does."""
    old = container[key]
    if isinstance(old, bool):
        new: Any = not old
    elif isinstance(old, int):
        new = rng.choice((old + 1, old - 1, -old, old * 1000, float(old), str(old), old + 0.5))
    elif isinstance(old, float):
        new = rng.choice((-old, old * 1e6, old + 1, 1e308, int(old), str(old), 0.0))
    elif isinstance(old, str):
        new = rng.choice((old.upper(), old + "/", old + "\x00", f"../{old}", old[:-1], old * 50))
    elif isinstance(old, list):
        new = rng.choice((old[::-1], old[:-1], old * 2, dict(enumerate(old)), old[:1]))
    elif isinstance(old, dict):
        new = rng.choice((list(old), list(old.values()), dict(reversed(old.items()))))
    else:
        new = rng.choice((0, "", "none"))
    container[key] = new
    return f"{key!r} bent to {_short(new)}"


def _repeat(rng, container, key, raw):
    if isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
        return f"[{key}] twice"
    other = rng.choice(list(container))
    container[key], container[other] = container[other], container[key]
    return f"{key!r} and {other!r} exchanged"


def _short(value: Any) -> str:
    text = f"text {value.text!r}" if isinstance(value, _Raw) else None
    try:
        text = text or repr(value)
    except ValueError:  # more digits than may be printed
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)})"


def to_json(value: Any) -> str:
    """Return JSON, or what looks like it."""
    holes: dict[str, str] = {}
    text = json.dumps(_with_holes(value, holes), indent=1)
    for name, raw in holes.items():
        text = text.replace(f'"{name}"', raw)
    return text


def to_yaml(value: Any) -> str:
    """Return YAML, or what looks like it."""
    holes: dict[str, str] = {}
    filled = _with_holes(value, holes)
    try:
        text = yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)
    except UnicodeEncodeError:
        text = yaml.safe_dump(filled, sort_keys=False)
    for name, raw in holes.items():
        text = text.replace(name, raw)
    return text


def _with_holes(value: Any, holes: dict[str, str]) -> Any:
    """Put names where numbers and text stand that a writer would refuse."""
    if isinstance(value, _Raw):
        name = f"hole{next(_counter)}x"
        holes[name] = value.text
        return name
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**40:
        return _with_holes(_Raw("1" + "0" * 400), holes)
    if isinstance(value, dict):
        return {key: _with_holes(item, holes) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_holes(item, holes) for item in value]
    return value
