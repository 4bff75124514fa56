"""Compare runs: new-task success against forgetting, at equal new-task success.

It reads the files of runs only, so it needs no torch and no environment; for videos the caller
passes in a function that films. Runs learn at different speeds, so a comparison at equal steps says
little. What counts is how much of the prior skills is left when the new task is first solved
equally often (`robo_razor.report.equal_success`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ReportError, RoboRazorError
from robo_razor.core.files import check_writable, finite, without_nan, write_json, write_text
from robo_razor.core.run.archive import unpacked
from robo_razor.core.settings.config import CompareConfig
from robo_razor.report import analysis, comparability, csv_tables
from robo_razor.report.arms import Arm, RunSet, count_runs, load_runs
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
from robo_razor.report.format import plural
from robo_razor.report.load import RunSeries, known_interval
from robo_razor.report.sentences import make_statement
from robo_razor.report.videos import Film, Video, make_videos, reason_without, surprise_note

PAGE = "index.html"
MARKDOWN = "report.md"
JSON = "report.json"
VIDEOS = "videos"
KIND = "robo-razor comparison"

Progress = Callable[[str], None]
"""Takes a line that says what happens now."""


@dataclass(frozen=True)
class Written:
    """The files of a saved comparison, as paths."""

    page: Path
    markdown: Path
    json: Path
    tables: tuple[Path, ...]
    """CSV files."""
    figures: tuple[Path, ...]
    """PNG and SVG files."""
    videos: tuple[Path, ...]


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison of runs."""

    runs: RunSet
    """The arms, their settings and their runs."""
    report: dict[str, Any]
    """The whole result as plain values, as in `report.json`."""
    archived: bool = False
    """Whether runs came out of an archive, and so have no policies to film."""

    @property
    def headline(self) -> str:
        """The main result, in one sentence."""
        return plain(self.report["statement"]["headline"])

    @property
    def sentences(self) -> tuple[str, ...]:
        """The other results, the most important first."""
        return tuple(map(plain, self.report["statement"]["sentences"]))

    @property
    def levels(self) -> tuple[float, ...]:
        """New-task success rates in [0, 1] at which the arms were compared."""
        return tuple(block["level"] for block in self.report["matched"])

    @property
    def headline_level(self) -> float | None:
        """The level that the headline speaks of; None: arms cannot be compared at equal success."""
        level: float | None = self.report["headline_level"]
        return level

    @property
    def law(self) -> dict[str, Any]:
        """The forgetting law in the paper's predictor: coefficients, R², intervals, reason."""
        law: dict[str, Any] = self.report["law"]
        return law

    def at(self, level: float) -> dict[str, ArmMatch]:
        """Return each arm at a new-task success rate, or the reason why there is no number.

        Args:
            level: Success rate in [0, 1].
        """
        return {arm.name: match_arm(arm, level) for arm in self.runs.arms}

    def save(
        self,
        out: str | Path = "report",
        *,
        film: Film | None = None,
        videos: int = 2,
        command: str | None = None,
        progress: Progress | None = None,
    ) -> Written:
        """Write the report: page, Markdown, JSON, CSV, figures, videos.

        Args:
            out: Directory that is absent, empty, or holds an earlier report.
            film: Films policies; None: there are no videos.
            videos: Videos of base and tuned on the same start states, where policies are on disk.
            command: The command that made the report, which the page then names.
            progress: Receives a line before every part that takes long.

        Raises:
            ReportError: The directory holds something else.
        """
        from robo_razor.report.charts.figures import draw_figures
        from robo_razor.report.markdown import to_markdown
        from robo_razor.report.page.page import make_page

        say = progress or _silent
        directory = _output_directory(str(out))
        report = {**self.report, "notes": list(self.report["notes"])}
        filmed = self._videos(report, directory, film, videos, say)
        report["videos"] = [{"file": f"{VIDEOS}/{v.file.name}", "shows": v.caption} for v in filmed]
        say("Drawing figures ...")
        figures = draw_figures(self.runs, report, directory)
        files = csv_files(self.runs, report)
        report = without_nan(report)
        say("Writing the page ...")
        write_json(directory / JSON, report)
        write_text(directory / MARKDOWN, to_markdown(self.runs, report, figures))
        for name, text in files.items():
            write_text(directory / name, text)
        write_text(directory / PAGE, make_page(self.runs, report, files, filmed, command))
        return Written(
            page=directory / PAGE,
            markdown=directory / MARKDOWN,
            json=directory / JSON,
            tables=tuple(directory / name for name in files),
            figures=tuple(directory / name for name in figures),
            videos=tuple(video.file for video in filmed),
        )

    def _videos(
        self, report: dict[str, Any], out: Path, film: Film | None, count: int, say: Progress
    ) -> list[Video]:
        """Make videos where that is possible; otherwise a note of the report says why not."""
        made: list[Video] = []
        if count and film is not None:
            try:
                made = make_videos(
                    self.runs, report["headline_level"], out / VIDEOS, count, film, say
                )
                if note := surprise_note(made):
                    report["notes"].append(note)
            except (RoboRazorError, ImportError, OSError, RuntimeError) as error:
                report["notes"].append(reason_without(error))
        if count and self.archived:
            report["notes"].append(
                "Archived runs are not filmed: no policy is ever loaded from an archive."
            )
        return made


def _silent(line: str) -> None:
    """Ignore a line of progress."""


def plain(sentence: str) -> str:
    """Return a sentence of the report without its `**bold**` marks."""
    return sentence.replace("**", "")


