"""Parquet tables of a data set, which a stranger may have made.

A table must be complete, fit in memory, and lie inside the data set's folder. Files are found by
listing the folder, never by names in the data set's metadata. Errors name the file and, if they
can, column, episode and frame.

Axis letters: F frames, n numbers per frame.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robo_razor.core.errors import DemonstrationError, shown
from robo_razor.rollout.dataset.memory import require_memory

MAGIC = b"PAR1"
"""First and last bytes of a Parquet file; the end is written last."""
BYTES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Size of one decoded value of a physical type; text and pictures are not counted."""
ROWS_AT_ONCE = 64
"""Rows in a batch of encoded pictures: all of them together need not fit in memory."""


def inside(root: Path, path: Path) -> Path:
    """Check that a path of a data set is a regular file inside its folder.

    Links may lead to other paths in the folder, or to the `blobs` of a Hugging Face cache.

    Raises:
        DemonstrationError: It lies outside, is missing, or is not a regular file.
    """
    try:
        home, real = root.resolve(), path.resolve()
        exists, is_file = real.exists(), real.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a circle of links
        raise DemonstrationError(
            f"{shown(str(path))} is not a file ({first_line(error)})"
        ) from error
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(real.is_relative_to(folder) for folder in homes):
        raise DemonstrationError(
            f"{path} leads out of the data set, to {real}",
            remedy="Replace the link by the file: nothing outside the folder is read.",
        )
    if not exists:
        raise DemonstrationError(
            f"{path} does not exist", remedy="The data set is incomplete: copy or record it again."
        )
    if not is_file:
        raise DemonstrationError(f"{path} is not a file")
    return path


def parquet_files(root: Path, folder: str) -> list[Path]:
    """Return the Parquet files below a folder of a data set, as LeRobot finds them."""
    return [inside(root, path) for path in sorted((root / folder).glob("*/*.parquet"))]


class Table:
    """One Parquet file.

    Args:
        path: The file.

    Raises:
        DemonstrationError: It is incomplete or damaged.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        with self._reading():
            _check_whole(path)
            self.file = pq.ParquetFile(path)
            self.metadata = self.file.metadata
            self.schema = self.file.schema_arrow

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return list(self.schema.names)

    def need(self, names: Sequence[str], remedy: str | None = None) -> None:
        """Check that some columns exist, each once.

        Raises:
            DemonstrationError: One does not; the message lists the columns of the table.
        """
        for name in names:
            if self.names.count(name) != 1:
                number = "no" if name not in self.names else "more than one"
                raise DemonstrationError(
                    f"{self.path} has {number} column {name!r}. Its columns are "
                    f"{listed(self.names)}",
                    remedy=remedy,
                )

    def read(self, names: Sequence[str]) -> Any:
        """Return some columns of all rows as a `pyarrow.Table`.

        Raises:
            DemonstrationError: They are missing, damaged, or do not fit in memory.
        """
        self.need(names)
        self._check_memory(names)
        with self._reading():
            table = self.file.read(columns=list(names), use_threads=False)
        if len(table) != self.metadata.num_rows:
            raise DemonstrationError(
                f"{self.path} is damaged: it should have {self.metadata.num_rows} rows, but has "
                f"{len(table)}"
            )
        return table

    def batches(self, name: str, rows: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        """Yield the number of the first row and the cells of a column, a few rows at a time.

        Args:
            name: The column.
            rows: Wanted rows; groups of rows without any are not read.
        """
        self.need([name])
        with self._reading():
            sizes = [self.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        start = 0
        for group, size in enumerate(sizes):
            if np.any((rows >= start) & (rows < start + size)):
                yield from self._batches_of(group, name, start)
            start += size

    def _batches_of(self, group: int, name: str, start: int) -> Iterator[tuple[int, Any]]:
        settings = {"batch_size": ROWS_AT_ONCE, "row_groups": [group], "use_threads": False}
        with self._reading():
            batches = self.file.iter_batches(columns=[name], **settings)
        while True:
            with self._reading():
                batch = next(batches, None)
            if batch is None:
                return
            yield start, batch.column(name)
            start += len(batch)

    def _check_memory(self, names: Sequence[str]) -> None:
        """Check that columns fit in memory, by the sizes in the file's footer."""
        with self._reading():
            groups = [self.metadata.row_group(i) for i in range(self.metadata.num_row_groups)]
            chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
            size = max(0, self.metadata.num_rows) * 8 * len(names)
            size += sum(_size(chunk) for chunk in chunks if _is_of(chunk.path_in_schema, names))
        require_memory(
            size,
            lambda taken: (
                f"{self.path} does not fit in memory: by its footer, the columns {listed(names)} "
                f"of its {self.metadata.num_rows} rows take {taken}"
            ),
            "Split the file, or free memory. If the file is damaged, copy it again.",
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn Arrow's errors about a damaged file into one short message."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise DemonstrationError(
                f"{self.path} cannot be read ({first_line(error)})",
                remedy="The file is damaged: copy or record it again.",
            ) from error


