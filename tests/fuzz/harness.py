"""Starts the process that runs cases, waits for it by its processor time, and counts.

What a case takes is measured in processor time: a busy machine makes it slower, not worse.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 2.0
"""Processor time of one case."""
IDLE_S = 5.0
"""A case that uses no processor for so long waits for something that does not come."""
SLACK_S = 0.5
"""Beyond the limit, so that a case that has just ended tells its time itself."""
POLL_S = 0.02
MEMORY = 2**30
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ROOT = Path(__file__).parents[2]


@dataclass
class Result:
    """What came of one case."""

    place: str
    seed: int
    outcome: str
    words: str = ""
    command: str = ""
    text: str = ""
    cpu_s: float = 0.0
    memory: int = 0

    @property
    def case(self) -> str:
        """Name by which it can be run again."""
        return f"{self.place}-{self.seed}"


@dataclass
class Count:
    """The cases of one place."""

    cases: int = 0
    worked: int = 0
    refused: int = 0
    failed: int = 0
    slowest: Result | None = None
    failures: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count a case."""
        self.cases += 1
        setattr(self, result.outcome, getattr(self, result.outcome) + 1)
        if self.slowest is None or result.cpu_s > self.slowest.cpu_s:
            self.slowest = result
        if result.outcome == "failed":
            self.failures.append(result)


class Worker:
    """A process that runs cases; where one hangs or ends it, the next has another.

    Args:
        folder: Where valid files and cases are kept.
        places: Names of the places that it serves.
        idle_s: How long a case may wait without using the processor.
        limit_s: Processor time that a case may take.
    """

    def __init__(
        self,
        folder: Path,
        places: Iterable[str],
        idle_s: float = IDLE_S,
        limit_s: float = LIMIT_S,
    ) -> None:
        self.folder, self._idle_s, self._limit_s = folder, idle_s, limit_s
        self._rest = b""
        self._log = (folder / "worker.log").open("ab")
        paths = [ROOT, *(ROOT / name for name in ("envs", "policies", "tests", "tests/toys"))]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "MPLBACKEND": "agg",
        }
        words = ["-m", "fuzz.worker", str(folder / "templates"), ",".join(places)]
        self._process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd=folder,
        )
        self._child = self._next_child()

    def run(self, place: str, seed: int) -> Result:
        """Run a case and tell what came of it; its files stay in `folder/cases/PLACE-SEED`."""
        root = self.folder / "cases" / f"{place}-{seed}"
        asked = json.dumps({"place": place, "seed": seed, "root": str(root)}) + "\n"
        assert self._process.stdin is not None
        self._process.stdin.write(asked.encode())
        self._process.stdin.flush()
        result = Result(place, seed, "failed")
        made, why = self._answer(10 * self._limit_s)
        if made is not None:
            result.words, result.command = made["words"], made["command"]
            found, why = self._answer(self._limit_s)
            if found is not None:
                vars(result).update(found)
                if result.cpu_s > self._limit_s:
                    result.outcome = "failed"
                    result.text = f"took {result.cpu_s:.1f} s; {result.text}"
                return result
        result.text, result.cpu_s = why, self._limit_s
        self._child = self._next_child()
        return result

    def stop(self) -> None:
        """End the process: it ends when nothing more can be asked."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        self._log.close()

    def _next_child(self) -> int:
        """Wait for the next child and return its number."""
        answer = json.loads(self._line() or "{}")
        if "pid" not in answer:
            log = (self.folder / "worker.log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"The process for cases did not start:\n{log}")
        return int(answer["pid"])

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            part = os.read(self._process.stdout.fileno(), 65536)
            if not part:
                return b""
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _answer(self, limit_s: float) -> tuple[dict[str, Any] | None, str]:
        """Return the child's answer, or None and why there is none."""
        why = self._wait(limit_s)
        if why:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        while True:  # what it said before it was killed counts no more
            answer = json.loads(self._line() or '{"ended": -1}')
            if "ended" in answer:
                return None, why or f"the process ended with status {answer['ended']}"
            if not why:
                return answer, ""

    def _wait(self, limit_s: float) -> str:
        """Wait until the child says something; return why not if it takes too much."""
        begun, memory = _used(self._child)
        changed_at, last = time.monotonic(), begun
        while b"\n" not in self._rest:
            if select.select([self._process.stdout], [], [], POLL_S)[0]:
                return ""
            cpu_s, now = _used(self._child)
            if cpu_s > last:
                changed_at, last = time.monotonic(), cpu_s
            if now - memory > 1.5 * MEMORY:
                return f"took {(now - memory) / 2**30:.1f} GiB of memory"
            if cpu_s - begun > limit_s + SLACK_S:
                return f"a hang: more than {limit_s:g} s of processor time"
            if time.monotonic() - changed_at > self._idle_s and _sleeps(self._child):
                return f"a hang: it waits for something, idle for {self._idle_s:g} s"
        return ""


def _used(pid: int) -> tuple[float, int]:
    """Return a process's processor time in seconds and its memory in bytes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK, int(fields[21]) * PAGE
    except (OSError, IndexError):
        return 0.0, 0


def _sleeps(pid: int) -> bool:
    """Tell whether a process waits for an event, not for a processor."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
    except OSError:
        return False


def run_cases(
    worker: Worker, cases: Iterable[tuple[str, int]], kept: Path | None = None
) -> Iterator[Result]:
    """Run cases one after another.

    Args:
        worker: What runs them.
        cases: Place and seed of each.
        kept: Where the files of failed cases stay; None: nowhere.
    """
    for place, seed in cases:
        result = worker.run(place, seed)
        root = worker.folder / "cases" / result.case
        if result.outcome == "failed" and kept is not None:
            _keep(root, kept / result.case, result)
        shutil.rmtree(root, ignore_errors=True)
        yield result


def _keep(root: Path, target: Path, result: Result) -> None:
    """Keep a failed case: what was tried, and its files but for the very large ones."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "case.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    for path in sorted(root.glob("given/**/*")):
        copy = target / path.relative_to(root)
        if path.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path.readlink())
        elif path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif path.is_file() and path.stat().st_size < 2**24:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def spread(n: int, names: list[str], seed: int) -> list[tuple[str, int]]:
    """Return n cases, in turn of every place."""
    return [(names[i % len(names)], seed + i // len(names)) for i in range(n)]


def count(results: Iterable[Result]) -> dict[str, Count]:
    """Return the counts by place."""
    counts: dict[str, Count] = {}
    for result in results:
        counts.setdefault(result.place, Count()).add(result)
    return counts


def table(counts: dict[str, Count]) -> str:
    """Return the counts as text."""
    head = f"{'place':<12}{'cases':>7}{'worked':>8}{'refused':>9}{'failed':>8}  slowest"
    lines = [head]
    for name, found in sorted(counts.items()):
        slow = found.slowest
        slowest = f"{slow.cpu_s:.2f} s ({slow.case})" if slow else ""
        lines.append(
            f"{name:<12}{found.cases:>7}{found.worked:>8}{found.refused:>9}{found.failed:>8}  "
            f"{slowest}"
        )
    totals = [sum(getattr(c, key) for c in counts.values()) for key in COLUMNS]
    lines.append(f"{'all':<12}{totals[0]:>7}{totals[1]:>8}{totals[2]:>9}{totals[3]:>8}")
    return "\n".join(lines)


COLUMNS = ("cases", "worked", "refused", "failed")
