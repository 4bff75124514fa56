"""Run two revisions of this repository and compare what they make, bit for bit.

    python tests/same/same.py REV                 # a revision against the working tree
    python tests/same/same.py REV --only ppo,vla  # some cases
    python tests/same/same.py REV --jobs 1        # one case at a time

Both sides run on this machine with this Python, driven by `python -m robo_razor.cli` alone; the
cases are in `cases.py`. `expected.yaml` lists deliberate changes. What a committed revision made is
kept in the user's folder for caches (`~/.cache/robo-razor/same`, see `--cache`), for all checkouts,
so it is run once; the working tree is copied and run every time. Runs that differ are left where
the last line says. An old revision may need packages that are no longer installed: `report` of one
from before the rooms needs `pip install plotly`.

The exit status is 0 if all is the same, 1 if something differs, 2 for wrong use.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from cases import CASES, Case, Outcome, Side, case_key, run_case, stop_all  # noqa: E402
from differences import Difference, Expected, UsageError, compare, read_expected  # noqa: E402

PINNED = ("torch", "numpy", "mujoco", "lerobot", "transformers", "safetensors", "robosuite")
"""Packages whose versions may change numbers."""


@dataclass
class Comparison:
    """Everything that is run and where.

    Attributes:
        revision: The whole hash of the commit.
        cases: The cases.
        jobs: How many run at once.
        cache: Where results of commits are kept.
        work: A new folder for what is not kept.
        policy: The tiny SmolVLA, the same file for both sides.
    """

    revision: str
    cases: Sequence[Case]
    jobs: int
    cache: Path
    work: Path
    policy: Path = field(init=False)

    def run(self) -> dict[str, tuple[Outcome, Outcome]]:
        """Run both sides of every case; return name -> (revision, working tree)."""
        sides = (Side("old", self.work / "old"), Side("new", self.work / "new"))
        export_revision(self.revision, sides[0].root)
        copy_working_tree(sides[1].root)
        for side in sides:
            side.check(self.work)
        self.policy = self._tiny_policy()
        pool = ThreadPoolExecutor(self.jobs)
        try:
            started = {
                case.name: [pool.submit(self._outcome, case, side) for side in sides]
                for case in self.cases
            }
            return {name: _both(*futures) for name, futures in started.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_all()

    def _outcome(self, case: Case, side: Side) -> Outcome:
        kept = self._kept(case, side) if side.name == "old" else None
        if kept is not None and kept.is_dir():
            _say(f"{side.name} {case.name}: kept from before")
            return Outcome(kept, 0.0, cached=True)
        _say(f"{side.name} {case.name}: runs")
        outcome = run_case(case, side, self.work / f"{side.name}-runs" / case.name, self.policy)
        end = "FAILED" if outcome.problem else "done"
        _say(f"{side.name} {case.name}: {end} after {outcome.seconds:.0f} s")
        if kept is not None and not outcome.problem:
            _keep(outcome.place, kept)
        return outcome

    def _kept(self, case: Case, side: Side) -> Path:
        key = f"{case_key(case, side, self.policy)}-{fingerprint()}"
        return self.cache / self.revision[:12] / f"{case.name}-{key}"

    def _tiny_policy(self) -> Path:
        """Return the tiny SmolVLA; it is made where it is not kept yet."""
        sources = (HERE / "tiny_smolvla.py", *sorted(HERE.parent.rglob("tiny_vla.py")))
        text = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
        folder = self.cache / f"tiny-smolvla-{text}-{fingerprint()}"
        if any("POLICY" in case.words for case in self.cases):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # its settings name its place: it cannot be moved
                if not (folder / "whole").exists():
                    _say("a tiny SmolVLA is made")
                    subprocess.run(
                        [sys.executable, str(sources[0]), str(folder / "policy")],
                        env=Side("new", self.work / "new").environment(),
                        check=True,
                        stdout=subprocess.DEVNULL,
                    )
                    (folder / "whole").touch()
        return folder / "policy"


def export_revision(revision: str, folder: Path) -> None:
    """Write the tree of a commit into a new folder."""
    folder.mkdir()
    data = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(folder, filter="data")


def copy_working_tree(folder: Path) -> None:
    """Copy the files of the working tree that git tracks or would track, as they are now."""
    names = _git("ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # not: deleted, but not yet in a commit
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def find_revision(name: str) -> str:
    """Return the whole hash of a commit.

    Raises:
        UsageError: There is no such commit.
    """
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except subprocess.CalledProcessError as error:
        raise UsageError(f"{name!r} is not a revision of {ROOT}") from error


def fingerprint() -> str:
    """Return a hash of what results depend on besides the code: versions and the processor."""
    versions = {}
    for name in PINNED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    models = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    parts = [platform.python_version(), platform.platform(), versions, models]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def default_cache() -> Path:
    """Return the folder where results are kept, shared by all checkouts of the user."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "robo-razor" / "same"


