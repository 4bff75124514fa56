"""Demonstrations as a LeRobotDataset v3: written by LeRobot in image mode, read into RAM.

They are uint8 images in RAM, because decoding them again for every batch costs more than a gradient
step of a small policy (`benchmarks/dataset_loader.py`). LeRobot is imported only inside functions.
Other people's data sets can be read, too, with images or videos and any names of cameras. Errors
name column, episode and frame (`metadata`, `frames`, `pictures`).

Differences to LeRobot's loader: LeRobot goes by the row of `meta/episodes` to find an episode's
videos. Here the `episode_index` counts, so that episodes may be missing. The frames of an episode
must be consecutive, and a row's picture must not lie within the video of the next episode.

Axis letters as in `types`: E episodes, F frames.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from robo_razor.core.machine import local_processes
from robo_razor.core.run.directory import refuse_used_directory
from robo_razor.core.types import DemonstrationSet
from robo_razor.policies.inputs import STATE, camera_name, image_key
from robo_razor.rollout.dataset.frames import (
    instructions_change,
    read_frames,
    read_instructions,
    read_numbers,
    read_times,
    video_spans,
)
from robo_razor.rollout.dataset.memory import require_memory
from robo_razor.rollout.dataset.metadata import (
    ACTION,
    EPISODE,
    FRAME,
    RENAME,
    REWARD,
    SUCCESS,
    TASK,
    describe,
)
from robo_razor.rollout.dataset.pictures import filmed, stored
from robo_razor.rollout.dataset.tables import Table, parquet_files

SCALE = "gym_razor.adapters.pictures:resize"
"""Scales images, also those of LeRobot's environments: a policy must see both alike."""


def save_demonstrations(demonstrations: DemonstrationSet, directory: str | Path) -> None:
    """Write demonstrations as a new LeRobotDataset v3 in image mode."""
    refuse_used_directory(directory)
    dataset = create_dataset(Path(directory), demonstrations)
    write_episodes(dataset, demonstrations)
    dataset.finalize()


def create_dataset(directory: Path, like: DemonstrationSet) -> Any:
    """Create an empty LeRobotDataset with the features that `like` has."""
    import datasets

    # Silences a long warning about a missing video library, which images do not need.
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    from lerobot.datasets import LeRobotDataset

    datasets.disable_progress_bars()
    features: dict[str, Any] = {
        image_key(name): {
            "dtype": "image",
            "shape": images.shape[1:],
            "names": ["height", "width", "channels"],
        }
        for name, images in like.images.items()
    }
    if like.state.shape[1]:
        features["observation.state"] = _vector("float32", like.state.shape[1])
    features["action"] = _vector("float32", like.actions.shape[1])
    features["next.reward"] = _vector("float32", 1)
    features["next.success"] = _vector("bool", 1)
    if directory.is_dir():  # it is empty, and LeRobot wants to make it
        directory.rmdir()
    return LeRobotDataset.create(
        f"local/{directory.name}",
        fps=like.fps,
        features=features,
        root=directory,
        robot_type="sim",
        use_videos=False,
    )


def _vector(dtype: str, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (size,), "names": None}


def write_episodes(dataset: Any, demonstrations: DemonstrationSet) -> None:
    """Append all episodes to an open LeRobotDataset."""
    demos = demonstrations
    has_state = demos.state.shape[1] > 0
    for episode in range(demos.num_episodes):
        frames = np.arange(demos.offsets[episode], demos.offsets[episode + 1])
        for frame, instruction in zip(frames.tolist(), demos.words(frames), strict=True):
            dataset.add_frame(
                {
                    **{image_key(name): x[frame] for name, x in demos.images.items()},
                    **({"observation.state": demos.state[frame]} if has_state else {}),
                    "action": demos.actions[frame],
                    "next.reward": demos.rewards[frame : frame + 1].astype(np.float32),
                    "next.success": demos.success[frame : frame + 1],
                    "task": instruction,
                }
            )
        dataset.save_episode()


