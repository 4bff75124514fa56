"""What a sweep or a run measured, as one small file without weights: to share, or to keep in git.

`robo-razor archive runs/razor --out razor.tar.xz` packs what a report reads (settings, summaries,
episodes, metrics) and leaves out weights, optimizers, probe states and TensorBoard's files::

    archive.json            {"kind", "version", "directory", "robo_razor"}
    DIRECTORY/              the sweep's or run's own layout; settings name it `runs/DIRECTORY`

`robo-razor compare razor.tar.xz` reads it like the directory. A sweep can go on from an archive:
unpack it (`tar -xf razor.tar.xz -C runs`) and run the same `robo-razor sweep` again; archived runs
count as finished.

The same runs always give the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import os
import re
import stat
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from robo_razor.core.errors import (
    ConfigError,
    ReportError,
    RoboRazorError,
    RunDirectoryError,
    shown,
)
from robo_razor.core.files import (
    MAX_TEXT_BYTES,
    check_writable,
    parse_json,
    read_link,
    write_bytes,
)
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.run.sweep_record import EXPERIMENT, RECORD, is_sweep, read_sweep

KIND = "robo-razor archive"
VERSION = 1
ABOUT = "archive.json"
SUFFIX = ".tar.xz"
BEST_LINK = "/checkpoints/best"
TEXTS = (".json", ".jsonl", ".yaml")
"""Files in which the directory's own path is replaced, so that an archive does not contain it."""
ALLOWED = "run directories, sweep directories, files made by `robo-razor archive`"

MAX_TOTAL_BYTES = 512 * 2**20
"""Size of everything in an archive; a sweep of 128 runs has 38 MB."""
FREE_BYTES, MAX_RATIO = 64 * 2**20, 250
"""Beyond so many bytes an archive may unpack to at most so many times its size; real ones: 35."""
MAX_MEMBERS = 10_000
"""Files in an archive; a sweep of 42 runs has 857."""
MAX_HEADER_BYTES = 16 * 2**10
"""Size of `archive.json` and of an extended header, which only long names need."""
MAX_PATH, MAX_NAME_BYTES, MAX_DEPTH = 1000, 255, 12
"""Characters of a member's path, bytes of each of its names, and how many of them."""
MAX_MEMORY_BYTES = 256 * 2**20
"""Memory for decompression; `archive` needs 65 MiB."""
MAX_CHUNK_BYTES, CHUNK_READ_BYTES = 2**20, 2**16

_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_XZ = b"\xfd7zXZ\x00"
_STEP = re.compile(r"[0-9]{6,18}")
_KEPT = re.compile(  # DIRECTORY, and of a sweep ARM and RUN; then what a run directory is made of
    r"[^/]+/(?:sweep\.json|experiment\.yaml|(?:[^/]+/){0,4}"
    r"(?:config\.yaml|environment\.json|metrics\.jsonl|checkpoints/best"
    r"|eval/[0-9]{6,18}/(?:summary\.json|episodes\.jsonl)))"
)
_NOT_IN_NAMES = re.compile(r"\\|^[A-Za-z]:")
"""What leads out of the folder on Windows."""
_UNUSUAL_IN_NAMES = re.compile(r"[^\w.,=+-]")


@dataclass(frozen=True)
class Archived:
    """An archive that was written."""

    file: Path
    size: int
    """Bytes."""
    runs: int
    """Runs in it."""


def write_archive(directory: str | Path, out: str | Path | None = None) -> Archived:
    """Write what a sweep or a run measured to one file.

    Args:
        directory: A sweep's directory, whose finished runs are packed, or a run's.
        out: The file, `NAME.tar.xz`; None: the directory's name, in the current folder.

    Raises:
        ConfigError: No directory or no file name is given.
        RunDirectoryError: The directory holds neither a sweep nor a run with an evaluation.
    """
    if not str(directory):
        raise ConfigError(
            "No directory to archive",
            remedy="Name a sweep's or a run's: `robo-razor archive runs/razor`.",
        )
    source = Path(directory)
    file = Path(out or f"{source.resolve().name}{SUFFIX}")
    if not file.name.endswith(SUFFIX):
        raise ConfigError(f"`out` = {str(file)!r} is not the name of an archive", f"NAME{SUFFIX}")
    check_writable(file, "out")
    data, runs = pack(source)
    write_bytes(file, data)
    return Archived(file, len(data), runs)


