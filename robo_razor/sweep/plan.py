"""From an experiment file to runs: expand arms, resolve references, check settings.

`sweep.run` describes the format.
"""

from __future__ import annotations

import graphlib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ConfigError, did_you_mean, shown
from robo_razor.core.plugins import METHODS
from robo_razor.core.settings.config import DEFAULT_METHOD, FinetuneConfig
from robo_razor.core.settings.conversion import flatten, from_dict, merged, replace, to_dict
from robo_razor.core.settings.env_packages import refuse_packages_beside
from robo_razor.sweep.experiment import (
    MAX_NAME,
    Arm,
    ExperimentFile,
    Head,
    nested,
    read_experiment,
)

Complete = Callable[[FinetuneConfig], FinetuneConfig]
"""Completes a run's settings where the experiment file leaves them open."""

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class PlannedRun:
    """One run of the experiment.

    Attributes:
        arm: The arm it belongs to.
        name: Its directory's name, made of the values that differ within the arm.
        config: All its settings, `out` included.
        changed: Key -> value of the settings that the arm sets, `seed` included.
        needs: Ids of the runs that must have finished first.
    """

    arm: str
    name: str
    config: FinetuneConfig
    changed: dict[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Name within the experiment: `arm/name`."""
        return f"{self.arm}/{self.name}"

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(str(self.config.out))


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment, in the order of their start.

    Attributes:
        head: The file's keys beside `base` and `arms`.
        out: Directory of all runs.
        source: The file.
        runs: Every arm's first values first, seed by seed, then the second values, and so on. So
            the finished runs can be compared at any time.
        abouts: Arm -> a sentence about it; may be empty.
    """

    head: Head
    out: Path
    source: Path
    runs: tuple[PlannedRun, ...]
    abouts: Mapping[str, str]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that have runs."""
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    def select(self, arms: str) -> set[str]:
        """Return the ids of the runs of some arms and of all runs they need.

        Args:
            arms: Names of arms with commas, or `all`.

        Raises:
            ConfigError: An arm does not exist, or none is named.
        """
        names = [part.strip() for part in arms.split(",") if part.strip()]
        if not names:
            raise ConfigError("`arms` is empty", allowed="all, or names of arms with commas")
        return self.with_needed(self.arms if names == ["all"] else names)

    def with_needed(self, arms: Iterable[str]) -> set[str]:
        """Return the ids of some arms' runs and of all runs they need.

        Raises:
            ConfigError: An arm does not exist.
        """
        wanted = list(arms)
        for arm in wanted:
            if arm not in self.arms:
                raise ConfigError(
                    f"{self.source} has no arm {arm!r}.{did_you_mean(arm, self.arms)}",
                    allowed=", ".join(self.arms),
                )
        by_id = {run.id: run for run in self.runs}
        needed: set[str] = set()
        queue = [run.id for run in self.runs if run.arm in wanted]
        while queue:
            name = queue.pop()
            if name not in needed:
                needed.add(name)
                queue += by_id[name].needs
        return needed


def load_plan(
    file: str | Path, out: str | None = None, complete: Complete = lambda config: config
) -> Plan:
    """Read an experiment file and return all its runs, checked.

    Args:
        file: The YAML file.
        out: Directory of all runs; None: the file's choice.
        complete: Returns a run's settings as the run will store them (the task by its id, for
            example), so that a resumed sweep recognises them.

    Raises:
        ConfigError: A key is unknown, a value cannot be used, or a reference leads nowhere.
    """
    experiment = read_experiment(file)
    head = experiment.head
    directory = Path(out or head.out or Path("runs") / head.name)
    runs: dict[str, list[PlannedRun]] = {}
    for name in _ordered(experiment):
        where = f"{experiment.source}: arm {name!r}"
        runs[name] = _expand(
            experiment.arms[name], experiment.base, directory, runs, where, complete
        )
    packages = {
        name for arm in runs.values() for run in arm for name in run.config.env.env_packages
    }
    refuse_packages_beside(packages, Path(file).absolute().parent, experiment.source)
    ordered = _by_turn_and_seed([runs[name] for name in experiment.arms])
    abouts = {name: arm.about for name, arm in experiment.arms.items()}
    return Plan(head, directory, Path(file), tuple(ordered), abouts)


# --- Expanding ------------------------------------------------------------------------------------


def _ordered(experiment: ExperimentFile) -> list[str]:
    """Return the arms' names, each after those it needs."""
    arms, file = experiment.arms, experiment.source
    graph = {name: _arms_needed(arm) for name, arm in arms.items()}
    for name, needed in graph.items():
        for other in sorted(needed):
            if other not in arms:
                raise ConfigError(
                    f"{file}: arm {name!r} needs an arm {other!r}, which does not exist."
                    f"{did_you_mean(other, arms)}",
                    allowed=", ".join(arms),
                )
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(error.args[1])
        raise ConfigError(f"{file}: arms need each other in a circle: {circle}") from error


