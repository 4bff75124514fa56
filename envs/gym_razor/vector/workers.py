"""Worker processes: started, watched, spoken to, and stopped; their memory is shared.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        """Return what the vector environment must know before there are arrays; it is pickled."""

    def attach(self, arrays: Arrays) -> None:
        """Keep the arrays that all groups share; each writes the rows of its own environments."""

    def close(self) -> None:
        """Close the environments."""


MakeGroup = Callable[[], Group]


def by_value(thing: Any) -> CloudpickleWrapper:
    """Wrap what goes to a worker (as `.fn`): functions it could not import travel whole."""
    return CloudpickleWrapper(thing)


class WorkerFault(RuntimeError):
    """What went wrong with a worker; the text goes on after its name."""


class LocalWorker:
    """A group in this process. What it raises is raised here, as it is."""

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
        """Do what is asked at once."""
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
        self.connection, theirs = context.Pipe()
        self.name, self.timeout_s = name, timeout_s
        self._last_command = "the construction of its environments"
        self.process = context.Process(
            target=_serve, args=(theirs, by_value(make)), name=name, daemon=True
        )
        self.process.start()
        theirs.close()

    def attach(self, memory: SharedMemory | None, layout: Layout, arrays: Arrays) -> None:
        """Give the group its arrays."""
        del arrays
        assert memory is not None
        self.send("attach", memory.name, layout)

    def send(self, command: str, *arguments: Any) -> None:
        """Ask for something; `receive` returns the answer.

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
            is_ready: True spares a look whether there is one (a twentieth of a millisecond).

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
        """Ask the process to end, or end it; `join` waits until it has."""
        if kill:
            self.process.kill()
        else:
            with contextlib.suppress(OSError):
                self.connection.send(("close", ()))

    def join(self) -> None:
        """Wait a few seconds for the process, then end it."""
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout=5)
        self.connection.close()

    def _died(self) -> Exception:
        self.process.join(timeout=5)
        code = self.process.exitcode
        why = " (-9: the system stopped it, usually for memory)" if code == -9 else ""
        return WorkerFault(f"died with exit code {code}{why} in {self._last_command}")


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
        makers: Per group its worker's name and its maker, which is pickled by value where it must.
        local: Run the groups in this process.
        timeout_s: Longest wait for an answer.
        variables: What a worker process finds among its environment variables.
    """
    if local:
        return [LocalWorker(make, name) for name, make in makers]
    started: list[Worker] = []
    with _hidden_program(), _environment_variables(variables):
        for name, make in makers:
            started.append(RemoteWorker(make, name, timeout_s))
    return started


@contextlib.contextmanager
def _hidden_program() -> Iterator[None]:
    """Keep processes that start within from running this program's main module first.

    Python has a spawned process import it, and a script that makes environments as it is read
    would make them again there, without end. A worker needs nothing of it: what is defined in the
    main module travels by value. So scripts need no main guard, and programs from standard input
    have workers, too.
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
    """Wait for one of some workers; return its key, and whether it has answered in time."""
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
    """Arrays that workers write and the parent reads; plain memory where all workers are local.

    Attributes:
        arrays: Name -> array, zeros at first.
        memory: The block that they lie in; it has no name once every worker has it open.
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
        """Unlink the memory: it stays mapped, and nothing is left behind, whatever is killed."""
        if self._has_name and self.memory is not None:
            self.memory.unlink()
        self._has_name = False

    def close(self) -> None:
        """Give the memory back; arrays that are still in use keep it."""
        self.arrays = {}
        if self.memory is not None:
            with contextlib.suppress(BufferError):
                self.memory.close()
            self.forget_name()
            self.memory = None


def _serve(connection: Connection, make: CloudpickleWrapper) -> None:
    """Serve a group until told to close or until the parent is gone."""
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
    """Lay the arrays into one block of shared memory, or plain memory if None."""
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
def _environment_variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set what a spawned worker must find before it imports OpenGL or BLAS."""
    saved = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
