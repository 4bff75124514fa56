"""The figures of a comparison for a paper, as PNG and SVG: arms by colour and marker."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.plain_text import shortened
from robo_razor.report import analysis
from robo_razor.report.equal_success import match_arm, shown_setting
from robo_razor.report.format import percent, predictor_name
from robo_razor.report.load import FORWARD_KL, RunSeries

if TYPE_CHECKING:
    from robo_razor.report.arms import Arm, RunSet

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers differ as well.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#66707A",
    "#882255",
)
MARKERS = "osD^vpPX"
SUFFIXES = (".png", ".svg")
HEIGHT = 4.4
"""Height of a figure in inches, at a width of 6.4."""
MAX_SKILLS = 60
"""Skills that a figure has room for; of more those are drawn of which least is kept."""
MAX_NAME = 60
"""Characters of a name that figures have room for."""
MAX_BANDS = 4
"""Runs whose intervals are drawn as bands; more would hide each other."""
KL_LABEL = "KL(base || tuned) on the new task, nats per decision"
PRIOR_LABEL = "mean success on prior skills"

Draw = Callable[[Any, "RunSet", dict[str, Any]], None]


def draw_figures(runs: RunSet, report: dict[str, Any], out: Path) -> list[str]:
    """Draw all figures that the runs have data for; return their file names."""
    figures: dict[str, tuple[str, Draw, dict[str, str]]] = {
        "matched": (
            f"At {percent(report['headline_level'])} success on the new task",
            _matched,
            {"xlabel": "share of the prior skills kept (mean, 95 % over seeds)"},
        ),
        "new_against_prior": (
            "What learning the new task costs",
            _new_against_prior,
            {"xlabel": "success on the new task", "ylabel": PRIOR_LABEL},
        ),
        "prior_against_kl": (
            "Forgetting against distance from the base",
            _prior_against_kl,
            {"xlabel": KL_LABEL, "ylabel": PRIOR_LABEL},
        ),
        "prior_against_best": (
            "Forgetting against the predictor that explains most",
            _prior_against_best,
            {"ylabel": PRIOR_LABEL},
        ),
        "residuals": (
            "Forgetting: measured minus fitted",
            _residuals,
            {"xlabel": KL_LABEL, "ylabel": "residual of prior success"},
        ),
        "new_against_kl": (
            "Learning against distance from the base",
            _new_against_kl,
            {"xlabel": KL_LABEL, "ylabel": "success on the new task"},
        ),
        "predictors": (
            "What explains forgetting",
            _predictors,
            {"xlabel": "R2 of a parabola (95 %, runs resampled)"},
        ),
        "skills": (
            "Kept of each prior skill, last checkpoint",
            _skills,
            {"xlabel": "success / success of the base"},
        ),
        "along_training": (
            "Along training (full line: new task, dashed: prior skills)",
            _along_training,
            {"xlabel": "share of the run", "ylabel": "success rate"},
        ),
    }
    names = []
    for name, (title, draw, labels) in figures.items():
        names += _draw(runs, report, out / name, title, draw, labels)
    return names


def _draw(
    runs: RunSet,
    report: dict[str, Any],
    stem: Path,
    title: str,
    draw: Draw,
    labels: dict[str, str],
) -> list[str]:
    """Draw one figure; return its file names, none when there is nothing to see."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = HEIGHT if draw is not _skills else max(HEIGHT, _skill_height(report))
    figure = Figure(figsize=(6.4, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, runs, report)
    if not axes.lines and not axes.containers:
        return []
    axes.set(title=title, **labels)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        if draw is _skills:  # bars fill the axes, so the legend stands above them
            figure.legend(loc="outside lower center", frameon=False, fontsize="small", ncols=3)
        else:
            axes.legend(frameon=False, fontsize="small")
    for suffix in SUFFIXES:
        # A fixed salt and no date: the same runs give the same file.
        with mpl.rc_context({"svg.hashsalt": stem.name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(stem.with_suffix(suffix), metadata=metadata)
    return [f"{stem.name}{suffix}" for suffix in SUFFIXES]


def literal(name: str) -> str:
    """Return a name as matplotlib shows it: `$` is no formula, and a legend hides no `_name`."""
    text = shortened(name, MAX_NAME).replace("‖", "||").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i + i // 8) % len(MARKERS)]}


def _matched(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    level = report["headline_level"]
    if level is None:
        return
    every = [(i, match_arm(arm, level)) for i, arm in enumerate(runs.arms)]
    known = [(i, found, found.estimate("retention")) for i, found in every]
    known = sorted((k for k in known if math.isfinite(k[2].value)), key=lambda k: k[2].value)
    for row, (i, found, estimate) in enumerate(known):
        values, style = found.values("retention"), _style(i)
        axes.plot(values, [row] * len(values), linestyle="", alpha=0.45, markersize=5, **style)
        if math.isfinite(estimate.low):
            axes.hlines(row, max(0, estimate.low), estimate.high, color=style["color"], linewidth=2)
        elif (ends := found.over_episodes("retention")) is not None:
            axes.hlines(row, *ends, color=style["color"], linewidth=1, linestyle=":")
        axes.plot([estimate.value], [row], markersize=9, **style)
    axes.set_yticks(range(len(known)), [literal(found.arm) for _, found, _ in known])
    axes.margins(y=0.15)


def _new_against_prior(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    for i, arm in enumerate(runs.arms):
        style = _style(i)
        points = [
            (c.new, c.prior) for run in arm.runs for c in run.checkpoints if math.isfinite(c.prior)
        ]
        if not points:
            continue
        near = [(run.checkpoints[k].new, run.checkpoints[k].prior) for run, k in _near(arm)]
        axes.plot(*_columns(points), linestyle="", alpha=0.35, markersize=4, **style)
        _whiskers(axes, arm, style["color"])
        axes.plot(*_columns(near), linestyle="", markersize=6, label=literal(arm.name), **style)
        axes.plot(*_columns(analysis.frontier_line(arm)), color=style["color"], linewidth=1.2)
    first = runs.runs[0].first
    if axes.lines:
        axes.plot([first.new], [first.prior], "*", color="black", markersize=12)


def _whiskers(axes: Any, arm: Arm, colour: str) -> None:
    """Draw thin 95 % intervals over episodes around the checkpoints near the frontier."""
    style = {"color": colour, "linewidth": 0.8, "alpha": 0.3}
    for run, k in _near(arm):
        checkpoint = run.checkpoints[k]
        axes.hlines(checkpoint.prior, *checkpoint.new_interval, **style)
        axes.vlines(checkpoint.new, *checkpoint.prior_interval, **style)


def _near(arm: Arm) -> list[tuple[RunSeries, int]]:
    return analysis.frontier_of(arm)


def _prior_against_kl(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    _scatter(axes, runs, "prior")
    if report["law"]["coefficients"] is None or not axes.lines:
        return
    highest = max(value for run in runs.runs for value in _known(run.series(FORWARD_KL)))
    _fit(axes, report["law"], 0.0, highest)
    falloff = analysis.falloff_of(report)
    if falloff is not None:
        x = [highest * k / 200 for k in range(201)]
        label = f"level, then falling, R2 = {falloff.r2:.2f}"
        axes.plot(x, falloff.predict(x), "--", color="black", linewidth=1.2, label=label)


def _fit(axes: Any, law: dict[str, Any], low: float, high: float) -> None:
    """Draw a fitted parabola from `low` to `high`, dotted where there are no checkpoints."""
    c0, c1, c2 = law["coefficients"]
    labels = [f"fit, R2 = {law['r2']:.2f}", "no checkpoints there", None]
    ends = [low, *(law["gap"] or ()), high]
    for (start, end), style, label in zip(
        itertools.pairwise(ends), ("-", ":", "-"), labels, strict=False
    ):
        x = [start + (end - start) * k / 100 for k in range(101)]
        y = [c0 + c1 * v + c2 * v * v for v in x]
        axes.plot(x, y, style, color="black", linewidth=1.2, label=label)


def _prior_against_best(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    """Draw the best predictor where it is not the paper's, which has a figure of its own."""
    known = report["law"]["n_points"]  # others were fitted to other checkpoints
    fits = [f for f in report["predictors"] if f["r2"] is not None and f["n_points"] == known]
    if not fits or fits[0]["predictor"] == FORWARD_KL:
        return
    best, name = fits[0], fits[0]["predictor"]
    _scatter(axes, runs, "prior", name)
    values = [value for run in runs.runs for value in _known(run.series(name))]
    _fit(axes, best, min(values), max(values))
    unit = ", nats per decision" if name.startswith("kl_") else ""
    axes.set_xlabel(literal(predictor_name(name)) + unit)


def _residuals(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    coefficients = report["law"]["coefficients"]
    if coefficients is None:
        return
    c0, c1, c2 = coefficients
    for i, arm in enumerate(runs.arms):
        points = [
            (x, y - (c0 + c1 * x + c2 * x * x))
            for run in arm.runs
            for x, y in zip(run.series(FORWARD_KL), run.series("prior"), strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        if points:
            style = {"linestyle": "", "markersize": 5, "alpha": 0.8, **_style(i)}
            axes.plot(*_columns(points), label=literal(arm.name), **style)
    axes.axhline(0.0, color="black", linewidth=0.7, linestyle=":")


def _new_against_kl(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    _scatter(axes, runs, "new")


def _scatter(axes: Any, runs: RunSet, quantity: str, predictor: str = FORWARD_KL) -> None:
    """Draw a quantity of every checkpoint against a predictor, the paper's by default."""
    for i, arm in enumerate(runs.arms):
        points = [
            (x, y)
            for run in arm.runs
            for x, y in zip(run.series(predictor), run.series(quantity), strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        if points:
            axes.plot(
                *_columns(points),
                linestyle="",
                markersize=5,
                alpha=0.8,
                label=literal(arm.name),
                **_style(i),
            )


def _predictors(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    fitted = [entry for entry in report["predictors"] if entry["r2"] is not None][:12][::-1]
    for row, entry in enumerate(fitted):
        low, high = entry["r2_interval"] or (entry["r2"], entry["r2"])
        axes.hlines(row, low, high, color=COLOURS[6], linewidth=2)
        axes.plot([entry["r2"]], [row], "o", color=COLOURS[0])
    names = [literal(predictor_name(entry["predictor"])) for entry in fitted]
    axes.set_yticks(range(len(fitted)), names, fontsize="x-small")
    axes.set_xlim(0, 1.02)


def _skills(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    arms = _drawn_skills(report)
    height = 0.8 / max(1, len(arms))
    for i, arm in enumerate(arms):
        rows = [(k, e) for k, e in enumerate(arm["skills"]) if e["retention"] is not None]
        if not rows:
            continue
        y = [k + height * (i - (len(arms) - 1) / 2) for k, _ in rows]
        kept = [e["retention"] for _, e in rows]
        ends = [e["interval"] or [e["retention"]] * 2 for _, e in rows]
        low = [max(0.0, k - max(0.0, e[0])) for k, e in zip(kept, ends, strict=True)]
        high = [max(0.0, e[1] - k) for k, e in zip(kept, ends, strict=True)]
        axes.barh(
            y,
            kept,
            height=height * 0.9,
            color=COLOURS[i % len(COLOURS)],
            alpha=0.75,
            label=literal(arm["arm"]),
            xerr=[low, high],
            error_kw={"linewidth": 0.7, "alpha": 0.7},
        )
    if arms:
        left_out = len(report["skills"][0]["skills"]) - len(arms[0]["skills"])
        if left_out:
            axes.set_ylabel(f"{left_out} skills of which more is kept are left out")
        names = [literal(entry["skill"]) for entry in arms[0]["skills"]]
        axes.set_yticks(range(len(names)), names, fontsize="x-small")
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linewidth=0.7, linestyle=":")


def _skill_height(report: dict[str, Any]) -> float:
    arms = _drawn_skills(report)
    return 1.2 + (0.12 + 0.09 * len(arms)) * len(arms[0]["skills"]) if arms else HEIGHT


def _drawn_skills(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arms with the skills that are drawn, the same ones of each."""

    def least(k: int) -> float:
        kept = [arm["skills"][k]["retention"] for arm in report["skills"]]
        return min((value for value in kept if value is not None), default=math.inf)

    count = len(report["skills"][0]["skills"]) if report["skills"] else 0
    shown = sorted(sorted(range(count), key=least)[:MAX_SKILLS])
    return [{**arm, "skills": [arm["skills"][k] for k in shown]} for arm in report["skills"]]


def _along_training(axes: Any, runs: RunSet, report: dict[str, Any]) -> None:
    axes.set_ylim(-0.03, 1.03)
    for i, arm in enumerate(runs.arms):
        colour = COLOURS[i % len(COLOURS)]
        for k, run in enumerate(shown_setting(arm, report["headline_level"]).runs):
            last = max(1, run.updates or run.last.step)
            share = [checkpoint.step / last for checkpoint in run.checkpoints]
            label = literal(arm.name) if k == 0 else None
            axes.plot(share, run.series("new"), "o-", color=colour, label=label, markersize=3)
            if len(runs.runs) <= MAX_BANDS:
                lows = [checkpoint.new_interval[0] for checkpoint in run.checkpoints]
                highs = [checkpoint.new_interval[1] for checkpoint in run.checkpoints]
                axes.fill_between(share, lows, highs, color=colour, alpha=0.1, linewidth=0)
            if _known(run.series("prior")):
                axes.plot(share, run.series("prior"), "s--", color=colour, markersize=3)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
