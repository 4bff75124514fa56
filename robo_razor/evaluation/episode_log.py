"""A log of the finished episodes of an evaluation.

With a file, an interrupted evaluation resumes: finished rows are read from the file and not run
again. The file is JSON lines: a header that identifies the evaluation, then one entry per finished
row. A last line that a crash cut off is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from robo_razor.core import records
from robo_razor.core.errors import ConfigError
from robo_razor.core.files import parse_json, read_text, without_nan, write_text
from robo_razor.core.fingerprint import differences
from robo_razor.core.ranks import ALONE, Ranks
from robo_razor.core.types import EpisodeRow
from robo_razor.rollout.recorders import EpisodeStart, StepOutcome
from robo_razor.rollout.start_states import Manifest, start_states

Entry = dict[str, Any]
"""The outcome of one row: row, task, seed, instruction, start_state, success, return, decisions,
control_steps, terminated, truncated."""

KIND = "robo-razor unfinished evaluation"

_HEAD = records.entries(
    {}, dict.fromkeys(("identity", "fingerprint"), records.optional(records.plain_values))
)
_ENTRY = records.entries(
    {
        **dict.fromkeys(("row", "decisions", "control_steps"), records.whole()),
        **dict.fromkeys(("success", "terminated", "truncated"), records.boolean),
        **{"task": records.name, "seed": records.whole(0, 2**63), "instruction": records.text},
    },
    {
        "start_state": records.optional(records.text),
        "return": records.optional(records.number()),
    },
)


def episode_entry(
    *,
    instruction: str,
    start_state: str | None,
    success: bool,
    episode_return: float,
    decisions: int,
    control_steps: int,
    terminated: bool,
    truncated: bool,
) -> Entry:
    """Return the outcome of one episode as plain values."""
    return {
        "instruction": instruction,
        "start_state": start_state,
        "success": bool(success),
        "return": float(episode_return),
        "decisions": int(decisions),
        "control_steps": int(control_steps),
        "terminated": bool(terminated),
        "truncated": bool(truncated),
    }


class EpisodeLog:
    """Checks the start states of a rollout and records finished rows, in memory and in a file.

    Args:
        manifest: The rows to evaluate.
        path: File of the finished rows; None: only in memory.
        identity: Values that outcomes depend on; a resumed evaluation must have equal ones.
        fingerprint: Fingerprint of this evaluation; a resumed one must have no decisive difference.
        resume: Continue with the rows in the file.

    Raises:
        ConfigError: The file holds rows and `resume` is False, or rows of another evaluation.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        path: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.entries: dict[int, Entry] = {}
        self.path = path
        self._positions = {row.row_id: i for i, row in enumerate(manifest.rows)}
        self._manifest = manifest
        self._block: list[EpisodeRow] = []
        self._start_states: dict[int, str | None] = {}
        self._file: TextIO | None = None
        if path is not None:
            head = {"kind": KIND, "identity": identity, "fingerprint": fingerprint}
            if path.is_file():
                self._resume(path, head, resume)
            lines = [head, *self.entries.values()]
            write_text(path, "".join(_line(item) for item in lines))
            self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            if not self.entries:
                self.discard()

    def discard(self) -> None:
        """Delete the file, after the result was written elsewhere."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)

    def begin(self, rows: Iterable[EpisodeRow], ranks: Ranks = ALONE) -> list[EpisodeRow]:
        """Return the unfinished ones of some rows; the next rollout must run exactly these.

        Args:
            rows: Rows to finish, the same on all ranks.
            ranks: They divide the rows; `end` shares the outcomes among them.
        """
        for entries in ranks.gather(list(self.entries.values())):  # rank 0 may have resumed
            self._add_new(entries)
        left = [row for row in rows if row.row_id not in self.entries]
        self._block = left[ranks.share]
        return self._block

    def end(self, ranks: Ranks) -> None:
        """Add the rows that other ranks have finished."""
        finished = [self.entries[row.row_id] for row in self._block]
        for entries in ranks.gather(finished):
            self._add_new(entries)

    def of(self, rows: Iterable[EpisodeRow]) -> list[Entry]:
        """Return the entries of finished rows, in the order of `rows`."""
        return [self.entries[row.row_id] for row in rows]

    # The methods of `recorders.Observer`.

    def on_start(self, start: EpisodeStart) -> None:
        """Compare the start states with the manifest's."""
        states = start_states(start.infos, len(start.env_ids))
        for e, state in zip(start.episodes, states, strict=True):
            row_id = self._block[e].row_id
            self._manifest.check_start_state(self._positions[row_id], state)
            self._start_states[row_id] = state

    def on_step(self, outcome: StepOutcome) -> None:
        """Record the rows that have ended."""
        for i in np.flatnonzero(outcome.terminated | outcome.truncated):
            row = outcome.request.rows[i]
            self._add(
                {
                    "row": row.row_id,
                    "task": row.task,
                    "seed": row.seed,
                    **episode_entry(
                        instruction=outcome.request.instructions[i],
                        start_state=self._start_states.pop(row.row_id),
                        success=outcome.success[i],
                        episode_return=outcome.episode_return[i],
                        decisions=outcome.decisions[i],
                        control_steps=outcome.control_steps[i],
                        terminated=outcome.terminated[i],
                        truncated=outcome.cut[i],
                    ),
                }
            )

    def _add_new(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry["row"] not in self.entries:
                self._add(entry)

    def _add(self, entry: Entry) -> None:
        self.entries[entry["row"]] = entry
        if self._file is not None:
            self._file.write(_line(entry))
            self._file.flush()

    def _resume(self, path: Path, head: Mapping[str, Any], resume: bool) -> None:
        """Read the rows of an interrupted evaluation, after checking that it is this one."""
        earlier, *entries = _read(path)
        if not entries:
            return
        if not resume:
            raise ConfigError(
                f"{path} holds {len(entries)} episodes of an interrupted evaluation",
                remedy="Resume it (`--resume`), or delete that file.",
            )
        before, now = earlier.get("identity") or {}, head["identity"] or {}
        changed = [
            f"{k}: {before.get(k)} before, {v} now" for k, v in now.items() if before.get(k) != v
        ]
        changed += differences(earlier.get("fingerprint") or {}, head["fingerprint"] or {})
        if changed:
            raise ConfigError(
                f"{path} holds episodes of an evaluation with other settings "
                f"({'; '.join(changed)}), which cannot be used here",
                remedy="Resume with equal settings, or delete that file.",
            )
        for entry in entries:
            row = self._manifest.rows[self._positions.get(entry["row"], 0)]
            if entry["row"] in self._positions and (entry["task"], entry["seed"]) == (
                row.task,
                row.seed,
            ):
                self.entries[entry["row"]] = entry


def _line(item: Mapping[str, Any]) -> str:
    return json.dumps(without_nan(item), allow_nan=False) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the file, without a last line that was cut off."""
    number = 0
    items: list[dict[str, Any]] = []
    try:
        for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
            item = parse_json(line)
            if number == 1 and (not isinstance(item, dict) or item.get("kind") != KIND):
                raise ConfigError(
                    f"{path} is not the file of an {KIND.removeprefix('robo-razor ')}",
                    remedy="Delete it, or write the result elsewhere (`--json`).",
                )
            (_HEAD if number == 1 else _ENTRY)(item, "")
            items.append(item)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is damaged: line {number} cannot be read ({error})", remedy="Delete it."
        ) from error
    return items or [{}]
