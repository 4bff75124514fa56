"""Many runs from one file: `robo-razor sweep FILE`.

The file (YAML)::

    name: razor              # default: the file's name
    out: runs/razor          # default: runs/ and the name
    parallel: 2              # runs at a time; default: what cores and memory carry
    search: grid             # or `random`, with `num_samples` per arm and `seed`
    base:                    # settings of `finetune` that all runs share
      tracking: {episodes_new: 100}
      bc: {epochs: 12}       # a method's section counts where an arm uses that method
    arms:
      - name: bc
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
  both. With `search: random`, an arm draws `num_samples` combinations and runs each with every
  seed; an axis may be `{low: 1e-5, high: 1e-3, log: true}`. More samples keep the first ones.
- A reference stands for another run's directory, and that run goes first: `${runs.ARM}` or
  `${runs.ARM.seed}` (with the seed of the run that refers), `${runs.ARM.0}` (with seed 0); where
  that is several runs, conditions choose: `${runs.ARM.seed, KEY=VALUE, ...}`.
- `needs: ARM` (or a list) only waits: for that arm's runs with the same seed, or all of them where
  none has it. A reference says the same by itself.
- Every arm's first values come first, seed by seed in the order of the file, then the second
  values, and so on. So put an arm's main value first: what there is at any time can be compared.

What is left::

    OUT/sweep.json  checkpoints.parquet  experiment.yaml
      ARM/NAME/     a run directory         ARM/NAME.yaml  its settings     ARM/NAME.log

`sweep.json` holds `{"kind": "robo-razor sweep", "version": 1, "name", "arms": [], "runs": []}`
with, per run, `arm`, `name`, `path` (relative to OUT), `state` (pending, running, finished, failed,
blocked, interrupted), `method`, `seed`, `changed` (key -> value of the settings its arm sets),
`needs` (`ARM/NAME`), `starts`, `exit_status`, `error`, `wall_s`. The table's columns are told in
`sweep_table`.

The same command goes on with a sweep that was cut: finished runs are skipped, begun ones resumed
from their last checkpoint. `robo-razor archive` keeps what finished runs measured, to go on
elsewhere. A run that something kills is started again at most `attempts` times; a
run that fails is recorded and the others go on.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from robo_razor.core.errors import ConfigError, RunDirectoryError, SweepError, shown
from robo_razor.core.files import check_writable, read_json, write_json, write_text
from robo_razor.core.metrics import check_sweep
from robo_razor.core.plain_text import literal, printable
from robo_razor.core.run.directory import RunDirectory, refuse_used_directory
from robo_razor.core.run.log import format_seconds
from robo_razor.core.settings.config import FinetuneConfig, SweepConfig
from robo_razor.sweep.launch import Launcher, LocalLauncher, cores_of, machine_limit
from robo_razor.sweep.plan import Plan, load_plan
from robo_razor.sweep.schedule import Progress, Scheduler, State
from robo_razor.sweep.table import TABLE, checkpoint_rows, read_table, write_table

__all__ = ["load_plan", "read_sweep", "read_table", "run_sweep"]

KIND = "robo-razor sweep"
VERSION = 1
RECORD = "sweep.json"
EXPERIMENT = "experiment.yaml"

_LOCK = ".lock"


def run_sweep(
    config: SweepConfig, console: Console | None = None, launcher: Launcher | None = None
) -> list[Progress]:
    """Run an experiment file, or go on with it.

    Args:
        config: The file and how to run it.
        console: Where progress is shown; default: standard output.
        launcher: Where runs go; None: what `config.backend` says.

    Returns:
        Every run of the file and where it stands.

    Raises:
        SweepError: Some runs failed; all others were run.
        RoboRazorError: The file or the directory cannot be used; nothing was started.
        KeyboardInterrupt: The sweep was interrupted; running runs saved themselves first.
    """
    if not config.file:
        raise ConfigError(
            "No experiment file", remedy="Name one: `robo-razor sweep configs/experiments/x.yaml`."
        )
    console = console or Console()
    plan = load_plan(config.file, config.out)
    names = [part.strip() for part in config.arms.split(",") if part.strip()]
    if not names:
        raise ConfigError("`arms` names none", allowed="all, or names of arms with commas")
    selected = plan.with_needed(plan.arms if names == ["all"] else names)
    _check_tasks([run.config for run in plan.runs])
    if config.dry_run:
        chosen = [run for run in plan.runs if run.id in selected]
        lines = [f"{r.id}{f' after {", ".join(r.needs)}' if r.needs else ''}" for r in chosen]
        _print(console, "\n".join([*lines, f"{len(chosen)} runs in {plan.out}"]))
        return []
    check_writable(plan.out, "out", directory=True)
    with contextlib.closing(launcher or _launcher(config, plan)) as where, _owned(plan) as earlier:
        sweep = _Sweep(plan, console)
        sweep.scheduler = Scheduler(
            plan,
            where,
            selected=selected,
            earlier=earlier,
            attempts=config.attempts,
            retry_failed=config.retry_failed,
            note=sweep.note,
            on_change=sweep.record,
        )
        # Only now: a file that was changed in what its runs were made with has been refused.
        write_text(plan.out / EXPERIMENT, plan.source.read_text(encoding="utf-8"))
        sweep.run(where.parallel)
    progress = list(sweep.scheduler.progress.values())
    _refuse_failures([item for item in progress if item.run.id in selected], plan)
    return progress


def read_sweep(path: str | Path) -> dict[str, Any]:
    """Return what `sweep.json` in a sweep's directory says.

    Raises:
        SweepError: There is none, or it is damaged.
    """
    file = Path(path) / RECORD
    data = read_json(file) if file.is_file() else {}
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise SweepError(
            f"{str(path)!r} is no sweep: it holds no {RECORD} of one",
            remedy="Name a directory that `robo-razor sweep` made.",
        )
    if data.get("version") != VERSION:
        raise SweepError(f"{file} has version {shown(data.get('version'))}", allowed=str(VERSION))
    check_sweep(data, file)
    return data


class _Sweep:
    """Tells the user and the disk how a sweep goes."""

    scheduler: Scheduler

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._ended = -1
        self._parallel = 1
        keys = [key for run in plan.runs for key in run.changed]
        self._changed = tuple(dict.fromkeys(keys))

    def run(self, parallel: int) -> None:
        chosen = self.scheduler.chosen
        self._parallel = parallel
        self.note(f"Sweep {self._plan.head.name}, {parallel} at a time, in {self._plan.out}")
        try:
            self.scheduler.run()
        except KeyboardInterrupt:
            self.note("Interrupted. Go on with the same command.")
            raise
        finally:
            _show(self._console, chosen)
        self.note(f"Written to {self._plan.out}: {RECORD}, {TABLE}")

    def note(self, text: str) -> None:
        chosen = self.scheduler.chosen
        done = sum(item.state is State.FINISHED for item in chosen)
        left = seconds_left(chosen, self._parallel)
        about = f", about {format_seconds(left)} left" if left else ""
        _print(self._console, f"[{done}/{len(chosen)}{about}] {text}")

    def record(self) -> None:
        """Write `sweep.json`, and the table whenever another run has ended."""
        items = list(self.scheduler.progress.values())
        record = {
            "kind": KIND,
            "version": VERSION,
            "name": self._plan.head.name,
            "arms": list(self._plan.arms),
            "runs": [_entry(item, self._plan.out) for item in items],
        }
        write_json(self._plan.out / RECORD, record)
        ended = sum(item.state not in (State.PENDING, State.RUNNING) for item in items)
        if ended != self._ended:
            self._ended = ended
            states = [(item.run, str(item.state)) for item in items]
            rows = checkpoint_rows(states, self._plan.out, self._changed)
            write_table(rows, self._plan.out / TABLE)


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


def _launcher(config: SweepConfig, plan: Plan) -> Launcher:
    configs = [run.config for run in plan.runs]
    parallel = config.parallel or plan.head.parallel
    if config.backend == "ray":
        from robo_razor.sweep.ray import RayLauncher

        gpu = any(config.device != "cpu" for config in configs)
        return RayLauncher(parallel, cores=max(map(cores_of, configs)), gpu=gpu)
    return LocalLauncher(parallel or machine_limit(configs))


@contextlib.contextmanager
def _owned(plan: Plan) -> Iterator[dict[str, dict[str, Any]]]:
    """Hold the sweep's directory; yield what an earlier sweep recorded there, by run.

    Raises:
        RunDirectoryError: Another process holds it, or it holds something else.
    """
    earlier: dict[str, dict[str, Any]] = {}
    if (plan.out / RECORD).is_file():
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
    with (plan.out / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunDirectoryError(f"Another sweep is running in {plan.out}") from error
        yield earlier


def _check_tasks(configs: list[FinetuneConfig]) -> None:
    """Refuse tasks that there are not, before a night is spent on the others."""
    from robo_razor.rollout.environments import check_tasks, import_env_packages, named_tasks

    seen = set()
    for config in configs:
        key = (config.env.env_packages, config.task, config.prior_tasks)
        if key not in seen:
            seen.add(key)
            import_env_packages(config.env.env_packages)
            check_tasks([config.task])
            named_tasks(config.prior_tasks, config.env.env_packages)


def _refuse_failures(items: list[Progress], plan: Plan) -> None:
    failed = [item for item in items if item.state is State.FAILED]
    blocked = [item for item in items if item.state is State.BLOCKED]
    if not failed and blocked:
        raise SweepError(
            f"{len(blocked)} of {len(items)} runs could not begin; first {blocked[0].run.id}: it "
            f"{blocked[0].error}"
        )
    if not failed:
        return
    first = failed[0]
    reason = f" ({first.error.splitlines()[-1]})" if first.error else ""
    also = f", {len(blocked)} more could not begin without others" if blocked else ""
    raise SweepError(
        f"{len(failed)} of {len(items)} runs failed{also}; first {first.run.id}{reason}",
        remedy=f"Read {first.log}; the same command tries again what is not finished.",
    )


def seconds_left(items: list[Progress], parallel: int) -> float | None:
    """Guess how long the rest takes, from runs of the same arm or, before any ended, of any arm.

    None while no run has ended, or when none is left.
    """
    ended = [item for item in items if item.state is State.FINISHED and item.wall_s > 0]
    rest = [item for item in items if item.state in (State.PENDING, State.RUNNING)]
    if not ended or not rest:
        return None
    total = 0.0
    for item in rest:
        alike = [other.wall_s for other in ended if other.run.arm == item.run.arm]
        times = alike or [other.wall_s for other in ended]
        so_far = item.elapsed_s()
        total += max(0.0, sum(times) / len(times) - so_far)
    return total / parallel


def _print(console: Console, text: str) -> None:
    lines = "\n".join(printable(line) for line in text.split("\n"))
    console.print(lines, markup=False, highlight=False, soft_wrap=True)


def _show(console: Console, items: list[Progress]) -> None:
    """Print the runs, their states, and what their last checkpoints say."""
    table = Table("state", "step", "new", "prior", "retention", "time")
    table.add_column("run", overflow="fold")
    for item in items:
        summaries = RunDirectory(item.run.path).summaries()
        last = summaries[-1] if summaries else None
        time_s, name = format_seconds(item.wall_s), literal(item.run.id)
        table.add_row(str(item.state), *_cells(last), time_s, name)
    console.print(table)


def _cells(summary: dict[str, Any] | None) -> list[str]:
    if summary is None:
        return ["", "", "", ""]
    new = [entry["success_rate"] for entry in summary["new"].values()]
    means = summary.get("prior_mean", {})
    prior, retention = means.get("success_rate"), means.get("retention")
    return [
        f"{summary['step']}/{summary.get('updates', '?')}",
        f"{sum(new) / len(new):.0%}",
        "" if prior is None else f"{prior:.0%}",
        "" if retention is None else f"{retention:.2f}",
    ]
