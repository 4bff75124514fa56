"""Videos of the base and of tuned policies on the same start states.

This is the only part of the report that needs torch and MuJoCo, so both are imported when a video
is made. Start states are picked where outcomes differ: in turn one on the new task that the base
fails and tuned policies solve, and one of a prior skill that the base solves and they fail.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.checkpoint import RunDirectory, find_pretrained_model
from robo_razor.errors import CheckpointError, RoboRazorError
from robo_razor.reporting.arms import RunSet
from robo_razor.reporting.matching import shown_setting
from robo_razor.reporting.runs import RunSeries, read_episodes, read_outcomes
from robo_razor.reporting.statement import skill_of
from robo_razor.reporting.words import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frames = Iterator[NDArray[np.uint8]]

SIZE = 168
"""Side of one policy's picture in pixels; small, because videos are part of the page."""
COLUMNS = 3
MAX_POLICIES = 5
"""Tuned policies shown beside the base."""
BACKGROUND = 24

State = tuple[str, int]
"""(task, seed) of a start state."""


@dataclass(frozen=True)
class Video:
    """One video file and what it shows."""

    file: Path
    caption: str

    def tag(self) -> str:
        """Return the video as an HTML element with everything in it."""
        data = base64.b64encode(self.file.read_bytes()).decode()
        if self.file.suffix == ".gif":  # where there is no ffmpeg
            return f'<img alt="" src="data:image/gif;base64,{data}">'
        return (
            '<video controls loop muted playsinline preload="metadata" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )


def make_videos(runs: RunSet, level: float | None, out: Path, count: int) -> list[Video]:
    """Film the base and one run of each arm from the same start states.

    Args:
        runs: What is compared; arms without a checkpoint on disk are left out.
        level: New-task success that decides which setting stands for an arm.
        out: Directory for the files.
        count: Videos.

    Returns:
        The videos; none where no checkpoint or no start state is at hand.

    Raises:
        RoboRazorError: A policy or an environment cannot be used.
    """
    shown = filmable(runs, level)[:MAX_POLICIES]
    states = pick_states([run for _, run, _ in shown], runs.task, count)
    if not shown or not states:
        return []
    first = shown[0][1]
    policies = [("base", str(first.config.get("policy")))]
    policies += [(name, str(model)) for name, _, model in shown]
    filmed = [_film(model, states, first.config) for _, model in policies]
    videos = []
    for k, (task, seed) in enumerate(states):
        tiles = [(name, tiles[k]) for (name, _), tiles in zip(policies, filmed, strict=True)]
        file = _write(out / f"start_state_{k}.mp4", tiles)
        outcomes = [f"{name} {'succeeds' if tile.success else 'fails'}" for name, tile in tiles]
        videos.append(
            Video(
                file,
                f"{skill_of(task)}, \u201c{tiles[0][1].instruction}\u201d, start state {seed}: "
                f"{listing(outcomes)}.",
            )
        )
    return videos


def filmable(runs: RunSet, level: float | None) -> list[tuple[str, RunSeries, Path]]:
    """Return (arm, run, policy) of the arms whose last measured policy is still on disk."""
    found = []
    for arm in runs.arms:
        for run in shown_setting(arm, level).runs:
            directory = RunDirectory(run.path).pretrained_model(run.last.step)
            try:
                found.append((arm.name, run, find_pretrained_model(directory)))
            except CheckpointError:
                continue
            break
    return found


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


def _film(model: str, states: Sequence[State], config: dict[str, Any]) -> list[Any]:
    """Return a `video.Tile` per start state."""
    from robo_razor.actors import OpenLoopActor, PolicyActor
    from robo_razor.config import EnvConfig, from_dict, replace
    from robo_razor.environment import import_env_packages, make_env
    from robo_razor.policies import load_policy
    from robo_razor.rollout import run_actor
    from robo_razor.types import EpisodeRow
    from robo_razor.video import FrameCollector, tiles_of

    env_config = from_dict(EnvConfig, config.get("env", {}))
    import_env_packages(env_config.env_packages)
    policy = load_policy(model)
    actor = OpenLoopActor(PolicyActor(policy, "greedy"), policy.chunk_size)
    small = replace(env_config, num_envs=len(states), num_workers=1)
    env = make_env(states[0][0], small, chunk_size=1)
    try:
        policy.check_env(env.single_observation_space, env.single_action_space)
        rows = [EpisodeRow(task, seed, None, i, 0) for i, (task, seed) in enumerate(states)]
        collector = FrameCollector(SIZE)
        batch = run_actor(env, actor, rows, observer=collector)
    finally:
        env.close()
    return tiles_of(batch, collector)


def _write(file: Path, tiles: Sequence[tuple[str, Any]]) -> Path:
    from robo_razor.video import Tile, compose, write_video

    fps = 10
    parts = [compose([Tile(tile.frames, name, tile.success)], fps) for name, tile in tiles]
    return write_video(file, side_by_side(parts), fps)


def side_by_side(parts: Sequence[Frames]) -> Frames:
    """Yield frames with all parts next to each other; one that is over keeps its last picture."""
    import numpy as np

    last: list[NDArray[np.uint8]] = []
    for frames in itertools.zip_longest(*parts):
        last = [frame if frame is not None else last[i] for i, frame in enumerate(frames)]
        height, width = last[0].shape[:2]
        columns = min(COLUMNS, len(last))
        rows = -(-len(last) // columns)
        canvas = np.full((rows * height, columns * width, 3), BACKGROUND, dtype=np.uint8)
        for i, frame in enumerate(last):
            y, x = i // columns * height, i % columns * width
            canvas[y : y + height, x : x + width] = frame
        yield canvas


def reason_without(error: Exception) -> str:
    """Return the note that tells why there is no video."""
    text = error.problem if isinstance(error, RoboRazorError) else str(error)
    return f"There are no videos: {text}."
