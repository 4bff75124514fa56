"""The scheduler of a sweep: it starts as many runs as fit, after those they need.

A run that was killed is started again. Its state is read from its directory, never from the record
of an earlier sweep: finished runs are skipped, begun ones go on from their last checkpoint.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from robo_razor.core.errors import RoboRazorError, RunDirectoryError
from robo_razor.core.files import write_text
from robo_razor.core.interrupts import Interrupted, handling
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.settings.conversion import flatten, replace, to_dict, to_yaml
from robo_razor.sweep.launchers import Handle, Launcher
from robo_razor.sweep.plan import Plan, PlannedRun
from robo_razor.sweep.processes import is_writing

MAY_DIFFER = (
    "out",
    "resume",
    "log",
    "device",
    "torch_threads",
    "env.num_workers",
    "checkpoint.keep",
)
"""Settings that may differ between a run and its plan: they do not change its results."""
KILLED = (129, 130, 137, 138, 143)
"""Exit statuses of a stopped run, by SIGHUP, SIGINT, SIGKILL, SIGUSR1, SIGTERM."""
ERROR_LINES = 5


class State(StrEnum):
    """The state of a run."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    BLOCKED = "blocked"
    """Needs a run that failed, or one whose weights are missing."""
    INTERRUPTED = "interrupted"


@dataclass
class Progress:
    """One run of the experiment and its state.

    Attributes:
        run: The run.
        state: Its state.
        starts: Its starts in all sweeps.
        tries: Its starts in this sweep.
        exit_status: Of its last process; negative: the signal that killed it.
        error: The end of its log, where it failed.
        wall_s: Time its processes took, in all sweeps, seconds.
    """

    run: PlannedRun
    state: State = State.PENDING
    starts: int = 0
    tries: int = 0
    exit_status: int | None = None
    error: str | None = None
    wall_s: float = 0.0
    began: float = 0.0
    handle: Handle | None = None

    @property
    def log(self) -> Path:
        """The run's output; beside its directory, which must be empty when the run starts."""
        return self.run.path.with_name(f"{self.run.name}.log")

    def elapsed_s(self) -> float:
        """Return the time that its processes took so far, in all sweeps, seconds."""
        now = time.monotonic() - self.began if self.handle is not None else 0.0
        return self.wall_s + now


