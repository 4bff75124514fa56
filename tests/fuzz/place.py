"""What a place where files come in needs to be: valid files, damage to them, and a door."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from robo_razor.cli import commands as cli

LONGEST = 4000
"""Letters of the longest paragraph that is an error."""
PREFIX = "robo-razor: error: "


class Refused(Exception):
    """The command line told an error in one paragraph and ended with status 2."""


class Fault(Exception):
    """What happened is neither of the two outcomes that are allowed."""


class Enough(Exception):
    """The files were taken, and what follows is of no interest here: that counts as working."""


@dataclass(frozen=True)
class Folder:
    """Where one case happens."""

    root: Path

    @property
    def given(self) -> Path:
        """Files that come from a stranger."""
        return self.root / "given"

    @property
    def out(self) -> Path:
        """Where results may go; also the working directory."""
        return self.root / "out"

    @property
    def temporary(self) -> Path:
        """Where temporary files go, and must not stay."""
        return self.root / "tmp"

    @property
    def outside(self) -> Path:
        """Files that nothing may touch."""
        return self.root / "outside"

    @property
    def linked(self) -> Path:
        """Files that links lead to which the user has made."""
        return self.root / "linked"


@dataclass(frozen=True)
class Attempt:
    """One case, made and not yet run."""

    words: str
    door: Callable[[], None]
    command: str = ""
    may_read_outside: bool = False
    """Whether its files are the user's own, who may name any other to be read."""


class Place:
    """A place where files come in."""

    name: ClassVar[str]
    changes_given: ClassVar[bool] = False
    """Whether the command writes into the folder it is given."""

    def __init__(self, templates: Path) -> None:
        """Keep where the valid files are; `prepare` has made them."""
        self.templates = templates

    @staticmethod
    def prepare(templates: Path) -> None:
        """Make the valid files that cases begin with."""

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Return the door for valid files; what takes longer at the first time is done by it."""
        raise NotImplementedError

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Write a case's files."""
        raise NotImplementedError

    def writable(self, folder: Folder) -> list[Path]:
        """Return the folders that the case may change."""
        given = [folder.given] if self.changes_given else []
        return [folder.out, folder.temporary, *given]


def copied(template: Path, target: Path) -> Path:
    """Copy files, links as links, and files without end as such."""
    if template.is_dir():
        shutil.copytree(template, target, symlinks=True, copy_function=_copy)
    else:
        _copy(str(template), str(target))
    return target


def _copy(source: str, target: str) -> None:
    size = os.stat(source).st_size
    if size < 10**8 and stat.S_ISREG(os.stat(source).st_mode):
        shutil.copy(source, target)
        return
    with open(target, "wb") as file:
        file.truncate(size)


def command(words: Sequence[str]) -> Callable[[], None]:
    """Return a door: the command line, whose status and words are judged."""

    def door() -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(list(words))
        if status == 0:
            return
        told = [line for line in err.getvalue().splitlines() if line.startswith(PREFIX)]
        others = [line for line in err.getvalue().splitlines() if "Traceback" in line]
        if status != cli.EXIT_ERROR or len(told) != 1 or others:
            raise Fault(f"status {status} and {err.getvalue()[-500:]!r}")
        raise Refused(told[0].removeprefix(PREFIX))

    return door


def some(rng: random.Random, most: int = 3) -> int:
    """Return how many things are damaged: mostly one."""
    return 1 if rng.random() < 0.8 else rng.randint(2, most)
