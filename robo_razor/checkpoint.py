"""The run directory: what a run leaves on disk, written so that a crash never leaves half a file.

This is the only module that knows file names::

    runs/NAME/config.yaml  environment.json  metrics.jsonl  tensorboard/
      checkpoints/<step>/pretrained_model/{config.json, model.safetensors, ...}
      checkpoints/<step>/training_state/{optimizer_state.safetensors, training_step.json, ...}
      checkpoints/{last, best}                    relative links
      eval/<step>/{summary.json, episodes.jsonl, ...}   videos/   report/

A checkpoint is written under a temporary name, flushed to disk and renamed; nothing that is read
back can run code (safetensors and JSON, no pickle).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from robo_razor.errors import CheckpointError, RunDirectoryError
from robo_razor.files import atomic_directory, read_json, replace_link, write_json, write_text
from robo_razor.training_state import (
    TrainingState,
    capture_rng,
    load_training_state,
    restore_rng,
    save_training_state,
)

if TYPE_CHECKING:
    from robo_razor.settings import Settings

__all__ = [
    "RunDirectory",
    "TrainingState",
    "capture_rng",
    "find_pretrained_model",
    "refuse_used_directory",
    "restore_rng",
    "step_name",
]

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
DAMAGED_EVALUATION = (
    "It was cut off by a crash or a full disk: delete that evaluation (`eval/STEP`; the others "
    "stay usable), or leave the run out."
)
"""What to do about an evaluation that cannot be read."""
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
EPISODES = "episodes.jsonl"
PRETRAINED_MODEL = "pretrained_model"
TRAINING_STATE = "training_state"
WEIGHTS = "model.safetensors"
LAST = "last"
BEST = "best"

_LOCK = ".lock"
_STEP_NAME = re.compile(r"^\d{6,}$")


def step_name(step: int) -> str:
    """Return the directory name of a step, e.g. `000040` (LeRobot's layout)."""
    return f"{step:06d}"


class RunDirectory:
    """One run on disk: its config, metrics, checkpoints and evaluations.

    Use `create` for a new run, `resume` to go on with one, `open` to read one. The first two hold
    a lock as long as the process lives or until `close`, so two runs never share a directory.
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
        from robo_razor.fingerprint import fingerprint
        from robo_razor.settings import to_yaml

        target = Path(path or getattr(config, "out", None) or _fresh_name(config))
        refuse_used_directory(target, resumable=True)
        run = cls(target)
        run._acquire()
        write_text(run.path / CONFIG, to_yaml(config))
        run.write_environment(fingerprint())
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run for reading.

        Raises:
            RunDirectoryError: `path` is no run directory.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunDirectoryError(
                f"The run directory {str(path)!r} does not exist",
                remedy="Name one that `robo-razor finetune` made; by default they are in `runs/`.",
            )
        if not run.has_config():
            raise RunDirectoryError(
                f"{str(path)!r} is no run directory: it holds no {CONFIG}",
                remedy="Name a directory that `robo-razor finetune` made.",
            )
        return run

    @classmethod
    def resume(cls, path: str | Path) -> Self:
        """Open an existing run for going on, from its last checkpoint.

        Raises:
            RunDirectoryError: `path` is no run directory or another process is running it.
            CheckpointError: The run has no checkpoint yet.
        """
        run = cls.open(path)
        if run.last_step() is None:
            raise CheckpointError(
                f"The run {str(path)!r} has no checkpoint to resume from",
                remedy="Delete the directory or choose another one, and start again.",
            )
        run._acquire()
        for leftover in run.checkpoints.glob(".*.tmp"):  # of a run that was killed while saving
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return run

    def environment(self) -> dict[str, Any]:
        """Return the fingerprint that `write_environment` kept; empty where there is none."""
        file = self.path / ENVIRONMENT
        return read_json(file) if file.is_file() else {}

    def write_environment(self, found: Mapping[str, Any]) -> None:
        """Keep a run's fingerprint (see `fingerprint`)."""
        write_json(self.path / ENVIRONMENT, found)

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
        return self.path / "tensorboard"

    @property
    def videos(self) -> Path:
        """Directory of videos."""
        return self.path / "videos"

    def config_data(self) -> dict[str, Any]:
        """Return the run's settings as nested plain values."""
        from robo_razor.settings import read_yaml

        return read_yaml(self.path / CONFIG)

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        return _steps_in(self.checkpoints)

    def last_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def has_config(self) -> bool:
        """Tell whether the directory is a run's."""
        return (self.path / CONFIG).is_file()

    def is_finished(self) -> bool:
        """Tell whether the run made all its updates and measured the last one."""
        steps = _steps_in(self.path / "eval")
        file = self.path / "eval" / step_name(steps[-1]) / SUMMARY if steps else None
        if file is None or not file.is_file():
            return False
        summary = read_json(file)
        return bool(summary["step"] == summary.get("updates"))

    def is_running(self) -> bool:
        """Tell whether a process holds the run's lock."""
        if not (self.path / _LOCK).is_file():
            return False
        with (self.path / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def discard_unstarted(self) -> None:
        """Remove what a run left that was stopped before its first checkpoint.

        Raises:
            RunDirectoryError: There is a checkpoint, or the directory is no run's.
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

    def best_step(self) -> int | None:
        """Return the step that `best` points at, or None."""
        link = self.checkpoints / BEST
        return int(os.readlink(link)) if link.is_symlink() else None

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
        """Write a checkpoint atomically, point `last` at it and drop old ones.

        Args:
            save_policy: Writes the policy into the directory it is given.
            state: What is needed to resume; its `step` names the checkpoint.
            keep: Newest checkpoints that stay; `best` stays as well.
            best: Point `best` at this checkpoint.

        Returns:
            The checkpoint's directory.
        """
        target = self.checkpoints / step_name(state.step)
        with atomic_directory(target) as directory:
            model = directory / PRETRAINED_MODEL
            model.mkdir()
            save_policy(model)
            save_training_state(directory / TRAINING_STATE, state)
        replace_link(self.checkpoints / LAST, target.name)
        if best:
            self.mark_best(state.step)
        self._prune(keep)
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
        """Return the directory of a step's evaluation, creating it."""
        directory = self.path / "eval" / step_name(step)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def write_summary(self, step: int, summary: Mapping[str, Any]) -> Path:
        """Write a step's evaluation summary, atomically."""
        path = self.evaluation(step) / SUMMARY
        write_json(path, summary)
        return path

    def write_rows(self, step: int, rows: list[dict[str, Any]], name: str = EPISODES) -> Path:
        """Write a step's per-episode rows as JSON lines, atomically."""
        path = self.evaluation(step) / name
        write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        return path

    def summaries(self) -> list[dict[str, Any]]:
        """Return the evaluation summaries of all steps, ascending."""
        steps = _steps_in(self.path / "eval")
        files = [self.path / "eval" / step_name(step) / SUMMARY for step in steps]
        return [read_json(file, DAMAGED_EVALUATION) for file in files if file.is_file()]

    def measured(self) -> list[Path]:
        """Return the files that a report reads: all but weights, optimizers and probe states."""
        kept = [self.path / name for name in (CONFIG, ENVIRONMENT, METRICS)]
        for step in _steps_in(self.path / "eval"):
            kept += [self.path / "eval" / step_name(step) / name for name in (SUMMARY, EPISODES)]
        found = [file for file in kept if file.is_file()]
        best = self.checkpoints / BEST
        return [*found, best] if best.is_symlink() else found

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / _LOCK).open("ab")
        except OSError as error:
            raise RunDirectoryError(f"Cannot write to {self.path} ({error.strerror})") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise RunDirectoryError(
                f"Another process is running in {self.path}",
                remedy="Wait for it, stop it, or choose another output directory.",
            ) from error
        self._lock = lock

    def _prune(self, keep: int) -> None:
        kept = set(self.steps()[-max(1, keep) :]) | {self.best_step()}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.checkpoints / step_name(step))


