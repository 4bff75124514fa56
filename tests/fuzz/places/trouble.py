"""No place of the program's: it does everything that is forbidden, to try the test itself."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import socket
import subprocess
import threading
from collections.abc import Callable

from fuzz.place import Attempt, Enough, Folder, Place, Refused

TROUBLES = (
    "nothing",
    "enough",
    "a paragraph",
    "a long paragraph",
    "a traceback",
    "an exit",
    "an end",
    "a loop",
    "a wait",
    "memory",
    "a program",
    "a shell",
    "the trap",
    "a pickle",
    "a socket",
    "a secret",
    "a secret by a library",
    "a file outside",
    "a folder outside",
    "a removed file",
    "something left",
    "a thread",
)


class Trouble(Place):
    """Case number i makes the i-th trouble."""

    name = "trouble"

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Do nothing."""
        return lambda: None

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Not made from `rng`, but from the number in the folder's name."""
        kind = TROUBLES[int(folder.root.name.rpartition("-")[2])]
        return Attempt(kind, lambda: _make(kind, folder))


def _make(kind: str, folder: Folder) -> None:
    makers: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "enough": lambda: _raise(Enough()),
        "a paragraph": lambda: _raise(Refused("no")),
        "a long paragraph": lambda: _raise(Refused("no " * 3000)),
        "a traceback": lambda: _raise(ValueError("a fault")),
        "an exit": lambda: _raise(SystemExit(2)),
        "an end": lambda: os._exit(3),
        "a loop": _loop,
        "a wait": threading.Event().wait,
        "memory": lambda: bytearray(5 * 2**28),
        "a program": lambda: subprocess.run(["touch", "evil"], check=False),
        "a shell": lambda: os.system("touch evil"),
        "the trap": lambda: importlib.import_module("fuzz.trap").Trap(),
        "a pickle": lambda: pickle.loads(pickle.dumps(os.system)),
        "a socket": lambda: socket.create_connection(("127.0.0.1", 9)),
        "a secret": lambda: (folder.outside / "secret.txt").read_text(),
        "a secret by a library": lambda: _load(folder),
        "a file outside": lambda: (folder.root / "evil").touch(),
        "a folder outside": lambda: (folder.given / "evil").mkdir(),
        "a removed file": lambda: (folder.outside / "secret.txt").unlink(),
        "something left": lambda: (folder.temporary / "left").touch(),
        "a thread": _thread,
    }
    makers[kind]()


def _raise(error: BaseException) -> None:
    raise error


def _loop() -> None:
    while True:
        pass


def _load(folder: Folder) -> None:
    """Open a file where Python does not see it."""
    from safetensors.torch import load_file

    load_file(folder.outside / "secret.safetensors")


def _thread() -> None:
    thread = threading.Thread(target=lambda: _raise(ValueError("a fault")))
    thread.start()
    thread.join()