def _check_whole(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
        size = file.seek(0, 2)
        file.seek(max(0, size - len(MAGIC)))
        tail = file.read(len(MAGIC))
    if head != MAGIC:
        raise ValueError("it does not begin like a Parquet file")
    if tail != MAGIC or size < 3 * len(MAGIC):
        raise DemonstrationError(
            f"{path} is incomplete: its end is missing, as when a recording is cut off",
            remedy="Finish the recording (LeRobot's `dataset.finalize()`), copy the file again, or "
            "record the data set again.",
        )


def _size(chunk: Any) -> int:
    counted = max(0, chunk.num_values) * BYTES.get(chunk.physical_type, 0)
    return int(max(chunk.total_uncompressed_size, counted))


def _is_of(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def listed(names: Sequence[str], most: int = 30) -> str:
    """Return names as the list in an error message."""
    quoted = ", ".join(str(name)[:80] for name in names[:most])
    return f"{quoted} and {len(names) - most} more" if len(names) > most else quoted or "(none)"


# --- Columns of numbers ---------------------------------------------------------------------------


def whole_numbers(table: Any, name: str, path: Path) -> NDArray[np.int64]:
    """Return a column of counters, such as `episode_index`, int64 of all rows.

    Raises:
        DemonstrationError: It holds other values.
    """
    import pyarrow as pa

    column = table[name]
    if not pa.types.is_integer(column.type):
        raise _wrong_type(name, path, column.type, "whole numbers")
    if column.null_count:
        raise DemonstrationError(f"{name!r} is empty (null) in {column.null_count} rows of {path}")
    counters: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    if len(counters) and counters.min() < 0:
        raise DemonstrationError(f"{name!r} is {counters.min()} in a row of {path}: it is negative")
    return counters


def text(table: Any, name: str, path: Path) -> list[str]:
    """Return a column of text.

    Raises:
        DemonstrationError: A text is missing, or the file is damaged.
    """
    try:
        cells: list[str | None] = table[name].to_pylist()
    except ValueError as error:  # not UTF-8
        raise DemonstrationError(f"{name!r} in {path} is not text ({first_line(error)})") from error
    texts = [word for word in cells if word is not None]
    if len(texts) < len(cells):
        raise DemonstrationError(f"{name!r} is empty (null) in a row of {path}")
    return texts


def matrix(
    column: Any, name: str, path: Path, place: Callable[[int], str], width: int | None = None
) -> NDArray[np.float64]:
    """Turn a column of numbers, or of equally long lists of them, into float64 [F, n].

    Args:
        column: `pyarrow.ChunkedArray`.
        name: The column's name.
        path: Its file.
        place: Returns episode and frame of a row as text.
        width: n, if the metadata have it.

    Raises:
        DemonstrationError: It holds other values, or numbers that are not finite in float32.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array: Any = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    lists = lists or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if lists else kind
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
        raise _wrong_type(name, path, kind, "numbers")
    _refuse(array.is_null(), 1, "is empty (null)", name, path, place)
    if lists:
        lengths = np.asarray(pc.list_value_length(array))
        width = (int(lengths[0]) if len(lengths) else 0) if width is None else width
        for row in np.flatnonzero(lengths != width)[:1]:
            problem = f"holds {lengths[row]} numbers instead of {width}"
            raise DemonstrationError(f"{name!r} of {place(int(row))} in {path} {problem}")
        array = array.flatten()
    elif width not in (None, 1):
        raise DemonstrationError(
            f"{name!r} in {path} holds single numbers, but meta/info.json says lists of {width}"
        )
    else:
        width = 1
    _refuse(array.is_null(), width, "holds an empty entry (null)", name, path, place)
    numbers = array.to_numpy(zero_copy_only=False).astype(np.float64)
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(numbers.astype(np.float32)))
    for i in bad[:1]:
        row, entry = divmod(int(i), max(1, width))
        others = f"; {len(bad)} numbers of the column are like that" if len(bad) > 1 else ""
        raise DemonstrationError(
            f"{name!r} of {place(row)} in {path} is {numbers[i]:g} (entry {entry}{others})",
            allowed="finite numbers",
            remedy="Remove that episode, or mend what wrote it.",
        )
    reshaped: NDArray[np.float64] = numbers.reshape(-1, width)
    return reshaped


def _refuse(
    mask: Any, width: int, problem: str, name: str, path: Path, place: Callable[[int], str]
) -> None:
    rows = np.flatnonzero(np.asarray(mask)) // max(1, width)
    if len(rows):
        others = f" ({len(np.unique(rows))} rows are like that)" if len(rows) > 1 else ""
        raise DemonstrationError(
            f"{name!r} of {place(int(rows[0]))} in {path} {problem}{others}",
            remedy="Remove that episode, or mend what wrote it.",
        )


def _wrong_type(name: str, path: Path, kind: Any, wanted: str) -> DemonstrationError:
    return DemonstrationError(
        f"The column {name!r} of {path} holds {shown(str(kind))}, not {wanted}"
    )
