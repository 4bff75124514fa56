"""Command-line flags and config files to settings.

Order of precedence: defaults, then `--config file.yaml` (or, with `--resume`, the run's own
config.yaml), then flags. A flag has the key's path as its name: `--ppo.learning-rate 1e-4`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from robo_razor.config import ArchiveConfig, CompareConfig, FinetuneConfig, SweepConfig
from robo_razor.errors import ConfigError, did_you_mean
from robo_razor.settings import (
    Settings,
    field_help,
    flatten,
    from_dict,
    read_yaml,
    replace,
    to_dict,
)

RESUME_MAY_CHANGE = ("out", "resume")
"""Keys that may differ from the interrupted run's; any other would make it another run."""

POSITIONAL: dict[type[Settings], tuple[str, str]] = {
    CompareConfig: ("runs", "RUN ..."),
    SweepConfig: ("file", "FILE"),
    ArchiveConfig: ("directory", "DIRECTORY"),
}
"""The setting that a command takes without a flag, and what the usage line calls it."""


def parse[C: Settings](command: str, config_class: type[C], words: Sequence[str], about: str) -> C:
    """Turn the words after `robo-razor COMMAND` into settings.

    Args:
        command: The subcommand, for the usage line.
        config_class: Its settings.
        words: What was typed.
        about: Text at the top of the help.

    Raises:
        ConfigError: A file, key or value cannot be used.
        SystemExit: Help was asked for (status 0) or a flag is unknown (status 2).
    """
    rest, file = _take_option(list(words), "--config")
    base: C = _starting_point(config_class, rest, file)
    _refuse_inactive_flags(base, rest)
    config = _parse_flags(command, base, rest, about)
    if isinstance(config, FinetuneConfig) and config.resume:
        refuse_other_run(to_dict(base), to_dict(with_task_id(config)))
    return config


def with_task_id(config: FinetuneConfig) -> FinetuneConfig:
    """Return settings that name the new task by its id, as a run keeps them."""
    from robo_razor.environment import task_id  # slow to import

    return replace(config, task=task_id(config.task, config.env.env_packages))


