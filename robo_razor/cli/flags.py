"""Settings as flags: the columns that tyro reads, and the two lengths of help.

`--help` shows the settings that are declared with `setting(..., main=True)`; `--help-all` shows
all. If a class marks none, both show all of its settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn

from robo_razor.core.plugins import METHODS
from robo_razor.core.settings.config import (
    ArchiveConfig,
    CompareConfig,
    FinetuneConfig,
    ListConfig,
    RegulariserSettings,
    SweepConfig,
)
from robo_razor.core.settings.conversion import MAIN, Settings, field_help, flatten, to_dict

HELP, HELP_ALL = ("-h", "--help"), "--help-all"

RESUME_VALUES: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}
"""Values of finetune's `--resume`; alone it means true."""

POSITIONAL: dict[type[Settings], tuple[str, str]] = {
    CompareConfig: ("runs", "RUN ..."),
    SweepConfig: ("file", "FILE"),
    ArchiveConfig: ("directory", "DIRECTORY"),
    ListConfig: ("kinds", "[KIND ...]"),
}
"""The setting that a command takes without a flag, and its name in the usage line."""

WIDTH = 80
"""Columns of a usage line."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

type Column = tuple[str, Any, Any]
"""Name, annotated type and default of a field that a flag sets."""


def asks_for_help(argv: Sequence[str]) -> bool:
    """Return whether the arguments ask for help, short or long."""
    return any(word in argv for word in (*HELP, HELP_ALL))


def columns(base: Settings) -> list[Column]:
    """Return the field of every setting that has a flag."""
    return list(_columns(base))


def show_help(prog: str, base: Settings, argv: Sequence[str], about: str) -> NoReturn:
    """Print the help that the arguments ask for.

    Args:
        prog: The command, for the usage line.
        base: Settings whose values are shown as defaults.
        argv: The arguments.
        about: Text at the top.

    Raises:
        SystemExit: Always, with status 0.
    """
    import tyro

    all_columns = columns(base)
    listed = all_columns if HELP_ALL in argv else _main_columns(base, all_columns)
    flags = dataclasses.make_dataclass(type(base).__name__, listed, kw_only=True)
    screen = _Screen()
    with contextlib.redirect_stdout(screen), contextlib.suppress(SystemExit):
        tyro.cli(flags, prog=prog, description=about, args=["--help"])
    usage, _, body = screen.text().partition("\n")
    if len(_COLOUR.sub("", usage)) > WIDTH:
        usage = f"usage: {prog} [-h] [OPTIONS] {POSITIONAL.get(type(base), ('', ''))[1]}".rstrip()
    sys.stdout.write(f"{usage}\n{body}")
    if _count(listed) < _count(all_columns):
        count = f"{_count(listed)} of {_count(all_columns)}"
        sys.stdout.write(f"\n{count} settings are shown; `{prog} {HELP_ALL}` shows all.\n")
    raise SystemExit(0)


class _Screen(io.TextIOWrapper):
    """Collects printed text, with the colours and boxes that standard output can show."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding=sys.stdout.encoding or "utf-8", newline="")
        self._terminal = sys.stdout.isatty()

    def isatty(self) -> bool:
        """Return whether the text will be shown on a terminal."""
        return self._terminal

    def text(self) -> str:
        """Return the printed text."""
        self.seek(0)
        return self.read()


def _columns(base: Settings) -> Iterator[Column]:
    hints = typing.get_type_hints(type(base), include_extras=True)
    lines = field_help(type(base))
    positional, metavar = POSITIONAL.get(type(base), ("", ""))
    for item in dataclasses.fields(base):
        kind, value = hints[item.name], getattr(base, item.name)
        if isinstance(base, FinetuneConfig):
            kind, value = _flag_of(base, item.name, kind)
        if kind is None:
            continue
        hint = _hint(value, is_required=item.name == positional and not metavar.startswith("["))
        marks: list[Any] = [_help(lines[item.name], hint=hint)]
        if item.name == positional:
            marks = [_help(lines[item.name], metavar, hint), *_positional()]
        yield item.name, _annotated(kind, marks), dataclasses.field(default=value)
    if isinstance(base, FinetuneConfig):
        name, about = base.method.name, f"Settings of `--method {base.method.name}`."
        section = _annotated(type(base.method), [_help(about)])
        yield name, section, dataclasses.field(default=base.method)


