r"""Names that somebody else chose, made harmless for where they are shown.

A task, a skill, an arm or a directory may be called anything: with line breaks, escape sequences
of terminals, marks that turn the direction of writing, half a character. `printable` shows those as
escapes (`\x1b`); every place that shows names then only has to escape its own markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

ELLIPSIS = "\u2026"


def printable(text: str) -> str:
    """Return a text in one line, with escapes in place of invisible characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_values(value: Any) -> Any:
    """Return nested plain values with all texts made `printable`, keys too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_values(key): printable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(item) for item in value]
    return value


def shortened(text: str, length: int) -> str:
    """Return a text of at most `length` characters; what is cut off ends with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}{ELLIPSIS}"


def skill_name(task: str) -> str:
    """Return the short name of a task id: `LiftCube` for `gym_razor/LiftCube-v0`."""
    name = task.rsplit("/", 1)[-1]
    stem, _, version = name.rpartition("-v")
    return stem if stem and version.isdigit() else name


def literal(text: str) -> Text:
    """Return a text that a console shows as it is: `[red]` in it is not markup."""
    from rich.text import Text

    return Text(printable(text))
