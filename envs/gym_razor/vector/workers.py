"""Worker processes: starting, watching, messages, stopping, and their shared memory.

A worker runs one `Group` of environments. Numbers and pictures pass through shared arrays, commands
and their short answers through a pipe. Workers are spawned, never forked: a forked OpenGL context
or thread pool hangs. `LocalWorker` runs a group in this process behind the same methods.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]
Layout = Mapping[str, tuple[tuple[int, ...], Any]]
"""Name -> shape and dtype of a shared array."""

_ALIGNMENT = 64


class Group(Protocol):
    """Some environments of one process. Commands beyond these are called by their name."""

    def describe(self) -> Any:
        """Return what the vector environment needs before there are arrays; it is pickled."""

    def attach(self, arrays: Arrays) -> None:
        """Store the arrays that all groups share; each group writes its environments' rows."""

    def close(self) -> None:
        """Close the environments."""


MakeGroup = Callable[[], Group]


def by_value(value: Any) -> CloudpickleWrapper:
    """Wrap a value for a worker (as `.fn`), with the code of functions it could not import."""
    return CloudpickleWrapper(value)


class WorkerFault(RuntimeError):
    """A worker failed; the text continues a sentence that begins with the worker's name."""


class LocalWorker:
    """A group in this process. Its exceptions are raised here unchanged."""

    process: Any = None

    def __init__(self, make: MakeGroup, name: str) -> None:
        self.name = name
        self._group = make()
        self._answers: list[Any] = [self._group.describe()]

    def attach(self, memory: SharedMemory | None, layout: Layout, arrays: Arrays) -> None:
        """Give the group its arrays."""
        del memory, layout
        self._group.attach(arrays)
        self._answers.append(None)

    def send(self, command: str, *arguments: Any) -> None:
        """Execute a command at once."""
        self._answers.append(getattr(self._group, command)(*arguments))

    def receive(self, *, is_ready: bool = False) -> Any:
        """Return the answer to the oldest command."""
        del is_ready
        return self._answers.pop(0)

    def stop(self, *, kill: bool) -> None:
        """Close the environments."""
        del kill
        self._group.close()

    def join(self) -> None:
        """Do nothing: there is no process."""


class RemoteWorker:
    """A group in a process of its own."""

    def __init__(self, make: MakeGroup, name: str, timeout_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, worker_end = context.Pipe()
        self.name, self.timeout_s = name, timeout_s
        self._last_command = "the construction of its environments"
        self.process = context.Process(
            target=_serve, args=(worker_end, by_value(make)), name=name, daemon=True
        )
        self.process.start()
        worker_end.close()

    def attach(self, memory: SharedMemory | None, layout: Layout, arrays: Arrays) -> None:
        """Give the group its arrays."""
        del arrays
        assert memory is not None
        self.send("attach", memory.name, layout)

    def send(self, command: str, *arguments: Any) -> None:
        """Send a command; `receive` returns the answer.

        Raises:
            WorkerFault: The process is dead.
        """
        self._last_command = command
        try:
            self.connection.send((command, arguments))
        except OSError as error:
            raise self._died() from error

    def receive(self, *, is_ready: bool = False) -> Any:
        """Return the answer to the oldest command.

        Args:
            is_ready: True skips the wait for an answer (a twentieth of a millisecond).

        Raises:
            WorkerFault: The process died, raised, or gave no answer for `timeout_s`.
        """
        if not is_ready and not self.connection.poll(self.timeout_s):
            self.process.kill()
            raise WorkerFault(
                f"gave no answer for {self.timeout_s:.0f} s after {self._last_command} (a hung "
                "OpenGL call?) and was stopped"
            )
        try:
            status, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if status == "error":
            raise WorkerFault(f"raised {answer}")
        return answer

    def stop(self, *, kill: bool) -> None:
        """Ask the process to end, or kill it; `join` waits for its end."""
        if kill:
            self.process.kill()
        else:
            with contextlib.suppress(OSError):
                self.connection.send(("close", ()))

    def join(self) -> None:
        """Wait a few seconds for the process, then kill it."""
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout=5)
        self.connection.close()

    def _died(self) -> Exception:
        self.process.join(timeout=5)
        code = self.process.exitcode
        cause = " (-9: the system stopped it, usually for memory)" if code == -9 else ""
        return WorkerFault(f"died with exit code {code}{cause} in {self._last_command}")


