"""The runs of a comparison, grouped by arms and settings.

The runs of a *setting* differ in their seed only. A comparison compares *arms*: an arm of a sweep
with all settings of its grid, or, for runs given one by one, one setting of a method.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ReportError, RoboRazorError, did_you_mean
from robo_razor.core.plain_text import printable
from robo_razor.core.run.directory import TEMPORARY
from robo_razor.core.run.sweep_record import is_sweep, read_sweep
from robo_razor.core.settings.conversion import flatten
from robo_razor.report.load import RunSeries, load_run, short_names

FINISHED = "finished"
CHECKPOINTS = "checkpoints"
_SEED = re.compile(r"(^|[-,])seed[_=][0-9]+(?=$|[-,])")
_SHORTENED = re.compile(r"-[0-9a-f]{8}$")
"""The end of a shortened run's name, a hash of all of it, the seed included."""
IGNORED_SETTINGS = (
    # A run's name, its machine and its resumption: not what it learns.
    "seed",
    "out",
    "resume",
    "log",
    "device",
    "torch_threads",
    "env.num_envs",
    "env.num_workers",
    "checkpoint.keep",
)
MEASURING = ("tracking", "checkpoint")
"""Sections about how a run is measured, not what it learns."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only."""

    label: str
    """The values that differ within its arm, e.g. `ppo.learning_rate=1e-4`; empty: none does."""
    runs: tuple[RunSeries, ...]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    settings: tuple[Setting, ...]
    about: str = ""
    """A sentence of the experiment file about it; empty: there is none."""

    @property
    def runs(self) -> tuple[RunSeries, ...]:
        """All runs of all settings."""
        return tuple(run for setting in self.settings for run in setting.runs)

    @property
    def compared(self) -> tuple[RunSeries, ...]:
        """The runs of the settings that are compared, see `complete`."""
        return tuple(run for setting in self.complete for run in setting.runs)

    @property
    def complete(self) -> tuple[Setting, ...]:
        """The settings with the most runs, which are compared; the others are not complete yet."""
        most = max(len(setting.runs) for setting in self.settings)
        return tuple(setting for setting in self.settings if len(setting.runs) == most)


@dataclass(frozen=True)
class RunSet:
    """All runs of a comparison."""

    arms: tuple[Arm, ...]
    skipped: tuple[str, ...] = ()
    """Why runs of a sweep were left out."""

    @property
    def runs(self) -> tuple[RunSeries, ...]:
        """All runs, arm by arm."""
        return tuple(run for arm in self.arms for run in arm.runs)

    @property
    def task(self) -> str:
        """The new task."""
        return str(self.runs[0].config.get("task"))

    def arm_of(self, run: RunSeries) -> Arm:
        """Return the arm that holds a run."""
        return next(arm for arm in self.arms if run in arm.runs)


def load_runs(paths: Sequence[str], merge: Sequence[str] = ()) -> RunSet:
    """Read runs and sweeps, and check that they were measured on the same tasks.

    Args:
        paths: Run directories, and sweep directories, which stand for all of their runs.
        merge: Arms of a sweep to take as settings of one arm: names with commas; the first one
            becomes the name of all.

    Raises:
        ReportError: There is no run, one has no evaluation, they differ in task or prior skills,
            one is given twice, two repeat one seed, or an arm to merge does not exist.
    """
    if not paths:
        raise ReportError(
            "No run to compare",
            remedy="Name run directories or a sweep: `robo-razor compare RUN RUN`.",
        )
    plain = [path for path in paths if not is_sweep(path)]
    names = short_names(plain) if plain else []
    runs = [load_run(path, name) for path, name in zip(plain, names, strict=True)]
    skipped: list[str] = []
    about: dict[str, str] = {}
    for path in paths:
        if is_sweep(path):
            of_sweep, missing, texts = _load_sweep(Path(path))
            runs += of_sweep
            skipped += missing
            about = texts | about
    if not runs:
        raise ReportError(
            f"No run in {', '.join(map(str, paths))} holds an evaluation yet",
            remedy="Wait for its first checkpoints.",
        )
    _refuse_twice(runs)
    _refuse_other_tasks(runs)
    runs = _merged(_with_own_titles(_with_own_names(runs)), merge)
    arms = tuple(replace(arm, about=about.get(arm.name, "")) for arm in group(runs))
    _refuse_equal_seeds(arms)
    return RunSet(arms=arms, skipped=tuple(skipped))