def pack(source: Path) -> tuple[bytes, int]:
    """Return a sweep's or a run's archive, and how many runs are in it.

    Unfinished runs of a sweep are left out; `sweep` would begin them again.

    Raises:
        RunDirectoryError: The directory holds neither a sweep nor a run with an evaluation.
    """
    contents = _sweep_files(source) if is_sweep(source) else _run_files(source)
    name, files, runs, record = contents
    place, made_by = f"runs/{name}", version("robo-razor")
    about = {"kind": KIND, "version": VERSION, "directory": name, "robo_razor": made_by}
    targets = {f"{name}/{file.relative_to(source)}": file for file in sorted(files)}
    _refuse_to_pack(targets)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as archive:
        _add(archive, ABOUT, (json.dumps(about, indent=2) + "\n").encode())
        if record is not None:
            _add(archive, f"{name}/{RECORD}", _placed(record, source, place))
        for target, file in targets.items():
            if target.endswith(BEST_LINK):
                link = tarfile.TarInfo(target)
                link.type, link.linkname = tarfile.SYMTYPE, read_link(file) or ""
                if _STEP.fullmatch(link.linkname):
                    archive.addfile(link)
            else:
                data = file.read_bytes()
                is_text = file.suffix in TEXTS
                _add(archive, target, _placed(data, source, place) if is_text else data)
    return buffer.getvalue(), runs


def _refuse_to_pack(targets: Mapping[str, Path]) -> None:
    """Refuse what could not be unpacked again.

    Raises:
        RunDirectoryError: There is too much, or a name cannot be used on every system.
    """
    sizes = [file.stat().st_size for file in targets.values() if file.is_file()]
    if sum(sizes) > 0.9 * MAX_TOTAL_BYTES or len(sizes) > 0.9 * MAX_MEMBERS:
        raise RunDirectoryError(
            f"This is too much for one archive: {len(sizes)} files, {sum(sizes) / 2**20:.0f} MiB",
            allowed=f"{MAX_MEMBERS} files, {MAX_TOTAL_BYTES / 2**20:g} MiB",
            remedy="Archive runs one by one.",
        )
    for name in targets:
        try:
            _refuse_name(name)
        except ValueError as error:
            raise RunDirectoryError(
                f"The directory cannot be archived: {error}", remedy="Rename that directory."
            ) from error


