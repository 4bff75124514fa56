"""A manifest of start states."""

from __future__ import annotations

import gzip
import lzma
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from fuzz import damage
from fuzz.place import Attempt, Folder, Place, some


class StartStates(Place):
    """A manifest's file, plain or compressed."""

    name = "manifest"

    @staticmethod
    def prepare(templates: Path) -> None:
        """Write a small manifest."""
        from robo_razor.core.types import EpisodeRow
        from robo_razor.rollout.start_states import Manifest

        rows = tuple(EpisodeRow("gym_razor/LiftCan-v0", i, "lift it", i, 0) for i in range(5))
        Manifest(rows, tuple(f"{i:016x}" for i in range(5))).save(templates / "states.json")

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Read it."""
        return lambda: _load(self.templates / "states.json")

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage it."""
        file = folder.given / "states.json"
        shutil.copy(self.templates / "states.json", file)
        words = [damage.of_file(rng, file, folder.linked) for _ in range(some(rng))]
        small = file.is_file() and not file.is_symlink() and file.stat().st_size < 10**7
        if small and rng.random() < 0.4:
            packed = folder.given / "states.json.gz"
            packed.write_bytes(self._packed(rng, file.read_bytes()))
            file = packed
            words.append("compressed")
        return Attempt(
            ", ".join(words), lambda: _load(file), f"robo-razor evaluate --manifest {file}"
        )

    def _packed(self, rng: random.Random, data: bytes) -> bytes:
        act = rng.randrange(4)
        if act == 0:
            return damage.of_bytes(rng, gzip.compress(data))[0]
        if act == 1:
            return gzip.compress(bytes(2**24), 1) * 128  # 2 GiB: members may follow one another
        if act == 2:
            return lzma.compress(data)
        return gzip.compress(data)


def _load(file: Path) -> None:
    from robo_razor.rollout.start_states import Manifest

    Manifest.load(file)
