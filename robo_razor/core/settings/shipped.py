"""Settings files that ship: `configs/` in a checkout, `robo_razor/configs` in a wheel.

A user's own file wins over a shipped one of the same name.
"""

from __future__ import annotations

from pathlib import Path

EXPERIMENTS = "experiments"
"""Folder of the experiment files, which `robo-razor sweep` runs."""

_PACKAGE = Path(__file__).parents[2]


def folder() -> Path:
    """Return where the files lie."""
    checkout = _PACKAGE.parent / "configs"
    beside = (_PACKAGE.parent / "pyproject.toml").is_file()
    return checkout if beside and checkout.is_dir() else _PACKAGE / "configs"


def shipped_files(kind: str = "") -> dict[str, Path]:
    """Return the files that ship, by their names without `.yaml`.

    Args:
        kind: Empty for settings of `finetune`, or `EXPERIMENTS`.
    """
    return {file.stem: file for file in sorted((folder() / kind).glob("*.yaml"))}


def settings_file(name: str) -> str:
    """Return the file for `--config`: the user's own, or one that ships.

    Any other name is returned as it is; reading it raises the error.
    """
    return _meant(name, "")


def experiment_file(name: str) -> str:
    """Return the file for `sweep`, as `settings_file` does."""
    return _meant(name, EXPERIMENTS)


def which_file(kind: str = "") -> str:
    """Return what to do where a file is missing: check the path, or name one that ships."""
    names = ", ".join(shipped_files(kind))
    return f"Check the path, or name one that ships with robo-razor: {names}."


def _meant(name: str, kind: str) -> str:
    if "/" in name or Path(name).exists():
        return name
    file = shipped_files(kind).get(name.removesuffix(".yaml"))
    return name if file is None else str(file)


def about_file(file: Path) -> str:
    """Return the first line of a file where that is a comment."""
    with file.open(encoding="utf-8") as lines:
        line = lines.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""