@contextlib.contextmanager
def unpacked(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield paths of directories: archives are unpacked for as long as the block lasts.

    Errors within the block name the archive, not the place where it was unpacked.

    Raises:
        ReportError: A file is not an archive of robo-razor, is damaged, or holds too much.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = {
            # Runs of the same name differ in the folders above them.
            path: Path(folder, str(i + 1), _UNUSUAL_IN_NAMES.sub("_", Path(path).name)[-100:])
            for i, path in enumerate(paths)
            if is_archive(path)
        }
        directories = {path: str(unpack(Path(path), place)) for path, place in places.items()}
        try:
            yield [directories.get(path, path) for path in paths]
        except RoboRazorError as error:
            text = str(error)
            for path, place in places.items():
                text = text.replace(str(place), path)
            if text == str(error):
                raise
            raise ReportError(text) from error


def is_archive(path: str | Path) -> bool:
    """Return whether a path is a file, which only an archive can be."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # a name that is too long, or none at all
        reason = error.strerror if isinstance(error, OSError) else error
        raise ReportError(
            f"{shown(str(path))} cannot be opened ({reason})", allowed=ALLOWED
        ) from error


def unpack(file: Path, folder: Path) -> Path:
    """Unpack what a report reads of an archive; return the run's or sweep's directory.

    Archives are passed around, so one may hold anything. Only regular files with names that `pack`
    gives are written, below `folder`. Everything else is skipped (weights, videos) or refused
    (links, devices, names that lead elsewhere). The unpacked bytes are counted while they are read.

    Args:
        file: The archive.
        folder: A directory that does not exist yet.

    Raises:
        ReportError: It is not an archive of robo-razor, is damaged, or holds too much.
    """
    try:
        return _unpack(file, folder)
    except (ValueError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise ReportError(
            f"{shown(str(file))} is not an archive that can be read: {error}", allowed=ALLOWED
        ) from error
    except OSError as error:
        raise ReportError(
            f"The archive {shown(str(file))} cannot be unpacked ({error.strerror})",
            remedy="Check its permissions, and the room for temporary files (TMPDIR).",
        ) from error


def _unpack(file: Path, folder: Path) -> Path:
    """Unpack an archive; one that is refused writes nothing.

    Raises:
        ValueError: The archive is not what it should be.
    """
    directory = _read(file)
    _read(file, folder)
    return folder / directory


def _read(file: Path, folder: Path | None = None) -> str:
    """Check all of an archive; write its files below `folder`; return the archive's directory.

    Raises:
        ValueError: The archive is not what it should be.
    """
    names = _Names()
    about: bytes | None = None
    for member, data in _members(file):
        if member.name == ABOUT:
            names.add(ABOUT)
            about = data
        elif _KEPT.fullmatch(member.name):
            names.add(member.name)
            if member.name.endswith(BEST_LINK):
                if not member.issym() or not _STEP.fullmatch(member.linkname):
                    raise ValueError(f"{shown(member.name)} is not a link to a step")
                data = member.linkname.encode()  # `read_link` takes it too
            elif not member.isreg():
                raise ValueError(f"{shown(member.name)} is not a file")
            if folder is not None:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    directory = _directory(about)
    if foreign := names.folders - {directory}:
        raise ValueError(f"{shown(min(foreign))} in it does not belong to {shown(directory)}")
    if directory not in names.folders:
        raise ValueError(f"it holds nothing of {shown(directory)}")
    return directory


class _Names:
    """The names that are unpacked: each occurs once, even on systems that ignore capitals."""

    def __init__(self) -> None:
        self.folders: set[str] = set()
        """Topmost folders."""
        self._files: set[str] = set()
        self._parents: set[str] = set()

    def add(self, name: str) -> None:
        """Take a name.

        Raises:
            ValueError: It was taken before, as a file or as a folder.
        """
        key = unicodedata.normalize("NFKC", name).casefold()
        parents = {str(parent) for parent in PurePosixPath(key).parents} - {"."}
        if key in self._files:
            raise ValueError(f"it holds {shown(name)} twice")
        if key in self._parents or parents & self._files:
            raise ValueError(f"{shown(name)} is both a file and a folder in it")
        self._files.add(key)
        self._parents |= parents
        if "/" in name:
            self.folders.add(name.split("/", 1)[0])


def _directory(about: bytes | None) -> str:
    """Return the directory that `archive.json` names.

    Raises:
        ValueError: There is no such file, or another program wrote it.
    """
    if about is None:
        raise ValueError(f"it holds no {ABOUT}")
    try:
        data = parse_json(about.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"its {ABOUT} is damaged ({error})") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ValueError(f"its {ABOUT} is not that of an archive")
    if type(data.get("version")) is not int or data["version"] != VERSION:
        raise ValueError(f"its version is {shown(data.get('version'))}, not {VERSION}")
    directory = data.get("directory")
    if not isinstance(directory, str) or "/" in directory or not _is_plain(directory):
        raise ValueError(f"its {ABOUT} names no directory, but {shown(directory)}")
    return directory


def _members(file: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the members of a tar file in xz with their content; skipped ones have none.

    `tarfile` itself reads whatever a header asks for (sparse files, extended headers of any size),
    so only its parser of single headers is used.
    """
    with file.open("rb") as raw:
        stream = _Stream(raw)
        count, name = 0, None
        while any(block := stream.read(tarfile.BLOCKSIZE)):
            count += 1
            if count > MAX_MEMBERS:
                raise ValueError(f"it holds more than {MAX_MEMBERS} files")
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            stream.reserve(member.size)
            if member.type == tarfile.XHDTYPE:
                if member.size > MAX_HEADER_BYTES:
                    raise ValueError("an extended header of it is too long")
                name = _extended_name(stream.read_padded(member.size))
                continue
            member.name, name = (member.name if name is None else name), None
            _refuse_member(member)
            if member.isreg() and (member.name == ABOUT or _KEPT.fullmatch(member.name)):
                if member.size > (MAX_HEADER_BYTES if member.name == ABOUT else MAX_TEXT_BYTES):
                    raise ValueError(f"{shown(member.name)} is too large ({member.size} bytes)")
                yield member, stream.read_padded(member.size)
            else:
                stream.skip_padded(member.size)
                yield member, b""
        stream.refuse_rest()


def _refuse_member(member: tarfile.TarInfo) -> None:
    if member.type not in (*_FILE_TYPES, tarfile.DIRTYPE, tarfile.SYMTYPE):
        raise ValueError(f"{shown(member.name)} is neither a file nor a folder")
    if member.type not in _FILE_TYPES and member.size:
        raise ValueError(f"{shown(member.name)} is damaged")
    _refuse_name(member.name.removesuffix("/"))


def _refuse_name(name: str) -> None:
    parts = name.split("/")
    if len(name) > MAX_PATH or len(parts) > MAX_DEPTH:
        raise ValueError(f"the name {shown(name)} is too long")
    if not all(_is_plain(part) for part in parts):
        raise ValueError(f"the name {shown(name)} leads elsewhere or cannot be used")


def _is_plain(name: str) -> bool:
    """Return whether a text can name a file in its folder, on every system."""
    return (
        0 < len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES
        and name.isprintable()
        and name not in (".", "..")
        and not _NOT_IN_NAMES.search(name)
    )


def _extended_name(data: bytes) -> str | None:
    """Return the path of an extended header: records of `LENGTH KEY=VALUE` and a line's end."""
    path = None
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(data):
            raise ValueError("an extended header of it is damaged")
        record, data = data[len(digits) + 1 : int(digits)], data[int(digits) :]
        key, _, value = record.removesuffix(b"\n").partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key in (b"size", b"linkpath") or key.startswith(b"GNU.sparse"):
            raise ValueError(
                f"an extended header of it has {shown(key.decode('ascii', 'replace'))}"
            )
    return path


class _Stream:
    """The unpacked bytes of an xz file, block by block, up to the allowed size."""

    def __init__(self, raw: BinaryIO) -> None:
        head = raw.read(len(_XZ))
        if head != _XZ:
            raise ValueError("it is not a tar file in xz")
        self._raw = raw
        self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY_BYTES)
        self._buffer = bytearray(self._xz.decompress(head, MAX_CHUNK_BYTES))
        self._left, self._read = MAX_TOTAL_BYTES, 0

    def reserve(self, size: int) -> None:
        """Refuse a member that is larger than the remaining allowance, before it is read."""
        if size < 0:
            raise ValueError("it is damaged")
        if size > self._left:
            raise ValueError(f"it unpacks to more than {MAX_TOTAL_BYTES / 2**20:g} MiB")

    def read(self, size: int) -> bytes:
        """Return the next bytes; an early end is an error."""
        while len(self._buffer) < size:
            chunk = self._next()
            if not chunk:
                raise ValueError("it is truncated")
            self._buffer += chunk
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def read_padded(self, size: int) -> bytes:
        """Return the next bytes and skip the padding of their last block."""
        return self.read(_padded(size))[:size]

    def skip_padded(self, size: int) -> None:
        """Skip the next bytes and their padding."""
        remaining = _padded(size)
        while remaining:
            remaining -= len(self.read(min(remaining, MAX_CHUNK_BYTES)))

    def refuse_rest(self) -> None:
        """Refuse anything but zeros up to the end, and anything after it."""
        chunk = bytes(self._buffer)
        while True:
            if any(chunk):
                raise ValueError("something follows its end")
            chunk = self._next()
            if not chunk:
                break
        if self._xz.unused_data or self._raw.read(1):
            raise ValueError("something follows its end")

    def _next(self) -> bytes:
        """Return the next unpacked part; empty at the end."""
        while not self._xz.eof:
            data = self._raw.read(CHUNK_READ_BYTES) if self._xz.needs_input else b""
            if self._xz.needs_input and not data:
                raise ValueError("it is truncated")
            chunk = self._xz.decompress(data, MAX_CHUNK_BYTES)
            self._read += len(data)
            self._left -= len(chunk)
            self.reserve(0 if self._left >= 0 else 1)
            if MAX_TOTAL_BYTES - self._left > FREE_BYTES + MAX_RATIO * self._read:
                raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size")
            if chunk:
                return chunk
        return b""


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _sweep_files(source: Path) -> tuple[str, list[Path], int, bytes | None]:
    record = read_sweep(source)
    paths = [source / entry["path"] for entry in record["runs"] if entry["state"] == "finished"]
    finished = [RunDirectory.open(path) for path in paths]
    if not finished:
        raise RunDirectoryError(
            f"The sweep {str(source)!r} has no finished run yet",
            remedy="Wait for the first one: unfinished runs cannot be archived.",
        )
    # The record as it was read: a run may end meanwhile. Errors are dropped, as they quote paths.
    runs = [{**entry, "error": None} for entry in record["runs"]]
    text = json.dumps({**record, "runs": runs}, indent=2) + "\n"
    files = [file for file in [source / EXPERIMENT] if file.is_file()]
    files += [file for run in finished for file in run.measured()]
    return record["name"], files, len(finished), text.encode()


def _run_files(source: Path) -> tuple[str, list[Path], int, bytes | None]:
    run = RunDirectory.open(source)
    if not run.summaries():
        raise RunDirectoryError(
            f"The run {str(source)!r} holds no evaluation yet",
            remedy="Wait for its first checkpoint (step 0 is measured before training starts).",
        )
    return source.resolve().name, run.measured(), 1, None


def _placed(data: bytes, source: Path, place: str) -> bytes:
    """Return a text with the path of `source` replaced."""
    for path in dict.fromkeys((str(source.resolve()), str(source.absolute()))):
        pattern = re.escape(path).encode() + rb"(?![^/\s\"'])"  # not where a longer name begins
        data = re.sub(pattern, lambda _: place.encode(), data)
    return data


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # owner and time stay 0: equal runs, equal bytes
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
