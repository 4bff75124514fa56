"""The pictures of a data set: encoded in its tables, or frames of its video files.

Nothing but the file itself is opened, as the format that it must have: a playlist that calls itself
a video, or a picture that is only a path, is refused. A picture has the size that the metadata say.
Frames of a video are those at the rows' timestamps, as in LeRobot.

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
"""Kinds of pixels that become 8 bit colours; others, such as 16 bit depth, would be cut off."""
MAX_PIXELS = 2**26
"""Larger pictures are refused: nothing that a policy sees comes near."""
TOLERANCE_S = 1e-4
"""How far a frame may be from a row's timestamp: LeRobot's default."""
DAMAGED = "The data set is incomplete: copy or record it again."


@dataclass(frozen=True)
class Camera:
    """One camera of a data set.

    Attributes:
        key: LeRobot's name of it.
        filmed: True where its pictures are frames of video files.
        shape: H and W that the metadata say.
    """

    key: str
    filmed: bool
    shape: tuple[int, int]


@dataclass(frozen=True)
class Span:
    """Where a camera's frames of some rows are.

    Attributes:
        file: The video file, which lies in the data set's folder.
        seconds: float64, time in the file that each row's picture is at.
        until: float64, time at which the next episode of the file begins, infinite for the last.
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
    """Yield the number of a frame and its picture, uint8 [H, W, 3], as they come in the tables.

    Args:
        tables: The data set's tables.
        camera: One whose pictures they hold.
        file: int64 [F], table of each frame.
        row: int64 [F], row of it there.
        place: Says of which episode and frame a number is.

    Raises:
        DemonstrationError: A picture is missing, damaged, or of another size.
    """
    for number, table in enumerate(tables):
        mine = np.flatnonzero(file == number)
        if not len(mine):
            continue
        position = np.full(table.metadata.num_rows, -1)
        position[row[mine]] = mine
        for first, cells in table.batches(camera.key, row[mine]):
            data = _encoded(cells, camera, table.path)
            for k in np.flatnonzero(position[first : first + len(cells)] >= 0):
                frame = int(position[first + k])
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
    """Return one encoded picture as uint8 [H, W, 3], turned as its EXIF data say."""
    from PIL import Image, ImageOps

    if data is None:
        raise DemonstrationError(
            f"{camera.key!r} of {where} holds no picture, at most the path of one",
            remedy="Write the data set anew with its pictures in the tables, as LeRobot's "
            "`save_episode` does: files beside them are not read.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixels and palettes; the size is checked here
            picture: Any = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_picture(picture.size, camera, where, turned=True)
            if picture.mode not in MODES:
                raise DemonstrationError(
                    f"{camera.key!r} of {where} is a picture of kind {picture.mode!r}",
                    allowed=f"{', '.join(MODES)} (8 bits)",
                )
            picture = ImageOps.exif_transpose(picture)  # Hugging Face's loader does
            array = np.asarray(picture.convert("RGB"))
    except DemonstrationError:
        raise
    except Exception as error:  # its decoders raise many kinds on damaged bytes
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
    """Check that a picture, width x height, is as large as the metadata say."""
    height, width = camera.shape
    sizes = {(width, height), (height, width)} if turned else {(width, height)}
    if size not in sizes:
        raise DemonstrationError(
            f"{camera.key!r} of {where} is {size[0]}x{size[1]} px, and meta/info.json says "
            f"{width}x{height} px",
            remedy="Bring all pictures of a camera to one size, and write that there.",
        )


# --- Videos ---------------------------------------------------------------------------------------


def filmed(
    spans: Sequence[Span], camera: Camera, place: Callable[[int], str]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the number of a frame and its picture, uint8 [H, W, 3]; every file is decoded once.

    Args:
        spans: One for each video file.
        camera: Whose they are.
        place: Says of which episode and frame a number is.

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
            break  # there is no frame for it
        while k is not None and abs(span.seconds[k] - time_s) <= TOLERANCE_S:
            yield int(span.positions[k]), picture()
            k = next(wanted, None)
        if k is None:
            return
    if k is not None:
        last = "there is none" if time_s is None else f"the last one seen is at {time_s:.4f} s"
        raise DemonstrationError(
            f"{camera.key!r} of {place(int(span.positions[k]))} has no frame in {path}: it should "
            f"be at {span.seconds[k]:.4f} s (within {TOLERANCE_S:g} s), and {last}",
            remedy="Video and table do not belong together: copy or record the data set again.",
        )


def _frames(path: Path, camera: Camera) -> Iterator[tuple[float, Callable[[], NDArray[np.uint8]]]]:
    """Yield time, in s, and picture of the frames of a video file."""
    import av

    # As MP4 and from a file, whatever it is: a playlist could name any other file.
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