def _by_turn_and_seed(arms: list[list[PlannedRun]]) -> list[PlannedRun]:
    """Return all runs in the order of their start (see `Plan`)."""
    order: list[tuple[int, int, int, PlannedRun]] = []
    for place, runs in enumerate(arms):
        turns: dict[int, int] = {}
        for run in runs:
            seed = run.config.seed
            turns[seed] = turns.get(seed, 0) + 1
            order.append((turns[seed], seed, place, run))
    return [run for *_, run in sorted(order, key=lambda item: item[:3])]


def _arms_needed(arm: Arm) -> set[str]:
    """Return the arms that an arm names in `needs` or refers to."""
    values = [*flatten(arm.settings).values(), *(v for draw in arm.draws for v in draw.values())]
    bodies = [body for value in values for body in _REFERENCE.findall(str(value))]
    return {*arm.needs, *(_split_reference(body)[0] for body in bodies)}


def _expand(
    arm: Arm,
    base: dict[str, Any],
    out: Path,
    done: Mapping[str, list[PlannedRun]],
    where: str,
    complete: Complete,
) -> list[PlannedRun]:
    """Return an arm's runs."""
    runs: list[PlannedRun] = []
    names: set[str] = set()
    for draw in arm.draws:
        settings = merged(arm.settings, nested(draw, where))
        method = settings.get("method", base.get("method", DEFAULT_METHOD))
        unused = [name for name in METHODS if name != method]
        raw = merged({k: v for k, v in base.items() if k not in unused}, settings)
        seed = raw.get("seed", FinetuneConfig().seed)
        references = _References(done, seed, where)
        config = complete(from_dict(FinetuneConfig, references.resolve(raw), source=where))
        name = _run_name({**draw, "seed": seed})
        if name in names:
            raise ConfigError(f"{where} has two runs called {name!r}")
        if name.lower() in (other.lower() for other in names):  # one directory on macOS
            name = f"{name}-{_digest(name)}"
        names.add(name)
        values = flatten(to_dict(config))
        keys = dict.fromkeys([*flatten(settings), "method", "seed"])
        needs = references.runs | _needed(arm.needs, references.runs, done, config.seed)
        runs.append(
            PlannedRun(
                arm=arm.name,
                name=name,
                config=replace(config, out=str(out / arm.name / name)),
                changed={key: values[key] for key in keys},
                needs=tuple(sorted(needs)),
            )
        )
    return runs


def _needed(
    arms: tuple[str, ...], referred: set[str], done: Mapping[str, list[PlannedRun]], seed: int
) -> set[str]:
    """Return the runs that `needs` names: those of the same seed, else all of the arm.

    An arm is skipped if a reference already names one of its runs.
    """
    needed: set[str] = set()
    for arm in arms:
        if any(name.startswith(f"{arm}/") for name in referred):
            continue
        of_seed = [run.id for run in done[arm] if run.config.seed == seed]
        needed |= set(of_seed or [run.id for run in done[arm]])
    return needed