def load_demonstrations(
    directory: str | Path,
    max_episodes: int | None = None,
    *,
    image_shape: tuple[int, int] | None = None,
    state_keys: Sequence[str] = (STATE,),
    cameras: Collection[str] | None = None,
) -> DemonstrationSet:
    """Decode a LeRobotDataset v3 into RAM, straight from its parquet tables and video files.

    Args:
        directory: The dataset's directory.
        max_episodes: Largest number of episodes to read; None reads all.
        image_shape: Height and width that images are scaled to; None keeps their size.
        state_keys: Columns that may be the state; the first one that exists is read.
        cameras: Names of the cameras to decode; None decodes all.

    Raises:
        DemonstrationError: The dataset does not exist, holds no episode, does not fit in memory, or
            is damaged.
    """
    description = describe(directory, state_keys)
    root = description.root
    chosen = [c for c in description.cameras if cameras is None or camera_name(c.key) in cameras]
    tables = [Table(path) for path in parquet_files(root, "data")]
    encoded = [camera.key for camera in chosen if not camera.filmed]
    for table in tables:
        table.need([EPISODE, FRAME, TASK, *description.widths, *encoded], RENAME)
    frames = read_frames(description, tables, max_episodes)
    shapes = {camera.key: image_shape or camera.shape for camera in chosen}
    _check_memory(root, shapes, frames.offsets, scaled=image_shape is not None)
    instructions = read_instructions(root, frames)
    numbers = {
        key: read_numbers(tables, frames, key, width) for key, width in description.widths.items()
    }
    times = read_times(tables, frames, description, needed=len(encoded) < len(chosen))
    spans = {c.key: video_spans(root, frames, c.key, times) for c in chosen if c.filmed}
    images = {}
    for camera in chosen:
        if camera.filmed:
            pictures = filmed(spans[camera.key], camera, frames.place)
        else:
            pictures = stored(tables, camera, frames.file, frames.row, frames.place)
        images[camera_name(camera.key)] = _stack(pictures, len(frames), shapes[camera.key])
    no_numbers = np.zeros((len(frames), 0))
    return DemonstrationSet(
        images=images,
        state=(numbers[description.state] if description.state else no_numbers).astype(np.float32),
        actions=numbers[ACTION].astype(np.float32),
        offsets=frames.offsets,
        instructions=tuple(instructions[i] for i in frames.offsets[:-1]),
        fps=description.fps,
        rewards=numbers.get(REWARD, no_numbers).sum(1).astype(np.float32),
        success=numbers.get(SUCCESS, no_numbers).sum(1) > 0,
        frame_instructions=tuple(instructions)
        if instructions_change(instructions, frames)
        else None,
        source_index=np.stack([frames.episode, frames.frame], 1),
    )


def _check_memory(
    root: Path,
    shapes: Mapping[str, tuple[int, int]],
    offsets: NDArray[np.int64],
    *,
    scaled: bool,
) -> None:
    """Check that the decoded pictures, uint8 [F, H, W, 3] per camera, fit in free memory.

    Raises:
        DemonstrationError: They do not fit.
    """
    ranks = local_processes()  # each decodes all pictures
    frame = ranks * sum(3 * height * width for height, width in shapes.values())
    frames = int(offsets[-1])
    cameras = ", ".join(f"{key} {width}x{height} px" for key, (height, width) in shapes.items())
    times = f" by {ranks} ranks" if ranks > 1 else ""

    def fewer(available: int) -> str:
        fitting = int(np.searchsorted(offsets * frame, available, side="right")) - 1
        text = f"Use fewer (`--bc.episodes {fitting}` fits)" if fitting else "Use fewer"
        return f"{text}." if scaled else f"{text}, or write the dataset with smaller pictures."

    require_memory(
        frame * frames,
        lambda size: (
            f"The {len(offsets) - 1} demonstrations in {str(root)!r} do not fit in memory: "
            f"{frames} frames of {cameras}, decoded{times}, take {size}"
        ),
        fewer,
    )


def _stack(
    pictures: Iterable[tuple[int, NDArray[np.uint8]]], number: int, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return all pictures as uint8 [F, H, W, 3], scaled by averaging if they have another size."""
    scale: Any = load_env_creator(SCALE)
    images = np.empty((number, *shape, 3), dtype=np.uint8)
    missing = np.ones(number, dtype=bool)
    for frame, picture in pictures:
        images[frame] = scale(picture, *shape)
        missing[frame] = False
    assert not missing.any()
    return images
