"""What a sweep or a run measured, as one small file without weights: to share, or to keep in git.

`robo-razor archive runs/razor --out razor.tar.xz` keeps what a report reads (settings, summaries,
episodes, metrics) and leaves out weights, optimizers, probe states and TensorBoard's files::

    archive.json            {"kind", "version", "directory", "robo_razor"}
    DIRECTORY/              the sweep's or run's own layout; settings name it `runs/DIRECTORY`

`robo-razor compare razor.tar.xz` reads it as if it were the directory. A sweep goes on from one:
`tar -xf razor.tar.xz -C runs`, then the same `robo-razor sweep`; archived runs count as finished.

The same runs give the same bytes, whoever packs them and when.
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from robo_razor.checkpoint import RunDirectory
from robo_razor.config import ArchiveConfig
from robo_razor.errors import ConfigError, ReportError, RunDirectoryError
from robo_razor.files import check_writable, write_bytes
from robo_razor.sweep import EXPERIMENT, RECORD, read_sweep

KIND = "robo-razor archive"
VERSION = 1
ABOUT = "archive.json"
SUFFIX = ".tar.xz"
TEXTS = (".json", ".jsonl", ".yaml")
"""Files in which the directory's own place is replaced: where it lay is nobody's business."""


def run_archive(config: ArchiveConfig) -> None:
    """Run `robo-razor archive`.

    Raises:
        ConfigError: No directory or no file name is given.
        RunDirectoryError: The directory holds neither a sweep nor a run with an evaluation.
    """
    if not config.directory:
        raise ConfigError(
            "No directory to archive",
            remedy="Name a sweep's or a run's: `robo-razor archive runs/razor`.",
        )
    source = Path(config.directory)
    out = Path(config.out or f"{source.resolve().name}{SUFFIX}")
    if not out.name.endswith(SUFFIX):
        raise ConfigError(f"out = {str(out)!r} is no name for an archive", allowed=f"NAME{SUFFIX}")
    check_writable(out, "out")
    data, runs = pack(source)
    write_bytes(out, data)
    size = f"{len(data) / 1e6:.2f} MB"
    what = "1 run" if runs == 1 else f"{runs} finished runs"
    Console().print(f"{what} of {source} in {out} ({size})", markup=False, soft_wrap=True)


def pack(source: Path) -> tuple[bytes, int]:
    """Return a sweep's or a run's archive, and how many runs are in it.

    Runs of a sweep that are not finished are left out; `sweep` would begin them anew.

    Raises:
        RunDirectoryError: The directory holds neither a sweep nor a run with an evaluation.
    """
    found = _sweep_files(source) if (source / RECORD).is_file() else _run_files(source)
    name, files, runs, record = found
    place, made_by = f"runs/{name}", version("robo-razor")
    about = {"kind": KIND, "version": VERSION, "directory": name, "robo_razor": made_by}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as archive:
        _add(archive, ABOUT, (json.dumps(about, indent=2) + "\n").encode())
        if record is not None:
            _add(archive, f"{name}/{RECORD}", _placed(record, source, place))
        for file in sorted(files):
            target = f"{name}/{file.relative_to(source)}"
            if file.is_symlink():
                link = tarfile.TarInfo(target)
                link.type, link.linkname = tarfile.SYMTYPE, os.readlink(file)
                archive.addfile(link)
            else:
                data = file.read_bytes()
                is_text = file.suffix in TEXTS
                _add(archive, target, _placed(data, source, place) if is_text else data)
    return buffer.getvalue(), runs


@contextlib.contextmanager
def unpacked(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield paths of directories: archives are unpacked for as long as the block lasts.

    Raises:
        ReportError: A file is no archive of ours, or a damaged one.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield [
            # Runs that are called alike are told apart by the folders above them.
            str(_unpack(Path(path), Path(folder, str(i + 1), Path(path).name)))
            if Path(path).is_file()
            else path
            for i, path in enumerate(paths)
        ]


def _unpack(file: Path, folder: Path) -> Path:
    problem = None
    try:
        folder.mkdir(parents=True)
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        directory = Path(folder, Path(str(about["directory"])).name)
        if about.get("kind") != KIND or not directory.is_dir():
            problem = f"it holds no {ABOUT} of one"
        elif about.get("version") != VERSION:
            problem = f"its version is {about.get('version')}, not {VERSION}"
    except FileNotFoundError:
        problem = f"it holds no {ABOUT}"
    except (
        tarfile.TarError,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        problem = f"it is truncated or no tar file ({error})"
    if problem is not None:
        raise ReportError(
            f"{str(file)!r} is no archive that can be read: {problem}",
            allowed="run directories, sweep directories, files made by `robo-razor archive`",
        )
    return directory


def _sweep_files(source: Path) -> tuple[str, list[Path], int, bytes | None]:
    record = read_sweep(source)
    paths = [source / entry["path"] for entry in record["runs"] if entry["state"] == "finished"]
    finished = [RunDirectory.open(path) for path in paths]
    if not finished:
        raise RunDirectoryError(
            f"The sweep {str(source)!r} has no finished run yet",
            remedy="Wait for one; its runs that are under way cannot be archived.",
        )
    # What was read, not what is there now: a run may end meanwhile. Errors quote paths.
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
    """Return a text with the place of `source` replaced."""
    for path in dict.fromkeys((str(source.resolve()), str(source.absolute()))):
        pattern = re.escape(path).encode() + rb"(?![^/\s\"'])"  # not another name's beginning
        data = re.sub(pattern, lambda _: place.encode(), data)
    return data


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # owner and time stay 0: equal runs, equal bytes
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
