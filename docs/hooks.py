"""Pages that are made from the code when the site is built: commands and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from robo_razor.cli.commands import COMMANDS
from robo_razor.core.settings.conversion import Settings, field_help

COMMANDS_PAGE = "reference/commands.md"
INTRODUCTION = """# Commands and settings

This page is made from the code. `robo-razor COMMAND --help-all` shows the same; `--help` shows the
main settings only. `--config FILE.yaml` reads settings from a file, and flags override the file. A
key `ppo.learning_rate` in the file is the flag `--ppo.learning-rate`.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    return files


def commands_page() -> str:
    """Return the page of all commands, with every setting's default and help."""
    return "\n".join([INTRODUCTION, *(_command(name) for name in COMMANDS)])


def _command(name: str) -> str:
    command = COMMANDS[name]
    examples = "\n".join(command.examples)
    lines = [f"## {name}\n", f"{command.about}\n", f"```sh\n{examples}\n```\n"]
    if command.config is not None:
        lines += ["| setting | default | |", "|---|---|---|", *_rows(command.config, "")]
    return "\n".join([*lines, ""])


def _rows(settings: type[Settings], prefix: str) -> Iterator[str]:
    """Yield a table row for each setting, those of sections after their owner's."""
    help_lines = field_help(settings)
    sections: list[tuple[str, Any]] = []
    for item in dataclasses.fields(settings):
        if isinstance(item.default, Settings):
            sections.append((item.name, item.default))
            continue
        text = help_lines[item.name].replace("|", "\\|")
        yield f"| `{prefix}{item.name}` | `{_shown(item.default)}` | {text} |"
    for name, section in sections:
        yield from _rows(type(section), f"{prefix}{name}.")


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "(empty)"
    return str(default).lower() if isinstance(default, bool) else str(default) or "(empty)"
