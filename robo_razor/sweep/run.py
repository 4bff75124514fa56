"""Many runs from one file: `robo-razor sweep FILE`.

The file (YAML)::

    name: razor              # default: the file's name
    out: runs/razor          # default: runs/ and the name
    parallel: 2              # runs at a time; default: as cores and memory allow
    base:                    # settings of `finetune` that all runs share
      tracking: {episodes_new: 100}
      bc: {epochs: 12}       # a method's section counts where an arm uses that method
    arms:
      - name: bc
        about: Cloning of the other annotator's demonstrations.   # for the report; may be left out
        settings: {method: bc, bc.style: b}       # dotted or nested keys
        grid:
          bc.learning_rate: [1e-4, 3e-4, 1e-3]
          seed: [0, 1, 2]
      - name: ppo
        settings: {method: ppo}
        grid: {ppo.learning_rate: [4e-5, 8e-5], seed: [0, 1, 2]}
      - name: distilled
        settings:
          method: bc
          bc.demonstrations: "policy:${runs.ppo.seed, ppo.learning_rate=8e-5}/checkpoints/best"
        grid: {seed: [0, 1, 2]}

- An arm's runs are all combinations of its `grid`; `settings` override `base`, `grid` overrides
  both.
- A reference stands for another run's directory, and that run starts first: `${runs.ARM}` or
  `${runs.ARM.seed}` (with the seed of the referring run), `${runs.ARM.0}` (with seed 0). Where
  several runs fit, conditions choose one: `${runs.ARM.seed, KEY=VALUE, ...}`.
- `needs: ARM` (or a list) only waits: for that arm's runs with the same seed, or, where none has
  it, for all of them. A reference waits by itself.
- Every arm's first values come first, seed by seed in the order of the file, then the second
  values, and so on. So put an arm's main value first: then the finished runs can be compared at any
  time.

A sweep writes::

    OUT/sweep.json  checkpoints.parquet  experiment.yaml
      ARM/NAME/     a run directory         ARM/NAME.yaml  its settings     ARM/NAME.log

`sweep.json` is described in `core.run.sweep_record`, the table's columns in `sweep.table`.

The same command resumes an interrupted sweep: it skips finished runs and resumes the others from
their last checkpoint. `robo-razor archive` packs the measurements of finished runs, to go on
elsewhere. A run that something kills is started at most `attempts` times. A run that fails is
recorded, and the others go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from robo_razor.core.errors import RunDirectoryError, SweepError
from robo_razor.core.files import check_writable, lock, write_json, write_text
from robo_razor.core.run.directory import refuse_used_directory
from robo_razor.core.run.sweep_record import EXPERIMENT, KIND, RECORD, VERSION, is_sweep, read_sweep
from robo_razor.sweep.launchers import Launcher
from robo_razor.sweep.plan import Plan
from robo_razor.sweep.schedule import Progress, Scheduler, State
from robo_razor.sweep.table import TABLE, checkpoint_rows, write_table

_LOCK = ".lock"


class Sweep:
    """A sweep that owns its directory; use it as a context manager, then `run`.

    Example:
        with Sweep(load_plan("x.yaml"), LocalLauncher(2)) as sweep:
            sweep.run()
        refuse_failures(sweep.chosen)

    Args:
        plan: The runs.
        launcher: Starts the runs.
        selected: Ids of the runs to run now; None: all.
        attempts: Starts of a run, should something kill it (>= 1).
        retry_failed: Try runs again that failed in an earlier sweep.
        note: Receives a line whenever something happens.
    """

    def __init__(
        self,
        plan: Plan,
        launcher: Launcher,
        *,
        selected: set[str] | None = None,
        attempts: int = 3,
        retry_failed: bool = True,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.plan = plan
        self.launcher = launcher
        self._selected, self._attempts = selected, attempts
        self._retry_failed, self._note = retry_failed, note
        self._stack = contextlib.ExitStack()
        self._ended = -1
        keys = [key for run in plan.runs for key in run.changed]
        self._changed = tuple(dict.fromkeys(keys))

    def __enter__(self) -> Self:
        """Take the sweep's directory.

        Raises:
            RunDirectoryError: It is in use, or holds something else.
        """
        check_writable(self.plan.out, "out", directory=True)
        with self._stack:
            earlier = self._stack.enter_context(_owned(self.plan))
            self._scheduler = Scheduler(
                self.plan,
                self.launcher,
                selected=self._selected,
                earlier=earlier,
                attempts=self._attempts,
                retry_failed=self._retry_failed,
                note=self._note,
                on_change=self._record,
            )
            # Only now: the scheduler has refused a file whose settings differ from its runs'.
            write_text(self.plan.out / EXPERIMENT, self.plan.source.read_text(encoding="utf-8"))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the directory."""
        self._stack.close()

    def run(self) -> list[Progress]:
        """Run everything that can be run; return every run of the file and its state.

        Raises:
            KeyboardInterrupt: The sweep was interrupted; running runs saved themselves first.
        """
        self._scheduler.run()
        return self.runs

    @property
    def runs(self) -> list[Progress]:
        """Every run of the file and its state."""
        return list(self._scheduler.progress.values())

    @property
    def chosen(self) -> list[Progress]:
        """The runs to run now."""
        return self._scheduler.chosen

    def seconds_left(self) -> float | None:
        """Estimate the remaining time; None while no run has finished, or when none is left."""
        return seconds_left(self.chosen, self.launcher.parallel)

    def _record(self) -> None:
        """Write `sweep.json`, and the table whenever another run has ended."""
        out = self.plan.out
        record = {
            "kind": KIND,
            "version": VERSION,
            "name": self.plan.head.name,
            "arms": list(self.plan.arms),
            "about": {arm: text for arm, text in self.plan.abouts.items() if text},
            "runs": [_entry(item, out) for item in self.runs],
        }
        write_json(out / RECORD, record)
        ended = sum(item.state not in (State.PENDING, State.RUNNING) for item in self.runs)
        if ended != self._ended:
            self._ended = ended
            states = [(item.run, str(item.state)) for item in self.runs]
            write_table(checkpoint_rows(states, out, self._changed), out / TABLE)


