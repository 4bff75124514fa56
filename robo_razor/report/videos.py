"""Videos of the base and of tuned policies on the same start states.

Start states are picked where outcomes differ: in turn one of the new task that the base fails and
tuned policies solve, and one of a prior skill that the base solves and they fail. Filming needs
policies and a simulator, so the caller passes in a `Film` that does it.
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
"""Most tuned policies shown beside the base."""


@dataclass(frozen=True)
class Shot:
    """One filmed start state: all policies side by side, in the given order."""

    file: Path
    poster: bytes
    """JPEG of the last frame, which shows the outcomes before the video plays."""
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
            policies: (name, path or name to load), the base first.
            states: Tasks and seeds.
            config: The settings of a run, from which its environments are made.
            out: Directory for the files.

        Raises:
            RoboRazorError: A policy or an environment cannot be used.
        """


@dataclass(frozen=True)
class Video:
    """One video file and its caption."""

    file: Path
    caption: str
    poster: bytes
    surprises: int = 0
    """Episodes with another outcome than when the run was measured."""

    @property
    def is_picture(self) -> bool:
        """Whether it is an animated picture, which is written without ffmpeg."""
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
        runs: The runs of the comparison; arms without a checkpoint on disk are left out.
        level: New-task success that decides which setting represents an arm.
        out: Directory for the files.
        count: Number of videos.
        film: Films policies.
        progress: Receives a line before the filming begins.

    Returns:
        The videos; none without a checkpoint or a suitable start state.

    Raises:
        RoboRazorError: A policy or an environment cannot be used.
    """
    cast = filmable(runs, level)[:MAX_POLICIES]
    states = pick_states([run for _, run, _ in cast], runs.task, count)
    if not cast or not states:
        return []
    first_run = cast[0][1]
    policies = [("base", str(first_run.config.get("policy")))]
    policies += [(name, str(model)) for name, _, model in cast]
    recorded = [read_episodes(first_run.path, 0), *(read_outcomes(run) for _, run, _ in cast)]
    packages = first_run.config.get("env", {}).get("env_packages", ())
    refuse_packages_beside(packages, first_run.path, str(first_run.path / CONFIG))
    if progress is not None:
        progress(f"Filming {plural(len(states), 'video')} ...")
    shots = film(policies, states, first_run.config, out)
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
    """Return a note if filmed episodes end otherwise than measured ones; None: they do not.

    A run refers to its base by name, so this shows whether the base has changed since.
    """
    count = sum(video.surprises for video in videos)
    if not count:
        return None
    return (
        f"{plural(count, 'filmed episode')} ended otherwise than when the runs were measured: "
        "the base, the simulator or the renderer has changed since."
    )


def filmable(runs: RunSet, level: float | None) -> list[tuple[str, RunSeries, Path]]:
    """Return (arm, run, policy) of the arms whose last measured policy is still on disk.

    Raises:
        CheckpointError: A policy is damaged.
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
    """Return start states on which the outcomes of base and tuned policies differ most."""
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
