"""Files that `robo-razor archive` made, or that somebody made who is no friend."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from fuzz import damage, tars, values
from fuzz.place import Attempt, Folder, Place, copied
from fuzz.places import checkpoint, run
from robo_razor.core.run.archive import ABOUT, KIND, VERSION, pack


class Archive(Place):
    """An archive, from which `compare` makes a report."""

    name = "archive"

    @staticmethod
    def prepare(templates: Path) -> None:
        """Lay out what is in an archive, and a policy that a hostile one may hold besides."""
        from toy_policy import save_tiny_policy

        run.Run.prepare(templates)
        about = {"kind": KIND, "version": VERSION, "directory": "run", "robo_razor": "0.1.0"}
        (templates / ABOUT).write_text(json.dumps(about))
        save_tiny_policy(templates / "policy")

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Pack a run as the program does, and compare what was packed."""
        file = folder.given / "x.tar.xz"
        file.write_bytes(pack(self.templates / "run")[0])
        return run.compared(self._asked(file, folder), "").door

    @staticmethod
    def _asked(file: Path, folder: Folder) -> list[str]:
        return ["compare", str(file), "--out", str(folder.out / "report"), "--videos", "1"]

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Pack a run with something that does not belong there."""
        inner = folder.root / "packed"
        inner.mkdir()
        copied(self.templates / ABOUT, inner / ABOUT)
        copied(self.templates / "run", inner / "run")
        words = [self._contents(rng, inner, folder)]
        data, word = tars.packed(rng, inner, folder.outside)
        words.append(word)
        if rng.random() < 0.15:
            data, word = damage.of_bytes(rng, data)
            words.append(word)
        file = folder.given / rng.choice(("x.tar.xz", "x.tar.xz", "x.tar.gz", "x.zip"))
        file.write_bytes(data)
        if rng.random() < 0.03:
            words.append(damage.of_entry(rng, file, folder.linked))
        return run.compared(self._asked(file, folder), ", ".join(filter(None, words)))

    def _contents(self, rng: random.Random, inner: Path, folder: Folder) -> str:
        act = rng.randrange(6)
        if act == 0:
            data, words = damage.in_json(rng, (inner / ABOUT).read_bytes())
            (inner / ABOUT).write_bytes(data)
            return f"{ABOUT}: {words}"
        if act == 1:
            return run.spoil(rng, inner / "run", folder)
        if act == 2:
            return self._policy(rng, inner, folder)
        if act == 3:
            name = rng.choice(values.TEXTS)
            text = (inner / ABOUT).read_text().replace('"run"', json.dumps(name))
            (inner / ABOUT).write_text(text)
            return f"directory {name[:40]!r}"
        return ""

    def _policy(self, rng: random.Random, inner: Path, folder: Folder) -> str:
        """Put in the weights that are filmed, with steps of somebody else's."""
        step = max(int(path.name) for path in (inner / "run" / "eval").iterdir())
        target = inner / "run" / "checkpoints" / f"{step:06d}" / "pretrained_model"
        target.parent.mkdir(parents=True)
        copied(self.templates / "policy", target)
        return f"a policy, {checkpoint.spoil(rng, target, folder)}"
