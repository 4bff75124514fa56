"""Videos of the base and of tuned policies on the same start states.

This is the only part of the report that needs torch and MuJoCo, so both are imported when a video
is made. Start states are picked where outcomes differ: in turn one on the new task that the base
fails and tuned policies solve, and one of a prior skill that the base solves and they fail.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.errors import RoboRazorError
from robo_razor.core.run.directory import CONFIG, RunDirectory, find_pretrained_model
from robo_razor.core.settings.env_packages import refuse_packages_beside
from robo_razor.report.arms import RunSet
from robo_razor.report.episodes import State, read_episodes
from robo_razor.report.equal_success import shown_setting
from robo_razor.report.format import listing, plural
from robo_razor.report.load import RunSeries, read_outcomes
from robo_razor.report.sentences import skill_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIZE = 168
"""Side of one policy's picture in pixels; small, because videos are part of the page."""
COLUMNS = 3
MAX_POLICIES = 5
"""Tuned policies shown beside the base."""
BACKGROUND = 24
FRAMES_PER_S = 10


@dataclass(frozen=True)
class Video:
    """One video file and what it shows."""

    file: Path
    caption: str
    poster: bytes
    """JPEG of the last picture, which shows the outcomes before anything is played."""
    surprises: int = 0
    """Episodes that ended otherwise than when the run was measured."""

    def tag(self) -> str:
        """Return the video as an HTML element with everything in it."""
        data, poster = (
            base64.b64encode(part).decode() for part in (self.file.read_bytes(), self.poster)
        )
        if self.file.suffix == ".gif":  # where there is no ffmpeg
            return f'<img alt="" src="data:image/gif;base64,{data}">'
        return (
            '<video controls loop muted playsinline preload="none" '
            f'poster="data:image/jpeg;base64,{poster}" src="data:video/mp4;base64,{data}"></video>'
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
    recorded = [read_episodes(first.path, 0), *(read_outcomes(run) for _, run, _ in shown)]
    packages = first.config.get("env", {}).get("env_packages", ())
    refuse_packages_beside(packages, first.path, str(first.path / CONFIG))
    filmed = _film([model for _, model in policies], states, first.config)
    videos = []
    for k, state in enumerate(states):
        tiles = [(name, tiles[k]) for (name, _), tiles in zip(policies, filmed, strict=True)]
        expected = [outcomes[state] for outcomes in recorded]
        file = out / f"start_state_{k}.mp4"
        videos.append(_make(file, state, tiles, expected))
    return videos


def _make(
    file: Path, state: State, tiles: Sequence[tuple[str, Any]], expected: Sequence[bool]
) -> Video:
    from robo_razor.rollout.video import Tile, compose, write_video

    parts = [
        list(compose([Tile(tile.frames, name, tile.success)], FRAMES_PER_S)) for name, tile in tiles
    ]
    frames = list(side_by_side(parts))
    outcomes = [f"{name} {'succeeds' if tile.success else 'fails'}" for name, tile in tiles]
    return Video(
        file=write_video(file, iter(frames), FRAMES_PER_S),
        caption=f"{skill_of(state[0])}, \u201c{tiles[0][1].instruction}\u201d, start state "
        f"{state[1]}: {listing(outcomes)}.",
        poster=_jpeg(frames[-1]),
        surprises=sum(
            tile.success != before for (_, tile), before in zip(tiles, expected, strict=True)
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
    found = []
    for arm in runs.arms:
        for run in shown_setting(arm, level).runs:
            directory = RunDirectory(run.path).pretrained_model(run.last.step)
            if directory.is_dir():
                found.append((arm.name, run, find_pretrained_model(directory)))
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


def _film(
    models: Sequence[str], states: Sequence[State], config: dict[str, Any]
) -> list[list[Any]]:
    """Return for each policy a `video.Tile` per start state; they act in the same environments."""
    from robo_razor.core.settings.config import EnvConfig, from_dict, replace
    from robo_razor.core.types import EpisodeRow
    from robo_razor.policies.load import load_policy
    from robo_razor.rollout.actors import OpenLoopActor, PolicyActor
    from robo_razor.rollout.environments import import_env_packages, make_env
    from robo_razor.rollout.episodes import run_actor
    from robo_razor.rollout.video import FrameCollector, tiles_of

    env_config = from_dict(EnvConfig, config.get("env", {}))
    import_env_packages(env_config.env_packages)
    small = replace(env_config, num_envs=len(states), num_workers=1)
    policies = [load_policy(model) for model in models]
    for policy in policies:
        policy.rename(config.get("rename", ""), strict=False)  # some are of the run's data set
    tasks = [task for task, _ in states]
    shape = policies[0].wanted_image_shape
    env = make_env(tasks[0], small, chunk_size=1, tasks=tasks, image_shape=shape)
    rows = [EpisodeRow(task, seed, None, i, 0) for i, (task, seed) in enumerate(states)]
    filmed = []
    try:
        for policy in policies:
            policy.check_env(env.single_observation_space, env.single_action_space)
            collector = FrameCollector(SIZE)
            actor = OpenLoopActor(PolicyActor(policy, "greedy"), policy.chunk_size)
            batch = run_actor(env, actor, rows, observer=collector)
            filmed.append(tiles_of(batch, collector))
    finally:
        env.close()
    return filmed


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def side_by_side(parts: Sequence[Iterable[NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
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