Worker = LocalWorker | RemoteWorker


def start_workers(
    makers: Sequence[tuple[str, MakeGroup]],
    *,
    local: bool,
    timeout_s: float,
    variables: Mapping[str, str],
) -> list[Worker]:
    """Start a worker for each group.

    Args:
        makers: Worker's name and group's maker, for each group. What a worker could not import is
            pickled by value.
        local: Run the groups in this process.
        timeout_s: Longest wait for an answer.
        variables: Environment variables of the worker processes.
    """
    if local:
        return [LocalWorker(make, name) for name, make in makers]
    started: list[Worker] = []
    with _hidden_program(), preserved_variables(variables):
        os.environ.update(variables)
        for name, make in makers:
            started.append(RemoteWorker(make, name, timeout_s))
    return started


@contextlib.contextmanager
def _hidden_program() -> Iterator[None]:
    """Keep processes that start inside from running this program's main module.

    Python lets a spawned process import the main module. A script without a main guard would make
    its environments again there, without end. A worker does not need the module: what it defines is
    pickled by value. So scripts need no main guard, and programs from standard input can have
    workers, too.
    """
    main: dict[str, Any] = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {
        name: main.pop(name) for name in ("__file__", "__spec__") if name in main
    }
    main["__spec__"] = None
    try:
        yield
    finally:
        main.pop("__spec__")
        main.update(hidden)


def first_ready(workers: Mapping[int, Worker]) -> tuple[int, bool]:
    """Wait for the first of some workers; return its key, and whether it answered in time."""
    connections: dict[Any, int] = {}
    longest_s = 0.0
    for index, worker in workers.items():
        if isinstance(worker, LocalWorker):
            return index, True
        connections[worker.connection] = index
        longest_s = max(longest_s, worker.timeout_s)
    ready = wait(list(connections), longest_s)
    if not ready:
        return next(iter(workers)), False
    return min(connections[connection] for connection in ready), True


class SharedArrays:
    """Arrays that workers write and the parent reads; plain memory if all workers are local.

    Attributes:
        arrays: Name -> array, zeros at first.
        memory: Their block of shared memory; it loses its name once every worker has it open.
    """

    def __init__(self, workers: Sequence[Worker], layout: Layout) -> None:
        self.memory: SharedMemory | None = None
        self._has_name = False
        if any(worker.process is not None for worker in workers):
            self.memory = SharedMemory(create=True, size=_size(layout))
            self._has_name = True
        self.arrays = _map_arrays(self.memory, layout)
        for worker in workers:
            worker.attach(self.memory, layout, self.arrays)

    def forget_name(self) -> None:
        """Unlink the memory. It stays mapped, and nothing is left behind if a process is killed."""
        if self._has_name and self.memory is not None:
            self.memory.unlink()
        self._has_name = False

    def close(self) -> None:
        """Free the memory; arrays that are still in use keep it."""
        self.arrays = {}
        if self.memory is not None:
            with contextlib.suppress(BufferError):
                self.memory.close()
            self.forget_name()
            self.memory = None


def _serve(connection: Connection, make: CloudpickleWrapper) -> None:
    """Serve a group until the command to close comes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    memory: SharedMemory | None = None
    try:
        group: Any = make.fn()
        connection.send(("ok", group.describe()))
        while True:
            command, arguments = connection.recv()
            if command == "attach":
                name, layout = arguments
                memory = SharedMemory(name=name)
                arguments = (_map_arrays(memory, layout),)
            connection.send(("ok", getattr(group, command)(*arguments)))
            if command == "close":
                return
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except BaseException as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        with contextlib.suppress(OSError):
            connection.send(("error", text))


def _map_arrays(memory: SharedMemory | None, layout: Layout) -> Arrays:
    """Return the arrays, in one block of shared memory, or in plain memory if None."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in layout.items():
        if memory is None:
            arrays[name] = np.zeros(shape, dtype)
        else:
            arrays[name] = np.ndarray(shape, dtype, buffer=memory.buf, offset=offset)
            offset += _aligned(arrays[name].nbytes)
    return arrays


def _size(layout: Layout) -> int:
    return sum(
        _aligned(int(np.prod(shape)) * np.dtype(dtype).itemsize) for shape, dtype in layout.values()
    )


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@contextlib.contextmanager
def preserved_variables(names: Iterable[str]) -> Iterator[None]:
    """Restore some environment variables after what changes them inside."""
    saved = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