def _run_name(draw: Mapping[str, Any]) -> str:
    """Return `learning_rate_0.0003-seed_1`: the run's values, as a safe file name."""
    endings = [key.rsplit(".", 1)[-1] for key in draw]
    labels = [
        name if endings.count(name) == 1 else key for key, name in zip(draw, endings, strict=True)
    ]
    values = [f"{v:g}" if isinstance(v, float) else str(v) for v in draw.values()]
    full = "-".join(f"{key}_{value}" for key, value in zip(labels, values, strict=True))
    name = _UNSAFE.sub("~", full)
    if name == full and len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}-{_digest(full)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]


# --- References -----------------------------------------------------------------------------------


def _split_reference(body: str) -> tuple[str, str, dict[str, str]]:
    """Return arm, seed (or an empty text) and conditions of `runs.ARM.SEED, KEY=VALUE, ...`."""
    target, *conditions = [part.strip() for part in body.split(",")]
    kind, _, path = target.partition(".")
    arm, _, seed = path.partition(".")
    pairs = [condition.partition("=") for condition in conditions]
    if kind != "runs" or not arm or any(not mark for _, mark, _ in pairs):
        raise ConfigError(
            f"The reference `${{{body[:100]}}}` cannot be read",
            allowed="`${runs.ARM}` (the run with the same seed), `${runs.ARM.0}` (with seed 0), "
            "`${runs.ARM.seed, ppo.learning_rate=1e-4}` (the one with that setting)",
        )
    return arm, seed, {key.strip(): value.strip() for key, _, value in pairs}


class _References:
    """Replaces references in one run's settings by run directories, and collects these runs.

    Args:
        done: Arm -> its runs, for all arms that settings may refer to.
        seed: Seed of the run with the reference.
        where: Named in errors.
    """

    def __init__(self, done: Mapping[str, list[PlannedRun]], seed: Any, where: str) -> None:
        self._done, self._seed, self._where = done, seed, where
        self.runs: set[str] = set()

    def resolve(self, value: Any) -> Any:
        """Return nested settings without references."""
        if isinstance(value, dict):
            return {key: self.resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if isinstance(value, str):
            return _REFERENCE.sub(lambda match: self._directory(match[1]), value)
        return value

    def _directory(self, body: str) -> str:
        arm, seed_text, conditions = _split_reference(body)
        is_number = seed_text.isascii() and seed_text.isdecimal() and len(seed_text) < 10
        if seed_text not in ("", "seed") and not is_number:
            raise ConfigError(
                f"{self._where}: `${{{body[:100]}}}`: {shown(seed_text)} is not a seed",
                allowed="a whole number, or `seed` for the seed of this run",
            )
        seed = int(seed_text) if is_number else self._seed
        candidates = [run for run in self._done[arm] if run.config.seed == seed]
        matching = [run for run in candidates if _fulfils(run, conditions)]
        if len(matching) != 1:
            among = candidates if matching or candidates else self._done[arm]
            raise ConfigError(
                f"{self._where}: `${{{body}}}` fits {len(matching)} runs of the arm {arm!r} "
                f"with seed {seed}, but must fit one",
                allowed=", ".join(run.name for run in among),
                remedy="Choose one: `${runs.ARM.seed, KEY=VALUE}`." if matching else None,
            )
        self.runs.add(matching[0].id)
        return str(matching[0].path)


def _fulfils(run: PlannedRun, conditions: Mapping[str, str]) -> bool:
    values = flatten(to_dict(run.config))
    for key, text in conditions.items():
        if key not in values:
            raise ConfigError(
                f"A reference asks for `{key}`, which runs of {run.arm!r} do not have."
                f"{did_you_mean(key, values)}"
            )
        if not _is_same(values[key], text):
            return False
    return True


def _is_same(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return math.isclose(float(text), value, rel_tol=1e-9)
        except ValueError:
            return False
    return str(value).lower() == text.lower()
