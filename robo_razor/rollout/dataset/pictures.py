"""The pictures of a data set: encoded in its tables, or frames of its video files.

Only the file itself is opened, and only in the expected format: a playlist with the name of a video
and a picture that is only a path are errors. A picture must have the size in the metadata. The
frames of a video are those at the rows' timestamps, as in LeRobot.

Axis letters: H, W height and width of a picture in pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robo_razor.core.errors import DemonstrationError
from robo_razor.rollout.dataset.tables import Table, first_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats of pictures that are decoded."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Kinds of pixels that fit into 8 bit colours; others, such as 16 bit depth, do not."""
MAX_PIXELS = 2**26
"""Larger pictures are errors; policies see far smaller ones."""
TOLERANCE_S = 1e-4
"""Largest distance of a frame from its row's timestamp; LeRobot's default."""
DAMAGED = "The data set is incomplete: copy or record it again."


@dataclass(frozen=True)
class Camera:
    """One camera of a data set.

    Attributes:
        key: LeRobot's name of it.
        filmed: True if its pictures are frames of video files.
        shape: H and W in the metadata.
    """

    key: str
    filmed: bool
    shape: tuple[int, int]


@dataclass(frozen=True)
class Span:
    """The place of some rows' pictures in a video file.

    Attributes:
        file: The video file, in the data set's folder.
        seconds: float64, time of each row's picture in the file.
        until: float64, time of the next episode's start in the file, infinite for the last one.
        positions: int64, number of each row among all frames.
    """

    file: Path
    seconds: NDArray[np.float64]
    until: NDArray[np.float64]
    positions: NDArray[np.int64]


