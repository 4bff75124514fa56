"""Film episodes: a grid video that shows each instruction and outcome.

Every control step is one frame: the environment executes one action at a time. A policy with chunks
of H actions still observes only every H steps, so the episodes are those of `evaluate`.
"""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from robo_razor.core.errors import ConfigError, EnvError, shown
from robo_razor.core.files import check_writable
from robo_razor.core.machine import resolve_device, torch_threads
from robo_razor.core.settings.config import RolloutConfig, replace
from robo_razor.core.types import EpisodeBatch, make_rows
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Actor, ExpertActor, OpenLoopActor, PolicyActor
from robo_razor.rollout.environments import (
    check_tasks,
    import_env_packages,
    make_fitting_env,
    task_id,
)
from robo_razor.rollout.episodes import Progress, run_actor
from robo_razor.rollout.faults import worker_errors
from robo_razor.rollout.groups import VectorEnv
from robo_razor.rollout.recorders import EpisodeStart, StepOutcome

logger = logging.getLogger(__name__)

MAX_TILES = 36
"""Episodes shown in one video; further ones are only run and counted."""
HOLD_S = 1.0
"""How long the last picture stays, in seconds."""
SUCCESS_COLOUR, FAILURE_COLOUR = (46, 160, 67), (207, 60, 50)
CAPTION_COLOUR, TEXT_COLOUR, GAP_COLOUR = (24, 26, 30), (240, 240, 240), (255, 255, 255)


class FrameCollector:
    """Collects the pictures of the first episodes (an observer of `run_actor`).

    Args:
        size: Side of the pictures in pixels.
        max_episodes: Episodes to film.
    """

    def __init__(self, size: int, max_episodes: int = MAX_TILES) -> None:
        self.size = size
        self.max_episodes = max_episodes
        self.frames: dict[int, list[NDArray[np.uint8]]] = {}

    def on_start(self, start: EpisodeStart) -> None:
        """Film the start."""
        self._film(start.env, start.env_ids, start.episodes)

    def on_step(self, outcome: StepOutcome) -> None:
        """Film the result of a step."""
        self._film(outcome.request.env, outcome.request.env_ids, outcome.episodes)

    def _film(
        self, env: VectorEnv, env_ids: NDArray[np.int64], episodes: NDArray[np.int64]
    ) -> None:
        filmed = episodes < self.max_episodes
        if not filmed.any():
            return
        with worker_errors("The environment cannot be filmed"):
            pictures = np.asarray(env.render(env_ids=env_ids[filmed], size=self.size))
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise EnvError(
                f"The environment cannot be filmed: its `render` gives {pictures.dtype} of shape "
                f"{pictures.shape}",
                allowed="uint8 [environments, height, width, 3]",
            )
        for episode, picture in zip(episodes[filmed], pictures, strict=True):
            self.frames.setdefault(int(episode), []).append(picture)


@dataclass(frozen=True)
class Tile:
    """One episode of a grid video.

    Attributes:
        frames: Pictures uint8 [h, w, 3], one per control step.
        instruction: The policy's instruction.
        success: Outcome.
    """

    frames: Sequence[NDArray[np.uint8]]
    instruction: str
    success: bool


def tiles_of(batch: EpisodeBatch, collector: FrameCollector) -> list[Tile]:
    """Return the filmed episodes of a batch, in row order."""
    return [
        Tile(frames, batch.instructions[episode], bool(batch.success[episode]))
        for episode, frames in sorted(collector.frames.items())
    ]


