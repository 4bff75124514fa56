"""Film policies side by side from the same start states, for the page of `robo-razor compare`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.report.episodes import State
from robo_razor.report.videos import Shot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from robo_razor.rollout.video import Tile

SIZE = 168
"""Side of one policy's picture in pixels; small, because videos are part of the page."""
COLUMNS = 3
BACKGROUND = 24
FRAMES_PER_S = 10


def film(
    policies: Sequence[tuple[str, str]],
    states: Sequence[State],
    config: Mapping[str, Any],
    out: Path,
) -> list[Shot]:
    """Return one shot per start state, see `robo_razor.report.videos.Film`."""
    from robo_razor.rollout.video import Tile, compose, write_video

    filmed = _episodes([model for _, model in policies], states, config)
    shots = []
    for k in range(len(states)):
        tiles = [episodes[k] for episodes in filmed]
        parts = [
            list(compose([Tile(tile.frames, name, tile.success)], FRAMES_PER_S))
            for (name, _), tile in zip(policies, tiles, strict=True)
        ]
        frames = list(side_by_side(parts))
        shots.append(
            Shot(
                file=write_video(out / f"start_state_{k}.mp4", iter(frames), FRAMES_PER_S),
                poster=_jpeg(frames[-1]),
                instruction=tiles[0].instruction,
                successes=tuple(tile.success for tile in tiles),
            )
        )
    return shots


def _episodes(
    models: Sequence[str], states: Sequence[State], config: Mapping[str, Any]
) -> list[list[Tile]]:
    """Return for each policy a tile per start state; they act in the same environments."""
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
        policy.rename(config.get("rename", ""), strict=False)  # some keys belong to the data set
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


def side_by_side(
    parts: Sequence[Iterable[NDArray[np.uint8]]],
) -> Iterator[NDArray[np.uint8]]:
    """Yield frames with all parts side by side; a part that has ended shows its last frame."""
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


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
