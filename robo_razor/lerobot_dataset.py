"""Demonstrations as a LeRobotDataset v3: written by LeRobot in image mode, read into RAM.

They are kept in RAM as uint8 images, because decoding them anew for every batch costs more than a
gradient step of a small policy (`benchmarks/dataset_loader.py`). LeRobot is imported inside
functions only. Data sets of others are read too, with images or videos and whatever they call their
cameras.

Axis letters as in `types`: E episodes, F frames.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from robo_razor.checkpoint import refuse_used_directory
from robo_razor.errors import DemonstrationError
from robo_razor.memory import available_bytes, local_processes
from robo_razor.policy_inputs import STATE, camera_name, image_key
from robo_razor.types import DemonstrationSet

SCALE = "gym_razor.pictures:resize"
"""What images of LeRobot's environments are scaled with: a policy must see both alike."""
IMAGES = "observation.image"
"""How the name of every camera of a LeRobotDataset begins."""


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
    has_state = demos.state.shape[1] > 0
    for episode, instruction in enumerate(demos.instructions):
        for frame in range(int(demos.offsets[episode]), int(demos.offsets[episode + 1])):
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
) -> DemonstrationSet:
    """Decode a LeRobotDataset v3 into RAM, straight from its parquet table and video files.

    Args:
        directory: The dataset's directory.
        max_episodes: Read only the first ones.
        image_shape: Height and width that images are scaled to; None keeps theirs.
        state_keys: Columns that may be the state; the first that is there is taken.

    Raises:
        DemonstrationError: There is no dataset, it holds no episode, or it does not fit in memory.
    """
    import pyarrow.parquet as pq

    root = Path(directory)
    info = read_info(root)
    _check_format(root, info)
    features = info["features"]
    files = sorted((root / "data").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DemonstrationError(f"The dataset {str(root)!r} holds no data (data/chunk-*/file-*)")
    kinds = {key: features[key]["dtype"] for key in features if key.startswith(IMAGES)}
    stored = [key for key, kind in kinds.items() if kind == "image"]
    state = [key for key in state_keys if key in features][:1]
    columns = [*stored, *state, "action", "episode_index", "task_index"]
    optional = [key for key in ("next.reward", "next.success") if key in features]
    limit = [("episode_index", "<", max_episodes)] if max_episodes is not None else None
    index = pq.read_table(files, columns=["episode_index"], filters=limit)["episode_index"]
    if len(index) == 0:
        raise DemonstrationError(f"The dataset {str(root)!r} holds no frames")
    lengths = np.bincount(index.to_numpy())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shapes = {key: image_shape or _picture_shape(features[key]) for key in kinds}
    _check_memory(root, shapes, offsets, scaled=image_shape is not None)
    table = pq.read_table(files, columns=columns + optional, filters=limit)
    names = _task_names(root)
    tasks = table["task_index"].to_numpy()[offsets[:-1]]
    images = {}
    for key, kind in kinds.items():
        frames = _stored(table[key]) if kind == "image" else _filmed(root, key)
        images[camera_name(key)] = _stack(frames, len(table), image_shape, f"{key} in {root}")
    return DemonstrationSet(
        images=images,
        state=_matrix(table[state[0]]) if state else np.zeros((len(table), 0), np.float32),
        actions=_matrix(table["action"]),
        offsets=offsets,
        instructions=tuple(names[int(task)] for task in tasks),
        fps=int(info["fps"]),
        rewards=_column(table, "next.reward", (len(table),), np.float32),
        success=_column(table, "next.success", (len(table),), bool),
    )


def _picture_shape(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of a camera's pictures, as the dataset's metadata tell them."""
    shape = tuple(int(n) for n in feature["shape"])
    channels_first = len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    height, width = shape[1:] if channels_first else shape[:2]
    return height, width


def _check_memory(
    root: Path,
    shapes: Mapping[str, tuple[int, int]],
    offsets: NDArray[np.int64],
    *,
    scaled: bool,
) -> None:
    """Check that the decoded pictures, uint8 [F, H, W, 3] per camera, fit in free memory.

    Raises:
        DemonstrationError: They do not.
    """
    available = available_bytes()
    if available is None:
        return
    ranks = local_processes()  # each decodes its own
    frame = ranks * sum(3 * height * width for height, width in shapes.values())
    frames = int(offsets[-1])
    if frame * frames <= available:
        return
    fitting = int(np.searchsorted(offsets * frame, available, side="right")) - 1
    cameras = ", ".join(f"{key} {width}x{height} px" for key, (height, width) in shapes.items())
    times = f" by {ranks} ranks" if ranks > 1 else ""
    fewer = f"Use fewer (`--bc.episodes {fitting}` fits)" if fitting else "Use fewer"
    raise DemonstrationError(
        f"The {len(offsets) - 1} demonstrations in {str(root)!r} do not fit in memory: {frames} "
        f"frames of {cameras}, decoded{times}, take {frame * frames / 2**30:.1f} GiB, and "
        f"{available / 2**30:.1f} GiB are free",
        remedy=f"{fewer}." if scaled else f"{fewer}, or write the dataset with smaller pictures.",
    )


def read_info(root: Path) -> dict[str, Any]:
    """Return what a LeRobotDataset of any version says of itself in `meta/info.json`.

    Raises:
        DemonstrationError: There is no such file, or it is no JSON object.
    """
    path = root / "meta" / "info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DemonstrationError(
            f"There are no demonstrations in {str(root)!r}: {path} does not exist",
            allowed="the directory of a LeRobotDataset v3, or `expert`",
            remedy="Make one: `robo-razor collect --task TASK --episodes 300 --out DIR`.",
        ) from error
    except ValueError as error:  # of json, or no UTF-8
        raise DemonstrationError(f"{path} is no JSON ({error})") from error
    if not isinstance(info, dict):
        raise DemonstrationError(f"{path} tells no `features`: it is no LeRobotDataset")
    return info


def _check_format(root: Path, info: Mapping[str, Any]) -> None:
    if not str(info.get("codebase_version", "")).startswith("v3"):
        raise DemonstrationError(
            f"{str(root)!r} has format {info.get('codebase_version')!r}, not v3",
            remedy="Convert it with LeRobot's converter.",
        )
    if not isinstance(info.get("features"), dict):
        raise DemonstrationError(f"{str(root)!r} tells no `features`: it is no LeRobotDataset")


def _task_names(root: Path) -> dict[int, str]:
    """Return task index -> instruction from LeRobot's `meta/tasks.parquet`."""
    import pyarrow.parquet as pq

    table = pq.read_table(root / "meta" / "tasks.parquet").to_pydict()
    index = table.pop("task_index")
    (words,) = table.values()  # LeRobot keeps the instruction as the table's index
    return {int(i): str(text) for i, text in zip(index, words, strict=True)}


def _stored(column: Any) -> Iterator[Any]:
    """Yield the pictures of a column of encoded images."""
    from PIL import Image

    for chunk in column.chunks:
        for data in chunk.field("bytes"):
            yield Image.open(io.BytesIO(data.as_py()))


def _filmed(root: Path, key: str) -> Iterator[Any]:
    """Yield the frames of a camera's video files, which follow one another as the table's rows."""
    import av
    from PIL import Image

    for file in sorted((root / "videos" / key).glob("chunk-*/file-*.mp4")):
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                yield Image.fromarray(frame.to_ndarray(format="rgb24"))


def _stack(
    pictures: Iterator[Any], number: int, shape: tuple[int, int] | None, what: str
) -> NDArray[np.uint8]:
    """Return the first pictures as uint8 [F, H, W, 3], scaled by averaging if a shape is given.

    Raises:
        DemonstrationError: There are fewer.
    """
    scale: Any = load_env_creator(SCALE)
    images: NDArray[np.uint8] | None = None
    row = 0
    for picture in pictures:
        if row == number:
            break
        array = np.asarray(picture.convert("RGB"))
        if shape is not None:
            array = scale(array, *shape)
        if images is None:
            images = np.empty((number, *array.shape), dtype=np.uint8)
        images[row] = array
        row += 1
    if images is None or row < number:
        raise DemonstrationError(
            f"{what} has {row} pictures for {number} frames",
            remedy="The data set is incomplete: copy or record it again.",
        )
    return images


def _matrix(column: Any) -> NDArray[np.float32]:
    """Turn a column of numbers, or of equally long lists of them, into float32 [F, n]."""
    arrays = [
        (chunk.flatten() if hasattr(chunk, "flatten") and chunk.type.num_fields else chunk)
        for chunk in column.chunks
    ]
    numbers = [array.to_numpy(zero_copy_only=False) for array in arrays]
    matrix: NDArray[np.float32] = np.concatenate(numbers).reshape(len(column), -1)
    return matrix.astype(np.float32)


def _column(table: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a column of numbers, zeros where the dataset has none."""
    if name not in table.column_names:
        return np.zeros(shape, dtype=dtype)
    values = np.asarray(table[name].to_pylist(), dtype=dtype)
    return values.reshape(shape)