def count_runs(paths: Sequence[str]) -> int:
    """Return the number of runs in some directories, as far as they can be read."""
    count = 0
    for path in paths:
        try:
            count += len(read_sweep(path)["runs"]) if is_sweep(path) else 1
        except RoboRazorError:
            count += 1
    return count


def _load_sweep(path: Path) -> tuple[list[RunSeries], list[str], dict[str, str]]:
    """Return a sweep's finished runs by arm, notes on left out runs, and the texts about its arms.

    Nobody knows how far an unfinished run would have got, so it is left out. If no run has
    finished, all runs with evaluations beyond the base are taken.
    """
    try:
        record = read_sweep(path)
    except RoboRazorError as error:
        raise ReportError(str(error)) from error
    arms = list(record["arms"])
    entries = sorted(record["runs"], key=lambda entry: arms.index(entry["arm"]))
    finished = [entry for entry in entries if entry.get("state") == FINISHED]
    runs = []
    for entry in finished or entries:
        directory = path / entry["path"]
        try:
            run = load_run(directory, f"{entry['arm']}/{entry['name']}", entry["arm"])
        except ReportError:
            if finished:  # the record calls it finished, so it must be readable
                raise
            continue
        if len(run.checkpoints) > 1:
            runs.append(run)
    return runs, _unfinished(path, entries, bool(finished)), _abouts(record)


def _abouts(record: dict[str, Any]) -> dict[str, str]:
    """Return the texts about its arms from a sweep's record; older records have none."""
    texts = record.get("about")
    if not isinstance(texts, dict):
        return {}
    return {
        printable(str(name)): printable(text)
        for name, text in texts.items()
        if isinstance(text, str)
    }


def _unfinished(path: Path, entries: Sequence[dict[str, Any]], left_out: bool) -> list[str]:
    states = [str(entry.get("state")) for entry in entries if entry.get("state") != FINISHED]
    if not states:
        return []
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    treatment = "left out" if left_out else "shown as far as they got"
    total = f"Of the {len(entries)} runs of {printable(path.name)}"
    return [f"{total}, {len(states)} are {treatment}: {counts}."]


def _merged(runs: Sequence[RunSeries], merge: Sequence[str]) -> list[RunSeries]:
    names = {run.arm for run in runs if run.arm is not None}
    stands_for: dict[str, str] = {}
    for entry in merge:
        members = [name.strip() for name in entry.split(",")]
        if missing := [name for name in members if name not in names]:
            raise ReportError(
                f"There is no arm {missing[0]!r} to merge.{did_you_mean(missing[0], names)}",
                allowed=", ".join(sorted(names)) or "(arms of a sweep; there is none)",
            )
        stands_for |= dict.fromkeys(members, members[0])
    return [replace(run, arm=stands_for.get(run.arm or "", run.arm)) for run in runs]


def _with_own_names(runs: Sequence[RunSeries]) -> list[RunSeries]:
    """Prefix names that several runs share, as in two sweeps, with parts of their paths."""
    names = [run.name for run in runs]
    ambiguous = [i for i, name in enumerate(names) if names.count(name) > 1]
    longer_names = short_names([str(runs[i].path) for i in ambiguous]) if ambiguous else []
    renamed = dict(zip(ambiguous, longer_names, strict=True))
    return [replace(run, name=renamed.get(i, run.name)) for i, run in enumerate(runs)]


def _with_own_titles(runs: Sequence[RunSeries]) -> list[RunSeries]:
    """Title runs by their method if their folder is temporary or another run's has its name.

    Titles that several runs share get the run's name in addition.
    """
    folders = Counter(run.path.name for run in runs if run.arm is None)
    titles = []
    for run in runs:
        is_vague = folders[run.path.name] > 1 or run.path.parent.name.startswith(TEMPORARY)
        by_method = run.arm is None and is_vague
        titles.append(f"{run.method}: seed {run.seed}" if by_method else run.title)
    counts = Counter(titles)
    return [
        replace(run, title=title if counts[title] == 1 else f"{title} ({run.name})")
        for run, title in zip(runs, titles, strict=True)
    ]


