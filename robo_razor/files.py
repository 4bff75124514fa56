"""Writing files so that a crash leaves the old one or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robo_razor.errors import CheckpointError

MAX_TEXT_BYTES = 256 * 2**20
"""Text files beyond this size are refused: none of ours comes near."""


def write_text(path: str | Path, text: str) -> None:
    """Write a text file so that it is either the old one or the new one, never a part of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, never a part of it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_directory(target.parent)


def write_json(path: str | Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically; NaN is refused (it is no JSON)."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, remedy: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        remedy: What to do where it cannot be read.

    Raises:
        CheckpointError: The file is missing, too large, or not JSON (which has no NaN or Infinity).
    """
    try:
        return parse_json(read_text(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", remedy=remedy) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or not JSON ({error})", remedy=remedy) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", remedy=remedy) from error


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a UTF-8 file that a stranger may have made.

    Raises:
        ValueError: It is larger than `max_bytes` or not UTF-8.
    """
    with Path(path).open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes / 2**20:g} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {data[error.start]:#04x} at {error.start}") from error


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON, nested deeper than Python reads, or has NaN or Infinity.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` (replacing it) when the block succeeds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*"), reverse=True):
            _flush_directory(item) if item.is_dir() else _flush_file(item)
        _flush_directory(temporary)
        if target.exists():
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush_directory(target.parent)


def replace_link(link: Path, target: str) -> None:
    """Point `link` at `target` (relative to the link's directory), atomically."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: float) -> float | None:
    """Return the value, or None where it is NaN or infinite (JSON has neither)."""
    return value if math.isfinite(value) else None
