"""Demonstrations as a LeRobotDataset v3 in image mode: written by LeRobot, read into RAM.

They are kept in RAM as uint8 images, because decoding them anew for every batch costs more than a
gradient step of a small policy (`benchmarks/dataset_loader.py`). LeRobot is imported inside
functions only.

Axis letters as in `types`: E episodes, F frames.
"""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robo_razor.checkpoint import refuse_used_directory
from robo_razor.errors import DemonstrationError
from robo_razor.types import DemonstrationSet

IMAGE_PREFIX = "observation.images."


def save_demonstrations(demonstrations: DemonstrationSet, directory: str | Path) -> None:
    """Write demonstrations as a new LeRobotDataset v3 in image mode."""
    refuse_used_directory(directory)
    dataset = create_dataset(Path(directory), demonstrations)
    write_episodes(dataset, demonstrations)
    dataset.finalize()


def create_dataset(directory: Path, like: DemonstrationSet) -> Any:
    """Create an empty LeRobotDataset with the features that `like` has."""
    import datasets

    # It reports at length that a video library which images do not need is missing.
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    from lerobot.datasets import LeRobotDataset

    datasets.disable_progress_bars()
    features: dict[str, Any] = {
        f"{IMAGE_PREFIX}{name}": {
            "dtype": "image",
            "shape": images.shape[1:],
            "names": ["height", "width", "channels"],
        }
        for name, images in like.images.items()
    }
    features["observation.state"] = _vector("float32", like.state.shape[1])
    features["action"] = _vector("float32", like.actions.shape[1])
    features["next.reward"] = _vector("float32", 1)
    features["next.success"] = _vector("bool", 1)
    if directory.is_dir():  # empty, as was checked; LeRobot wants to make it itself
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
    for episode, instruction in enumerate(demos.instructions):
        for frame in range(int(demos.offsets[episode]), int(demos.offsets[episode + 1])):
            dataset.add_frame(
                {
                    **{f"{IMAGE_PREFIX}{name}": x[frame] for name, x in demos.images.items()},
                    "observation.state": demos.state[frame],
                    "action": demos.actions[frame],
                    "next.reward": demos.rewards[frame : frame + 1].astype(np.float32),
                    "next.success": demos.success[frame : frame + 1],
                    "task": instruction,
                }
            )
        dataset.save_episode()


def load_demonstrations(directory: str | Path, max_episodes: int | None = None) -> DemonstrationSet:
    """Decode a LeRobotDataset v3 in image mode into RAM, straight from its parquet table.

    Args:
        directory: The dataset's directory.
        max_episodes: Read only the first ones.

    Raises:
        DemonstrationError: There is no dataset, it holds no episode, or its images are videos.
    """
    import pyarrow.parquet as pq

    root = Path(directory)
    info = _read_info(root)
    files = sorted((root / "data").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DemonstrationError(f"The dataset {str(root)!r} holds no data (data/chunk-*/file-*)")
    cameras = [key for key in info["features"] if key.startswith(IMAGE_PREFIX)]
    videos = [key for key in cameras if info["features"][key]["dtype"] != "image"]
    if videos:
        raise DemonstrationError(
            f"{', '.join(videos)} in {str(root)!r} is video, which is not read into RAM",
            remedy="Write the dataset in image mode (`use_videos=False`).",
        )
    columns = [*cameras, "observation.state", "action", "episode_index", "task_index"]
    optional = [key for key in ("next.reward", "next.success") if key in info["features"]]
    limit = [("episode_index", "<", max_episodes)] if max_episodes is not None else None
    table = pq.read_table(files, columns=columns + optional, filters=limit)
    if table.num_rows == 0:
        raise DemonstrationError(f"The dataset {str(root)!r} holds no frames")
    lengths = np.bincount(table["episode_index"].to_numpy())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names = _task_names(root)
    tasks = table["task_index"].to_numpy()[offsets[:-1]]
    shape = tuple(info["features"][cameras[0]]["shape"]) if cameras else ()
    success = _column(table, "next.success", (len(table),), bool)
    return DemonstrationSet(
        images={key.removeprefix(IMAGE_PREFIX): _decode(table[key], shape) for key in cameras},
        state=_matrix(table["observation.state"]),
        actions=_matrix(table["action"]),
        offsets=offsets,
        instructions=tuple(names[int(task)] for task in tasks),
        fps=int(info["fps"]),
        rewards=_column(table, "next.reward", (len(table),), np.float32),
        success=success,
    )


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DemonstrationError(
            f"There are no demonstrations in {str(root)!r}: {path} does not exist",
            allowed="the directory of a LeRobotDataset v3, or `expert`",
            remedy="Make one: `robo-razor collect --task TASK --episodes 300 --out DIR`.",
        ) from error
    except json.JSONDecodeError as error:
        raise DemonstrationError(f"{path} is no JSON ({error})") from error
    if not str(info.get("codebase_version", "")).startswith("v3"):
        raise DemonstrationError(
            f"{str(root)!r} has format {info.get('codebase_version')!r}, not v3",
            remedy="Convert it with LeRobot's converter.",
        )
    return info


def _task_names(root: Path) -> dict[int, str]:
    """Return task index -> instruction from LeRobot's `meta/tasks.parquet`."""
    import pyarrow.parquet as pq

    table = pq.read_table(root / "meta" / "tasks.parquet").to_pydict()
    index = table.pop("task_index")
    (words,) = table.values()  # LeRobot keeps the instruction as the table's index
    return {int(i): str(text) for i, text in zip(index, words, strict=True)}


def _decode(column: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode a column of PNG bytes into uint8 [F, H, W, 3]."""
    from PIL import Image

    images = np.empty((len(column), *shape), dtype=np.uint8)
    row = 0
    for chunk in column.chunks:
        for data in chunk.field("bytes"):
            images[row] = np.asarray(Image.open(io.BytesIO(data.as_py())).convert("RGB"))
            row += 1
    return images


def _matrix(column: Any) -> NDArray[np.float32]:
    """Turn a column of equally long lists into float32 [F, n]."""
    arrays = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    matrix: NDArray[np.float32] = np.concatenate(arrays).reshape(len(column), -1)
    return matrix.astype(np.float32)


def _column(table: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a column of numbers, zeros where the dataset has none."""
    if name not in table.column_names:
        return np.zeros(shape, dtype=dtype)
    values = np.asarray(table[name].to_pylist(), dtype=dtype)
    return values.reshape(shape)
