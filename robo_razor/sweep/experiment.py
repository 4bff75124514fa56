"""An experiment file: keys, arms, and the combinations of values they go through.

The format is told in `sweep`. What is wrong with the file is told here, before anything starts.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robo_razor.core.errors import ConfigError, did_you_mean, shown
from robo_razor.core.plugins import METHODS
from robo_razor.core.settings.config import MAX_SEED, FinetuneConfig
from robo_razor.core.settings.conversion import (
    MAX_NUMBER,
    Settings,
    flatten,
    from_dict,
    path,
    read_yaml,
    replace,
    setting,
)

HEAD_KEYS = ("name", "out", "search", "num_samples", "seed", "parallel", "base", "arms")
ARM_KEYS = ("name", "settings", "grid", "needs")
RANGE_KEYS = ("low", "high", "log")
OWN_KEYS = ("out", "resume")
"""Settings of a run that the sweep chooses."""
TRIES_PER_SAMPLE = 100
"""Draws after which a random search stops looking for another combination."""
MAX_RUNS = 2000
"""Runs that an experiment may have, in all arms together."""
MAX_NAME = 100
MAX_LEVELS = 5

_ARM_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""What Windows reads as a device."""


@dataclass(frozen=True, kw_only=True)
class Head(Settings):
    """What an experiment file says beside `base` and `arms`."""

    name: str = ""
    """Name of the experiment."""
    out: str | None = path(None)
    """Directory of all runs; None: `runs/` and the name."""
    search: Literal["grid", "random"] = "grid"
    """All combinations of an arm's values (`grid`), or some (`random`)."""
    num_samples: int = setting(8, low=1, high=MAX_RUNS)
    """Combinations drawn per arm with `random`, each run with every seed (>= 1)."""
    seed: int = setting(0, low=0, high=MAX_SEED)
    """Seed of `random`."""
    parallel: int | None = setting(None, low=1, high=10_000)
    """Runs at a time (>= 1); None: what the machine carries."""

    def _check_together(self) -> None:
        if self.name:
            _check_name(self.name, "`name`")


def _check_name(name: str, where: str) -> None:
    """Check that a name is that of a directory, the same on every system.

    Raises:
        ConfigError: It is not.
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
        settings: Nested settings of all its runs.
        draws: Combinations of values (by dotted key) that it goes through, one per run.
        needs: Arms that must have run first.
    """

    name: str
    settings: dict[str, Any]
    draws: tuple[dict[str, Any], ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment file, read and checked but not expanded to runs."""

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
    data = read_yaml(file, "Check the path of the experiment file.")
    _check_keys(data, HEAD_KEYS, f"{source}: ")
    plain = {key: value for key, value in data.items() if key not in ("base", "arms")}
    head = from_dict(Head, plain, source=source)
    if not head.name:
        head = replace(head, name=Path(file).stem)
    _check_search(head, data, source)
    where = f"{source}: base"
    base = nested(_mapping(data.get("base"), where), where)
    _check_base(base, where)
    return ExperimentFile(source, head, base, _read_arms(data.get("arms"), head, source))


def _check_keys(data: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in allowed:
            raise ConfigError(
                f"{where}Unknown key `{key}`.{did_you_mean(str(key), allowed)}",
                allowed=", ".join(allowed),
                remedy="Settings of `finetune` belong under `base`, or an arm's `settings` or "
                "`grid`.",
            )


def _check_search(head: Head, data: Mapping[str, Any], file: str | Path) -> None:
    for key in ("num_samples", "seed"):
        if head.search == "grid" and key in data:
            raise ConfigError(
                f"{file}: nothing would read `{key}`, because `search` is `grid`",
                remedy=f"Remove `{key}`, or set `search: random`.",
            )


def _check_base(base: dict[str, Any], where: str) -> None:
    """Check every method's section of `base`, whether an arm uses it or not."""
    _refuse_own_keys(base, where)
    for key, value in flatten(base).items():
        if "${" in str(value):
            raise ConfigError(
                f"{where}: `{key}` = {shown(value)} refers to a run, which only an arm can",
                remedy="Put it under the `settings` of the arms that need that run.",
            )
    shared = {k: v for k, v in base.items() if k not in METHODS}
    for method in METHODS:
        section = {method: base[method]} if method in base else {}
        from_dict(FinetuneConfig, {**shared, "method": method, **section}, source=where)


def _read_arms(entries: Any, head: Head, file: str) -> dict[str, Arm]:
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
        given = _mapping(entry, where)
        _check_keys(given, ARM_KEYS, f"{where}: ")
        name = _arm_name(given.get("name"), where)
        other = names.setdefault(name.lower(), name)
        if name in arms:
            raise ConfigError(f"{file}: two arms are called {name!r}")
        if other != name:
            raise ConfigError(
                f"{file}: the arms {other!r} and {name!r} would be one directory where upper and "
                "lower case are the same",
                remedy="Choose names that differ in more.",
            )
        arms[name] = _read_arm(name, given, head, f"{file}: arm {name!r}", MAX_RUNS - runs)
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


def _read_arm(name: str, entry: dict[str, Any], head: Head, where: str, room: int) -> Arm:
    settings = nested(_mapping(entry.get("settings"), where), where)
    grid = _dotted(_mapping(entry.get("grid"), where))
    for key in (*settings, *grid):
        _refuse_own_keys({key: None}, where)
    return Arm(
        name=name,
        settings=settings,
        draws=tuple(_draws(grid, head, name, where, room)),
        needs=_names(entry.get("needs"), f"{where}: `needs`"),
    )


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where} = {shown(value)} names no arms", allowed="ARM, or [ARM, ARM]")
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
                f"{where}: `{key}` is chosen by the sweep for every run",
                remedy=f"Remove `{key}`; the directory of all runs is the file's own `out`.",
            )