def refuse_other_run(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a run is resumed with the settings it had.

    Raises:
        ConfigError: A key differs that would make it another run.
    """
    old, new = flatten(before), flatten(now)
    changed = [k for k in new if old.get(k) != new[k] and k not in RESUME_MAY_CHANGE]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"`{key}` = {new[key]!r} differs from the run that is resumed, which has "
            f"{old.get(key)!r}: the result would be another run",
            remedy="Leave the flag out, or start a new run with `--policy` set to this one.",
        )


def _starting_point[C: Settings](config_class: type[C], words: list[str], file: str | None) -> C:
    """Return the settings that flags are applied to, with the chosen method already set."""
    data: dict[str, Any] = {} if file is None else read_yaml(file)
    source = file
    if not issubclass(config_class, FinetuneConfig):
        return from_dict(config_class, data, source)
    out = _take_option(list(words), "--out")[1] or data.get("out")
    method = _take_option(list(words), "--method")[1]
    if "--resume" in words and out:
        if file is not None:
            raise ConfigError(
                "`--config` and `--resume` exclude each other: a resumed run uses its own config",
                remedy=f"Use `robo-razor finetune --resume --out {out}`.",
            )
        from robo_razor.checkpoint import RunDirectory

        run = RunDirectory.open(out)
        data, source = {**run.config_data(), "out": str(out)}, f"{out}/config.yaml"
        if method is not None and method != data.get("method"):
            refuse_other_run({"method": data.get("method")}, {"method": method})
    elif method is not None and method != data.get("method", method):
        others = set(FinetuneConfig.METHODS) - {method}
        data = {k: v for k, v in data.items() if k not in others}
    if method is not None:
        data = {**data, "method": method}
    return from_dict(config_class, data, source)


def _refuse_inactive_flags(base: Settings, words: list[str]) -> None:
    for word in words:
        section = word.removeprefix("--").split(".", 1)[0] if word.startswith("--") else ""
        if "." in word and section in base.inactive_sections():
            raise ConfigError(
                f"`{word.split('=', 1)[0]}` belongs to the method {section!r}, but the method is "
                f"{getattr(base, 'method', None)!r}, so nothing would read it",
                remedy=f"Remove it or choose `--method {section}`.",
            )


def _parse_flags[C: Settings](command: str, base: C, words: list[str], about: str) -> C:
    """Let tyro read the flags onto a dataclass that has only the active sections."""
    import tyro

    prog = f"robo-razor {command}"
    _refuse_unknown_flags(command, base, words)
    hints = typing.get_type_hints(type(base), include_extras=True)
    help_lines = field_help(type(base))
    names = [f.name for f in dataclasses.fields(base) if f.name not in base.inactive_sections()]
    columns: list[tuple[str, Any, Any]] = []
    for name in names:
        kind = _flag_type(type(base), name, hints[name])
        marks: list[Any] = [tyro.conf.arg(help=help_lines[name])]
        positional, metavar = POSITIONAL.get(type(base), ("", ""))
        if name == positional:
            marks = [tyro.conf.arg(help=help_lines[name], metavar=metavar), tyro.conf.Positional]
        default = dataclasses.field(default=getattr(base, name))
        columns.append((name, Annotated.__class_getitem__((kind, *marks)), default))  # type: ignore[attr-defined]
    flags = dataclasses.make_dataclass(type(base).__name__, columns, kw_only=True)
    if "-h" in words or "--help" in words:
        tyro.cli(flags, prog=prog, description=about, args=words)
    screen = io.StringIO()
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            parsed: Any = tyro.cli(flags, prog=prog, args=words)
    except SystemExit:
        help_line = f"`{prog} --help` lists the options."
        raise ConfigError(_unboxed(screen.getvalue()), remedy=help_line) from None
    return replace(base, **{name: getattr(parsed, name) for name in names})


def _unboxed(text: str) -> str:
    """Return the message of the box that tyro draws around an error: below its first rule."""
    lines = [line.strip("│| ") for line in text.splitlines()]
    rules = [i for i, line in enumerate(lines) if line and set(line) <= set("-─╭╮╰╯+")]
    if len(rules) < 2:
        return " ".join(text.split())
    return " ".join(line for line in lines[rules[0] + 1 : rules[1]] if line)


def _flag_type(config_class: type[Settings], name: str, hint: Any) -> Any:
    if issubclass(config_class, FinetuneConfig) and name == "method":
        return Literal.__getitem__(FinetuneConfig.METHODS)
    return hint


def _refuse_unknown_flags(command: str, base: Settings, words: list[str]) -> None:
    """Raise for the first flag that no key has, with a suggestion."""
    known = _flags(base)
    for word in words:
        if not word.startswith("--") or word == "--":
            continue
        name = word.removeprefix("--").split("=", 1)[0].replace("_", "-")
        if name in known or name == "help":
            continue
        inside = [flag for flag in known if flag.rsplit(".", 1)[-1] == name]
        flags = [f"--{flag}" for flag in inside or sorted(known)]
        hint = f" Did you mean '{flags[0]}'?" if inside else did_you_mean(f"--{name}", flags)
        raise ConfigError(
            f"Unknown option `--{name}` of `robo-razor {command}`.{hint}",
            remedy=f"`robo-razor {command} --help` lists the options.",
        )


def _flags(base: Settings) -> set[str]:
    names: set[str] = set()
    for key, value in flatten(to_dict(base)).items():
        flag = key.replace("_", "-")
        names.add(flag)
        if isinstance(value, bool):
            section, _, last = flag.rpartition(".")
            names.add(f"{section}.no-{last}" if section else f"no-{last}")
    return names


def _take_option(words: list[str], option: str) -> tuple[list[str], str | None]:
    """Return the words without `option VALUE` (or `option=VALUE`), and the value."""
    rest: list[str] = []
    value: str | None = None
    skip = False
    for i, word in enumerate(words):
        if skip:
            skip = False
        elif word == option:
            if i + 1 == len(words) or words[i + 1].startswith("--"):
                raise ConfigError(f"`{option}` needs a value after it")
            value, skip = words[i + 1], True
        elif word.startswith(f"{option}="):
            value = word.split("=", 1)[1]
        else:
            rest.append(word)
    return rest, value
