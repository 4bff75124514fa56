"""The runs that are compared, and how one of them is made with the code of one side.

A side is driven by its command line alone. What a case is, is all in its `Case` and in the files
that it names, so results can be kept by a hash of these.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from differences import UsageError

HERE = Path(__file__).resolve().parent
ARCHIVE = HERE.parents[1] / "docs/results/razor.tar.xz"
PACKAGES = ("robo_razor", "gym_razor", "lerobot_policy_razor")
VERSION = 1
"""Raise it where runs are made in another way that a `Case` does not show."""
CLI = ("-m", "robo_razor.cli")
RANKS = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d")
RANKS += ("--rdzv-endpoint=localhost:0",)
FINETUNE = ("finetune", "--device", "cpu", "--torch-threads", "1", "--out", "run", "--config")
CASE_SECONDS = 1800
"""A case that takes longer hangs."""
STOP_SECONDS = 30
"""A process that is asked to stop gets this long."""
TAIL = 3000
"""Characters of the output of a failed case that are shown."""

_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Case:
    """One thing that both sides run.

    Attributes:
        name: Its name.
        words: The command after `python`. SIDE is the folder of the side, SETTINGS the settings
            file, POLICY the tiny SmolVLA.
        settings: (path, file) pairs: a side in whose tree the path exists gets that file of
            `tests/same/settings`; the first pair counts. So a setting that moves gets a second
            file, and the old one stays for old revisions. The path "." always exists.
        archive: Whether the archive of the results lies in the folder as `razor.tar.xz`.
        interrupt_at: Step whose line in `run/metrics.jsonl` is waited for; then the run gets
            SIGTERM and `resume` follows. None: the run is left alone.
        resume: The command after `python` that goes on with an interrupted run.
    """

    name: str
    words: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()
    archive: bool = False
    interrupt_at: int | None = None
    resume: tuple[str, ...] = ()

    def settings_file(self, side: Path) -> Path | None:
        """Return the settings for a side; None where the case has none of its own."""
        names = [name for path, name in self.settings if (side / path).exists()]
        return HERE / "settings" / names[0] if names else None


CASES = (
    Case("ppo", (*CLI, *FINETUNE, "SIDE/configs/debug_ppo.yaml")),
    Case("bc", (*CLI, *FINETUNE, "SIDE/configs/debug_bc.yaml")),
    Case(
        "resumed",
        (*CLI, *FINETUNE, "SETTINGS"),
        ((".", "resumed.yaml"),),
        interrupt_at=1,
        resume=(*CLI, "finetune", "--resume", "--out", "run"),
    ),
    Case("ranks", (*RANKS, *CLI, *FINETUNE, "SETTINGS"), ((".", "ranks.yaml"),)),
    Case("vla", (*CLI, *FINETUNE, "SETTINGS", "--policy", "POLICY"), ((".", "vla.yaml"),)),
    Case("reinforce", (*CLI, *FINETUNE, "SETTINGS"), ((".", "reinforce.yaml"),)),
    Case("report", (*CLI, "compare", "razor.tar.xz", "--out", "report"), archive=True),
)
"""The slow ones first, so that none is left to run alone."""


@dataclass(frozen=True)
class Side:
    """The code of one of the two revisions.

    Attributes:
        name: "old" or "new".
        root: Folder of its tree.
    """

    name: str
    root: Path

    def environment(self) -> dict[str, str]:
        """Return the environment variables of its processes."""
        toys = sorted(path.parent for path in (self.root / "tests").rglob("toy_env.py"))
        paths = [self.root, self.root / "envs", self.root / "policies", *toys[:1]]
        launchers = ("WORLD_SIZE", "RANK", "LOCAL_", "MASTER_", "GROUP_", "TORCHELASTIC")
        kept = {k: v for k, v in os.environ.items() if not k.startswith((*launchers, "PYTHON"))}
        return kept | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "LP_NUM_THREADS": "1",  # Mesa's software renderer
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "Agg",
            **({"MUJOCO_GL": "egl"} if sys.platform.startswith("linux") else {}),
        }

    def check(self, place: Path) -> None:
        """Check that a process of this side gets this side's code, not what is installed.

        Args:
            place: Folder in which it starts.

        Raises:
            UsageError: A package would come from elsewhere.
        """
        text = (
            "import importlib.util, json\n"
            f"specs = {{name: importlib.util.find_spec(name) for name in {PACKAGES}}}\n"
            "print(json.dumps({name: spec and spec.origin for name, spec in specs.items()}))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=place,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        for name, origin in json.loads(done.stdout).items():
            if origin is None or not Path(origin).resolve().is_relative_to(self.root.resolve()):
                raise UsageError(f"{name} of the {self.name} side comes from {origin}")


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        place: Its folder.
        seconds: Wall time.
        problem: What went wrong, with the end of the output; empty where nothing did.
        cached: Whether it was run earlier.
    """

    place: Path
    seconds: float
    problem: str = ""
    cached: bool = False


