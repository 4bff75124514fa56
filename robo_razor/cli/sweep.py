"""`robo-razor sweep`: read the experiment, run it, show the state of its runs."""

from __future__ import annotations

import contextlib

from rich.console import Console
from rich.table import Table

from robo_razor.core.errors import ConfigError
from robo_razor.core.metrics import Summary
from robo_razor.core.plain_text import literal, printable
from robo_razor.core.plugins import LAUNCHERS
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.run.display import format_seconds
from robo_razor.core.run.sweep_record import RECORD
from robo_razor.core.settings.config import FinetuneConfig, SweepConfig
from robo_razor.core.settings.shipped import EXPERIMENTS, experiment_file, which_file
from robo_razor.sweep.launchers import Launcher
from robo_razor.sweep.plan import Plan, load_plan
from robo_razor.sweep.run import Sweep, refuse_failures
from robo_razor.sweep.schedule import Progress, State
from robo_razor.sweep.table import TABLE
from robo_razor.training.resumption import with_task_id


def run_sweep(
    config: SweepConfig, console: Console | None = None, launcher: Launcher | None = None
) -> list[Progress]:
    """Run an experiment file, or go on with it.

    Args:
        config: The file and how to run it.
        console: Where progress is shown; default: standard output.
        launcher: Starts the runs; None: the launcher that `config.backend` names.

    Returns:
        Every run of the file and its state.

    Raises:
        SweepError: Some runs failed; all others were run.
        RoboRazorError: The file or the directory cannot be used; no run was started.
        KeyboardInterrupt: The sweep was interrupted; running runs saved themselves first.
    """
    if not config.file:
        raise ConfigError("No experiment file", remedy=f"Name one. {which_file(EXPERIMENTS)}")
    screen = _Screen(console or Console())
    plan = load_plan(experiment_file(config.file), config.out, with_task_id)
    selected = plan.select(config.arms)
    _check_tasks([run.config for run in plan.runs])
    if config.dry_run:
        screen.show_plan(plan, selected)
        return []
    with contextlib.closing(launcher or _launcher(config, plan)) as where:
        sweep = Sweep(
            plan,
            where,
            selected=selected,
            attempts=config.attempts,
            retry_failed=config.retry_failed,
            note=screen.note,
        )
        with sweep:
            screen.follow(sweep)
    refuse_failures(sweep.chosen)
    return sweep.runs


def _launcher(config: SweepConfig, plan: Plan) -> Launcher:
    launcher: Launcher = LAUNCHERS.get(config.backend)(
        config.parallel or plan.head.parallel, [run.config for run in plan.runs]
    )
    return launcher


def _check_tasks(configs: list[FinetuneConfig]) -> None:
    """Refuse unknown tasks, before the other runs take a night."""
    from robo_razor.rollout.environments import check_tasks, import_env_packages, named_tasks

    seen = set()
    for config in configs:
        key = (config.env.env_packages, config.task, config.prior_tasks)
        if key not in seen:
            seen.add(key)
            import_env_packages(config.env.env_packages)
            check_tasks([config.task])
            named_tasks(config.prior_tasks, config.env.env_packages)


class _Screen:
    """Shows a sweep on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._sweep: Sweep | None = None

    def show_plan(self, plan: Plan, selected: set[str]) -> None:
        chosen = [run for run in plan.runs if run.id in selected]
        lines = [f"{r.id}{f' after {", ".join(r.needs)}' if r.needs else ''}" for r in chosen]
        self._print("\n".join([*lines, f"{len(chosen)} runs in {plan.out}"]))

    def follow(self, sweep: Sweep) -> None:
        """Run a sweep, show its progress, and at the end the table of its runs."""
        self._sweep, out = sweep, sweep.plan.out
        self.note(f"Sweep {sweep.plan.head.name}, {sweep.launcher.parallel} at a time, in {out}")
        try:
            sweep.run()
        except KeyboardInterrupt:
            self.note("Interrupted. Go on with the same command.")
            raise
        finally:
            self._console.print(_table(sweep.chosen))
        self.note(f"Written to {out}: {RECORD}, {TABLE}")

    def note(self, text: str) -> None:
        """Print a line, with the number of finished runs and the time for the others."""
        sweep = self._sweep
        if sweep is None:
            self._print(text)
            return
        done = sum(item.state is State.FINISHED for item in sweep.chosen)
        seconds = sweep.seconds_left()
        about = f", about {format_seconds(seconds)} left" if seconds else ""
        self._print(f"[{done}/{len(sweep.chosen)}{about}] {text}")

    def _print(self, text: str) -> None:
        lines = "\n".join(printable(line) for line in text.split("\n"))
        self._console.print(lines, markup=False, highlight=False, soft_wrap=True)


def _table(items: list[Progress]) -> Table:
    """Return a table of the runs, their states and the numbers of their last checkpoints."""
    table = Table("state", "step", "new", "prior", "retention", "time")
    table.add_column("run", overflow="fold")
    for item in items:
        summaries = RunDirectory(item.run.path).summaries()
        cells = _cells(summaries[-1]) if summaries else ["", "", "", ""]
        table.add_row(str(item.state), *cells, format_seconds(item.wall_s), literal(item.run.id))
    return table


def _cells(summary: Summary) -> list[str]:
    new = [entry.success_rate for entry in summary.new.values()]
    means = summary.prior_means()
    return [
        f"{summary.step}/{'?' if summary.updates is None else summary.updates}",
        f"{sum(new) / len(new):.0%}",
        "" if means.success_rate is None else f"{means.success_rate:.0%}",
        "" if means.retention is None else f"{means.retention:.2f}",
    ]
