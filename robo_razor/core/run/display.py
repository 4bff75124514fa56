"""The display of a run on a console: a live bar or rare lines, notes, a table per checkpoint."""

from __future__ import annotations

import logging
import math
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from robo_razor.core.metrics import (
    DEMONSTRATIONS,
    NEW,
    NEW_BASE,
    NEW_TUNED,
    PRIOR,
    OnStates,
    SampledSuccess,
    SkillSummary,
    Summary,
)
from robo_razor.core.plain_text import literal, printable
from robo_razor.core.run.listener import Listener

logger = logging.getLogger(__name__)

STATES = {
    NEW_BASE: "on the new task where the base goes",
    NEW_TUNED: "on the new task where the tuned policy goes",
    PRIOR: "on the prior skills",
    DEMONSTRATIONS: "on the demonstrations",
}
"""States on which a distance to the base is measured -> how a sentence names them."""
WHAT_KL_IS = "KL: how far the tuned policy's decisions are from the base's; 0: the same policy."

PLAIN_LINE_SECONDS = 15.0
"""Without a terminal a progress line is printed at most this often."""


class ProgressBar(Listener):
    """Shows how far a run is: a live bar, or rare lines without a terminal. Logs warnings.

    Args:
        console: Where; None: nowhere.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._total, self._unit, self._start = 0, "update", 0
        self._began = time.monotonic()
        self._last_plain = -math.inf

    @property
    def console(self) -> Console | None:
        """Where progress is shown."""
        return self._console

    def begin(self, total: int, *, unit: str = "update", start: int = 0) -> None:
        """Begin to draw the bar, where there is a terminal."""
        self._total, self._unit, self._start = total, unit, start
        self._began = time.monotonic()
        self._last_plain = -math.inf
        if self._console is not None and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeElapsedColumn(),
                TextColumn("ETA {task.fields[eta]}"),
                console=self._console,
                transient=False,
            )
            self._bar.add_task(
                f"{self._unit} {self._start}/{self._total}",
                total=self._total,
                completed=self._start,
                shown="",
                eta="-",
            )
            self._bar.start()

    def end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def progress(
        self,
        completed: int,
        *,
        success: float | None = None,
        kl: float | None = None,
        episodes: float | None = None,
        **more: float,
    ) -> None:
        """Move the bar, or print a line now and then; episodes are shown as a rate."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        parts: list[str] = []
        if success is not None:
            parts.append(f"success {success:.0%}")
        if kl is not None:
            parts.append(f"KL {kl:.3g}")
        parts += [f"{name} {value:.3g}" for name, value in more.items()]
        if episodes is not None:
            parts.append(f"{episodes / elapsed:.1f} episodes/s")
        self._show(completed, "  ".join(parts), self._eta(completed, elapsed))

    def warn(self, text: str) -> None:
        """Log a warning, for whoever reads the logs of the program."""
        logger.warning("%s", text)

    def _eta(self, completed: int, elapsed: float) -> str:
        done = completed - self._start
        if done <= 0:
            return "-"
        return format_seconds(elapsed / done * (self._total - completed))

    def _show(self, completed: int, numbers: str, eta: str) -> None:
        description = f"{self._unit} {completed}/{self._total}"
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(
                task, completed=completed, description=description, shown=numbers, eta=eta
            )
            return
        now = time.monotonic()
        if now - self._last_plain >= PLAIN_LINE_SECONDS or completed >= self._total:
            self._last_plain = now
            self._print(f"{description}  {numbers}  ETA {eta}")

    def _print(self, text: str, style: str | None = None) -> None:
        if self._console is not None:
            self._console.print(_lines(text), style=style, markup=False, highlight=False)


class Display(ProgressBar):
    """Shows all of a run: its progress, its notes and warnings, and a table per checkpoint."""

    def measured(self, summary: Summary) -> None:
        """Print a checkpoint's table above the bar."""
        if self._console is not None:
            self._console.print(summary_table(summary))

    def note(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning above the bar."""
        self._print(f"Warning: {text}", style="yellow")


def _lines(text: str) -> str:
    """Return a text without characters that could steer the terminal; lines stay lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def format_seconds(seconds: float) -> str:
    """Return a duration for people: `45 s`, `12:05`, `1:02:03`."""
    total = round(seconds)
    hours, minutes, remaining = total // 3600, total % 3600 // 60, total % 60
    if hours:
        return f"{hours}:{minutes:02d}:{remaining:02d}"
    return f"{minutes}:{remaining:02d}" if minutes else f"{remaining} s"


def summary_table(summary: Summary) -> Table:
    """Return a checkpoint's table: success with intervals, retention, and the KL to the base."""
    table = Table(title=f"Step {summary.step}", title_justify="left", caption=_kl_line(summary))
    table.caption_justify = "left"
    table.add_column("skill", overflow="fold")
    for name in ("success", "95 % interval", "n", "base", "retention"):
        table.add_column(name, justify="right", no_wrap=True)
    for role, skills in ((NEW, summary.new), (PRIOR, summary.prior)):
        for skill, entry in skills.items():
            table.add_row(literal(f"{skill} (new)" if role == NEW else skill), *_cells(entry))
            if entry.sampled is not None:
                table.add_row("  sampled actions", *_cells(entry.sampled))
        table.add_section()
    mean = summary.prior_mean
    if mean is not None and mean.success_rate is not None:
        n = sum(entry.n for entry in summary.prior.values())
        table.add_row(
            "mean of prior skills",
            *_row(mean.success_rate, None, n, mean.base_success_rate, mean.retention),
        )
    return table


def _cells(entry: SkillSummary | SampledSuccess) -> list[str]:
    if isinstance(entry, SampledSuccess):
        return _row(entry.success_rate, entry.interval, entry.n, None, None)
    return _row(
        entry.success_rate, entry.interval, entry.n, entry.base_success_rate, entry.retention
    )


def _row(
    rate: float,
    interval: tuple[float, float] | None,
    n: int,
    base: float | None,
    retention: float | None,
) -> list[str]:
    return [
        f"{rate:.1%}",
        "" if interval is None else f"{interval[0]:.1%} - {interval[1]:.1%}",
        str(n),
        "" if base is None else f"{base:.1%}",
        "" if retention is None else f"{retention:.2f}",
    ]


def _of_kind(kind: str | None) -> str:
    """Return ` (upper bound)` for a divergence of that kind; nothing where it is exact."""
    return "" if kind in (None, "exact") else f" ({kind})"


def _kl_line(summary: Summary) -> str | None:
    lines = []
    for name, values in (
        ("KL(base||tuned)", summary.kl_base_tuned),
        ("KL(tuned||base)", summary.kl_tuned_base),
    ):
        if numbers := _on_states(values):
            lines.append(f"{name}, nats per decision{_of_kind(summary.kl_kind)}: {numbers}")
    if lines and summary.step == 0:
        lines.append(WHAT_KL_IS)
    if numbers := _on_states(summary.surrogate):
        lines.append(f"No KL: the policy has no density. Surrogate: {numbers}")
        lines.append(f"({summary.surrogate_kind})")
    return escape(_lines("\n".join(lines))) or None


def _on_states(values: OnStates | None) -> str:
    """Return `0.5 on the prior skills, ...` of the states that have a number."""
    known = {states: x for states, x in (values or {}).items() if x is not None}
    return ", ".join(f"{x:.3g} {STATES.get(states, states)}" for states, x in known.items())