def case_key(case: Case, side: Side, policy: Path) -> str:
    """Return a hash of what a case is for a side, its code apart."""
    values = {field.name: getattr(case, field.name) for field in fields(case)}
    chosen = {f.name: values[f.name] for f in fields(case) if values[f.name] != f.default}
    parts = [json.dumps([VERSION, chosen]).encode()]
    if "POLICY" in case.words:
        parts.append(str(policy).encode())
    settings = case.settings_file(side.root)
    parts += [path.read_bytes() for path in (settings, ARCHIVE if case.archive else None) if path]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def run_case(case: Case, side: Side, place: Path, policy: Path) -> Outcome:
    """Run a case in a new folder with the code of a side.

    Args:
        case: The case.
        side: Whose code runs.
        place: The folder; it is made.
        policy: Folder of the tiny SmolVLA.
    """
    place.mkdir(parents=True)
    settings = case.settings_file(side.root)
    if settings is not None:
        shutil.copyfile(settings, place / "settings.yaml")
    if case.archive:
        shutil.copyfile(ARCHIVE, place / "razor.tar.xz")
    stands_for = {"SIDE": str(side.root), "SETTINGS": "settings.yaml", "POLICY": str(policy)}
    words, resume = (
        [sys.executable, *(_filled_in(word, stands_for) for word in words)]
        for words in (case.words, case.resume)
    )
    began = time.monotonic()
    if case.interrupt_at is None:
        problem = _run(words, side, place)
    else:
        problem = _run(words, side, place, case.interrupt_at)
        problem = problem or _run(resume, side, place)
    return Outcome(place, time.monotonic() - began, problem)


def _filled_in(word: str, stands_for: Mapping[str, str]) -> str:
    """Return a word of a command with the name at its beginning replaced by what it stands for."""
    first, slash, rest = word.partition("/")
    return stands_for.get(first, first) + slash + rest


def stop_all() -> None:
    """Stop the processes of all cases that run now."""
    for child in list(_running):
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Stop a process and those that it started; `torchrun` stops its own when it is asked to."""
    with contextlib.suppress(ProcessLookupError):
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_SECONDS)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _run(words: Sequence[str], side: Side, place: Path, interrupt_at: int | None = None) -> str:
    """Run a command; return what went wrong, empty where nothing did."""
    with (place / "output.txt").open("ab") as output:
        child = subprocess.Popen(
            words,
            cwd=place,
            env=side.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _running.add(child)
        try:
            wanted = 0
            if interrupt_at is not None and _wait_for_step(child, place, interrupt_at):
                child.send_signal(signal.SIGTERM)
                wanted = 128 + signal.SIGTERM
            status = child.wait(CASE_SECONDS)
        except subprocess.TimeoutExpired:
            status, wanted = None, 0
        finally:
            _stop(child)
            _running.discard(child)
    if status == wanted and (interrupt_at is None or wanted):
        return ""
    end = "does not end" if status is None else f"ends with {status}, not {wanted or 0}"
    if status == 0 and interrupt_at is not None:
        end = f"ended before the line of step {interrupt_at} was seen"
    text = (place / "output.txt").read_text(encoding="utf-8", errors="replace")
    return f"{end}:\n{text[-TAIL:]}"


def _wait_for_step(child: subprocess.Popen[bytes], place: Path, step: int) -> bool:
    """Wait until a run has logged a step; return whether it has, and still runs."""
    file, deadline = place / "run/metrics.jsonl", time.monotonic() + CASE_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
        if any(json.loads(line)["step"] >= step for line in lines):
            return True
        time.sleep(0.02)
    return False
