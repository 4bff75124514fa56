"""The metadata of a LeRobotDataset v3, which are in `meta/`; they are checked when they are read.

A data set may come from a stranger. So its metadata are read as bounded text and tables, and they
cannot name further files to read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robo_razor.core.errors import DemonstrationError, did_you_mean, shown
from robo_razor.core.files import parse_json, read_text
from robo_razor.policies.inputs import IMAGE_PREFIX, STATE, image_key
from robo_razor.rollout.dataset.pictures import DAMAGED, MAX_PIXELS, Camera
from robo_razor.rollout.dataset.tables import (
    Table,
    inside,
    listed,
    matrix,
    parquet_files,
    text,
    whole_numbers,
)

ACTION, EPISODE, FRAME = "action", "episode_index", "frame_index"
TASK, TIME = "task_index", "timestamp"
REWARD, SUCCESS = "next.reward", "next.success"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
"""Where LeRobot puts videos; a data set cannot name another place."""
MAX_FPS = 1e6
RENAME = (
    "`--rename '{image: front}'` gives cameras, and the state, the names that the policy uses. "
    "Other columns must be called as in LeRobot: rename them in the tables and in meta/info.json."
)
"""The advice for columns with other names."""


@dataclass(frozen=True)
class Description:
    """The checked metadata of a data set.

    Attributes:
        root: Its folder.
        fps: Frames per second.
        cameras: Cameras with colours.
        state: The column of the state, None if it has none.
        widths: Numbers per frame of each column of numbers to read.
        columns: All columns in the order of the metadata.
        episodes: Number of episodes, None if the metadata lack it.
    """

    root: Path
    fps: float
    cameras: tuple[Camera, ...]
    state: str | None
    widths: Mapping[str, int]
    columns: tuple[str, ...]
    episodes: int | None


def describe(directory: str | Path, state_keys: Sequence[str] = (STATE,)) -> Description:
    """Return the metadata of a LeRobotDataset v3, without reading its rows.

    Args:
        directory: The dataset's directory.
        state_keys: Columns that may be the state; the first one that exists is read.

    Raises:
        DemonstrationError: The dataset does not exist, or its metadata are wrong.
    """
    root = Path(directory)
    info = read_info(root)
    _check_format(root, info)
    if not parquet_files(root, "data"):
        raise DemonstrationError(f"The dataset {str(root)!r} holds no data (data/chunk-*/file-*)")
    features, path = info["features"], root / "meta" / "info.json"
    if ACTION not in features:
        raise DemonstrationError(
            f"{path} lists no column {ACTION!r}.{did_you_mean(ACTION, features)} Its columns are "
            f"{listed(list(features))}",
            allowed=f"{ACTION!r} for the actions, {IMAGE_PREFIX}NAME for cameras, {STATE} for the "
            "state",
            remedy=RENAME,
        )
    cameras = tuple(
        Camera(key, feature["dtype"] == "video", _checked_shape(key, feature, path))
        for key, feature in features.items()
        if feature["dtype"] in ("image", "video") and not _is_depth(feature)
    )
    if any(camera.filmed for camera in cameras):
        _check_video_path(info, path)
    names = [n for key in state_keys for n in (key, key.removeprefix(IMAGE_PREFIX))]
    state = next((name for name in names if name in features), None)
    number_keys = [
        ACTION,
        *([state] if state else []),
        *(k for k in (REWARD, SUCCESS) if k in features),
    ]
    total = info.get("total_episodes")
    return Description(
        root,
        _checked_fps(info, path),
        cameras,
        state,
        {key: _width(key, features[key], path) for key in number_keys},
        tuple(features),
        total if type(total) is int else None,
    )


def renamable(directory: str | Path) -> tuple[str, ...]:
    """Return the columns of a data set that `rename` may name, () if it cannot be read.

    Reading the data set then reports what is wrong with it.
    """
    with contextlib.suppress(DemonstrationError):
        root = Path(directory)
        info = read_info(root)
        _check_format(root, info)
        return tuple(dict.fromkeys(n for key in info["features"] for n in (key, image_key(key))))
    return ()


def read_info(root: Path) -> dict[str, Any]:
    """Return `meta/info.json` of a LeRobotDataset of any version.

    Raises:
        DemonstrationError: The file does not exist, or does not hold a JSON object.
    """
    path = root / "meta" / "info.json"
    try:
        path.stat()
        info: dict[str, Any] = parse_json(read_text(inside(root, path)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DemonstrationError(
            f"There are no demonstrations in {str(root)!r}: {path} does not exist",
            allowed="the directory of a LeRobotDataset v3, or `expert`",
            remedy="Make one: `robo-razor collect --task TASK --episodes 300 --out DIR`.",
        ) from error
    except OSError as error:
        raise DemonstrationError(f"{shown(str(path))} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DemonstrationError(f"{shown(str(path))} holds no JSON ({error})") from error
    if not isinstance(info, dict):
        raise DemonstrationError(f"{path} has no `features`: it is not of a LeRobotDataset")
    return info


def _check_format(root: Path, info: Mapping[str, Any]) -> None:
    version, features = info.get("codebase_version"), info.get("features")
    if not isinstance(version, str) or not version.startswith("v3"):
        raise DemonstrationError(
            f"{str(root)!r} has format {shown(version)}, not v3",
            remedy="Convert it with LeRobot's converter.",
        )
    if not isinstance(features, dict):
        raise DemonstrationError(f"{str(root)!r} has no `features`: it is not a LeRobotDataset")
    for key, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise DemonstrationError(
                f"{root / 'meta' / 'info.json'} describes the column {shown(key)} as "
                f"{shown(feature)}",
                allowed='{"dtype": ..., "shape": [...]}',
            )


def _checked_fps(info: Mapping[str, Any], path: Path) -> float:
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < MAX_FPS:
        problem = f"says `fps` = {shown(fps)}" if "fps" in info else "has no `fps`"
        raise DemonstrationError(
            f"{path} {problem}",
            allowed="the frames per second of the recording, a number above 0",
            remedy="Write `fps` into that file.",
        )
    return fps


def _check_video_path(info: Mapping[str, Any], path: Path) -> None:
    template = info.get("video_path")
    if template not in (None, VIDEO_PATH):
        raise DemonstrationError(
            f"{path} says `video_path` = {shown(template)}",
            allowed=VIDEO_PATH,
            remedy="Put the videos into that path: no other is read.",
        )


def _checked_shape(key: str, feature: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return height and width of a camera's pictures from its metadata, checked."""
    shape = feature.get("shape")
    fits = isinstance(shape, list) and len(shape) in (2, 3)
    if not fits or not all(type(n) is int and n > 0 for n in shape or ()):
        raise DemonstrationError(
            f"{path} gives the camera {shown(key)} the shape {shown(shape)}",
            allowed="[height, width, 3], in pixels",
        )
    height, width = picture_shape(feature)
    if height * width > MAX_PIXELS:
        raise DemonstrationError(
            f"{path} gives the camera {shown(key)} pictures of {width}x{height} px",
            allowed=f"up to {MAX_PIXELS} pixels",
        )
    return height, width