def refuse_used_directory(
    path: str | Path, *, resumable: bool = False, beside: Container[str] = ()
) -> None:
    """Make sure that nothing would be overwritten: `path` must be absent or empty.

    Args:
        path: Where output is about to be written.
        resumable: Whether the error should mention `--resume`.
        beside: Names of files that may be there.

    Raises:
        RunDirectoryError: `path` is a file or a directory that holds something else.
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
    """Return the `pretrained_model` directory that a run, checkpoint or model path means.

    Args:
        path: A run directory (its last checkpoint is meant), a checkpoint directory
            (`.../checkpoints/000040`, `.../checkpoints/best`), or a `pretrained_model` directory.

    Raises:
        CheckpointError: There is no policy, or its weights are missing.
    """
    start = Path(path)
    candidates = [
        start,
        start / PRETRAINED_MODEL,
        start / LAST / PRETRAINED_MODEL,
        start / "checkpoints" / LAST / PRETRAINED_MODEL,
    ]
    found = next((c for c in candidates if (c / "config.json").is_file()), None)
    if found is None:
        raise CheckpointError(
            f"No policy in {str(path)!r}: it does not exist or holds no config.json",
            allowed="a run directory, a checkpoint (`RUN/checkpoints/000040`), or its "
            f"{PRETRAINED_MODEL!r} directory",
        )
    if not (found / WEIGHTS).is_file():
        raise CheckpointError(f"The checkpoint {found} is incomplete: {WEIGHTS} is missing")
    return found


def _steps_in(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [item.name for item in directory.iterdir() if item.is_dir() and not item.is_symlink()]
    return sorted(int(name) for name in names if _STEP_NAME.match(name))


def _fresh_name(config: Settings) -> Path:
    """Return a name under `runs/` that no run has yet, from the task, method and seed."""
    task = str(getattr(config, "task", "run")).rsplit("/", 1)[-1].rsplit("-v", 1)[0]
    method, seed = getattr(config, "method", ""), getattr(config, "seed", 0)
    stem = "-".join(part for part in (task, str(method), f"seed{seed}") if part)
    number = 1
    while (Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number:03d}"
