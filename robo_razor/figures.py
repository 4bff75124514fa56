"""The figures of a comparison: success on the new task against what is left of the prior skills."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robo_razor.report import RunSeries

KL_KEY = "kl_base_tuned/new_base_visited"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_figures(runs: Sequence[RunSeries], out: Path) -> list[str]:
    """Draw all figures that the runs have data for; return their file names."""
    figures: dict[str, tuple[str, Callable[[Any, RunSeries, str], None], str, str]] = {
        "new_against_prior.png": (
            "What learning the new task costs",
            _new_against_prior,
            "success on the new task",
            "mean success on prior skills",
        ),
        "prior_against_kl.png": (
            "Forgetting against distance from the base",
            _prior_against_kl,
            "KL(base || tuned) on the new task, nats per decision",
            "mean success on prior skills",
        ),
        "new_against_kl.png": (
            "Learning against distance from the base",
            _new_against_kl,
            "KL(base || tuned) on the new task, nats per decision",
            "success on the new task",
        ),
        "along_training.png": (
            "Along training (full line: new task, dashed: prior skills)",
            _along_training,
            "share of the run",
            "success rate",
        ),
    }
    names = []
    for name, (title, draw, x_label, y_label) in figures.items():
        if _draw(runs, out / name, title, draw, (x_label, y_label)):
            names.append(name)
    return names


def _draw(
    runs: Sequence[RunSeries],
    path: Path,
    title: str,
    draw: Callable[[Any, RunSeries, str], None],
    labels: tuple[str, str],
) -> bool:
    """Draw one figure; False when there is nothing to see."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, run in enumerate(runs):
        draw(axes, run, COLOURS[i % len(COLOURS)])
    if not axes.lines:
        return False
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1], ylim=(-0.03, 1.03))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    return True


def _new_against_prior(axes: Any, run: RunSeries, colour: str) -> None:
    axes.set_xlim(-0.03, 1.03)
    _path(axes, run, run.series("new"), run.series("prior"), colour)
    low, high = run.last.new_interval
    if math.isfinite(run.last.prior):
        axes.hlines(run.last.prior, low, high, color=colour, alpha=0.35, linewidth=4)


def _prior_against_kl(axes: Any, run: RunSeries, colour: str) -> None:
    _path(axes, run, run.series(KL_KEY), run.series("prior"), colour)


def _new_against_kl(axes: Any, run: RunSeries, colour: str) -> None:
    _path(axes, run, run.series(KL_KEY), run.series("new"), colour)


def _along_training(axes: Any, run: RunSeries, colour: str) -> None:
    last = max(1, run.last.step)
    share = [checkpoint.step / last for checkpoint in run.checkpoints]
    axes.plot(share, run.series("new"), "o-", color=colour, label=run.label, markersize=3)
    lows = [checkpoint.new_interval[0] for checkpoint in run.checkpoints]
    highs = [checkpoint.new_interval[1] for checkpoint in run.checkpoints]
    axes.fill_between(share, lows, highs, color=colour, alpha=0.12, linewidth=0)
    if any(math.isfinite(value) for value in run.series("prior")):
        axes.plot(share, run.series("prior"), "s--", color=colour, markersize=3)


def _path(axes: Any, run: RunSeries, x: list[float], y: list[float], colour: str) -> None:
    """Draw the way from the base (star) along the checkpoints."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not points:
        return
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, "o-", color=colour, label=run.label, markersize=4, linewidth=1.4)
    axes.plot(xs[:1], ys[:1], "*", color=colour, markersize=12)
