"""The rows of a LeRobotDataset v3, sorted and checked to be complete.

Rows may be in any order, within a file and across files, and episodes may be missing. The frames of
an episode must be consecutive.

Axis letters as in `types`: E episodes, F frames.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robo_razor.core.errors import DemonstrationError
from robo_razor.rollout.dataset.metadata import (
    EPISODE,
    FRAME,
    SUCCESS,
    TASK,
    TIME,
    VIDEO_PATH,
    Description,
    episode_videos,
    task_names,
)
from robo_razor.rollout.dataset.pictures import DAMAGED, Span
from robo_razor.rollout.dataset.tables import Table, inside, listed, matrix, whole_numbers

logger = logging.getLogger(__name__)

RATE_TOLERANCE = 0.05
"""Share by which `fps` may differ from the timestamps without a warning."""


@dataclass(frozen=True)
class Frames:
    """The frames to read, in order of episode and time; all int64 [F] except the offsets.

    Attributes:
        episode: `episode_index` of each.
        frame: `frame_index` of each.
        task: `task_index` of each.
        file: Number of its table.
        row: Its row in that table.
        offsets: int64 [E + 1]; the e-th of the episodes owns offsets[e]:offsets[e + 1].
    """

    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    task: NDArray[np.int64]
    file: NDArray[np.int64]
    row: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.episode)

    def place(self, i: int) -> str:
        """Return the text "episode E, frame F" of the i-th."""
        return f"episode {self.episode[i]}, frame {self.frame[i]}"

    def placing(self, positions: NDArray[np.int64]) -> Callable[[int], str]:
        """Return a function that returns `place` of the i-th of some frames."""
        return lambda i: self.place(int(positions[i]))


def read_frames(
    description: Description, tables: Sequence[Table], max_episodes: int | None
) -> Frames:
    """Return the frames of the first episodes.

    Raises:
        DemonstrationError: There are no frames, or one is missing or occurs twice.
    """
    parts = []
    for number, table in enumerate(tables):
        columns = table.read([EPISODE, FRAME, TASK])
        counters = [whole_numbers(columns, name, table.path) for name in (EPISODE, FRAME, TASK)]
        rows = np.arange(len(columns))
        parts.append(np.stack([*counters, np.full_like(rows, number), rows]))
    index = np.concatenate(parts, 1)
    episodes = np.unique(index[0])
    if not len(episodes):
        raise DemonstrationError(f"The dataset {str(description.root)!r} holds no frames")
    if description.episodes is not None and description.episodes != len(episodes):
        logger.warning(
            "%s lists %d episodes, but the tables hold %d; these are used.",
            description.root / "meta" / "info.json",
            description.episodes,
            len(episodes),
        )
    used = episodes[:max_episodes]
    index = index[:, np.isin(index[0], used)]
    index = index[:, np.lexsort((index[1], index[0]))]
    offsets = np.append(np.searchsorted(index[0], used), index.shape[1]).astype(np.int64)
    episode, frame, task, file, row = index
    frames = Frames(episode, frame, task, file, row, offsets)
    _check_succession(frames, tables)
    return frames


def _check_succession(frames: Frames, tables: Sequence[Table]) -> None:
    """Check that the frames of every episode are consecutive.

    Raises:
        DemonstrationError: One is missing or occurs twice.
    """
    same = np.diff(frames.episode) == 0
    for i in np.flatnonzero(same & (np.diff(frames.frame) != 1))[:1].tolist():
        before, after = (tables[frames.file[k]].path for k in (i, i + 1))
        if frames.frame[i] == frames.frame[i + 1]:
            raise DemonstrationError(
                f"{FRAME!r}: {frames.place(i)} occurs twice, in {before} (row {frames.row[i]}) "
                f"and {after} (row {frames.row[i + 1]})",
                remedy="Remove the file or the rows that do not belong there.",
            )
        raise DemonstrationError(
            f"{FRAME!r}: {frames.place(i + 1)} in {after} comes right after frame "
            f"{frames.frame[i]}: the frames between them are missing",
            remedy="Split the episode in two, or renumber its frames if none is missing.",
        )


def read_numbers(
    tables: Sequence[Table], frames: Frames, key: str, width: int
) -> NDArray[np.float64]:
    """Return a column of numbers, float64 [F, width]."""
    import pyarrow as pa

    values = np.zeros((len(frames), width))
    for number, table in enumerate(tables):
        positions = np.flatnonzero(frames.file == number)
        if not len(positions):
            continue
        column = table.read([key])[key].take(pa.array(frames.row[positions]))
        if key == SUCCESS and pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        values[positions] = matrix(column, key, table.path, frames.placing(positions), width)
    return values


def read_times(
    tables: Sequence[Table], frames: Frames, description: Description, *, needed: bool
) -> NDArray[np.float64]:
    """Return the time of every frame since the start of its episode, s; warn if `fps` differs.

    If a data set without videos lacks the column, the times follow from the frames' numbers.
    """
    if not needed and not all(TIME in table.names for table in tables):
        times_by_number: NDArray[np.float64] = frames.frame / description.fps
        return times_by_number
    for table in tables:
        table.need([TIME])
    times = read_numbers(tables, frames, TIME, 1)[:, 0]
    steps = np.diff(times)[np.diff(frames.episode) == 0]
    step = float(np.median(steps)) if len(steps) else 0.0
    if step > 0.0 and abs(step * description.fps - 1.0) > RATE_TOLERANCE:
        logger.warning(
            "%s says %g frames per second (`fps`), but the frames' `timestamp`s are %.4g s apart, "
            "which is %.4g frames per second.",
            description.root / "meta" / "info.json",
            description.fps,
            step,
            1.0 / step,
        )
    return times


def read_instructions(root: Path, frames: Frames) -> list[str]:
    """Return the instruction of every frame.

    Raises:
        DemonstrationError: A frame has none.
    """
    path = root / "meta" / "tasks.parquet"
    names = task_names(root, path)
    rows = {task: row for row, task in enumerate(names)}
    for task in np.unique(frames.task).tolist():
        place = frames.place(int(np.argmax(frames.task == task)))
        if task not in names:
            raise DemonstrationError(
                f"{TASK!r} of {place} is {task}, which {path} does not have",
                allowed=listed([str(known) for known in sorted(names)]),
            )
        if task != rows[task]:
            raise DemonstrationError(
                f"{path} has the instruction of {TASK!r} {task} ({place}) in row {rows[task]}: "
                "LeRobot goes by the row and would read another instruction",
                remedy=f"Sort its rows by {TASK!r}, from 0 on without gaps.",
            )
    return [names[task] for task in frames.task.tolist()]


def instructions_change(instructions: Sequence[str], frames: Frames) -> bool:
    """Return whether the instruction changes within an episode."""
    same = (np.diff(frames.episode) == 0).tolist()
    pairs = zip(instructions, instructions[1:], same, strict=False)
    return any(first != second for first, second, is_same in pairs if is_same)


def video_spans(root: Path, frames: Frames, key: str, times: NDArray[np.float64]) -> list[Span]:
    """Return the video files with a camera's frames, and the frames' times in them.

    Args:
        root: The data set's folder.
        frames: The frames.
        key: The camera.
        times: float64 [F], time of every frame in its episode, in s.

    Raises:
        DemonstrationError: `meta/episodes` lacks the video of an episode.
    """
    episode, chunk, number, start = episode_videos(root, key)
    video_rows = np.minimum(np.searchsorted(episode, frames.episode), len(episode) - 1)
    for i in np.flatnonzero(episode[video_rows] != frames.episode)[:1].tolist():
        raise DemonstrationError(
            f"meta/episodes of {str(root)!r} does not list the video of {frames.place(i)}",
            remedy=DAMAGED,
        )
    spans = []
    used = np.unique(np.stack([chunk, number])[:, video_rows], axis=1)
    for a, b in used.T.tolist():
        starts = np.append(np.unique(start[(chunk == a) & (number == b)]), np.inf)
        positions = np.flatnonzero((chunk[video_rows] == a) & (number[video_rows] == b))
        begins = start[video_rows[positions]]
        until = starts[np.searchsorted(starts, begins, side="right")]
        path = inside(root, root / VIDEO_PATH.format(video_key=key, chunk_index=a, file_index=b))
        spans.append(Span(path, begins + times[positions], until, positions))
    return spans