def compose(tiles: Sequence[Tile], fps: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a grid video, uint8 [height, width, 3] with even sides."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    length = max(len(tile.frames) for tile in tiles) + max(1, round(HOLD_S * fps))
    height, width = tiles[0].frames[0].shape[:2]
    captions = [_captions(tile, width) for tile in tiles]
    full = height + captions[0][0].shape[0]
    shape = (_even(rows * (full + 2) - 2), _even(columns * (width + 2) - 2), 3)
    for t in range(length):
        canvas = np.empty(shape, dtype=np.uint8)
        canvas[:] = GAP_COLOUR
        for k, (tile, (running, finished)) in enumerate(zip(tiles, captions, strict=True)):
            y, x = (k // columns) * (full + 2), (k % columns) * (width + 2)
            over = t >= len(tile.frames) - 1
            canvas[y : y + height, x : x + width] = tile.frames[min(t, len(tile.frames) - 1)]
            canvas[y + height : y + full, x : x + width] = finished if over else running
        yield canvas


def write_video(path: str | Path, frames: Iterator[NDArray[np.uint8]], fps: int) -> Path:
    """Write frames as .mp4 or .gif; without ffmpeg an .mp4 becomes a .gif of the same name.

    Returns:
        The file that was written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".mp4":
        if _has_ffmpeg():
            return _write_mp4(target, frames, fps)
        target = target.with_suffix(".gif")
        logger.warning("ffmpeg is not installed: writing %s instead of an mp4", target)
    return _write_gif(target, frames, fps)


def check_video_path(path: str) -> None:
    """Check that a video can be written, before any episode is run for it.

    Raises:
        ConfigError: It cannot.
    """
    if Path(path).suffix not in (".mp4", ".gif"):
        raise ConfigError(f"`video` = {shown(path)} is not a video file", allowed=".mp4, .gif")
    check_writable(path, "video")


@dataclass(frozen=True)
class Rollout:
    """Episodes of a policy on one task.

    Attributes:
        task: The task's id.
        batch: The episodes.
        video: The video file; None if the settings name none.
    """

    task: str
    batch: EpisodeBatch
    video: Path | None = None

    @property
    def success_rate(self) -> float:
        """Return the share of successful episodes, in [0, 1]."""
        return self.batch.success_rate


def roll_out(
    config: RolloutConfig, progress: Progress | None = None, loaded: Policy | None = None
) -> Rollout:
    """Run a policy on a task as the settings say, and film it if they name a file.

    Args:
        config: Settings of `robo-razor rollout`.
        progress: Called as episodes finish.
        loaded: The policy, if it is loaded already.

    Raises:
        RoboRazorError: Unknown task or policy, or one that does not fit the environment.
    """
    import_env_packages(config.env.env_packages)
    config = replace(config, task=task_id(config.task, config.env.env_packages))
    check_tasks([config.task])
    if config.video is not None:
        check_video_path(config.video)
    env_config = replace(config.env, num_envs=min(config.env.num_envs, config.episodes))
    collector = FrameCollector(config.video_size) if config.video else None
    with torch_threads(config.torch_threads):
        policy, actor, chunk_size = _actor(config, loaded)
        if config.video is not None:
            actor, chunk_size = OpenLoopActor(actor, chunk_size), 1
        env = make_fitting_env(policy, [config.task], env_config, chunk_size=chunk_size)
        try:
            seeds = range(config.seed, config.seed + config.episodes)
            rows = make_rows(config.task, seeds, instruction=config.instruction)
            batch = run_actor(env, actor, rows, progress=progress, observer=collector)
            fps = int(env.metadata.get("render_fps", 10))
        finally:
            env.close()
    if collector is None:
        return Rollout(config.task, batch)
    frames = compose(tiles_of(batch, collector), fps)
    return Rollout(config.task, batch, write_video(str(config.video), frames, fps))


def _actor(config: RolloutConfig, loaded: Policy | None = None) -> tuple[Policy | None, Actor, int]:
    """Return the policy (None for the expert), the actor, and the chunk size."""
    if config.policy == "expert":
        return None, ExpertActor("a"), 1
    policy = loaded or load_policy(config.policy, resolve_device(config.device))
    policy.rename(config.rename)
    if config.instruction is not None:
        policy.check_instruction(config.instruction)
    return policy, PolicyActor(policy, config.mode), policy.chunk_size


def _captions(tile: Tile, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the captions under a picture, while the episode runs and when it is over."""
    outcome = "success" if tile.success else "failure"
    colour = SUCCESS_COLOUR if tile.success else FAILURE_COLOUR
    return (
        _strip(tile.instruction, "", width, CAPTION_COLOUR),
        _strip(tile.instruction, outcome, width, colour),
    )


def _strip(text: str, outcome: str, width: int, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    size = max(10, width // 16)
    font = ImageFont.load_default(size)
    line_height = round(size * 1.25)
    lines = textwrap.wrap(text, max(8, int(width / (size * 0.52))))[:2]
    image = Image.new("RGB", (width, 3 * line_height + 6), colour)
    draw = ImageDraw.Draw(image)
    for k, line in enumerate([*lines, *[""] * (2 - len(lines)), outcome]):
        draw.text((4, 2 + k * line_height), line, fill=TEXT_COLOUR, font=font)
    return np.asarray(image)


def _even(n: int) -> int:
    return n + n % 2


def _has_ffmpeg() -> bool:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def _write_mp4(target: Path, frames: Iterator[NDArray[np.uint8]], fps: int) -> Path:
    import imageio_ffmpeg

    first = next(frames)
    writer = imageio_ffmpeg.write_frames(
        str(target),
        (first.shape[1], first.shape[0]),
        fps=fps,
        codec="libx264",
        pix_fmt_in="rgb24",
        macro_block_size=2,
        output_params=["-crf", "20"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    try:
        writer.send(np.ascontiguousarray(first))
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    except OSError as error:
        raise EnvError(f"ffmpeg could not write {target}: {error}") from error
    finally:
        writer.close()
    return target


def _write_gif(target: Path, frames: Iterator[NDArray[np.uint8]], fps: int) -> Path:
    images = [Image.fromarray(frame).quantize(128) for frame in frames]
    images[0].save(
        target, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
    )
    return target
