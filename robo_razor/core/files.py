"""Writing files so that a crash leaves the old one or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from robo_razor.core.errors import CheckpointError, ConfigError, shown

MAX_TEXT_BYTES = 256 * 2**20
"""Larger text files are refused; those of robo-razor are far smaller."""

_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.\d+(\.\d+)?\.(?P<kind>tmp|old)$")
"""Names of files and directories that are being written or replaced, with the process's number."""


def write_text(path: str | Path, text: str) -> None:
    """Write a text file so that it is either the old one or the new one, never a part of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, never a part of it."""
    target = Path(path)
    make_directory(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
    _flush_directory(target.parent)


def make_directory(path: Path) -> None:
    """Make a directory and its parents; they survive a loss of power."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _flush_directory(path.parent)


def write_json(path: str | Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically; NaN is refused (JSON has none)."""
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


def open_file(path: str | Path) -> BinaryIO:
    """Open a file that a stranger may have made, for reading.

    Raises:
        OSError: It cannot be read, or is not a regular file (a pipe, for example).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a UTF-8 file that a stranger may have made.

    Raises:
        ValueError: It is larger than `max_bytes` or not UTF-8.
    """
    with open_file(path) as file:
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
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_number)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` (replacing it) when the block succeeds."""
    target = Path(path)
    make_directory(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*"), reverse=True):
            _flush_directory(item) if item.is_dir() else _flush_file(item)
        _flush_directory(temporary)
        with _set_aside(target):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush_directory(target.parent)


def replace_link(link: Path, target: str) -> None:
    """Point `link` at `target` (relative to the link's directory), atomically.

    A copy of the directory may have turned the link into a folder or into a file that holds the
    target; either is replaced. A file system without links gets such a file.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        write_text(temporary, f"{target}\n")
    if link.is_dir() and not link.is_symlink():
        with _set_aside(link):
            temporary.rename(link)
    else:
        temporary.replace(link)
    _flush_directory(link.parent)


def read_link(link: Path) -> str | None:
    """Return the target of a link, or of the text file that a copy made of it; None: neither."""
    try:
        if link.is_symlink():
            return os.readlink(link)
        return read_text(link, 4096).strip() if link.is_file() else None
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _set_aside(target: Path) -> Iterator[None]:
    """Move a directory out of the way of its replacement; bring it back if that fails."""
    if not target.exists():
        yield
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    try:
        yield
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


def clear_leftovers(root: Path) -> None:
    """Remove the temporary files of killed writers below a directory; restore what they moved."""
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            leftover = _LEFTOVER.match(name)
            if leftover is None:
                continue
            path, original = Path(folder, name), Path(folder, leftover["name"])
            if name in folders:
                folders.remove(name)
            if leftover["kind"] == "old" and not original.exists():
                path.rename(original)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def lock(file: BinaryIO, *, shared: bool = False) -> bool | None:
    """Lock an open file for this process without waiting; closing it releases the lock.

    Args:
        file: The file.
        shared: Other processes may hold a shared lock too.

    Returns:
        True: the lock is held now. False: another process holds it. None: the file system has no
        locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        no_locks = error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
        return None if no_locks else False
    return True


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_nan(value: Any) -> Any:
    """Return nested plain values with None in place of NaN and infinity, which JSON does not have.

    For results: one number that does not exist must not cost hours of work.
    """
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def finite(value: float) -> float | None:
    """Return the value, or None where it is NaN or infinite (JSON has neither)."""
    return value if math.isfinite(value) else None


@contextlib.contextmanager
def raising_os_errors(path: Path) -> Iterator[None]:
    """Raise the `OSError` that a safetensors error was made of."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def system_refusal(error: BaseException) -> str:
    """Return a sentence that says what the operating system refused, and where."""
    if isinstance(error, OSError) and error.strerror:
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        at = f": {' and '.join(places)}" if places else ""
        return f"The system refused to go on ({error.strerror}){at}"
    return f"The system refused to go on ({error})"


def check_writable(path: str | Path, setting: str, *, directory: bool = False) -> None:
    """Check before long work that its output can be written; the check leaves nothing behind.

    Args:
        path: The file or directory to write.
        setting: The setting that names it, for the error.
        directory: Whether it is a directory.

    Raises:
        ConfigError: Something of another kind has this name, or the system refuses to write.
    """
    target = Path(path)
    made: list[Path] = []
    try:
        if target.exists() and not (target.is_dir() if directory else target.is_file()):
            kind = "a directory" if target.is_dir() else "not a plain file"
            expected = "a directory" if directory else "a file"
            raise ConfigError(
                f"`{setting}` = {shown(str(path))} is {kind}, but {expected} must be written there",
                remedy="Choose another name.",
            )
        parent = target if directory else target.parent
        for folder in reversed([parent, *parent.parents]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        # As long as the temporary names that are written later.
        name = "directory" if directory else f"{target.name}.unfinished"
        probe = parent / f".{name}.{os.getpid()}.{threading.get_ident()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"`{setting}` = {shown(str(path))} cannot be written ({error.strerror})",
            remedy="Choose a place that you can write to.",
        ) from error
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