def _entry(item: Progress, out: Path) -> dict[str, Any]:
    return {
        "arm": item.run.arm,
        "name": item.run.name,
        "path": str(item.run.path.relative_to(out)),
        "state": str(item.state),
        "method": item.run.config.method.name,
        "seed": item.run.config.seed,
        "changed": item.run.changed,
        "needs": list(item.run.needs),
        "starts": item.starts,
        "exit_status": item.exit_status,
        "error": item.error,
        "wall_s": round(item.wall_s, 1),
    }


@contextlib.contextmanager
def _owned(plan: Plan) -> Iterator[dict[str, dict[str, Any]]]:
    """Lock the sweep's directory; yield the records of an earlier sweep there, by run.

    Raises:
        RunDirectoryError: Another process has locked it, or it holds something else.
    """
    earlier: dict[str, dict[str, Any]] = {}
    if is_sweep(plan.out):
        record = read_sweep(plan.out)
        if record["name"] != plan.head.name:
            raise RunDirectoryError(
                f"{str(plan.out)!r} holds the sweep {record['name']!r}, not {plan.head.name!r}",
                remedy="Choose another directory with `--out`.",
            )
        earlier = {f"{entry['arm']}/{entry['name']}": entry for entry in record["runs"]}
    else:
        begun = (plan.out / _LOCK).is_file()  # by a sweep that ended before its first record
        refuse_used_directory(plan.out, beside=(_LOCK, EXPERIMENT) if begun else ())
    plan.out.mkdir(parents=True, exist_ok=True)
    with (plan.out / _LOCK).open("ab") as file:
        if lock(file) is False:
            raise RunDirectoryError(f"Another sweep is running in {plan.out}")
        yield earlier


def refuse_failures(items: Sequence[Progress]) -> None:
    """Raise an error if any of some runs failed.

    Raises:
        SweepError: At least one failed, or could not begin.
    """
    failed = [item for item in items if item.state is State.FAILED]
    blocked = [item for item in items if item.state is State.BLOCKED]
    if not failed and blocked:
        raise SweepError(
            f"{len(blocked)} of {len(items)} runs could not begin; first {blocked[0].run.id}: it "
            f"{blocked[0].error}"
        )
    if not failed:
        return
    example = failed[0]
    reason = f" ({example.error.splitlines()[-1]})" if example.error else ""
    also = f", {len(blocked)} more could not begin without others" if blocked else ""
    raise SweepError(
        f"{len(failed)} of {len(items)} runs failed{also}; first {example.run.id}{reason}",
        remedy=f"Read {example.log}; the same command tries the unfinished runs again.",
    )


def seconds_left(items: list[Progress], parallel: int) -> float | None:
    """Estimate the remaining time from finished runs of the same arm or, without any, of all arms.

    None while no run has finished, or when none is left.
    """
    ended = [item for item in items if item.state is State.FINISHED and item.wall_s > 0]
    remaining = [item for item in items if item.state in (State.PENDING, State.RUNNING)]
    if not ended or not remaining:
        return None
    total = 0.0
    for item in remaining:
        of_arm = [other.wall_s for other in ended if other.run.arm == item.run.arm]
        times = of_arm or [other.wall_s for other in ended]
        so_far = item.elapsed_s()
        total += max(0.0, sum(times) / len(times) - so_far)
    return total / parallel
