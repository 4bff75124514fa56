"""Checksums of a checkpoint's files: what is read back is what was written.

`checksums.json` lies in the checkpoint's directory beside `pretrained_model/`, with the size and
the SHA-256 of every file below it. A checkpoint of another program has none, and is taken as it is.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from robo_razor.core.errors import CheckpointError
from robo_razor.core.files import read_json, write_json

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 20


def write_checksums(directory: Path) -> None:
    """Write the checksums of all files below a directory into it."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    sums = {file.relative_to(directory).as_posix(): _sha256(file) for file in files}
    sizes = {name: (directory / name).stat().st_size for name in sums}
    write_json(directory / CHECKSUMS, {"bytes": sizes, "sha256": sums})


def verify_checksums(directory: Path, below: str = "", *, from_disk: bool = False) -> None:
    """Check that a directory's files are those that its checksums were made of.

    Args:
        directory: The folder with `checksums.json`. Without that file, only the lengths of weights
            and optimizers are checked.
        below: Check only the files of this folder in it; empty: all.
        from_disk: Read from the disk and not from the system's cache, where that is possible.

    Raises:
        CheckpointError: A file is missing, cannot be read, or is not what was written.
    """
    record = directory / CHECKSUMS
    if not record.is_file():
        _check_lengths(directory / below)
        return
    data = read_json(record, "Use another checkpoint of the run.")
    known: dict[str, Any] = data if isinstance(data, dict) else {}
    sizes, sums = known.get("bytes"), known.get("sha256")
    if not isinstance(sizes, dict) or not isinstance(sums, dict):
        raise CheckpointError(f"{record} is damaged: it holds no checksums")
    for name, expected in sums.items():
        if below and not name.startswith(f"{below}/"):
            continue
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{record} is damaged: {name!r} is not a file of its checkpoint")
        problem = _problem(directory / name, sizes.get(name), expected, from_disk)
        if problem:
            raise CheckpointError(
                f"{directory / name} is damaged: {problem}",
                remedy="Use another checkpoint of the run, or copy the file again. If you changed "
                f"it on purpose, delete {record}.",
            )


def _check_lengths(directory: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for file in sorted(directory.rglob("*.safetensors")):
        if not file.is_file():  # reading a pipe would block
            raise CheckpointError(
                f"{file} is not a file", remedy="Use another checkpoint of the run."
            )
        try:
            with safe_open(file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is truncated or not a safetensors file ({error})",
                remedy="Use another checkpoint of the run, or copy the file again.",
            ) from error


def _problem(file: Path, size: object, expected: object, from_disk: bool) -> str | None:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is not a file"
        changed = status.st_size != size  # first: reading a far too large file takes for ever
        changed = changed or _sha256(file, from_disk=from_disk) != expected
    except FileNotFoundError:
        return "the file is missing"
    except (OSError, ValueError) as error:  # a name that no file can have
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
    if changed:
        return "it was truncated or changed since it was written (its checksum differs)"
    return None


def _sha256(file: Path, *, from_disk: bool = False) -> str:
    total = hashlib.sha256()
    with file.open("rb") as opened:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := opened.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