def _flag_of(base: FinetuneConfig, name: str, kind: Any) -> tuple[Any, Any]:
    """Return type and default of a flag of `finetune`; None as type: the flag does not exist."""
    if name == "method":
        return Literal.__getitem__(tuple(METHODS)), base.method.name
    if name == "resume":
        text = next(text for text, value in RESUME_VALUES.items() if value == base.resume)
        return Literal.__getitem__(tuple(RESUME_VALUES)), text
    if name == "regularise":
        if not base.regularise:
            return None, None
        sections = [
            (
                term.name,
                _annotated(type(term), [_help(_about(term))]),
                dataclasses.field(default=term),
            )
            for term in base.regularise
        ]
        terms = dataclasses.make_dataclass("Regularise", sections, frozen=True, kw_only=True)
        return terms, terms()
    return kind, getattr(base, name)


def _about(term: RegulariserSettings) -> str:
    """Return the text above the flags of a regulariser."""
    line = (type(term).__doc__ or "").strip().splitlines()[0]
    return f"{line} Set any flag of this box to add the penalty to the loss."


def _main_columns(base: Settings, all_columns: Sequence[Column]) -> list[Column]:
    """Return the columns of a short help: the marked ones, in sections too."""
    names = _main_names(base)
    if names is None:
        return list(all_columns)
    method = base.method if isinstance(base, FinetuneConfig) else None
    chosen = []
    for name, kind, default in all_columns:
        if method is not None and name == method.name:
            chosen.append(_short_section(name, method))
        elif name in names:
            chosen.append((name, kind, default))
    return chosen


def _main_names(settings: Settings) -> set[str] | None:
    """Return the names of the marked settings; None: none is marked, so all are shown."""
    names = {item.name for item in dataclasses.fields(settings) if item.metadata.get(MAIN)}
    return names or None


def _short_section(name: str, settings: Settings) -> Column:
    """Return a section with the marked settings only."""
    all_columns = columns(settings)
    names = _main_names(settings)
    chosen = [column for column in all_columns if names is None or column[0] in names]
    section = dataclasses.make_dataclass(type(settings).__name__, chosen, frozen=True, kw_only=True)
    about = f"Settings of `--method {name}`."
    return name, _annotated(section, [_help(about)]), dataclasses.field(default=section())


def _count(listed: Sequence[Column]) -> int:
    """Return how many settings some columns have, those in sections included."""
    return sum(_size(default.default) for _, _, default in listed)


def _size(value: Any) -> int:
    if not dataclasses.is_dataclass(value):
        return 1
    return sum(_size(getattr(value, item.name)) for item in dataclasses.fields(value))


def flag_names(base: Settings) -> set[str]:
    """Return all flags, without their leading dashes."""
    names: set[str] = set()
    for key, value in flatten(to_dict(base)).items():
        flag = key.replace("_", "-")
        names.add(flag)
        if isinstance(value, bool):
            section, _, last = flag.rpartition(".")
            names.add(f"{section}.no-{last}" if section else f"no-{last}")
    return names


def _annotated(kind: Any, marks: list[Any]) -> Any:
    return Annotated.__class_getitem__((kind, *marks))  # type: ignore[attr-defined]


def _help(line: str, metavar: str | None = None, hint: str | None = None) -> Any:
    import tyro

    return tyro.conf.arg(help=line, metavar=metavar, help_behavior_hint=hint)


def _hint(value: Any, *, is_required: bool) -> str | None:
    """Return the remark after a setting's help where its default is empty; None: tyro's own."""
    if value not in ("", ()):
        return None
    return "(required)" if is_required else "(default: none)"


def _positional() -> tuple[Any, ...]:
    import tyro

    return (tyro.conf.Positional,)