class Scheduler:
    """Runs a plan.

    Args:
        plan: The runs.
        launcher: Starts the runs.
        selected: Ids of the runs to run now; None: all.
        earlier: Id -> the record of an earlier sweep.
        attempts: Starts of a run, should something kill it.
        retry_failed: Try runs again that failed in an earlier sweep.
        note: Called with a line for the user.
        on_change: Called when a run's state changed.
        poll_s: Time between two checks of the runs, seconds.
        patience_s: Time that runs get to save themselves when the sweep is interrupted, seconds.
    """

    def __init__(
        self,
        plan: Plan,
        launcher: Launcher,
        *,
        selected: set[str] | None = None,
        earlier: dict[str, dict[str, Any]] | None = None,
        attempts: int = 3,
        retry_failed: bool = True,
        note: Callable[[str], None] = lambda text: None,
        on_change: Callable[[], None] = lambda: None,
        poll_s: float = 0.2,
        patience_s: float = 300.0,
    ) -> None:
        self.progress = {run.id: Progress(run) for run in plan.runs}
        self._selected = set(self.progress) if selected is None else selected
        self._launcher, self._attempts = launcher, attempts
        self._note, self._on_change = note, on_change
        self._poll_s, self._patience_s = poll_s, patience_s
        for item in self.progress.values():
            self._read_state(item, (earlier or {}).get(item.run.id, {}), retry_failed)

    @property
    def chosen(self) -> list[Progress]:
        """The runs to run now."""
        return [item for name, item in self.progress.items() if name in self._selected]

    def run(self) -> None:
        """Run everything that can be run.

        Raises:
            KeyboardInterrupt: The sweep was interrupted; its runs saved themselves first.
        """
        received = _Received()
        with handling(received.handle):
            try:
                self._on_change()
                while any(item.state in (State.PENDING, State.RUNNING) for item in self.chosen):
                    if received.count:
                        raise Interrupted(received.number)
                    self._collect()
                    self._start_what_fits()
                    time.sleep(self._poll_s)
            except BaseException:
                self._stop(received)
                raise

    def _read_state(self, item: Progress, earlier: dict[str, Any], retry_failed: bool) -> None:
        """Read a run's state from its directory."""
        item.starts = int(earlier.get("starts", 0))
        item.wall_s = float(earlier.get("wall_s", 0.0))
        directory = RunDirectory(item.run.path)
        if directory.has_config():
            refuse_other_settings(item.run, directory.config_data())
        if directory.is_finished():
            item.state = State.FINISHED
        elif earlier.get("state") == State.FAILED and not retry_failed:
            item.state, item.error = State.FAILED, earlier.get("error")
            item.exit_status = earlier.get("exit_status")

    def _collect(self) -> None:
        """Record the runs that have ended."""
        for item in self.chosen:
            status = item.handle.poll() if item.handle is not None else None
            if item.state is State.RUNNING and status is not None:
                self._end(item, status)

    def _end(self, item: Progress, status: int) -> None:
        item.handle = None
        item.wall_s += time.monotonic() - item.began
        item.exit_status = status
        if RunDirectory(item.run.path).is_finished():
            item.state, item.error = State.FINISHED, None
            self._note(f"finished {item.run.id}")
        elif (status < 0 or status in KILLED) and item.tries < self._attempts:
            item.state = State.PENDING
            self._note(f"{item.run.id} was stopped (exit status {status}) and is started again")
        else:
            item.state, item.error = State.FAILED, _end_of(item.log)
            self._note(f"FAILED {item.run.id} (exit status {status}), see {item.log}")
        self._on_change()

    def _start_what_fits(self) -> None:
        for item in self.chosen:
            if item.state is not State.PENDING:
                continue
            needed = [self.progress[name].state for name in item.run.needs]
            if any(state in (State.FAILED, State.BLOCKED) for state in needed):
                self._block(item, f"needs {', '.join(item.run.needs)}")
            elif set(needed) <= {State.FINISHED} and (weightless := self._without_weights(item)):
                self._block(
                    item,
                    f"needs the weights of {weightless}, which came from an archive without them; "
                    "move that run's directory away, and the sweep runs both",
                )
            elif self._has_room() and set(needed) <= {State.FINISHED}:
                self._start(item)

    def _block(self, item: Progress, reason: str) -> None:
        item.state, item.error = State.BLOCKED, reason
        self._note(f"blocked {item.run.id}: it {reason}")
        self._on_change()

    def _without_weights(self, item: Progress) -> str | None:
        """Return the first finished run that a setting names and that has no checkpoint."""
        settings = [str(value) for value in flatten(to_dict(item.run.config)).values()]
        for name in item.run.needs:
            path = self.progress[name].run.path
            named = any(str(path) in value for value in settings)
            if named and RunDirectory(path).last_step() is None:
                return name
        return None

    def _has_room(self) -> bool:
        running = sum(item.state is State.RUNNING for item in self.chosen)
        return running < self._launcher.parallel

    def _start(self, item: Progress) -> None:
        item.began = time.monotonic()
        directory = RunDirectory(item.run.path)
        try:
            if directory.is_running() or is_writing(item.log):
                item.handle = _Watched(item)
                self._note(f"waiting for {item.run.id}, which another process is running")
            else:
                item.handle = self._launch(item, directory)
                item.tries += 1
                item.starts += 1
            item.state = State.RUNNING
        except (RoboRazorError, OSError) as error:
            item.state, item.error = State.FAILED, str(error)
            self._note(f"FAILED {item.run.id}: {error}")
        self._on_change()

    def _launch(self, item: Progress, directory: RunDirectory) -> Handle:
        step = directory.last_step()
        if step is not None:
            self._note(f"resuming {item.run.id} from step {step}")
            return self._launcher.start(
                ["finetune", "--resume", "--out", str(directory.path)], item.log
            )
        directory.discard_unstarted()
        file = directory.path.with_name(f"{item.run.name}.yaml")
        write_text(file, to_yaml(self._fitted(item.run.config)))
        self._note(f"starting {item.run.id}")
        arguments = ["finetune", "--config", str(file), "--out", str(directory.path)]
        return self._launcher.start(arguments, item.log)

    def _fitted(self, config: FinetuneConfig) -> FinetuneConfig:
        """Divide the cores among parallel runs, unless the file sets the threads."""
        if config.torch_threads is None and self._launcher.parallel > 1:
            return replace(config, torch_threads=self._launcher.threads)
        return config

    def _stop(self, received: _Received) -> None:
        """Let running runs save themselves; a second signal kills them."""
        before = min(received.count, 1)  # two signals may be here already: the second one kills
        running = [item for item in self.chosen if item.handle is not None]
        if running:
            self._note(
                f"Stopping {len(running)} run(s); each saves a checkpoint first. A second signal "
                "kills them."
            )
        for item in running:
            if item.handle is not None:
                item.handle.interrupt()
        deadline = time.monotonic() + self._patience_s
        while any(item.handle is not None and item.handle.poll() is None for item in running):
            if received.count > before or time.monotonic() > deadline:
                for item in running:
                    if item.handle is not None:
                        item.handle.kill()
                break
            time.sleep(min(self._poll_s, 0.2))
        for item in running:
            item.handle = None
            item.wall_s += time.monotonic() - item.began
            finished = RunDirectory(item.run.path).is_finished()
            item.state = State.FINISHED if finished else State.INTERRUPTED
        self._on_change()


