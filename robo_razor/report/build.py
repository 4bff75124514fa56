"""Compare runs: new-task success against forgetting, at equal new-task success.

Reads what runs left on disk only, so it needs no torch and no environment (videos apart, which are
left out where they cannot be made). Runs learn at different speeds, so comparing them at equal
steps says little: the numbers that count are what is left of the prior skills when the new task is
first solved equally often (`robo_razor.report.equal_success`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.errors import ReportError, RoboRazorError
from robo_razor.core.files import check_writable, finite, without_nan, write_json, write_text
from robo_razor.core.plain_text import printable
from robo_razor.core.run.archive import unpacked
from robo_razor.core.settings.config import CompareConfig
from robo_razor.report import analysis, csv_tables
from robo_razor.report import comparability as likeness
from robo_razor.report.arms import Arm, RunSet, load_runs
from robo_razor.report.equal_success import (
    QUANTITIES,
    RULE,
    ArmMatch,
    Pair,
    compare_pair,
    difference,
    difference_over_episodes,
    headline_level,
    match,
    match_arm,
    matching_levels,
    shown_setting,
)
from robo_razor.report.load import RunSeries, known_interval
from robo_razor.report.sentences import make_statement

if TYPE_CHECKING:
    from robo_razor.report.videos import Video

PAGE = "index.html"
MARKDOWN = "report.md"
JSON = "report.json"
VIDEOS = "videos"
KIND = "robo-razor comparison"


def run_compare(config: CompareConfig) -> None:
    """Write the report (page, Markdown, JSON, CSV, figures), and print its tables.

    Raises:
        ReportError: No run is given, one cannot be read, or they cannot be compared.
    """
    check_writable(config.out, "out", directory=True)
    with unpacked(config.runs) as paths:
        _write_report(config, paths)


def _write_report(config: CompareConfig, paths: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from robo_razor.report.charts.figures import draw_figures
    from robo_razor.report.markdown import to_console, to_markdown
    from robo_razor.report.page.page import make_page

    runs = load_runs(paths, config.merge)
    unlike = likeness.unlike(runs.runs)
    if not config.allow_unlike:
        likeness.refuse_unlike(unlike)
    out = _output_directory(config.out)
    report = build_report(runs, config.match, unlike)
    _place_in_archives(report, config.runs, paths)
    videos = _videos(runs, report, out, config.videos)
    if config.videos and any(given not in paths for given in config.runs):
        report["notes"].append(
            "Archived runs are not filmed: no policy is ever loaded from an archive."
        )
    report["videos"] = [{"file": f"{VIDEOS}/{v.file.name}", "shows": v.caption} for v in videos]
    figures = draw_figures(runs, report, out)
    files = csv_files(runs, report)
    report = without_nan(report)
    write_json(out / JSON, report)
    write_text(out / MARKDOWN, to_markdown(runs, report, figures))
    for name, text in files.items():
        write_text(out / name, text)
    write_text(out / PAGE, make_page(runs, report, files, videos))
    console = Console()
    console.print(Markdown(to_console(runs, report)))
    written = [PAGE, MARKDOWN, JSON, *files, *figures]
    console.print(printable(f"Written to {out}: {', '.join(written)}"), markup=False)


def _place_in_archives(report: dict[str, Any], given: Sequence[str], read: Sequence[str]) -> None:
    """Let the paths of archived runs begin with the archive: what was unpacked is soon gone."""
    for archive, directory in zip(given, read, strict=True):
        for run in report["runs"] if archive != directory else ():
            if Path(run["path"]).is_relative_to(directory):
                run["path"] = str(Path(archive, Path(run["path"]).relative_to(directory)))


def build_report(
    runs: RunSet, levels: Sequence[float] = (), unlike: Sequence[str] = ()
) -> dict[str, Any]:
    """Return everything the report says as plain values.

    Args:
        runs: What is compared.
        levels: New-task success rates at which; empty: chosen from the runs.
        unlike: What differs between the runs that should not.
    """
    asked = tuple(sorted(set(levels)))
    levels = asked or matching_levels(runs.arms)
    headline = headline_level(runs.arms, levels)
    laws = analysis.fit_laws(runs)
    pairs = [
        compare_pair(first, second, levels)
        for i, first in enumerate(runs.arms)
        for second in runs.arms[i + 1 :]
    ]
    statement = make_statement(runs.arms, headline, laws, pairs, asked)
    return {
        "kind": KIND,
        "robo_razor": version("robo-razor"),
        "task": runs.task,
        "statement": {"headline": statement.headline, "sentences": list(statement.sentences)},
        "headline_level": headline,
        "rule": RULE,
        "arms": [_arm_entry(arm, headline) for arm in runs.arms],
        "runs": [_run_entry(run, runs.arm_of(run)) for run in runs.runs],
        "matched": [_matched_entry(runs, level) for level in levels],
        "comparisons": [_pair_entry(pair) for pair in pairs],
        "law": analysis.law_entry(laws.main),
        "falloff": analysis.falloff_entry(laws.falloff),
        "predictors": [analysis.law_entry(entry) for entry in laws.table],
        "best_predictor_minus_kl": None
        if laws.best_minus_main is None
        else analysis.estimate_entry(laws.best_minus_main, []),
        "frontier": [analysis.frontier_entry(arm) for arm in runs.arms],
        "skills": _skill_entries(runs, headline),
        "paired": [analysis.paired_entry(a, b) for a, b in analysis.paired_runs(runs)],
        "fingerprints": likeness.fingerprint_groups(runs.runs),
        "unlike": list(unlike),
        "notes": [
            *analysis.notes(runs, unlike),
            *likeness.divergence_kinds(runs.runs),
            *likeness.noted(runs.runs),
        ],
    }


def _arm_entry(arm: Arm, level: float | None) -> dict[str, Any]:
    return {
        "name": arm.name,
        "settings": [
            {"label": setting.label, "runs": [run.name for run in setting.runs]}
            for setting in arm.settings
        ],
        "shown_setting": shown_setting(arm, level).label,
    }


def _matched_entry(runs: RunSet, level: float) -> dict[str, Any]:
    return {
        "level": level,
        "runs": [vars(match(run, level)) for run in runs.runs],
        "arms": [_arm_match_entry(match_arm(arm, level)) for arm in runs.arms],
    }


def _arm_match_entry(found: ArmMatch) -> dict[str, Any]:
    return {
        "arm": found.arm,
        "n": len(found.runs),
        "setting": found.setting,
        "choice": found.choice,
        "reason": found.reason,
        "runs": [vars(run) for run in found.runs],
        **{
            quantity: {
                **analysis.estimate_entry(found.estimate(quantity), found.values(quantity)),
                "over_episodes": found.over_episodes(quantity),
            }
            for quantity in QUANTITIES
        },
    }


def _pair_entry(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "overlap": [pair.low, pair.high] if pair.high > pair.low else None,
        "refused": pair.reason,
        "levels": [
            {
                "level": one.level,
                "first": _arm_match_entry(one),
                "second": _arm_match_entry(two),
                "difference": {key: _difference(one, two, key) for key in QUANTITIES},
            }
            for one, two in pair.levels
        ],
    }


def _difference(one: ArmMatch, two: ArmMatch, quantity: str) -> dict[str, Any]:
    found = difference(one, two, quantity)
    if found is None:
        return {"value": None, "interval": None, "over_episodes": None}
    known = math.isfinite(found.low)
    return {
        "value": finite(found.value),
        "interval": list(found.interval) if known else None,
        "over_episodes": difference_over_episodes(one, two, quantity),
    }


def _skill_entries(runs: RunSet, level: float | None) -> list[dict[str, Any]]:
    """Return per arm what is left of each skill at the last checkpoints of the shown setting."""
    entries = []
    for arm in runs.arms:
        setting = shown_setting(arm, level)
        skills = [
            analysis.skill_entry(setting, skill) for skill in sorted(runs.runs[0].last.skills)
        ]
        if skills:
            entries.append({"arm": arm.name, "setting": setting.label, "skills": skills})
    return entries


def _run_entry(run: RunSeries, arm: Arm) -> dict[str, Any]:
    return {
        "name": run.name,
        "arm": arm.name,
        "path": str(run.path),
        "method": run.config.get("method"),
        "seed": run.config.get("seed"),
        "policy": run.config.get("policy"),
        "best_step": run.best_step,
        "unplanned_steps": list(run.unplanned),
        "nbt": analysis.nbt_entry(run),
        "checkpoints": [
            {
                "step": checkpoint.step,
                "new_success_rate": checkpoint.new,
                "new_interval": list(checkpoint.new_interval),
                "new_n": checkpoint.new_n,
                "prior_success_rate": finite(checkpoint.prior),
                "prior_interval": known_interval(checkpoint.prior_interval),
                "retention": finite(checkpoint.retention),
                "retention_interval": known_interval(checkpoint.retention_interval),
                "sampled_success_rate": finite(checkpoint.sampled),
                "sampled_n": checkpoint.sampled_n,
                **checkpoint.predictors,
                "entropy": finite(checkpoint.entropy),
                "env_steps": finite(checkpoint.env_steps),
                "wall_s": finite(checkpoint.wall_s),
            }
            for checkpoint in run.checkpoints
        ],
        "skills": {
            skill: {
                "success_rate": entry["success_rate"],
                "base_success_rate": analysis.base_success(run, skill),
                "interval": entry["interval"],
                "n": entry["n"],
                "retention": entry.get("retention"),
            }
            for skill, entry in run.last.skills.items()
        },
    }


def csv_files(runs: RunSet, report: dict[str, Any]) -> dict[str, str]:
    """Return file name -> CSV text; a table without rows is left out."""
    found = {
        "checkpoints.csv": csv_tables.checkpoint_rows(runs),
        "matched.csv": csv_tables.matched_rows(report),
        "predictors.csv": csv_tables.predictor_csv_rows(report),
    }
    return {name: csv_tables.to_csv(rows) for name, rows in found.items() if rows}


def _videos(runs: RunSet, report: dict[str, Any], out: Path, count: int) -> list[Video]:
    """Make videos where that is possible; say in the report's notes why there is none."""
    from robo_razor.report import videos

    if count == 0:
        return []
    try:
        made = videos.make_videos(runs, report["headline_level"], out / VIDEOS, count)
        if note := videos.surprise_note(made):
            report["notes"].append(note)
        return made
    except (RoboRazorError, ImportError, OSError, RuntimeError) as error:
        report["notes"].append(videos.reason_without(error))
        return []


def _output_directory(path: str) -> Path:
    """Return the directory to write to: absent, empty, or one that holds an earlier report.

    Raises:
        ReportError: It holds something else.
    """
    out = Path(path)
    if out.exists() and not out.is_dir():
        raise ReportError(f"The output directory {path!r} is a file", remedy="Choose another one.")
    if out.is_dir() and any(out.iterdir()) and not _is_report(out):
        raise ReportError(
            f"The output directory {path!r} is in use: it holds files that are no report",
            remedy="Choose another one with `--out`.",
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def _is_report(directory: Path) -> bool:
    file = directory / JSON
    return file.is_file() and f'"{KIND}"' in file.read_text(encoding="utf-8")
