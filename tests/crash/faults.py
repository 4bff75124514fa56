"""Does something at the k-th operation on files below a directory, in this process.

Operations are what Python's audit hooks report (open for writing, mkdir, rename, remove, link), and
what they do not: every flush to disk, every safetensors file, whose writer is not Python, and every
line of metrics. Before a safetensors file and a line of metrics there are two points: nothing of it
is written at the first, half of it at the second.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {
    "os.mkdir": (0,),
    "os.rename": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.truncate": (0,),
}
"""Audit event -> which of its arguments are paths that change."""


def _absolute(path: Any, directory: Any) -> Any:
    """Return a path that an operation gave relative to an open directory, as `rmtree` does."""
    if isinstance(directory, int) and directory >= 0 and isinstance(path, str | bytes):
        return os.path.join(os.readlink(f"/proc/self/fd/{directory}"), os.fsdecode(path))
    return path


class Faults:
    """Counts operations below a directory and acts at one of them.

    Args:
        directory: Only operations below it count.
        at: Number of the operation, from 1; 0 only counts.
        kind: "kill" (SIGKILL), "term" (SIGTERM) or "full" (that operation finds the disk full).
    """

    def __init__(self, directory: Path, at: int = 0, kind: str = "kill") -> None:
        self.directory = str(directory.resolve())
        self.at, self.kind = at, kind
        self.count = 0
        self.what = ""

    def install(self) -> None:
        """Begin to count; there is no way back, so call it in a process of its own."""
        self._wrap_fsync()
        self._wrap_safetensors()
        self._wrap_metrics()
        sys.addaudithook(self._hear)

    def point(self, what: str, path: object) -> None:
        """Count one operation, and act if it is the one."""
        if not self._is_below(path):
            return
        self.count += 1
        if self.count != self.at:
            return
        self.what = f"{what} {os.path.relpath(os.fsdecode(path), self.directory)}"  # type: ignore[arg-type]
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def _is_below(self, path: object) -> bool:
        if isinstance(path, bytes | str | os.PathLike):
            absolute = os.path.abspath(os.fsdecode(path))
            return absolute == self.directory or absolute.startswith(self.directory + os.sep)
        return False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(c in mode for c in "wax+") if mode else bool((flags or 0) & WRITING)
            if writes:
                self.point("open", path)
        elif event in EVENTS:
            for index in EVENTS[event]:
                directory = None if event == "os.truncate" else arguments[-1]
                self.point(event, _absolute(arguments[index], directory))

    def _wrap_fsync(self) -> None:
        fsync = os.fsync

        def counted(fd: int) -> None:
            self.point("fsync", os.readlink(f"/proc/self/fd/{fd}"))
            fsync(fd)

        os.fsync = counted

    def _wrap_safetensors(self) -> None:
        import safetensors.torch

        def wrapped(save: Callable[..., Any]) -> Callable[..., Any]:
            def save_file(tensors: Any, filename: Any, *rest: Any, **more: Any) -> Any:
                self.point("before the weights of", filename)
                result = save(tensors, filename, *rest, **more)
                if self.at == self.count + 1 and self._is_below(filename):
                    self._halve(filename)
                try:
                    self.point("half of the weights of", filename)
                except OSError as error:  # as its writer reports it
                    text = f"I/O error: {error.strerror} (os error {error.errno})"
                    raise safetensors.SafetensorError(text) from None
                return result

            return save_file

        original = safetensors.torch.save_file
        replaced = wrapped(original)
        for module in list(sys.modules.values()):
            if vars(module).get("save_file") is original:
                module.save_file = replaced  # type: ignore[attr-defined]

    def _halve(self, path: Any) -> None:
        count, self.count = self.count, -(10**9)  # what is done here is not the product's doing
        os.truncate(path, os.path.getsize(path) // 2)
        self.count = count

    def _wrap_metrics(self) -> None:
        from robo_razor.core.sinks.jsonl import JsonLines

        log = JsonLines.log
        faults = self

        def with_file(lines: JsonLines, step: int, values: Any) -> None:
            if lines._file is not None and not isinstance(lines._file, _HalfWritten):
                lines._file = _HalfWritten(lines._file, faults)  # type: ignore[assignment]
            log(lines, step, values)

        JsonLines.log = with_file  # type: ignore[method-assign]


class _HalfWritten:
    """A text file each of whose writes can be cut in the middle."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, text: str) -> None:
        self._faults.point("before a line of", self._file.name)
        half = len(text) // 2
        self._file.write(text[:half])
        self._file.flush()
        self._faults.point("half a line of", self._file.name)
        self._file.write(text[half:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
