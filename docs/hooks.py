"""Pages that are made from the code when the site is built: commands and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from robo_razor.cli.commands import COMMANDS
from robo_razor.core.plugins import METHODS, REGULARISERS
from robo_razor.core.registry import Registry
from robo_razor.core.settings.conversion import Settings, field_help

COMMANDS_PAGE = "reference/commands.md"
INTRODUCTION = """# Commands and settings

This page is made from the code. `robo-razor COMMAND --help-all` shows the same in the terminal;
`--help` shows only the main settings.

A setting has one name, and you can give it in two places:

| place | how you write `ppo.learning_rate` |
|---|---|
| on the command line | `--ppo.learning-rate 1e-4` |
| in a file for `--config FILE.yaml` | `ppo: {learning_rate: 1.0e-4}` |

Flags override the file.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    return files


def commands_page() -> str:
    """Return the page of all commands, with every setting's default and help."""
    commands = [_command(name) for name in COMMANDS]
    methods = _registered("Methods", METHODS, "{}")
    regularisers = _registered("Regularisers", REGULARISERS, "regularise.{}")
    return "\n".join([INTRODUCTION, *commands, *methods, *regularisers])


def _command(name: str) -> str:
    command = COMMANDS[name]
    examples = "\n".join(command.examples)
    lines = [f"## {name}\n", f"{command.about}\n", f"```sh\n{examples}\n```\n"]
    if command.config is not None:
        lines += _tables(command.config, name, "")
    return "\n".join([*lines, ""])


def _registered(title: str, registry: Registry[Any], prefix: str) -> Iterator[str]:
    """Yield a chapter with the settings of all classes of a registry.

    Args:
        title: The chapter's.
        registry: Classes of settings.
        prefix: How a class's key begins, with `{}` in the place of its name.
    """
    yield f"## {title}\n\nThese are settings of `finetune`, too.\n"
    for name in registry.names():
        settings = registry.get(name)
        yield f"### `{prefix.format(name)}`\n\n{_about(settings)}\n"
        yield from _tables(settings, title, f"{prefix.format(name)}.")


def _about(settings: type[Settings]) -> str:
    """Return the first paragraph of a class's docstring on one line."""
    return " ".join((settings.__doc__ or "").split("\n\n")[0].split())


def _tables(settings: type[Settings], command: str, prefix: str) -> Iterator[str]:
    """Yield a table of settings, and then one for each section under a heading of its own."""
    help_lines = field_help(settings)
    sections: list[tuple[str, Any]] = []
    rows: list[str] = []
    for item in dataclasses.fields(settings):
        if isinstance(item.default, Settings):
            sections.append((item.name, item.default))
            continue
        text = help_lines[item.name].replace("|", "\\|")
        rows.append(f"| `{prefix}{item.name}` | `{_shown(item.default)}` | {text} |")
    if rows:
        yield from ("| setting | default | meaning |", "|---|---|---|", *rows, "")
    for name, section in sections:
        yield f"### {command}: `{prefix}{name}`\n\n{_about(type(section))}\n"
        yield from _tables(type(section), command, f"{prefix}{name}.")


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "(empty)"
    return str(default).lower() if isinstance(default, bool) else str(default) or "(empty)"