def stored(
    tables: Sequence[Table],
    camera: Camera,
    file: NDArray[np.int64],
    row: NDArray[np.int64],
    place: Callable[[int], str],
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield number and picture, uint8 [H, W, 3], of each frame, in the order of the tables.

    Args:
        tables: The data set's tables.
        camera: A camera whose pictures are in the tables.
        file: int64 [F], table of each frame.
        row: int64 [F], its row in that table.
        place: Returns episode and frame of a number as text.

    Raises:
        DemonstrationError: A picture is missing, damaged, or of another size.
    """
    for number, table in enumerate(tables):
        positions = np.flatnonzero(file == number)
        if not len(positions):
            continue
        position_of_row = np.full(table.metadata.num_rows, -1)
        position_of_row[row[positions]] = positions
        for first, cells in table.batches(camera.key, row[positions]):
            data = _encoded(cells, camera, table.path)
            for k in np.flatnonzero(position_of_row[first : first + len(cells)] >= 0):
                frame = int(position_of_row[first + k])
                yield frame, _decoded(data[int(k)].as_py(), camera, f"{place(frame)}, {table.path}")


def _encoded(cells: Any, camera: Camera, path: Path) -> Any:
    """Return the bytes of encoded pictures."""
    import pyarrow as pa

    kind = cells.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        import pyarrow.compute as pc

        cells = pc.struct_field(cells, "bytes")  # null where the row is
        kind = cells.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)):
        raise DemonstrationError(
            f"The column {camera.key!r} of {path} holds {str(kind)[:100]}, not encoded pictures"
        )
    return cells


def _decoded(data: bytes | None, camera: Camera, where: str) -> NDArray[np.uint8]:
    """Return one encoded picture as uint8 [H, W, 3], rotated according to its EXIF data."""
    from PIL import Image, ImageOps

    if data is None:
        raise DemonstrationError(
            f"{camera.key!r} of {where} holds no picture, at most the path of one",
            remedy="Write the data set again with its pictures in the tables, as LeRobot's "
            "`save_episode` does: other files are not read.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pixels and palettes; sizes are checked here
            picture: Any = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_picture(picture.size, camera, where, turned=True)
            if picture.mode not in MODES:
                raise DemonstrationError(
                    f"{camera.key!r} of {where} is a picture of kind {picture.mode!r}",
                    allowed=f"{', '.join(MODES)} (8 bits)",
                )
            picture = ImageOps.exif_transpose(picture)  # as Hugging Face's loader does
            array = np.asarray(picture.convert("RGB"))
    except DemonstrationError:
        raise
    except Exception as error:  # decoders raise many kinds of errors on damaged bytes
        raise DemonstrationError(
            f"{camera.key!r} of {where} cannot be decoded ({type(error).__name__}: "
            f"{first_line(error)})",
            allowed=f"pictures as {', '.join(FORMATS)}",
            remedy=DAMAGED,
        ) from error
    height, width = array.shape[:2]
    _check_picture((width, height), camera, where)
    return array


def _check_picture(
    size: tuple[int, int], camera: Camera, where: str, *, turned: bool = False
) -> None:
    """Check that a picture, width x height, has the size in the metadata."""
    height, width = camera.shape
    sizes = {(width, height), (height, width)} if turned else {(width, height)}
    if size not in sizes:
        raise DemonstrationError(
            f"{camera.key!r} of {where} is {size[0]}x{size[1]} px, but meta/info.json says "
            f"{width}x{height} px",
            remedy="Scale all pictures of a camera to one size, and write that size into the file.",
        )


# --- Videos ---------------------------------------------------------------------------------------


def filmed(
    spans: Sequence[Span], camera: Camera, place: Callable[[int], str]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield number and picture, uint8 [H, W, 3], of each frame; every file is decoded once.

    Args:
        spans: One for each video file.
        camera: Their camera.
        place: Returns episode and frame of a number as text.

    Raises:
        DemonstrationError: A file or a frame is missing or damaged, or of another size.
    """
    for span in spans:
        yield from _film(span, camera, place)


def _film(
    span: Span, camera: Camera, place: Callable[[int], str]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    path = span.file
    order = np.argsort(span.seconds, kind="stable")
    for k in np.flatnonzero(span.seconds > span.until - TOLERANCE_S)[:1]:
        raise DemonstrationError(
            f"{camera.key!r} of {place(int(span.positions[k]))} would be at {span.seconds[k]:.4f} s"
            f" of {path}, where another episode begins at {span.until[k]:.4f} s: the video is "
            "shorter than the table",
            remedy=DAMAGED,
        )
    wanted = iter(order.tolist())
    k = next(wanted, None)
    time_s = None
    for time_s, picture in _frames(path, camera):
        if k is not None and span.seconds[k] < time_s - TOLERANCE_S:
            break  # the file has no frame for this row
        while k is not None and abs(span.seconds[k] - time_s) <= TOLERANCE_S:
            yield int(span.positions[k]), picture()
            k = next(wanted, None)
        if k is None:
            return
    if k is not None:
        last = "the file has none" if time_s is None else f"the last one read is at {time_s:.4f} s"
        raise DemonstrationError(
            f"{camera.key!r} of {place(int(span.positions[k]))} has no frame in {path}: it should "
            f"be at {span.seconds[k]:.4f} s (within {TOLERANCE_S:g} s), and {last}",
            remedy="Video and table do not match: copy or record the data set again.",
        )


def _frames(path: Path, camera: Camera) -> Iterator[tuple[float, Callable[[], NDArray[np.uint8]]]]:
    """Yield time, in s, and picture of the frames of a video file."""
    import av

    # Opened as an MP4 file whatever it holds, because a playlist could name any other file.
    settings: Any = {"format": "mp4", "options": {"protocol_whitelist": "file"}}
    try:
        with av.open(str(path), **settings) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its codec is unknown")
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for frame in container.decode(stream):
                if frame.pts is None:  # as in LeRobot
                    continue
                time_s = float(frame.pts * stream.time_base)
                where = f"the frame at {time_s:.4f} s of {path}"
                if frame.is_corrupt:
                    raise DemonstrationError(f"{camera.key!r}: {where} is damaged", remedy=DAMAGED)
                _check_picture((frame.width, frame.height), camera, where)
                yield time_s, partial(frame.to_ndarray, format="rgb24")
    except (av.FFmpegError, OSError, ValueError, IndexError, MemoryError) as error:
        raise DemonstrationError(
            f"{path} cannot be decoded as an MP4 video ({first_line(error)})", remedy=DAMAGED
        ) from error