def _refuse_twice(runs: Sequence[RunSeries]) -> None:
    """Refuse a run that is given twice: it would count as two seeds."""
    seen: dict[Path, RunSeries] = {}
    for run in runs:
        path = run.path.resolve()
        if path in seen:
            raise ReportError(
                f"The run {path} is given twice, as {seen[path].name} and {run.name}",
                remedy="Name every run once; a sweep's directory already means all of its runs.",
            )
        seen[path] = run


def _refuse_equal_seeds(arms: Sequence[Arm]) -> None:
    """Refuse two runs of one setting with one seed: they are not independent repetitions."""
    for arm in arms:
        for setting in arm.settings:
            for run, following in itertools.pairwise(setting.runs):  # sorted by seed
                if run.seed == following.seed:
                    raise ReportError(
                        f"{run.path} and {following.path} have the same seed {run.seed} and are "
                        f"one setting of the arm {arm.name}, so they count as one seed",
                        allowed="one run per seed of a setting",
                        remedy="Leave one of them out.",
                    )


def _refuse_other_tasks(runs: Sequence[RunSeries]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for subject, value, other_value in (
            ("new task", first.config.get("task"), run.config.get("task")),
            ("prior skills", sorted(first.last.skills), sorted(run.last.skills)),
        ):
            if value != other_value:
                raise ReportError(
                    f"{first.path} and {run.path} differ in their {subject}: {value} against "
                    f"{other_value}",
                    remedy="Compare runs that were measured on the same tasks.",
                )


def group(runs: Sequence[RunSeries]) -> tuple[Arm, ...]:
    """Group a sweep's runs by arm, and plain runs by method and settings, in order of appearance.

    In a sweep an arm may hold several settings; a plain arm holds one.
    """
    arms: list[Arm] = []
    for name in dict.fromkeys(run.arm for run in runs if run.arm is not None):
        members = [run for run in runs if run.arm == name]
        arms.append(Arm(name, _settings(members)))
    for method in dict.fromkeys(run.method for run in runs if run.arm is None):
        members = [run for run in runs if run.arm is None and run.method == method]
        for setting in _settings(members):
            name = f"{method} ({setting.label})" if setting.label else method
            if name in {arm.name for arm in arms}:  # a sweep's arm is called so
                name = f"{name} ({setting.runs[0].name})"
            arms.append(Arm(name, (Setting("", setting.runs),)))
    return tuple(arms)


def _settings(runs: Sequence[RunSeries]) -> tuple[Setting, ...]:
    """Split runs by everything but their seed; labels name the values that differ."""
    differing = [key for key, _ in setting_differences(runs)]
    groups: dict[str, list[RunSeries]] = {}
    for run in runs:
        settings = comparable_settings(run)
        parts = zip(_short_keys(differing), differing, strict=True)
        label = ", ".join(f"{name}={show_value(settings.get(key))}" for name, key in parts)
        groups.setdefault(label, []).append(run)
    return tuple(
        Setting(label, tuple(sorted(members, key=lambda run: run.seed)))
        for label, members in sorted(groups.items(), key=lambda item: _order(item[1][0], differing))
    )


def _short_keys(keys: Sequence[str]) -> list[str]:
    """Return keys without their sections, unless two would become the same."""
    short = [key.rpartition(".")[2] for key in keys]
    return short if len(set(short)) == len(short) else list(keys)


def _order(run: RunSeries, keys: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """Sort settings by value: numbers by size, then texts."""
    settings = comparable_settings(run)
    return tuple(
        (float(value), "") if isinstance(value, int | float) else (0.0, str(value))
        for value in (settings.get(key) for key in keys)
    )


def setting_differences(runs: Sequence[RunSeries]) -> list[tuple[str, list[Any]]]:
    """Return (dotted key, value of each run) of all settings in which runs differ, but the seed.

    A section that only one method has (`ppo.`, `bc.`) does not count between runs of two methods.
    """
    flats = [comparable_settings(run) for run in runs]
    differences = []
    for key in dict.fromkeys(key for flat in flats for key in flat):
        values = [flat[key] for flat in flats if key in flat]
        missing = len(values) < len(flats)
        if any(value != values[0] for value in values) or (missing and not _is_of_method(key)):
            differences.append((key, [flat.get(key) for flat in flats]))
    return differences


def comparable_settings(run: RunSeries) -> dict[str, Any]:
    """Return a run's settings without its seed and without those that cannot change a result.

    A value that names another run of the same sweep differs from seed to seed. So it is replaced by
    that run's arm and the rest of its name.
    """
    flat = flatten(run.config)
    # The sweep's directory may have been renamed since its settings were written.
    places = (run.path.resolve(), Path(str(flat.get("out"))))
    sweeps = {place.parent.parent.name for place in places} if run.arm is not None else set()
    return {
        key: _sibling(value, sweeps) for key, value in flat.items() if key not in IGNORED_SETTINGS
    }


def _sibling(value: Any, sweeps: Set[str]) -> Any:
    """Replace a path `.../SWEEP/ARM/RUN[/checkpoints/X]` at a text's end by a name without seed.

    `policy:runs/razor/ppo/kl_coef_0.02-seed_0` becomes `run of ppo (kl_coef_0.02)`.
    Other values are returned as they are.
    """
    if not isinstance(value, str) or "/" not in value:
        return value
    parts = Path(value.split(":", 1)[-1]).parts
    places = [
        i
        for i, part in enumerate(parts[:-2])
        if part in sweeps and parts[i + 3 : i + 4] in ((), (CHECKPOINTS,))
    ]
    if not places:
        return value
    _, arm, run, *suffix = parts[places[-1] :]
    name = "" if _SHORTENED.search(run) else _SEED.sub("", run).lstrip("-,")
    label = "/".join([name, *suffix]).strip("/")
    return f"run of {arm} ({label})" if label else f"run of {arm}"


def arm_descriptions(runs: RunSet) -> dict[str, str]:
    """Return a line about each arm: its own text, or its method and the settings that differ.

    Settings of measuring are left out, and so are default values.
    """
    keys = [key for key, _ in setting_differences(list(runs.runs)) if key != "method"]
    keys = [key for key in keys if key.split(".", 1)[0] not in MEASURING]
    return {arm.name: arm.about or _changed(arm, keys) for arm in runs.arms}


def _changed(arm: Arm, keys: Sequence[str]) -> str:
    method = arm.runs[0].method
    defaults = flatten(default_settings(method))
    flats = [comparable_settings(setting.runs[0]) for setting in arm.settings]
    parts = []
    for key in keys:
        values = list(dict.fromkeys(show_value(flat[key]) for flat in flats if key in flat))
        if values and values != [show_value(defaults.get(key))]:
            name = key.removeprefix(f"{method}.").replace("_", " ").replace(".", " ")
            parts.append(f"{name} {' or '.join(values)}")
    return ", ".join([f"method {method}", *parts])


def shown_setting_of(arm: Arm, label: str) -> Setting:
    """Return an arm's setting by its label."""
    return next(setting for setting in arm.settings if setting.label == label)


def setting_lines(run: RunSeries) -> list[str]:
    """Return `key: value` of all of a run's settings."""
    return [f"{key}: {show_value(value)}" for key, value in flatten(run.config).items()]


def default_settings(method: str) -> dict[str, Any]:
    """Return the default settings of a method's runs; empty: the method is unknown."""
    from robo_razor.core.plugins import METHODS
    from robo_razor.core.settings.config import FinetuneConfig, to_dict

    return to_dict(FinetuneConfig(method=METHODS.get(method)())) if method in METHODS else {}


def _is_of_method(key: str) -> bool:
    from robo_razor.core.plugins import METHODS

    return key.split(".", 1)[0] in METHODS


def show_value(value: Any) -> str:
    """Return a setting's value as people write it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    if isinstance(value, float):
        text = f"{value:.4g}"
        mantissa, mark, exponent = text.partition("e")
        return f"{mantissa}e{int(exponent)}" if mark else _small(value, text)
    return str(value)


def _small(value: float, text: str) -> str:
    """Write 0.0001 as 1e-4: learning rates are read as powers of ten."""
    if value == 0 or abs(value) >= 0.01:
        return text
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
