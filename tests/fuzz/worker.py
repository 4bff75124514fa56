"""The process that runs cases, one line of JSON in, two out: what is tried, and what came of it.

It imports everything and tries every place once with valid files, then forks: the child runs cases
until one of them ends or hangs it, and the next child costs nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import resource
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

MEMORY = 2**30
"""Bytes that a case may take beyond what the process has before."""
ADDRESSES = 256 * 2**30
"""Address space likewise: beyond it the operating system says no. Maps of large files are free."""
END = 77
"""Status of a child whose input has ended."""
LEROBOTS = re.compile(r"^tmp\w{8}\.json$")
"""Temporary files that LeRobot leaves whenever it reads a policy's configuration."""


def main() -> None:
    """Serve cases until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log
    places = _places(Path(sys.argv[1]), sys.argv[2].split(","))
    ended = 0
    while ended != END:
        child = os.fork()
        if child == 0:
            _serve_all(places, answers)
            os._exit(END)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _say(answers, ended=ended)


def _places(templates: Path, names: Sequence[str]) -> dict[str, Any]:
    """Make the valid files, and let every place do once what takes longer at the first time."""
    import torch

    torch.set_num_threads(1)
    from fuzz.place import Folder
    from fuzz.places import PLACES

    importlib.import_module("fuzz.guard")
    places = {}
    for name in names:
        valid = templates / name
        valid.mkdir(parents=True)
        PLACES[name].prepare(valid)
        places[name] = PLACES[name](valid)
        folder = Folder(templates / f"{name}.warm-up")
        _lay_out(folder)
        outcome, text = _outcome(places[name].valid(folder))
        if outcome != "worked":
            raise RuntimeError(f"The valid files of {name} are {outcome}: {text}")
    return places


def _serve_all(places: dict[str, Any], answers: TextIO) -> None:
    _bound_addresses()
    sys.dont_write_bytecode = True  # that would be changes outside
    threading.excepthook = _in_a_thread
    _say(answers, pid=os.getpid())
    asked = b""
    while part := os.read(0, 65536):
        asked += part
        if asked.endswith(b"\n"):
            _serve(json.loads(asked), places, answers)
            asked = b""


def _bound_addresses() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, size + ADDRESSES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _in_a_thread(found: threading.ExceptHookArgs) -> None:
    from fuzz import guard

    guard.tell(f"traceback in a thread: {found.exc_type.__name__}: {found.exc_value}")


def _say(answers: TextIO, **what: Any) -> None:
    answers.write(json.dumps(what) + "\n")


def _serve(asked: dict[str, Any], places: dict[str, Any], answers: TextIO) -> None:
    from fuzz import guard
    from fuzz.place import Folder

    place = places[asked["place"]]
    folder = Folder(Path(os.path.realpath(asked["root"])))
    _lay_out(folder)
    rng = random.Random(f"{asked['place']}/{asked['seed']}")
    try:
        attempt = place.make(rng, folder)
    except Exception:  # a fault of the test itself
        _say(answers, words="(making the case)", command="")
        _say(answers, outcome="failed", text=traceback.format_exc()[-3000:], cpu_s=0.0, memory=0)
        return
    _say(answers, words=attempt.words, command=attempt.command)
    before = _memory(fresh=True)
    begun = time.process_time()
    with (
        warnings.catch_warnings(),
        guard.watched(
            folder.given,
            folder.outside,
            place.writable(folder),
            may_read_outside=attempt.may_read_outside,
        ) as faults,
    ):
        warnings.simplefilter("ignore")
        outcome, text = _outcome(attempt.door)
    spent = time.process_time() - begun
    memory = _memory() - before
    if memory > MEMORY:
        faults.append(f"took {memory / 2**30:.1f} GiB of memory")
    left = [path.name for path in folder.temporary.iterdir() if not LEROBOTS.match(path.name)]
    if left:
        faults.append(f"left behind: {', '.join(left)[:200]}")
    if faults:
        outcome, text = "failed", "; ".join([*faults, f"({outcome}: {text})" if text else ""])
    _say(answers, outcome=outcome, text=text[-3000:], cpu_s=spent, memory=memory)


def _lay_out(folder: Any) -> None:
    for path in (folder.given, folder.out, folder.temporary, folder.outside, folder.root / "home"):
        path.mkdir(parents=True)
    (folder.outside / "secret.txt").write_text("a secret\n")
    (folder.outside / "secret.json").write_text('{"secret": true}')
    from fuzz.places import secret_tensors

    (folder.outside / "secret.safetensors").write_bytes(secret_tensors())
    os.chdir(folder.out)
    os.environ["HOME"] = str(folder.root / "home")
    tempfile.tempdir = str(folder.temporary)


def _outcome(door: Any) -> tuple[str, str]:
    from fuzz.place import LONGEST, Enough, Fault, Refused
    from robo_razor.core.errors import RoboRazorError

    try:
        door()
    except Enough:
        return "worked", ""
    except (RoboRazorError, Refused) as error:
        text = " ".join(str(error).split())
        if len(text) > LONGEST:
            return "failed", f"an error of {len(text)} letters: {text[:300]}"
        if "Traceback (most recent" in text:
            return "failed", f"a traceback in the paragraph: {text[:1000]}"
        return "refused", text
    except Fault as error:
        return "failed", str(error)
    except MemoryError:
        return "failed", "out of memory\n" + _trace()
    except BaseException:
        return "failed", _trace()
    return "worked", ""


def _trace() -> str:
    text = traceback.format_exc()
    return text if len(text) < 3000 else text[:600] + "\n...\n" + text[-2300:]


def _memory(*, fresh: bool = False) -> int:
    """Return the most memory that was resident, since the last fresh start."""
    if fresh:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
