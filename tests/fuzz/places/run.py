"""What a run or sweep measured: settings, summaries, episodes, metrics, read by `compare`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from fuzz import damage
from fuzz.place import Attempt, Folder, Place, command, copied, some
from fuzz.places.checkpoint import links

POINTS = [(0.4, 1.0, 0.0), (0.6, 0.9, 3.0), (0.8, 0.7, 9.0)]
SUFFIXES = (".json", ".jsonl", ".yaml", ".parquet")


class Run(Place):
    """Directories of runs and sweeps, for `compare` and `archive`."""

    name = "run"

    @staticmethod
    def prepare(templates: Path) -> None:
        """Make a run and a sweep up."""
        from made_up_runs import make_run, make_sweep

        make_run(templates / "run", POINTS)
        metrics = '{"step": %d, "rollout/mean_control_steps": 50.0, "rollout/episodes": 256.0}\n'
        (templates / "run" / "metrics.jsonl").write_text("".join(metrics % i for i in range(20)))
        (templates / "run" / "checkpoints" / "000003").mkdir(parents=True)
        for name in ("last", "best"):
            (templates / "run" / "checkpoints" / name).symlink_to("000003")
        make_sweep(templates / "sweep", ["oracle", "ppo"], seeds=1, rates=(1,), checkpoints=3)

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Compare and pack."""
        runs = [str(self.templates / name) for name in ("run", "sweep")]
        doors = [
            compared(["compare", path, "--out", str(folder.out / str(i)), "--videos", "0"], "").door
            for i, path in enumerate(runs)
        ]
        doors.append(command(["archive", runs[0], "--out", str(folder.out / "x.tar.xz")]))
        return lambda: [door() for door in doors] and None

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage some files of a run or a sweep."""
        kind = rng.choice(("run", "run", "sweep"))
        given = copied(self.templates / kind, folder.given / kind)
        words = [spoil(rng, given, folder) for _ in range(some(rng))]
        if kind == "run" and rng.random() < 0.1:
            words.append(links(rng, given / "checkpoints"))
        if rng.random() < 0.15:
            asked = ["archive", str(given), "--out", str(folder.out / "x.tar.xz")]
        else:
            asked = ["compare", str(given), "--out", str(folder.out / "report"), "--videos", "0"]
            asked += rng.choice(((), (), ("--allow-unlike",), ("--match", "0.5")))
            if rng.random() < 0.1:
                words.append(_earlier(rng, folder))
        return compared(asked, ", ".join(words))


def spoil(rng: random.Random, run: Path, folder: Folder) -> str:
    """Damage a file of a run."""
    files = [f for f in sorted(run.rglob("*")) if f.suffix in SUFFIXES and not f.is_symlink()]
    files = [f for f in files if f.is_file()]
    kinds = sorted({file.name for file in files})
    if not kinds:
        return "as it was"
    chosen = rng.choice(kinds)  # else the many episodes would get nearly all of it
    file = rng.choice([file for file in files if file.name == chosen])
    words = damage.of_file(rng, file, folder.linked)
    return f"{file.relative_to(run).parent}/{words}"


def _earlier(rng: random.Random, folder: Folder) -> str:
    """Put an earlier report where the new one goes: it says that the folder may be used."""
    file = folder.out / "report" / "report.json"
    file.parent.mkdir()
    file.write_text('{"kind": "robo-razor comparison"}')
    return damage.of_file(rng, file, folder.linked)


def compared(asked: list[str], words: str) -> Attempt:
    """Return an attempt of a command that reports, without figures: they take seconds."""
    run = command(asked)

    def door() -> None:
        with _without_figures():
            run()

    return Attempt(words, door, " ".join(["robo-razor", *asked]))


@contextlib.contextmanager
def _without_figures() -> Iterator[None]:
    with mock.patch("robo_razor.report.charts.figures.draw_figures", return_value=[]):
        yield