def _dotted(grid: dict[str, Any]) -> dict[str, Any]:
    """Return a grid by dotted keys; sections may be nested, a range stays a value."""
    flat: dict[str, Any] = {}
    for key, value in grid.items():
        if isinstance(value, dict) and not set(value) & set(RANGE_KEYS):
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
    """Put a value into nested settings where none is yet; sections are joined."""
    if name in place and isinstance(place[name], dict) and isinstance(value, dict):
        for inner, item in value.items():
            _put(place[name], inner, item, f"{key}.{inner}", where)
    elif name in place:
        raise ConfigError(f"{where}: the key `{key}` is given twice")
    else:
        place[name] = value


# --- Values --------------------------------------------------------------------------------------


def _draws(
    grid: dict[str, Any], head: Head, arm: str, where: str, room: int
) -> list[dict[str, Any]]:
    """Return the combinations of values that an arm goes through, at most `room`."""
    for key, values in grid.items():
        _check_axis(values, f"{where}: grid `{key}`", head.search)
    seeds = grid.get("seed", [None])
    if not isinstance(seeds, list):
        raise ConfigError(f"{where}: grid `seed` is a range", remedy="List the seeds.")
    runs = head.num_samples * len(seeds)
    if head.search == "grid":
        runs = math.prod(map(len, grid.values()))
    if runs > room:
        raise ConfigError(
            f"{where} would have {runs} runs, and {room} are left",
            allowed=f"{MAX_RUNS} runs in all arms together",
            remedy="List fewer values, or draw some (`search: random`).",
        )
    if head.search == "grid":
        return [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
    axes = {key: values for key, values in grid.items() if key != "seed"}
    samples = _samples(axes, head.num_samples, random.Random(f"{head.seed}/{arm}"))
    return [
        {**sample, **({} if seed is None else {"seed": seed})}
        for sample in samples
        for seed in seeds
    ]


def _samples(axes: dict[str, Any], n: int, rng: random.Random) -> list[dict[str, Any]]:
    """Draw up to n different combinations; a larger n keeps the first ones."""
    finite = all(isinstance(values, list) for values in axes.values())
    size = math.prod(len(values) for values in axes.values()) if finite else n
    samples: dict[str, dict[str, Any]] = {}
    for _ in range(n * TRIES_PER_SAMPLE):
        sample = {key: _draw(values, rng) for key, values in axes.items()}
        samples.setdefault(repr(sample), sample)
        if len(samples) == min(n, size):
            break
    return list(samples.values())


def _draw(values: Any, rng: random.Random) -> Any:
    if isinstance(values, list):
        return rng.choice(values)
    low, high = values["low"], values["high"]
    if values.get("log"):
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    elif isinstance(low, int) and isinstance(high, int):
        return rng.randint(low, high)
    else:
        drawn = rng.uniform(low, high)
    return float(f"{drawn:.3g}")  # the name says all of it


def _check_axis(values: Any, where: str, search: str) -> None:
    if isinstance(values, list):
        if not values:
            raise ConfigError(f"{where} has no value")
        if len(values) > MAX_RUNS:
            raise ConfigError(f"{where} has {len(values)} values", allowed=f"up to {MAX_RUNS}")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ConfigError(f"{where} has a value twice: {shown(values)}")
        return
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where} = {shown(values)} is no list of values",
            remedy="Write `[...]`, or put a single value under `settings`.",
        )
    if search == "grid":
        raise ConfigError(
            f"{where} is a range, which a grid cannot go through",
            remedy="List the values, or set `search: random`.",
        )
    _check_keys(values, RANGE_KEYS, f"{where}: ")
    low, high = values.get("low", math.nan), values.get("high", math.nan)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high))
    log = values.get("log", False)
    if (
        not numbers
        or not -MAX_NUMBER <= low < high <= MAX_NUMBER
        or not isinstance(log, bool)
        or (log and low <= 0)
    ):
        raise ConfigError(
            f"{where} = {shown(values)} is no range",
            allowed="{low: 1e-5, high: 1e-3, log: true} with low < high (and 0 < low with log)",
        )
