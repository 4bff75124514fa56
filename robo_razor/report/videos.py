"""Videos of the base and of tuned policies on the same start states: which, and what they show.

Start states are picked where outcomes differ: in turn one on the new task that the base fails and
tuned policies solve, and one of a prior skill that the base solves and they fail. Filming itself
needs policies and a simulator, so a `Film` does it, which the caller hands in.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robo_razor.core.errors import RoboRazorError
from robo_razor.core.run.directory import CONFIG, RunDirectory, find_pretrained_model
from robo_razor.core.settings.env_packages import refuse_packages_beside
from robo_razor.report.arms import RunSet
from robo_razor.report.episodes import State, read_episodes
from robo_razor.report.equal_success import shown_setting
from robo_razor.report.format import listing, plural
from robo_razor.report.load import RunSeries, read_outcomes
from robo_razor.report.sentences import skill_of

MAX_POLICIES = 5
"""Tuned policies shown beside the base."""


@dataclass(frozen=True)
class Shot:
    """One start state as filmed: all policies side by side, in the order given."""

    file: Path
    poster: bytes
    """JPEG of the last picture, which shows the outcomes before anything is played."""
    instruction: str
    successes: tuple[bool, ...]
    """How each policy's episode ended."""


class Film(Protocol):
    """Films policies from start states."""

    def __call__(
        self,
        policies: Sequence[tuple[str, str]],
        states: Sequence[State],
        config: Mapping[str, Any],
        out: Path,
    ) -> list[Shot]:
        """Return one shot per start state.

        Args:
            policies: (name, where to load it from); the base first.
            states: Tasks and seeds.
            config: The settings of a run, which say how its environments are made.
            out: Directory for the files.

        Raises:
            RoboRazorError: A policy or an environment cannot be used.
        """


@dataclass(frozen=True)
class Video:
    """One video file and what it shows."""

    file: Path
    caption: str
    poster: bytes
    surprises: int = 0
    """Episodes that ended otherwise than when the run was measured."""

    @property
    def is_picture(self) -> bool:
        """Whether it is an animated picture, as where there is no ffmpeg."""
        return self.file.suffix == ".gif"

    @property
    def data(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.file.read_bytes()).decode()

    @property
    def poster_data(self) -> str:
        """The poster in base64."""
        return base64.b64encode(self.poster).decode()


def make_videos(
    runs: RunSet,
    level: float | None,
    out: Path,
    count: int,
    film: Film,
    progress: Callable[[str], None] | None = None,
) -> list[Video]:
    """Film the base and one run of each arm from the same start states.

    Args:
        runs: What is compared; arms without a checkpoint on disk are left out.
        level: New-task success that decides which setting stands for an arm.
        out: Directory for the files.
        count: Videos.
        film: What films.
        progress: Is given a line before the filming begins.

    Returns:
        The videos; none where no checkpoint or no start state is at hand.

    Raises:
        RoboRazorError: A policy or an environment cannot be used.
    """
    cast = filmable(runs, level)[:MAX_POLICIES]
    states = pick_states([run for _, run, _ in cast], runs.task, count)
    if not cast or not states:
        return []
    first = cast[0][1]
    policies = [("base", str(first.config.get("policy")))]
    policies += [(name, str(model)) for name, _, model in cast]
    recorded = [read_episodes(first.path, 0), *(read_outcomes(run) for _, run, _ in cast)]
    packages = first.config.get("env", {}).get("env_packages", ())
    refuse_packages_beside(packages, first.path, str(first.path / CONFIG))
    if progress is not None:
        progress(f"Filming {plural(len(states), 'video')} ...")
    shots = film(policies, states, first.config, out)
    return [
        _video(shot, state, [name for name, _ in policies], [before[state] for before in recorded])
        for shot, state in zip(shots, states, strict=True)
    ]


def _video(shot: Shot, state: State, names: Sequence[str], expected: Sequence[bool]) -> Video:
    ends = zip(names, shot.successes, strict=True)
    outcomes = [f"{name} {'succeeds' if success else 'fails'}" for name, success in ends]
    return Video(
        file=shot.file,
        caption=f"{skill_of(state[0])}, \u201c{shot.instruction}\u201d, start state "
        f"{state[1]}: {listing(outcomes)}.",
        poster=shot.poster,
        surprises=sum(
            success != before for success, before in zip(shot.successes, expected, strict=True)
        ),
    )


def surprise_note(videos: Sequence[Video]) -> str | None:
    """Return what to say when filmed episodes end otherwise than measured ones; None: they do not.

    A run names its base by name, so a base that has changed since shows here.
    """
    count = sum(video.surprises for video in videos)
    if not count:
        return None
    return (
        f"{plural(count, 'filmed episode')} ended otherwise than when the runs were measured: "
        "the base, the simulator or the renderer is not the one of the runs."
    )


def filmable(runs: RunSet, level: float | None) -> list[tuple[str, RunSeries, Path]]:
    """Return (arm, run, policy) of the arms whose last measured policy is still on disk.

    Raises:
        CheckpointError: It is there, and damaged.
    """
    cast = []
    for arm in runs.arms:
        for run in shown_setting(arm, level).runs:
            directory = RunDirectory(run.path).pretrained_model(run.last.step)
            if directory.is_dir():
                cast.append((arm.name, run, find_pretrained_model(directory)))
                break
    return cast


def pick_states(runs: Sequence[RunSeries], task: str, count: int) -> list[State]:
    """Return start states on which the base and tuned policies differ most, as the module says."""
    if not runs or count == 0:
        return []
    base = read_episodes(runs[0].path, 0)
    tuned = [read_outcomes(run) for run in runs]
    shared = [state for state in base if all(state in outcomes for outcomes in tuned)]

    def changed(state: State) -> int:
        return sum(outcomes[state] != base[state] for outcomes in tuned)

    learnt = [s for s in shared if s[0] == task and not base[s]]
    lost = [s for s in shared if s[0] != task and base[s]]
    orders = [sorted(part, key=changed, reverse=True) for part in (learnt, lost)]
    lost_by_skill = _spread(orders[1])
    mixed = itertools.chain.from_iterable(itertools.zip_longest(orders[0], lost_by_skill))
    return [state for state in mixed if state is not None][:count]


def _spread(states: Sequence[State]) -> list[State]:
    """Reorder states so that one skill comes again only after the others."""
    by_task: dict[str, list[State]] = {}
    for state in states:
        by_task.setdefault(state[0], []).append(state)
    rounds = itertools.zip_longest(*by_task.values())
    return [state for row in rounds for state in row if state is not None]


def reason_without(error: Exception) -> str:
    """Return the note that says why there is no video."""
    text = error.problem if isinstance(error, RoboRazorError) else str(error)
    return f"There are no videos: {text}."