class _Watched:
    """A run in another process, for example of a sweep that was killed."""

    def __init__(self, item: Progress) -> None:
        self._item = item
        self._left = False

    def poll(self) -> int | None:
        directory = RunDirectory(self._item.run.path)
        if not self._left and (directory.is_running() or is_writing(self._item.log)):
            return None
        return -signal.SIGTERM  # unless it has finished, the sweep resumes it

    def interrupt(self) -> None:
        self._left = True

    def kill(self) -> None:
        self._left = True


class _Received:
    """Counts the signals that ask to stop; raising during a start could lose a process."""

    count = 0
    number: int = signal.SIGINT

    def handle(self, number: int, *_: object) -> None:
        self.count += 1
        self.number = number


def refuse_other_settings(run: PlannedRun, stored: dict[str, Any]) -> None:
    """Check that the run in a directory has the settings of the experiment.

    Raises:
        RunDirectoryError: A setting differs, so it is another run.
    """
    old, new = flatten(stored), flatten(to_dict(run.config))
    old = {key: _moved(value, stored.get("out"), run) for key, value in old.items()}
    default = flatten(to_dict(FinetuneConfig(method=type(run.config.method)())))
    missing = object()
    for key, value in new.items():
        before = old.get(key, default.get(key, missing))  # a setting may be newer than the run
        if key not in MAY_DIFFER and before != value:
            raise RunDirectoryError(
                f"{str(run.path)!r} holds a run with `{key}` = {before!r}, but the experiment now "
                f"has {value!r}: its file or a default has changed",
                remedy="Choose another `--out`, move that directory away, or undo the change.",
            )


def _moved(value: Any, stored_out: Any, run: PlannedRun) -> Any:
    """Return a stored value with the sweep's old directory replaced by its present one."""
    if not isinstance(value, str) or not isinstance(stored_out, str):
        return value
    old_place, place = Path(stored_out).parent.parent, run.path.parent.parent
    if not old_place.name:
        return value
    # Only where a path begins, in `PATH` or `policy:PATH`: task ids may hold the sweep's name too.
    return re.sub(rf"(?<![^:]){re.escape(str(old_place))}/", lambda _: f"{place}/", value)


def _end_of(log: Path) -> str | None:
    if not log.is_file():
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-ERROR_LINES:])
