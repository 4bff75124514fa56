"""An experiment file: its keys, its arms, and their combinations of values.

`sweep.run` describes the format. Errors in the file are reported here, before any run starts.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ConfigError, did_you_mean, shown
from robo_razor.core.plugins import METHODS
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.settings.conversion import (
    Settings,
    flatten,
    from_dict,
    path,
    read_yaml,
    replace,
    setting,
)
from robo_razor.core.settings.env_packages import refuse_plugins_beside
from robo_razor.core.settings.shipped import EXPERIMENTS, which_file

HEAD_KEYS = ("name", "out", "parallel", "base", "arms")
ARM_KEYS = ("name", "about", "settings", "grid", "needs")
OWN_KEYS = ("out", "resume")
"""Settings of a run that the sweep chooses."""
RANDOM_KEYS = ("search", "num_samples", "seed")
"""Keys of random search, which was removed."""
MAX_RUNS = 2000
"""Most runs of an experiment, all arms together."""
MAX_NAME = 100
MAX_ABOUT = 300
MAX_LEVELS = 5

_ARM_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows reads as a device."""


@dataclass(frozen=True, kw_only=True)
class Head(Settings):
    """The keys of an experiment file beside `base` and `arms`."""

    name: str = ""
    """Name of the experiment."""
    out: str | None = path(None)
    """Directory of all runs; None: `runs/` and the name."""
    parallel: int | None = setting(None, low=1, high=10_000)
    """Runs at a time (>= 1); None: as the machine allows."""

    def _check_together(self) -> None:
        if self.name:
            _check_name(self.name, "`name`")


def _check_name(name: str, where: str) -> None:
    """Check that a name can be that of a directory on every system.

    Raises:
        ConfigError: It cannot.
    """
    odd = name.startswith((".", "-", "~")) or name.endswith((".", " ")) or _RESERVED.fullmatch(name)
    if odd or set(name) & set('/\\:*?"<>|\n\r\t') or len(name) > MAX_NAME or not name.strip():
        raise ConfigError(
            f"{where} = {shown(name)} cannot name a directory",
            allowed=f"up to {MAX_NAME} letters, digits, `_`, `+` and `-`, not beginning with `-`",
        )


@dataclass(frozen=True)
class Arm:
    """One entry of `arms`.

    Attributes:
        name: The arm's name.
        about: A sentence about it for the report; may be empty.
        settings: Nested settings of all its runs.
        draws: Combinations of values (by dotted key), one per run.
        needs: Arms that must have finished first.
    """

    name: str
    about: str
    settings: dict[str, Any]
    draws: tuple[dict[str, Any], ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment file, read and checked, but not yet expanded to runs."""

    source: str
    head: Head
    base: dict[str, Any]
    arms: dict[str, Arm]


def read_experiment(file: str | Path) -> ExperimentFile:
    """Read an experiment file.

    Raises:
        ConfigError: A key is unknown or a value cannot be used.
    """
    source = str(file)
    data = read_yaml(file, which_file(EXPERIMENTS))
    _refuse_random_search(data, source)
    _check_keys(data, HEAD_KEYS, f"{source}: ")
    plain = {key: value for key, value in data.items() if key not in ("base", "arms")}
    head = from_dict(Head, plain, source=source)
    if not head.name:
        head = replace(head, name=Path(file).stem)
    where = f"{source}: base"
    base = nested(_mapping(data.get("base"), where), where)
    folder = Path(file).absolute().parent
    refuse_plugins_beside(base, folder, source)  # building settings imports them
    _check_base(base, where)
    arms = _read_arms(data.get("arms"), source)
    for arm in arms.values():
        for settings in (arm.settings, *arm.draws):
            refuse_plugins_beside(settings, folder, source)
    return ExperimentFile(source, head, base, arms)


def _check_keys(data: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in allowed:
            raise ConfigError(
                f"{where}Unknown key `{key}`.{did_you_mean(str(key), allowed)}",
                allowed=", ".join(allowed),
                remedy="Settings of `finetune` belong under `base`, or an arm's `settings` or "
                "`grid`.",
            )


def _refuse_random_search(data: Mapping[str, Any], source: str) -> None:
    for key in RANDOM_KEYS:
        if key in data:
            raise ConfigError(
                f"{source}: `{key}` belongs to random search, which does not exist any more: an "
                "arm runs all combinations of its `grid`",
                remedy=f"Remove `{key}`, and list the values under the arm's `grid`.",
            )


def _check_base(base: dict[str, Any], where: str) -> None:
    """Check every method's section of `base`, even of methods that no arm uses."""
    _refuse_own_keys(base, where)
    for key, value in flatten(base).items():
        if "${" in str(value):
            raise ConfigError(
                f"{where}: `{key}` = {shown(value)} refers to a run, which only an arm may do",
                remedy="Put it under the `settings` of the arms that need that run.",
            )
    shared = {k: v for k, v in base.items() if k not in METHODS}
    for method in METHODS:
        section = {method: base[method]} if method in base else {}
        from_dict(FinetuneConfig, {**shared, "method": method, **section}, source=where)


def _read_arms(entries: Any, file: str) -> dict[str, Arm]:
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{file}: `arms` must be a list with at least one arm",
            allowed="- {name: ..., settings: {...}, grid: {...}}",
        )
    arms: dict[str, Arm] = {}
    names: dict[str, str] = {}
    runs = 0
    for i, entry in enumerate(entries):
        where = f"{file}: arms[{i}]"
        keys = _mapping(entry, where)
        _check_keys(keys, ARM_KEYS, f"{where}: ")
        name = _arm_name(keys.get("name"), where)
        other = names.setdefault(name.lower(), name)
        if name in arms:
            raise ConfigError(f"{file}: two arms are called {name!r}")
        if other != name:
            raise ConfigError(
                f"{file}: the arms {other!r} and {name!r} would share a directory on systems that "
                "ignore capitals",
                remedy="Choose names that differ in more than capitals.",
            )
        arms[name] = _read_arm(name, keys, f"{file}: arm {name!r}", MAX_RUNS - runs)
        runs += len(arms[name].draws)
    return arms


