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

from robo_razor.config import FinetuneConfig
from robo_razor.errors import ConfigError, did_you_mean
from robo_razor.settings import Settings, flatten, from_dict, merged, read_yaml, replace, setting

HEAD_KEYS = ("name", "out", "search", "num_samples", "seed", "parallel", "base", "arms")
ARM_KEYS = ("name", "settings", "grid", "needs")
RANGE_KEYS = ("low", "high", "log")
OWN_KEYS = ("out", "resume")
"""Settings of a run that the sweep chooses."""
TRIES_PER_SAMPLE = 100
"""Draws after which a random search stops looking for another combination."""

_ARM_NAME = re.compile(r"^[A-Za-z0-9_+-]+$")


@dataclass(frozen=True, kw_only=True)
class Head(Settings):
    """What an experiment file says beside `base` and `arms`."""

    name: str = ""
    """Name of the experiment."""
    out: str | None = None
    """Directory of all runs; None: `runs/` and the name."""
    search: Literal["grid", "random"] = "grid"
    """All combinations of an arm's values (`grid`), or some (`random`)."""
    num_samples: int = setting(8, low=1)
    """Combinations drawn per arm with `random`, each run with every seed (>= 1)."""
    seed: int = setting(0, low=0)
    """Seed of `random`."""
    parallel: int | None = setting(None, low=1)
    """Runs at a time (>= 1); None: what the machine carries."""


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
    data, source = read_yaml(file), str(file)
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
                f"{where}: `{key}` = {value!r} refers to a run, which only an arm can",
                remedy="Put it under the `settings` of the arms that need that run.",
            )
    shared = {k: v for k, v in base.items() if k not in FinetuneConfig.METHODS}
    for method in FinetuneConfig.METHODS:
        section = {method: base[method]} if method in base else {}
        from_dict(FinetuneConfig, {**shared, "method": method, **section}, source=where)


def _read_arms(entries: Any, head: Head, file: str) -> dict[str, Arm]:
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{file}: `arms` must be a list with at least one arm",
            allowed="- {name: ..., settings: {...}, grid: {...}}",
        )
    arms: dict[str, Arm] = {}
    for i, entry in enumerate(entries):
        where = f"{file}: arms[{i}]"
        _check_keys(_mapping(entry, where), ARM_KEYS, f"{where}: ")
        name = entry.get("name")
        if not isinstance(name, str) or not _ARM_NAME.match(name):
            raise ConfigError(
                f"{where}: `name` = {name!r} cannot name a directory",
                allowed="letters, digits, `_`, `+` and `-`",
            )
        if name in arms:
            raise ConfigError(f"{file}: two arms are called {name!r}")
        where = f"{file}: arm {name!r}"
        needs = entry.get("needs") or ()
        settings = nested(_mapping(entry.get("settings"), where), where)
        grid = _dotted(_mapping(entry.get("grid"), where))
        for key in (*settings, *grid):
            _refuse_own_keys({key: None}, where)
        arms[name] = Arm(
            name=name,
            settings=settings,
            draws=tuple(_draws(grid, head, name, where)),
            needs=tuple([needs] if isinstance(needs, str) else needs),
        )
    return arms


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold keys and values, but holds {value!r}")
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
        inner = nested(value, where) if isinstance(value, dict) else value
        *sections, last = str(key).split(".")
        addition: dict[str, Any] = {last: inner}
        for section in reversed(sections):
            addition = {section: addition}
        twice = flatten(result).keys() & flatten(addition).keys()
        if twice:
            raise ConfigError(f"{where}: the key `{min(twice)}` is given twice")
        result = merged(result, addition)
    return result


# --- Values --------------------------------------------------------------------------------------


def _draws(grid: dict[str, Any], head: Head, arm: str, where: str) -> list[dict[str, Any]]:
    """Return the combinations of values that an arm goes through."""
    for key, values in grid.items():
        _check_axis(values, f"{where}: grid `{key}`", head.search)
    if head.search == "grid":
        return [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
    seeds = grid.get("seed", [None])
    if not isinstance(seeds, list):
        raise ConfigError(f"{where}: grid `seed` is a range", remedy="List the seeds.")
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
    samples: list[dict[str, Any]] = []
    for _ in range(n * TRIES_PER_SAMPLE):
        sample = {key: _draw(values, rng) for key, values in axes.items()}
        if sample not in samples:
            samples.append(sample)
        if len(samples) == min(n, size):
            break
    return samples


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
        if any(values.count(value) > 1 for value in values):
            raise ConfigError(f"{where} has a value twice: {values}")
        return
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where} = {values!r} is no list of values",
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
    if not numbers or not low < high or (values.get("log") and low <= 0):
        raise ConfigError(
            f"{where} = {values!r} is no range",
            allowed="{low: 1e-5, high: 1e-3, log: true} with low < high (and 0 < low with log)",
        )