def report(results: Mapping[str, tuple[Outcome, Outcome]], expected: Sequence[Expected]) -> int:
    """Print what differs; return the number of differences that are not expected."""
    number = 0
    for name, (old, new) in results.items():
        differences: list[Difference] = []
        problems = [(side, o.problem) for side, o in (("old", old), ("new", new)) if o.problem]
        for side, problem in problems:
            print(f"{name}: the {side} side {problem}\n")
        if not problems:
            differences = compare(name, old.place, new.place, expected)
        for difference in differences:
            print(difference)
        count = len(problems) + len(differences)
        times = " and ".join("kept" if o.cached else f"{o.seconds:.0f} s" for o in (old, new))
        print(f"{name}: {f'{count} differences' if count else 'the same'} ({times})")
        number += count
    for entry in expected:
        if not any(fnmatch.fnmatchcase(name, entry.case) for name in results):
            continue
        use = f"{entry.uses} times, as expected" if entry.uses else "NOT USED"
        size = f", at most {entry.largest:.3g}" if entry.largest else ""
        print(f"{use}: {entry}{size}: {entry.reason}")
    return number


def chosen_cases(only: str | None) -> list[Case]:
    """Return the cases with the names given, all where none is.

    Raises:
        UsageError: A name is unknown.
    """
    names = [case.name for case in CASES]
    wanted = only.split(",") if only else names
    if unknown := [name for name in wanted if name not in names]:
        raise UsageError(f"unknown cases: {', '.join(unknown)}; there are {', '.join(names)}")
    return [case for case in CASES if case.name in wanted]


def main(words: Sequence[str] | None = None) -> int:
    """Compare and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the revision to compare with, as git names it")
    parser.add_argument("--only", help="cases with commas: " + ", ".join(c.name for c in CASES))
    parser.add_argument("--jobs", type=int, default=2, help="cases at once (default: 2)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="kept results")
    parser.add_argument("--expected", type=Path, default=HERE / "expected.yaml")
    options = parser.parse_args(words)
    if options.jobs < 1:
        parser.error("--jobs is at least 1")
    work = Path(tempfile.mkdtemp(prefix="same-"))
    try:
        expected = read_expected(options.expected)
        revision, cases = find_revision(options.revision), chosen_cases(options.only)
        cache = options.cache.resolve()
        results = Comparison(revision, cases, options.jobs, cache, work).run()
        number = report(results, expected)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if not isinstance(error, UsageError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    if number:
        print(f"{number} differences to {revision[:12]}; the runs are in {work}")
        return 1
    shutil.rmtree(work)
    print(f"the same as {revision[:12]}")
    return 0


def _both(old: Future[Outcome], new: Future[Outcome]) -> tuple[Outcome, Outcome]:
    return old.result(), new.result()


def _keep(place: Path, kept: Path) -> None:
    """Copy the folder of a case to where it is kept, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".part-"))
    shutil.copytree(place, part, symlinks=True, dirs_exist_ok=True)
    try:
        part.rename(kept)
    except OSError:  # another process was first
        shutil.rmtree(part)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # stops what runs, too
    sys.exit(main())
