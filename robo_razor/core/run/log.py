"""What a run tells while it runs: metrics.jsonl always, TensorBoard, and a live console.

Keys of metrics: `train/...`, `rollout/...`, `eval/new/success_rate`,
`eval/prior/<skill>/success_rate`, `forgetting/...`, `time/...`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from robo_razor.core.files import parse_json, write_bytes
from robo_razor.core.plain_text import literal, printable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from robo_razor.core.run.directory import RunDirectory

PLAIN_LINE_SECONDS = 15.0
"""Without a terminal a progress line is printed at most this often."""


class RunLog:
    """Write metrics and show progress; use as a context manager.

    Example:
        with RunLog(run, total=60) as log:
            log.metrics(3, {"train/loss": 0.2})
            log.progress(3, success=0.41, kl=0.8, episodes=768)
    """

    def __init__(
        self,
        run: RunDirectory | None,
        *,
        total: int,
        unit: str = "update",
        start: int = 0,
        console: Console | None = None,
    ) -> None:
        """Open the log.

        Args:
            run: Where metrics are written; None: nowhere.
            total: Updates in the whole run.
            unit: What one step of the bar is.
            start: Updates already done. Lines that a killed run wrote after its last checkpoint
                (steps beyond `start`) are dropped, so no step is there twice.
            console: Where progress is shown; default: standard output.
        """
        self.console = console or Console()
        self._total, self._unit, self._start = total, unit, start
        self._run = run
        self._began = time.monotonic()
        self._episodes_shown = 0.0
        self._last_plain = -math.inf
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None
        self._bar: Progress | None = None
        self._excepthook = threading.excepthook

    def __enter__(self) -> Self:
        """Open the files and start the bar."""
        if self._run is not None:
            _keep_lines(self._run, lambda line: line["step"] <= self._start)
            self._file = self._run.metrics.open("a", encoding="utf-8")
            threading.excepthook = _without_board(self._excepthook)
            self._board = _open_board(self._run, self._start)
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeElapsedColumn(),
                TextColumn("ETA {task.fields[eta]}"),
                console=self.console,
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
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bar and close the files."""
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
        threading.excepthook = self._excepthook

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics; a value that is not finite is written as null."""
        elapsed = time.monotonic() - self._began
        numbers = {key: float(value) for key, value in values.items()}
        if self._file is not None:
            finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
            line = {"step": step, "time/elapsed_s": round(elapsed, 3), **finite}
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        self._draw(step, numbers)

    def _draw(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand numbers to TensorBoard, which is a view: where it cannot write, the run goes on."""
        if self._board is None:
            return
        try:
            for key, value in numbers.items():
                self._board.add_scalar(printable(key), value, global_step=step)
        except OSError as error:
            self._board = None
            self.warn(f"TensorBoard's file cannot be written ({error}); metrics.jsonl goes on.")

    def progress(
        self,
        completed: int,
        *,
        success: float | None = None,
        kl: float | None = None,
        episodes: float | None = None,
        **more: float,
    ) -> None:
        """Move the bar.

        Args:
            completed: Updates done, those of an interrupted run included.
            success: Success rate of the last rollouts, [0, 1].
            kl: KL(base || tuned) on the new task, nats per decision.
            episodes: Episodes run by this process so far (shown as a rate).
            **more: Further numbers to show, by name.
        """
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

    def show(self, renderable: RenderableType) -> None:
        """Print something above the bar, e.g. a table."""
        self.console.print(renderable)

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(_lines(text), markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """Print a warning above the bar."""
        shown = _lines(f"Warning: {text}")
        self.console.print(shown, style="yellow", markup=False, highlight=False)

    def evaluation(self, summary: Mapping[str, Any], more: Mapping[str, float]) -> None:
        """Write a checkpoint's numbers as metrics, in place of those that its step may have.

        Args:
            summary: What `eval/<step>/summary.json` holds.
            more: Further numbers of the checkpoint.
        """
        step = int(summary["step"])
        if step == self._start and self._file is not None and self._run is not None:
            self._file.close()
            _keep_lines(self._run, lambda line: line["step"] != step or not _is_evaluation(line))
            self._file = self._run.metrics.open("a", encoding="utf-8")
        self.metrics(step, summary_metrics(summary))
        self.metrics(step, more)

    def flush(self) -> None:
        """Bring the metrics to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _eta(self, completed: int, elapsed: float) -> str:
        done = completed - self._start
        if done <= 0:
            return "-"
        return format_seconds(elapsed / done * (self._total - completed))

    def _show(self, completed: int, shown: str, eta: str) -> None:
        description = f"{self._unit} {completed}/{self._total}"
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(
                task, completed=completed, description=description, shown=shown, eta=eta
            )
            return
        now = time.monotonic()
        if now - self._last_plain >= PLAIN_LINE_SECONDS or completed >= self._total:
            self._last_plain = now
            self.note(f"{description}  {shown}  ETA {eta}")


def _lines(text: str) -> str:
    """Return a text whose names cannot steer the terminal; lines stay lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def format_seconds(seconds: float) -> str:
    """Return a duration for people: `45 s`, `12:05`, `1:02:03`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return a checkpoint's table: success with intervals, retention, and the KL to the base.

    Args:
        summary: What `eval/<step>/summary.json` holds.
    """
    table = Table(title=f"Step {summary['step']}", title_justify="left", caption=_kl_line(summary))
    table.caption_justify = "left"
    table.add_column("skill", no_wrap=True)
    for name in ("success", "95 % interval", "n", "base", "retention"):
        table.add_column(name, justify="right")
    for role in ("new", "prior"):
        for skill, result in summary.get(role, {}).items():
            shown = literal(f"{skill} (new)" if role == "new" else skill)
            table.add_row(shown, *_cells(result))
            if "sampled" in result:
                table.add_row("  sampled actions", *_cells(result["sampled"]))
        table.add_section()
    mean = summary.get("prior_mean") or {}
    if mean.get("success_rate") is not None:
        n = sum(result["n"] for result in summary.get("prior", {}).values())
        table.add_row("mean of prior skills", *_cells({**mean, "interval": None, "n": n}))
    return table


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return a summary's numbers under the keys that metrics and TensorBoard use."""
    values: dict[str, float] = {}
    for skill, result in summary.get("prior", {}).items():
        values[f"eval/prior/{skill}/success_rate"] = result["success_rate"]
        if result.get("retention") is not None:
            values[f"forgetting/{skill}/retention"] = result["retention"]
    for skill, result in summary.get("new", {}).items():
        values[f"eval/new/{skill}/success_rate"] = result["success_rate"]
        if "sampled" in result:
            values[f"eval/new/{skill}/sampled_success_rate"] = result["sampled"]["success_rate"]
    for role in ("new", "prior"):
        rates = [result["success_rate"] for result in summary.get(role, {}).values()]
        if rates:
            values[f"eval/{role}/success_rate"] = sum(rates) / len(rates)
    for direction in ("kl_base_tuned", "kl_tuned_base"):
        for states, kl in (summary.get(direction) or {}).items():
            if isinstance(kl, int | float):
                values[f"forgetting/{direction}/{states}"] = float(kl)
    others = {f"forgetting/{name}": value for name, value in summary.get("prior_mean", {}).items()}
    others |= {f"distances/{name}": value for name, value in summary.get("distances", {}).items()}
    others["eval/entropy"] = summary.get("entropy")
    # The mean success rate of the prior skills is told as eval/prior/success_rate.
    told = {"forgetting/success_rate", "forgetting/base_success_rate"}
    return values | {k: float(v) for k, v in others.items() if v is not None and k not in told}


def _cells(result: Mapping[str, Any]) -> list[str]:
    interval, base = result["interval"], result.get("base_success_rate")
    retention = result.get("retention")
    return [
        f"{result['success_rate']:.1%}",
        "" if interval is None else f"{interval[0]:.1%} - {interval[1]:.1%}",
        str(result["n"]),
        "" if base is None else f"{base:.1%}",
        "" if retention is None else f"{retention:.2f}",
    ]


def _of_kind(kind: str | None) -> str:
    """Return ` (upper bound)` for a divergence of that kind; nothing where it is exact."""
    return "" if kind in (None, "exact") else f" ({kind})"


def _kl_line(summary: Mapping[str, Any]) -> str | None:
    lines = []
    for key, name in (("kl_base_tuned", "KL(base||tuned)"), ("kl_tuned_base", "KL(tuned||base)")):
        values = {k: v for k, v in (summary.get(key) or {}).items() if isinstance(v, int | float)}
        if values:
            shown = ", ".join(f"{states} {value:.3g}" for states, value in values.items())
            lines.append(f"{name}, nats per decision{_of_kind(summary.get('kl_kind'))}: {shown}")
    values = {k: v for k, v in (summary.get("surrogate") or {}).items() if v is not None}
    if values:
        shown = ", ".join(f"{states} {value:.3g}" for states, value in values.items())
        lines.append(f"No KL: the policy has no density. Surrogate: {shown}")
        lines.append(f"({summary['surrogate_kind']})")
    return escape(_lines("\n".join(lines))) or None


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    """Tell whether a line of metrics was made of a checkpoint's summary."""
    prefixes = ("eval/", "forgetting/", "distances/", "time/tracking_share")
    names = line.keys() - {"step", "time/elapsed_s"}
    return bool(names) and all(name.startswith(prefixes) for name in names)


def _keep_lines(run: RunDirectory, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Remove the lines of metrics that are not wanted, and what is cut off or not a line of ours.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if not run.metrics.is_file():
        return
    kept = []
    for line in run.metrics.read_bytes().splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            if wanted(parse_json(line.decode("utf-8"))):
                kept.append(line)
    write_bytes(run.metrics, b"".join(line + b"\n" for line in kept))


def _without_board(
    report: Callable[[threading.ExceptHookArgs], Any],
) -> Callable[[threading.ExceptHookArgs], Any]:
    """Return a `threading.excepthook` that leaves TensorBoard's writer to `RunLog._draw`.

    Its thread keeps an error for the next call, and would print a traceback as well.
    """

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            report(arguments)

    return hook


def _open_board(run: RunDirectory, start: int) -> SummaryWriter:
    import warnings

    with warnings.catch_warnings():  # tensorboard's own deprecations
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter

        purge = start + 1 if start else None
        return SummaryWriter(str(run.tensorboard), purge_step=purge)