def picture_shape(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of a camera's pictures from its metadata."""
    shape = tuple(int(n) for n in feature["shape"])
    channels_first = len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    height, width = shape[1:] if channels_first else shape[:2]
    return height, width


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """Return whether a camera records distances instead of colours, which no policy here reads."""
    notes = [feature.get("info"), feature.get("video_info")]
    names = ("is_depth_map", "video.is_depth_map")
    return any(note.get(name) for note in notes if isinstance(note, dict) for name in names)


def _width(key: str, feature: Mapping[str, Any], path: Path) -> int:
    """Return the numbers per frame of a column from its metadata, checked."""
    shape = feature.get("shape")
    is_vector = (
        isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and shape[0] > 0
    )
    if not is_vector or (key in (REWARD, SUCCESS) and shape != [1]):
        raise DemonstrationError(
            f"{path} gives the column {shown(key)} the shape {shown(shape)}",
            allowed="[1]" if key in (REWARD, SUCCESS) else "[n], for n numbers per frame",
        )
    width: int = feature["shape"][0]
    return width


# --- Instructions and videos ----------------------------------------------------------------------


def task_names(root: Path, path: Path) -> dict[int, str]:
    """Return task index -> instruction from LeRobot's `meta/tasks.parquet`, in its order."""
    if not path.exists():
        older = (path.parent / "tasks.jsonl").exists()
        hint = ": its tasks.jsonl is that of format v2.1" if older else ""
        raise DemonstrationError(
            f"There are no instructions: {path} does not exist{hint}",
            remedy="Convert the data set with LeRobot's converter."
            if older
            else "The data set is incomplete: copy or record it again.",
        )
    table = Table(inside(root, path))
    table.need([TASK])
    texts = [field.name for field in table.schema if _is_text(field.type)]
    # LeRobot stores the instruction as the index of a pandas table.
    text_columns = [name for name in ("task", "__index_level_0__") if name in texts] or texts[:1]
    if not text_columns:
        raise DemonstrationError(
            f"{path} has no column with the instructions. Its columns are {listed(table.names)}"
        )
    columns = table.read([TASK, text_columns[0]])
    index = whole_numbers(columns, TASK, path).tolist()
    instructions = text(columns, text_columns[0], path)
    if len(set(index)) < len(index):
        raise DemonstrationError(f"{path} has a {TASK!r} twice", remedy="Renumber its rows.")
    return dict(zip(index, instructions, strict=True))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):  # as pandas writes categories
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def episode_videos(
    root: Path, key: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return index, chunk and file of every episode's video, and its start in the file, s."""
    names = [EPISODE, *(f"videos/{key}/{name}" for name in ("chunk_index", "file_index"))]
    start = f"videos/{key}/from_timestamp"
    counters: list[NDArray[np.int64]] = [np.zeros((3, 0), np.int64)]
    starts: list[NDArray[np.float64]] = [np.zeros((0, 1))]
    for path in parquet_files(root, "meta/episodes"):
        table = Table(path)
        table.need([*names, start])
        columns = table.read([*names, start])
        counters.append(np.stack([whole_numbers(columns, name, path) for name in names]))
        places = [f"episode {e}" for e in counters[-1][0]]
        starts.append(matrix(columns[start], start, path, places.__getitem__, 1))
    index, chunk, number = np.concatenate(counters, 1)
    if not len(index):
        raise DemonstrationError(
            f"{str(root)!r} has videos, but no meta/episodes with the start of each episode",
            remedy=DAMAGED,
        )
    order = np.argsort(index, kind="stable")
    for i in np.flatnonzero(np.diff(index[order]) == 0)[:1]:
        raise DemonstrationError(
            f"meta/episodes of {str(root)!r} has two rows of episode {index[order][i]}",
            remedy="Remove the file or the row that does not belong there.",
        )
    return index[order], chunk[order], number[order], np.concatenate(starts)[order, 0]
