"""The run directory: what a run leaves on disk, written so that a crash never leaves half a file.

This is the only module that knows file names::

    runs/NAME/config.yaml  environment.json  metrics.jsonl  tensorboard/
      checkpoints/<step>/pretrained_model/{config.json, model.safetensors, ...}
      checkpoints/<step>/training_state/{optimizer_state.safetensors, training_step.json, ...}
      checkpoints/{last, best}                    relative links
      eval/<step>/{summary.json, episodes.jsonl, ...}   videos/   report/

A checkpoint is written under a temporary name with the checksums of its files, flushed to disk,
renamed, and read again. Only safetensors and JSON are read back, no pickle. `policies` makes sure
that the names in a policy's configuration cannot run code either.

The numbered directories are the truth. `last` and `best` are for people and other tools. Nothing
here depends on them, so a copy works in which links became folders or text, or are missing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from robo_razor.core.errors import CheckpointError, ConfigError, RunDirectoryError
from robo_razor.core.files import (
    atomic_directory,
    clear_leftovers,
    lock,
    make_directory,
    raising_os_errors,
    read_link,
    read_text,
    replace_link,
    system_refusal,
    without_nan,
    write_bytes,
    write_json,
    write_text,
)
from robo_razor.core.metrics import (
    DAMAGED_EVALUATION,
    EpisodeEntry,
    Summary,
    read_episodes,
    read_summary,
)
from robo_razor.core.plain_text import skill_name
from robo_razor.core.run.checksums import verify_checksums, write_checksums
from robo_razor.core.run.provenance import read_environment
from robo_razor.core.run.selection import best_step, kept_steps, planned_steps, score
from robo_razor.core.run.training_state import (
    TrainingState,
    load_training_state,
    save_training_state,
)

if TYPE_CHECKING:
    from robo_razor.core.settings.conversion import Settings

__all__ = [
    "DAMAGED_EVALUATION",
    "RunDirectory",
    "TrainingState",
    "find_pretrained_model",
    "refuse_used_directory",
    "step_name",
]

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SUMMARY = "summary.json"
EPISODES = "episodes.jsonl"
PRETRAINED_MODEL = "pretrained_model"
TRAINING_STATE = "training_state"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_config.json"
"""In the folder of a PEFT adapter, which has no weights of its own."""
LAST = "last"
BEST = "best"
TEMPORARY = "robo-razor-"
"""Begins the name of a folder that holds a run of Python's `finetune` without `out`."""

_LOCK = ".lock"
_BEGUN_IN = ".begun_in"
"""Holds the directory that a run's relative paths were given in; hidden, and in no archive."""
_STEP_NAME = re.compile(r"[0-9]{6}|[1-9][0-9]{6,17}")


def step_name(step: int) -> str:
    """Return the directory name of a step, e.g. `000040` (LeRobot's layout)."""
    return f"{step:06d}"