def _arm_name(name: Any, where: str) -> str:
    text = name if isinstance(name, str) else ""
    if not _ARM_NAME.fullmatch(text) or len(text) > MAX_NAME or _RESERVED.fullmatch(text):
        raise ConfigError(
            f"{where}: `name` = {shown(name)} cannot name a directory",
            allowed=f"up to {MAX_NAME} letters, digits, `_`, `+` and `-`, not beginning with `-`",
        )
    return text


def _read_arm(name: str, entry: dict[str, Any], where: str, room: int) -> Arm:
    settings = nested(_mapping(entry.get("settings"), where), where)
    grid = _dotted(_mapping(entry.get("grid"), where))
    for key in (*settings, *grid):
        _refuse_own_keys({key: None}, where)
    return Arm(
        name=name,
        about=_about(entry.get("about"), where),
        settings=settings,
        draws=tuple(_draws(grid, where, room)),
        needs=_names(entry.get("needs"), f"{where}: `needs`"),
    )


def _about(value: Any, where: str) -> str:
    text = "" if value is None else value
    if not isinstance(text, str) or len(text) > MAX_ABOUT or not text.isprintable():
        raise ConfigError(
            f"{where}: `about` = {shown(value)} does not describe an arm",
            allowed=f"a text of one line, up to {MAX_ABOUT} characters",
        )
    return text


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{where} = {shown(value)} does not name arms", allowed="ARM, or [ARM, ARM]"
        )
    return tuple(names)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold keys and values, but holds {shown(value)}")
    return value


def _refuse_own_keys(settings: Mapping[str, Any], where: str) -> None:
    for key in OWN_KEYS:
        if key in settings:
            raise ConfigError(
                f"{where}: the sweep chooses `{key}` for every run",
                remedy=f"Remove `{key}`; the directory of all runs is the file's own `out`.",
            )


def _dotted(grid: dict[str, Any]) -> dict[str, Any]:
    """Return a grid by dotted keys; sections may be nested."""
    flat: dict[str, Any] = {}
    for key, value in grid.items():
        if isinstance(value, dict) and not _is_range(value):
            flat |= {f"{key}.{inner}": item for inner, item in _dotted(value).items()}
        else:
            flat[key] = value
    return flat


def nested(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Return settings with dotted keys (`bc.style`) put into their sections."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        *sections, last = str(key).split(".", MAX_LEVELS)
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{where}: the key `{section}` is given twice")
        _put(place, last, nested(value, where) if isinstance(value, dict) else value, key, where)
    return result


def _put(place: dict[str, Any], name: str, value: Any, key: str, where: str) -> None:
    """Put a new value into nested settings; sections are joined."""
    if name in place and isinstance(place[name], dict) and isinstance(value, dict):
        for inner, item in value.items():
            _put(place[name], inner, item, f"{key}.{inner}", where)
    elif name in place:
        raise ConfigError(f"{where}: the key `{key}` is given twice")
    else:
        place[name] = value


# --- Values --------------------------------------------------------------------------------------


def _draws(grid: dict[str, Any], where: str, room: int) -> list[dict[str, Any]]:
    """Return the combinations of an arm's values, at most `room`."""
    for key, values in grid.items():
        _check_axis(values, f"{where}: grid `{key}`")
    runs = math.prod(map(len, grid.values()))
    if runs > room:
        raise ConfigError(
            f"{where} would have {runs} runs, but only {room} are left",
            allowed=f"{MAX_RUNS} runs in all arms together",
            remedy="List fewer values.",
        )
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _is_range(value: dict[str, Any]) -> bool:
    return bool(set(value) & {"low", "high", "log"})


def _check_axis(values: Any, where: str) -> None:
    if isinstance(values, dict):
        raise ConfigError(
            f"{where} is a range, but a grid needs single values",
            remedy="List the values.",
        )
    if not isinstance(values, list):
        raise ConfigError(
            f"{where} = {shown(values)} is not a list of values",
            remedy="Write `[...]`, or put a single value under `settings`.",
        )
    if not values:
        raise ConfigError(f"{where} has no value")
    if len(values) > MAX_RUNS:
        raise ConfigError(f"{where} has {len(values)} values", allowed=f"up to {MAX_RUNS}")
    if any(value in values[:i] for i, value in enumerate(values)):
        raise ConfigError(f"{where} has a value twice: {shown(values)}")