def compare(
    runs: Sequence[str],
    *,
    match: Sequence[float] = (),
    merge: Sequence[str] = (),
    allow_unlike: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare runs, without writing anything.

    Args:
        runs: Run directories, directories of sweeps, or files of `robo-razor archive`.
        match: New-task success rates in [0, 1] at which runs are compared; empty: chosen from the
            runs.
        merge: Arms of a sweep to compare as settings of one: names with commas.
        allow_unlike: Compare even runs of different versions, renderers or bases.
        progress: Receives a line before every part that takes long.

    Raises:
        ReportError: No run is given, one cannot be read, or they cannot be compared.
    """
    say = progress or _silent
    with unpacked(runs) as paths:
        say(f"Reading {plural(count_runs(paths), 'run')} ...")
        loaded = load_runs(paths, merge)
        unlike = comparability.unlike(loaded.runs)
        if not allow_unlike:
            comparability.refuse_unlike(unlike)
        say(f"Comparing {plural(len(loaded.arms), 'arm')} ...")
        report = build_report(loaded, match, unlike)
        _place_in_archives(report, runs, paths)
        return Comparison(loaded, report, archived=any(given not in paths for given in runs))


def run_compare(
    config: CompareConfig,
    *,
    film: Film | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> tuple[Comparison, Written]:
    """Compare runs as settings say, and write the report (page, Markdown, JSON, CSV, figures).

    Args:
        config: Settings of `robo-razor compare`.
        film: Films policies; None: there are no videos.
        command: The command that made the report, which the page then names.
        progress: Receives a line before every part that takes long.

    Raises:
        ReportError: No run is given, one cannot be read, or they cannot be compared.
    """
    check_writable(config.out, "out", directory=True)
    comparison = compare(
        config.runs,
        match=config.match,
        merge=config.merge,
        allow_unlike=config.allow_unlike,
        progress=progress,
    )
    written = comparison.save(
        config.out, film=film, videos=config.videos, command=command, progress=progress
    )
    return comparison, written


def _place_in_archives(report: dict[str, Any], given: Sequence[str], read: Sequence[str]) -> None:
    """Let the paths of archived runs begin with the archive: the unpacked files are temporary."""
    for archive, directory in zip(given, read, strict=True):
        for run in report["runs"] if archive != directory else ():
            if Path(run["path"]).is_relative_to(directory):
                run["path"] = str(Path(archive, Path(run["path"]).relative_to(directory)))


def build_report(
    runs: RunSet, levels: Sequence[float] = (), unlike: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the whole report as plain values.

    Args:
        runs: The runs to compare.
        levels: New-task success rates at which they are compared; empty: chosen from the runs.
        unlike: Differences between the runs that make a comparison doubtful.
    """
    requested = tuple(sorted(set(levels)))
    levels = requested or matching_levels(runs.arms)
    headline = headline_level(runs.arms, levels)
    laws = analysis.fit_laws(runs)
    pairs = [
        compare_pair(first, second, levels)
        for i, first in enumerate(runs.arms)
        for second in runs.arms[i + 1 :]
    ]
    statement = make_statement(runs.arms, headline, laws, pairs, requested)
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
        "fingerprints": comparability.fingerprint_groups(runs.runs),
        "unlike": list(unlike),
        "notes": [
            *analysis.notes(runs, unlike),
            *comparability.divergence_kinds(runs.runs),
            *comparability.noted(runs.runs),
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


def _arm_match_entry(match: ArmMatch) -> dict[str, Any]:
    return {
        "arm": match.arm,
        "n": len(match.runs),
        "setting": match.setting,
        "choice": match.choice,
        "reason": match.reason,
        "runs": [vars(run) for run in match.runs],
        **{
            quantity: {
                **analysis.estimate_entry(match.estimate(quantity), match.values(quantity)),
                "over_episodes": match.over_episodes(quantity),
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
                "level": first_match.level,
                "first": _arm_match_entry(first_match),
                "second": _arm_match_entry(second_match),
                "difference": {
                    key: _difference(first_match, second_match, key) for key in QUANTITIES
                },
            }
            for first_match, second_match in pair.levels
        ],
    }


def _difference(first: ArmMatch, second: ArmMatch, quantity: str) -> dict[str, Any]:
    estimate = difference(first, second, quantity)
    if estimate is None:
        return {"value": None, "interval": None, "over_episodes": None}
    known = math.isfinite(estimate.low)
    return {
        "value": finite(estimate.value),
        "interval": list(estimate.interval) if known else None,
        "over_episodes": difference_over_episodes(first, second, quantity),
    }


def _skill_entries(runs: RunSet, level: float | None) -> list[dict[str, Any]]:
    """Return per arm the retention of each skill at the last checkpoints of the shown setting."""
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
                "success_rate": entry.success_rate,
                "base_success_rate": analysis.base_success(run, skill),
                "interval": list(entry.interval),
                "n": entry.n,
                "retention": entry.retention,
            }
            for skill, entry in run.last.skills.items()
        },
    }


def csv_files(runs: RunSet, report: dict[str, Any]) -> dict[str, str]:
    """Return file name -> CSV text; a table without rows is left out."""
    rows_of = {
        "checkpoints.csv": csv_tables.checkpoint_rows(runs),
        "matched.csv": csv_tables.matched_rows(report),
        "predictors.csv": csv_tables.predictor_csv_rows(report),
    }
    return {name: csv_tables.to_csv(rows) for name, rows in rows_of.items() if rows}


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
            f"The output directory {path!r} is in use: it holds other files than a report",
            remedy="Choose another one with `--out`.",
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def _is_report(directory: Path) -> bool:
    file = directory / JSON
    return file.is_file() and f'"{KIND}"' in file.read_text(encoding="utf-8")