class RunDirectory:
    """One run on disk: its config, metrics, checkpoints and evaluations.

    Use `create` for a new run, `resume` to go on with one, `open` to read one. The first two hold
    a lock until `close` or the end of the process, so two runs never share a directory.
    """

    def __init__(self, path: str | Path) -> None:
        """Name a run directory without touching the disk."""
        self.path = Path(path)
        self._lock: BinaryIO | None = None

    @classmethod
    def create(cls, config: Settings, path: str | Path | None = None) -> Self:
        """Create the directory of a new run and write its config and environment.

        Args:
            config: The run's settings; written as `config.yaml`.
            path: Where; defaults to `config.out`, or a fresh directory under `runs/` when that
                is None.

        Raises:
            RunDirectoryError: The directory exists and is not empty, or cannot be written.
        """
        from robo_razor.core.fingerprint import fingerprint
        from robo_razor.core.settings.conversion import to_yaml

        target = Path(path or getattr(config, "out", None) or _fresh_name(config))
        refuse_used_directory(target, resumable=True)
        run = cls(target)
        run._acquire()
        try:
            write_text(run.path / CONFIG, to_yaml(config))
            write_bytes(run.path / _BEGUN_IN, os.fsencode(os.getcwd()))
            run.write_environment(fingerprint())
        except OSError as error:
            run.discard_unstarted()
            run.close()
            raise RunDirectoryError(
                system_refusal(error),
                remedy="Make room, or choose another output directory with `--out`.",
            ) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run for reading.

        Raises:
            RunDirectoryError: `path` is not a run directory.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunDirectoryError(
                f"The run directory {str(path)!r} does not exist",
                remedy="Name one that `robo-razor finetune` made; by default they are in `runs/`.",
            )
        if not run.has_config():
            raise RunDirectoryError(
                f"{str(path)!r} is not a run directory: it holds no {CONFIG}",
                remedy="Name a directory that `robo-razor finetune` made.",
            )
        return run

    @classmethod
    def resume(cls, path: str | Path) -> Self:
        """Open an existing run to go on from its newest intact checkpoint.

        The temporary files of a killed process are removed. A damaged newest checkpoint is renamed
        (`000040.damaged`), with a warning.

        Raises:
            RunDirectoryError: `path` is not a run directory or another process is running it.
            CheckpointError: The run has no checkpoint yet, or no intact one.
        """
        run = cls.open(path)
        run._acquire()
        clear_leftovers(run.path)
        if run.last_step() is None:
            run.close()
            raise CheckpointError(
                f"The run {str(path)!r} has no checkpoint to resume from",
                remedy="Begin it again with `--resume auto`, which replaces it.",
            )
        try:
            run._set_damaged_aside()
            replace_link(run.checkpoints / LAST, step_name(run.steps()[-1]))
        except BaseException:
            run.close()
            raise
        return run

    def environment(self) -> dict[str, Any]:
        """Return the fingerprint that `write_environment` wrote; empty where there is none."""
        return read_environment(self.path / ENVIRONMENT)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write a run's fingerprint (see `fingerprint`)."""
        write_json(self.path / ENVIRONMENT, environment)

    @property
    def checkpoints(self) -> Path:
        """Directory of all checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """File with one JSON object of metrics per line."""
        return self.path / METRICS

    @property
    def tensorboard(self) -> Path:
        """Directory of TensorBoard's event files."""
        return self.path / TENSORBOARD

    @property
    def videos(self) -> Path:
        """Directory of videos."""
        return self.path / "videos"

    def config_data(self) -> dict[str, Any]:
        """Return the run's settings as nested plain values."""
        from robo_razor.core.settings.conversion import read_yaml

        return read_yaml(self.path / CONFIG)

    def begun_in(self) -> Path | None:
        """Return the directory that the run's relative paths were given in, where it is known."""
        file = self.path / _BEGUN_IN
        if not file.is_file():  # made by an earlier version
            return None
        try:
            place = Path(read_text(file, max_bytes=2**14))
            return place if place.is_absolute() and place.is_dir() else None
        except (OSError, ValueError):  # made on another machine
            return None

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        return _steps_in(self.checkpoints)

    def last_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def has_config(self) -> bool:
        """Return whether this is the directory of a run."""
        return (self.path / CONFIG).is_file()

    def is_finished(self) -> bool:
        """Return whether the run made all its updates and measured the last one."""
        steps = self.evaluated_steps()
        if not steps or not self.is_measured(steps[-1]):
            return False
        return self.summary(steps[-1]).is_last

    def is_running(self) -> bool:
        """Return whether a process holds the run's lock."""
        if not (self.path / _LOCK).is_file():
            return False
        with (self.path / _LOCK).open("rb") as file:
            return lock(file, shared=True) is False

    def discard_unstarted(self) -> None:
        """Remove the files of a run that was stopped before its first checkpoint.

        Raises:
            RunDirectoryError: There is a checkpoint, or this is not the directory of a run.
        """
        if not self.path.exists() and not self.path.is_symlink():
            return
        items = list(self.path.iterdir()) if self.path.is_dir() else [self.path]
        is_run = self.has_config() or all(item.name.startswith(".") for item in items)
        if self.last_step() is not None or not is_run:
            raise RunDirectoryError(
                f"{str(self.path)!r} holds something else than a run that has just begun",
                remedy="Move it away, or choose another output directory.",
            )
        shutil.rmtree(self.path)

    def planned_steps(self) -> frozenset[int] | None:
        """Return the steps that the run measures, 0 included; None before the first is measured.

        Raises:
            CheckpointError: Its settings or evaluations are damaged.
        """
        steps = self.evaluated_steps()
        updates = self.summary(steps[-1]).updates if steps else None
        try:
            return planned_steps(self.config_data().get("tracking"), updates)
        except (TypeError, ValueError, OverflowError, ConfigError) as error:
            raise CheckpointError(f"The plan of {self.path} cannot be read ({error})") from error

    def best_step(self) -> int | None:
        """Return the best measured step (see `selection`), or None before the first.

        Evaluations of an earlier version, or without their episodes, do not determine it: then the
        step counts that the run marked.
        """
        config = self.config_data()
        tracking, planned = config.get("tracking"), self.planned_steps()
        if planned is not None and isinstance(tracking, Mapping) and "episodes_new" in tracking:
            task, episodes = str(config.get("task")), tracking["episodes_new"]
            if not isinstance(episodes, int):
                raise CheckpointError(f"{self.path}: `tracking.episodes_new` is not a number")
            steps = [step for step in self.evaluated_steps() if step in planned]
            if not all((self.evaluation(step) / EPISODES).is_file() for step in steps):
                return self._marked_step()
            scores = {step: score(self.episodes(step), task, episodes) for step in steps}
            return best_step(scores)
        return self._marked_step()

    def _marked_step(self) -> int | None:
        marked = (read_link(self.checkpoints / BEST) or "").rstrip("/").rsplit("/", 1)[-1]
        return int(marked) if _STEP_NAME.fullmatch(marked) else None

    def pretrained_model(self, step: int) -> Path:
        """Return the directory of a checkpoint's policy."""
        return self.checkpoints / step_name(step) / PRETRAINED_MODEL

    def save_checkpoint(
        self,
        save_policy: Callable[[Path], object],
        state: TrainingState,
        *,
        keep: int = 3,
        best: bool = False,
    ) -> Path:
        """Write a checkpoint atomically, read it back, point `last` at it and drop old ones.

        Args:
            save_policy: Writes the policy into a directory.
            state: The state to resume from; its `step` names the checkpoint.
            keep: Newest checkpoints that stay; `best` stays too.
            best: Point `best` at this checkpoint.

        Returns:
            The checkpoint's directory.

        Raises:
            CheckpointError: The files on disk differ from what was written.
            OSError: It cannot be written; the checkpoints before it are untouched.
        """
        target = self.checkpoints / step_name(state.step)
        with raising_os_errors(target), atomic_directory(target) as directory:
            model = directory / PRETRAINED_MODEL
            model.mkdir()
            save_policy(model)
            save_training_state(directory / TRAINING_STATE, state)
            write_checksums(directory)
        verify_checksums(target, from_disk=True)
        replace_link(self.checkpoints / LAST, target.name)
        if best:
            self.mark_best(state.step)
        self.prune(keep, state.step if best else self.best_step())
        return target

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`."""
        if not (self.checkpoints / step_name(step)).is_dir():
            raise CheckpointError(f"There is no checkpoint of step {step} in {self.checkpoints}")
        replace_link(self.checkpoints / BEST, step_name(step))

    def load_state(self, step: int | None = None) -> TrainingState:
        """Read a checkpoint's training state; None: that of the newest checkpoint.

        Raises:
            CheckpointError: There is no such checkpoint, or a file is missing or truncated.
        """
        chosen = self.last_step() if step is None else step
        if chosen is None or chosen not in self.steps():
            raise CheckpointError(
                f"{self.path} has no checkpoint{'' if step is None else f' of step {step}'}",
                allowed=", ".join(map(str, self.steps())) or "(there is none)",
            )
        return load_training_state(self.checkpoints / step_name(chosen) / TRAINING_STATE)

    def evaluation(self, step: int) -> Path:
        """Return the directory of a step's evaluation, which need not exist."""
        return self.path / "eval" / step_name(step)

    def evaluated_steps(self) -> list[int]:
        """Return the steps whose summary is on disk, ascending."""
        steps = _steps_in(self.path / "eval")
        return [step for step in steps if (self.evaluation(step) / SUMMARY).is_file()]

    def drop_evaluations_after(self, step: int) -> None:
        """Remove the evaluations of later steps, whose checkpoints were lost."""
        for later in _steps_in(self.path / "eval"):
            if later > step:
                shutil.rmtree(self.evaluation(later))

    def is_measured(self, step: int) -> bool:
        """Return whether a step's evaluation is complete; its summary is written last."""
        try:
            self.summary(step)
        except CheckpointError:
            return False
        return True

    def summary(self, step: int) -> Summary:
        """Return a step's evaluation summary.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        return read_summary(self.evaluation(step) / SUMMARY, step)

    def episodes(self, step: int) -> list[EpisodeEntry]:
        """Return the lines of a step's `episodes.jsonl`.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        path = self.evaluation(step) / EPISODES
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist", remedy=DAMAGED_EVALUATION)
        return read_episodes(path)

    def write_summary(self, step: int, summary: Summary) -> Path:
        """Write a step's evaluation summary, atomically."""
        path = self.evaluation(step) / SUMMARY
        write_json(path, without_nan(summary.to_json()))
        return path

    def write_episodes(self, step: int, episodes: Iterable[EpisodeEntry]) -> Path:
        """Write a step's episodes as JSON lines, atomically."""
        path = self.evaluation(step) / EPISODES
        values = (without_nan(episode.to_json()) for episode in episodes)
        lines = (json.dumps(value, allow_nan=False) + "\n" for value in values)
        write_text(path, "".join(lines))
        return path

    def summaries(self) -> list[Summary]:
        """Return the evaluation summaries of all steps, ascending."""
        return [self.summary(step) for step in self.evaluated_steps()]

    def measured(self) -> list[Path]:
        """Return the files that a report reads: all but weights, optimizers and probe states."""
        candidates = [self.path / name for name in (CONFIG, ENVIRONMENT, METRICS)]
        for step in _steps_in(self.path / "eval"):
            candidates += [
                self.path / "eval" / step_name(step) / name for name in (SUMMARY, EPISODES)
            ]
        files = [file for file in candidates if file.is_file()]
        best = self.checkpoints / BEST
        return [*files, best] if best.is_symlink() else files

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _acquire(self) -> None:
        try:
            make_directory(self.path)
            file = (self.path / _LOCK).open("ab")
        except OSError as error:
            raise RunDirectoryError(
                f"Cannot write to {self.path} ({error.strerror})",
                remedy="Choose another output directory with `--out`, or make room.",
            ) from error
        is_ours = lock(file)
        if is_ours is False:
            file.close()
            raise RunDirectoryError(
                f"Another process is running in {self.path}",
                remedy="Wait for it, stop it, or choose another output directory.",
            )
        if is_ours is None:
            logger.warning(
                "The file system of %s has no locks: let only one process run there.", self.path
            )
        self._lock = file

    def _set_damaged_aside(self) -> None:
        """Rename the damaged checkpoints that are newer than the newest intact one.

        Raises:
            CheckpointError: None is intact; then all keep their names.
        """
        newest_intact, damaged = _newest_intact(self.checkpoints)
        for step in damaged:
            name = step_name(step)
            place = next(
                path
                for number in range(1, 1000)
                for path in [self.checkpoints / f"{name}.damaged{'' if number == 1 else number}"]
                if not path.exists()
            )
            (self.checkpoints / name).rename(place)
            logger.warning("It is now %s, and the run goes on from step %d.", place, newest_intact)

    def prune(self, keep: int, best: int | None) -> None:
        """Drop old checkpoints, see `selection.kept_steps`."""
        steps = self.steps()
        kept = kept_steps(steps, keep, best, self.planned_steps())
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.checkpoints / step_name(step))


def refuse_used_directory(
    path: str | Path, *, resumable: bool = False, beside: Container[str] = ()
) -> None:
    """Make sure that nothing would be overwritten: `path` must be absent or empty.

    Args:
        path: The output directory.
        resumable: Whether the error should mention `--resume`.
        beside: Names of files that it may hold.

    Raises:
        RunDirectoryError: `path` is a file, or a directory that holds other files.
    """
    target = Path(path)
    if target.is_dir() and all(file.name in beside for file in target.iterdir()):
        return
    if not target.exists() and not target.is_symlink():
        return
    is_run = resumable and (target / CONFIG).is_file()
    raise RunDirectoryError(
        f"The output directory {str(path)!r} is in use: it already holds files"
        if target.is_dir()
        else f"The output directory {str(path)!r} is a file",
        remedy="Choose another one"
        + (f", or go on with that run: `--resume --out {path}`." if is_run else "."),
    )


def find_pretrained_model(path: str | Path) -> Path:
    """Return the `pretrained_model` directory of a run, a checkpoint or a model.

    Args:
        path: A run directory (its last checkpoint counts), a checkpoint directory
            (`.../checkpoints/000040`, `.../checkpoints/best`), or a `pretrained_model` directory.

    Raises:
        CheckpointError: There is no policy, or its weights are missing.
    """
    start = Path(path).expanduser()
    model = next(
        (
            candidate
            for candidate in (*_linked(start), start, start / PRETRAINED_MODEL, *_newest_of(start))
            if (candidate / "config.json").is_file()
        ),
        None,
    )
    if model is None:
        raise CheckpointError(
            f"No policy in {str(path)!r}: it does not exist or holds no config.json",
            allowed="a run directory, a checkpoint (`RUN/checkpoints/000040`), or its "
            f"{PRETRAINED_MODEL!r} directory",
        )
    # An adapter or an index is not a whole policy; loading it raises an error that says so.
    files = (WEIGHTS, ADAPTER, f"{WEIGHTS}.index.json")
    if not any((model / name).is_file() for name in files):
        raise CheckpointError(
            f"The checkpoint {model} is incomplete: {WEIGHTS} is missing",
            remedy="Use another checkpoint of the run.",
        )
    if model.name == PRETRAINED_MODEL:
        verify_checksums(model.parent, PRETRAINED_MODEL)
    return model


def _linked(path: Path) -> list[Path]:
    """Return the policy of `checkpoints/last` or `checkpoints/best`, or none.

    The link itself is not read: after a crash it may be outdated, and in a copy it may be a folder,
    a text, or missing.
    """
    link = path.parent if path.name == PRETRAINED_MODEL else path
    steps = _steps_in(link.parent) if link.name in (LAST, BEST) else []
    if not steps:
        return []
    if link.name == LAST:
        return _newest_of(link.parent)
    best = RunDirectory(link.parents[1]).best_step()
    return [link.parent / step_name(best) / PRETRAINED_MODEL] if best in steps else []


def _newest_of(start: Path) -> list[Path]:
    """Return the policy of the newest intact checkpoint of a run or its `checkpoints`, or none."""
    folder = next((f for f in (start / "checkpoints", start) if _steps_in(f)), None)
    if folder is None:
        return []
    step, _ = _newest_intact(folder, PRETRAINED_MODEL)
    return [folder / step_name(step) / PRETRAINED_MODEL]


def _newest_intact(checkpoints: Path, below: str = "") -> tuple[int, list[int]]:
    """Return the newest step whose checkpoint is intact, and the newer ones, which are damaged.

    Args:
        checkpoints: Their folder; there is at least one.
        below: The folder of a checkpoint that counts; empty: all of it.

    Raises:
        CheckpointError: None is intact.
    """
    damaged: list[int] = []
    problems: list[CheckpointError] = []
    for step in reversed(_steps_in(checkpoints)):
        try:
            verify_checksums(checkpoints / step_name(step), below)
        except CheckpointError as error:
            damaged.append(step)
            problems.append(error)
            continue
        for problem in problems:
            logger.warning("%s. Using the checkpoint before it: step %d.", problem.problem, step)
        return step, damaged
    raise problems[0]


def _steps_in(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [item.name for item in directory.iterdir() if item.is_dir() and not item.is_symlink()]
    return sorted(int(name) for name in names if _STEP_NAME.fullmatch(name))


def _fresh_name(config: Settings) -> Path:
    """Return a name under `runs/` that no run has yet, from the task, method and seed."""
    task = skill_name(str(getattr(config, "task", "run")))
    method, seed = getattr(config, "method", None), getattr(config, "seed", 0)
    name = getattr(method, "name", "")
    stem = "-".join(part for part in (task, name, f"seed{seed}") if part)
    number = 1
    while (Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number:03d}"
