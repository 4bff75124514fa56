"""Manifests: the start states of an evaluation, row by row, in a file.

A start state is a pure function of (task, seed). A manifest fixes task, seed, instruction and a
hash of the state that the environment made of them. So every episode of a result belongs to a row,
two policies are paired row by row, and an environment that has changed is noticed before its
numbers are compared with old ones.

File (JSON, or JSON in gzip where the name ends with `.gz`)::

    {"kind": "robo-razor manifest", "version": 1, "hash": SHA-256 of the rows, "rows": [
      {"row": 0, "task": ID, "seed": 1000000, "instruction": "lift the cube", "start_state": HASH},
      ...]}
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from robo_razor.core import records
from robo_razor.core.errors import ManifestError, did_you_mean, shown
from robo_razor.core.files import check_writable, parse_json, write_bytes
from robo_razor.core.seeding import held_out_seeds
from robo_razor.core.settings.config import HELD_OUT_SEED
from robo_razor.core.types import EpisodeRow, make_rows

if TYPE_CHECKING:
    from robo_razor.core.settings.config import ManifestConfig
    from robo_razor.rollout.groups import VectorEnv

KIND = "robo-razor manifest"
VERSION = 1
SUFFIXES = (".json", ".json.gz")
MAX_BYTES = 64 * 2**20
"""Largest size of a manifest, unpacked; a row has some 150 bytes."""
_ROW = records.entries(
    {"row": records.whole(), "task": records.name, "seed": records.whole(0, 2**63)},
    {
        "instruction": records.optional(records.text),
        "start_state": records.optional(records.text),
    },
)
EPISODES = 200
"""Rows per skill if neither the settings nor a manifest set their number."""
START_STATE_HASH = "start_state_hash"
"""Key of the infos of a reset."""


@dataclass(frozen=True)
class Manifest:
    """Rows of an evaluation with the hashes of their start states.

    Attributes:
        rows: Each episode to run; `row_id` is its number in the file.
        start_states: Per row the value of `info["start_state_hash"]`; None: not known.
        name: The user's name or path of it; empty if it does not come from a file.
        source_hash: Hash of the file that it was read or selected from; empty without one.
    """

    rows: tuple[EpisodeRow, ...]
    start_states: tuple[str | None, ...]
    name: str = ""
    source_hash: str = ""

    @classmethod
    def of(cls, rows: Sequence[EpisodeRow]) -> Self:
        """Return a manifest of rows whose start states are not known yet."""
        return cls(tuple(rows), (None,) * len(rows))

    @classmethod
    def of_entries(cls, entries: Sequence[Mapping[str, Any]]) -> Self:
        """Return the manifest of rows as a file or a result lists them.

        Raises:
            KeyError, TypeError, ValueError: An entry has no row, task or seed.
        """
        return cls(
            tuple(_row(entry) for entry in entries),
            tuple(entry.get("start_state") for entry in entries),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tasks(self) -> list[str]:
        """The task ids, in the order of their first rows."""
        return list(dict.fromkeys(row.task for row in self.rows))

    @property
    def hash(self) -> str:
        """SHA-256 of the rows, in the order of the file."""
        return hashlib.sha256(_canonical(self._entries()).encode()).hexdigest()

    def select(self, tasks: Sequence[str], episodes: int | None = None) -> Self:
        """Return the first `episodes` rows (all if None) of some tasks, with unchanged numbers."""
        left = dict.fromkeys(tasks, len(self) if episodes is None else episodes)
        chosen = []
        for i, row in enumerate(self.rows):
            if left.get(row.task, 0) > 0:
                left[row.task] -= 1
                chosen.append(i)
        states = tuple(self.start_states[i] for i in chosen)
        return replace(self, rows=tuple(self.rows[i] for i in chosen), start_states=states)

    def save(self, path: str | Path) -> None:
        """Write the manifest, one line per row; the same rows give the same bytes.

        Raises:
            ManifestError: The file's name ends with neither `.json` nor `.json.gz`.
        """
        _check_suffix(path)
        head = {"kind": KIND, "version": VERSION, "hash": self.hash}
        rows = ",\n".join(_canonical(entry) for entry in self._entries())
        text = f'{_canonical(head)[:-1]},"rows":[\n{rows}\n]}}\n'
        data = text.encode()
        write_bytes(path, gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Read a manifest.

        Args:
            name_or_path: A shipped manifest's name or a file.

        Raises:
            ManifestError: It does not exist, or is damaged, changed by hand or of another version.
        """
        name = str(name_or_path)
        path = shipped_manifests().get(name, Path(name).expanduser())
        if not path.is_file():
            shipped = shipped_manifests()
            raise ManifestError(
                f"The manifest {name!r} is neither a file nor a shipped one."
                f"{did_you_mean(name, shipped)}",
                allowed=f"a file, or a shipped manifest: {', '.join(shipped)}",
                remedy="`robo-razor manifest` makes one.",
            )
        data = _read(path)
        try:
            manifest = replace(cls.of_entries(data["rows"]), name=name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ManifestError(
                f"{path} has a row that cannot be used: {error}",
                remedy="Make a new one with `robo-razor manifest`.",
            ) from error
        _check(manifest, str(data.get("hash")), path)
        return replace(manifest, source_hash=manifest.hash)

    def check_start_state(self, index: int, actual: str | None) -> None:
        """Compare an episode's start state with the manifest's.

        Args:
            index: Position of the row in `rows`.
            actual: The hash that the environment reports, None if it reports none.

        Raises:
            ManifestError: The states differ.
        """
        expected, row = self.start_states[index], self.rows[index]
        if expected is None or expected == actual:
            return
        start = "reports no hash of start states" if actual is None else f"starts from {actual}"
        raise ManifestError(
            f"Row {row.row_id} of the manifest {self.name!r} ({row.task}, seed {row.seed}) has the "
            f"start state {expected}, but here the environment {start}. The manifest was made with "
            "another version of the environment or of MuJoCo",
            remedy="Install that version, or make a new manifest with `robo-razor manifest` and "
            "evaluate again everything that you want to compare.",
        )

    def _entries(self) -> list[dict[str, Any]]:
        return [
            {
                "row": row.row_id,
                "task": row.task,
                "seed": row.seed,
                "instruction": row.instruction,
                "start_state": state,
            }
            for row, state in zip(self.rows, self.start_states, strict=True)
        ]


def shipped_manifests() -> dict[str, Path]:
    """Return the manifests of the installation by name."""
    folder = Path(str(files("robo_razor.rollout").joinpath("manifests")))
    paths = sorted(folder.glob("*.json.gz"))
    return {path.name.removesuffix(".json.gz"): path for path in paths}


def held_out_rows(
    tasks: Mapping[str, str],
    episodes: int | Mapping[str, int],
    seed_offset: int = HELD_OUT_SEED,
) -> list[EpisodeRow]:
    """Return the rows of an evaluation: per skill, one episode for each of its start states.

    Args:
        tasks: Skill name -> Gymnasium id.
        episodes: Episodes per skill, for all or by skill name.
        seed_offset: Seed of the first start state.
    """
    rows: list[EpisodeRow] = []
    for skill, task in tasks.items():
        n = episodes if isinstance(episodes, int) else episodes[skill]
        seeds = held_out_seeds(n, seed_offset).tolist()
        rows += make_rows(task, seeds, first_row_id=len(rows))
    return rows


def describe(env: VectorEnv, rows: Sequence[EpisodeRow], name: str = "") -> Manifest:
    """Return a manifest with the start state of every row, without running any episode.

    Args:
        env: Vector environment that can switch to every task.
        rows: The rows; those without an instruction get the one that the environment draws.
        name: The manifest's name.
    """
    from robo_razor.rollout.groups import GroupDriver  # slow to import

    driver = GroupDriver(env)
    described: list[EpisodeRow] = []
    states: list[str | None] = []
    for first in range(0, len(rows), driver.num_envs):
        block = rows[first : first + driver.num_envs]
        _, instructions, infos = driver.reset(
            np.arange(len(block)),
            [row.seed for row in block],
            [row.task for row in block],
            [row.instruction for row in block],
        )
        described += [
            replace(row, instruction=text) for row, text in zip(block, instructions, strict=True)
        ]
        states += start_states(infos, len(block))
    return Manifest(tuple(described), tuple(states), name)


def start_states(infos: Mapping[str, Any], n: int) -> list[str | None]:
    """Return the hashes in the infos of n resets, None for those without one."""
    hashes = infos.get(START_STATE_HASH)
    return [None] * n if hashes is None else [str(value) or None for value in hashes]


def make_manifest(config: ManifestConfig) -> Manifest:
    """Make a manifest as the settings say, and write it.

    Raises:
        ManifestError: The file's name cannot be used, or there is no row.
    """
    from robo_razor.rollout.environments import named_tasks

    _check_suffix(config.out)
    check_writable(config.out, "out")
    named = named_tasks(config.skills, config.env.env_packages)
    rows = held_out_rows(named, config.episodes or EPISODES, config.seed_offset)
    manifest = _described(config, rows)
    manifest.save(config.out)
    return manifest


@dataclass(frozen=True)
class ManifestCheck:
    """The result of a check: the manifest has the start states of this installation.

    Attributes:
        manifest: The rows that were checked.
        known: Number of rows with a hash; the others cannot be checked.
    """

    manifest: Manifest
    known: int


def check_manifest(config: ManifestConfig) -> ManifestCheck:
    """Check the manifest that `check` names against this installation.

    Raises:
        ManifestError: The file cannot be used, a start state differs, or no row has a hash.
    """
    from robo_razor.rollout.environments import resolve_tasks

    manifest = Manifest.load(str(config.check))
    tasks = manifest.tasks
    if config.skills != "all":
        tasks = resolve_tasks(config.skills, config.env.env_packages)
    manifest = manifest.select(tasks, config.episodes)
    for i, state in enumerate(_described(config, manifest.rows).start_states):
        manifest.check_start_state(i, state)
    num_known = sum(state is not None for state in manifest.start_states)
    if not num_known:
        raise ManifestError(
            f"{config.check} has no hash of a start state of these tasks, because their "
            "environments report none: there is nothing to check"
        )
    return ManifestCheck(manifest, num_known)


def _described(config: ManifestConfig, rows: Sequence[EpisodeRow]) -> Manifest:
    """Return a manifest of rows with the start states of this installation."""
    from robo_razor.rollout.environments import make_env

    if not rows:
        raise ManifestError(f"`skills` = {config.skills!r} and `episodes` leave no row")
    tasks = tuple(dict.fromkeys(row.task for row in rows))
    env = make_env(rows[0].task, config.env, chunk_size=1, tasks=tasks)
    try:
        return describe(env, rows)
    finally:
        env.close()


def _canonical(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _row(entry: Mapping[str, Any]) -> EpisodeRow:
    _ROW(entry, "row")
    return EpisodeRow(entry["task"], entry["seed"], entry.get("instruction"), entry["row"])


def _read(path: Path) -> dict[str, Any]:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # bounded, however large it would unpack
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES / 2**20:g} MiB")
        parsed = parse_json(data.decode("utf-8"))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ManifestError(f"The manifest {path} cannot be read ({error})") from error
    if not isinstance(parsed, dict) or parsed.get("kind") != KIND:
        raise ManifestError(
            f"{path} is not a manifest: its `kind` is not {KIND!r}",
            remedy="`robo-razor manifest` makes one.",
        )
    if parsed.get("version") != VERSION:
        raise ManifestError(
            f"The manifest {path} has version {shown(parsed.get('version'))}", allowed=str(VERSION)
        )
    if not isinstance(parsed.get("rows"), list):
        raise ManifestError(f"The manifest {path} has no rows")
    return parsed


def _check(manifest: Manifest, expected: str, path: Path) -> None:
    ids = [row.row_id for row in manifest.rows]
    if ids != list(range(len(ids))):
        raise ManifestError(f"The rows of the manifest {path} are not numbered 0, 1, 2, ...")
    if not ids or manifest.hash != expected:
        raise ManifestError(
            f"The manifest {path} has no rows"
            if not ids
            else f"The rows of the manifest {path} were changed: their hash is {manifest.hash}, "
            f"the file says {expected}",
            remedy="Make a new one with `robo-razor manifest`, or with `Manifest.save` in Python.",
        )


def _check_suffix(path: str | Path) -> None:
    if not str(path).endswith(SUFFIXES):
        raise ManifestError(
            f"The name of the manifest {str(path)!r} has another ending", " or ".join(SUFFIXES)
        )
