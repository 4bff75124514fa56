"""What a case may not do, whatever its files say; what it does is blocked and told.

An audit hook sees what Python opens, starts and imports. Libraries open files without it
(safetensors, parquet), so Linux tells as well when anything in `outside/` is opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STARTS = (
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
)
CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind")
CHANGES = {  # which arguments are paths that change: the name itself, not what a link leads to
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
}
FOLLOWS = ("os.truncate", "os.chmod", "os.chown", "os.utime")
"""What changes the file that a link leads to."""
OWN_PROGRAMS = ("git",)
"""What the program starts by itself, whatever files say: it asks for its own revision."""
SECRETS = ("/etc/passwd", "/proc/self/mem", "/dev/zero")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OPENED = 0x20 | 0x100 | 0x200 | 0x400 | 0x40 | 0x80 | 0x2
"""inotify's IN_OPEN, _CREATE, _DELETE, _DELETE_SELF, _MOVED_FROM, _MOVED_TO and _MODIFY."""


class Blocked(PermissionError):
    """A case did what no file may make the program do."""


class _Watch:
    """The case that is running, if any."""

    active = False
    told: list[str] = []  # noqa: RUF012
    writable: tuple[str, ...] = ()
    outside = ""
    given = ""
    may_read_outside = False


def tell(what: str) -> None:
    """Note a fault of the case that is running."""
    if _Watch.active and what not in _Watch.told:
        _Watch.told.append(what)


def _refuse(what: str) -> None:
    tell(what)
    raise Blocked(13, f"blocked by the fuzz test: {what}")


def _real(path: Any) -> str | None:
    if isinstance(path, int) or path is None:
        return None
    try:
        return os.path.realpath(os.fsdecode(path))
    except (TypeError, ValueError, OSError):
        return None


def _name(path: Any) -> Any:
    """Return a path whose folders are resolved and whose last part is not."""
    if isinstance(path, int) or path is None:
        return None
    folder, name = os.path.split(os.path.normpath(os.fsdecode(path)))
    return os.path.join(os.path.realpath(folder or "."), name)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _Watch.active:
        return
    if event == "open":
        _check_open(*arguments)
    elif event in CHANGES:
        for i in CHANGES[event]:
            _check_change(event, _name(arguments[i]))
    elif event in FOLLOWS:
        _check_change(event, arguments[0])
    elif (event == "subprocess.Popen" or event in STARTS) and arguments[0] not in OWN_PROGRAMS:
        _refuse(f"started a process: {event} {str(arguments)[:200]}")
    elif event in CALLS:
        _refuse(f"used the network: {event} {str(arguments[1:])[:200]}")
    elif event == "pickle.find_class":
        _refuse(f"unpickled {arguments[0]}.{arguments[1]}")
    elif event == "import" and str(arguments[0]).startswith("fuzz.trap"):
        tell("the trap was imported: a file named code that was loaded")
    elif event == "ctypes.dlopen":
        _check_library(arguments[0])
    elif event == "exec":
        _check_code(getattr(arguments[0], "co_filename", ""))


def _check_open(path: Any, mode: Any, flags: Any) -> None:
    real = _real(path)
    if real is None:
        return
    writes = bool(flags & WRITES) if isinstance(flags, int) else any(c in mode for c in "wax+")
    if writes:
        _check_change("open for writing", path)
    elif _below(real, _Watch.outside) and not _Watch.may_read_outside:
        _refuse(f"read outside: {os.path.relpath(real, _Watch.outside)}")
    elif real in SECRETS and not _Watch.may_read_outside:
        _refuse(f"read outside: {real}")


def _check_change(event: str, path: Any) -> None:
    real = path if event in CHANGES else _real(path)
    if real is None or real in ("/dev/null", "/dev/tty"):
        return
    allowed = any(_below(real, folder) for folder in _Watch.writable)
    if not allowed or _below(real, _Watch.outside):
        _refuse(f"changed a file outside: {event} {real}")


def _check_library(name: Any) -> None:
    real = _real(name)
    if real is not None and os.sep in os.fsdecode(name) and _below(real, _Watch.given):
        _refuse(f"loaded a library: {real}")


def _check_code(filename: str) -> None:
    real = _real(filename)
    if real is not None and _below(real, _Watch.given):
        _refuse(f"ran code: {real}")


_libc = ctypes.CDLL(None, use_errno=True)
sys.addaudithook(_hook)


@contextlib.contextmanager
def watched(
    given: Path, outside: Path, writable: Sequence[Path], *, may_read_outside: bool = False
) -> Iterator[list[str]]:
    """Watch what happens in the block; yield the list of faults, which grows.

    Args:
        given: Folder of the case's files.
        outside: Folder that nothing may touch, with files that names in other files point at.
        writable: Folders that may change.
        may_read_outside: Whether a file may name others to be read, as settings do.
    """
    watch = None
    if not may_read_outside:
        watch = _libc.inotify_init1(os.O_NONBLOCK)
        for path in (outside, *outside.rglob("*")):
            _libc.inotify_add_watch(watch, os.fsencode(path), OPENED)
    _Watch.told = []
    _Watch.given, _Watch.outside = str(given), str(outside)
    _Watch.writable = tuple(str(folder) for folder in writable)
    _Watch.may_read_outside = may_read_outside
    _Watch.active = True
    try:
        yield _Watch.told
        if watch is not None:
            with contextlib.suppress(BlockingIOError):
                if os.read(watch, 65536):
                    tell("touched a file outside")
    finally:
        _Watch.active = False
        if watch is not None:
            os.close(watch)
        sys.modules.pop("fuzz.trap", None)
