"""Command-line flags and config files to settings.

Order of precedence: defaults, then `--config file.yaml` (or, with `--resume`, the run's own
config.yaml), then flags. A flag has the key's path as its name: `--ppo.learning-rate 1e-4`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robo_razor.cli.flags import (
    HELP,
    HELP_ALL,
    RESUME_VALUES,
    asks_for_help,
    columns,
    flag_names,
    show_help,
)
from robo_razor.core.errors import ConfigError, shown
from robo_razor.core.plugins import METHODS, REGULARISERS
from robo_razor.core.settings.config import (
    EnvConfig,
    FinetuneConfig,
    PackagesConfig,
    RegulariserSettings,
    import_plugins,
    regulariser_class,
)
from robo_razor.core.settings.conversion import (
    Settings,
    check_path,
    from_dict,
    merged,
    read_yaml,
    removed,
    replace,
    suggest_key,
    to_dict,
)
from robo_razor.core.settings.env_packages import (
    PLUGINS,
    refuse_packages_beside,
    refuse_plugins_beside,
)
from robo_razor.core.settings.shipped import settings_file, which_file

MAX_MESSAGE = 500


def parse[C: Settings](command: str, config_class: type[C], argv: Sequence[str], about: str) -> C:
    """Turn the arguments after `robo-razor COMMAND` into settings.

    Args:
        command: The subcommand, for the usage line.
        config_class: Its settings.
        argv: The arguments.
        about: Text at the top of the help.

    Raises:
        ConfigError: A file, key, flag or value cannot be used.
        SystemExit: Help was printed (status 0).
    """
    flags, file = _take_option(list(argv), "--config")
    file = None if file is None else settings_file(check_path("config", file))
    if issubclass(config_class, FinetuneConfig):
        flags = _with_resume_value(flags)
    data: dict[str, Any] = {} if file is None else read_yaml(file, which_file())
    takes_plugins = PLUGINS in {item.name for item in dataclasses.fields(config_class)}
    if takes_plugins and (plugins := _values_of(flags, PLUGINS)):
        data = {**data, PLUGINS: list(plugins)}
        import_plugins(plugins)  # they may add flags
    elif file is not None:
        refuse_plugins_beside(data, Path(file).absolute().parent, file)
    base, stored = _starting_point(config_class, flags, data, file)
    if isinstance(base, FinetuneConfig):
        _refuse_other_methods(base, flags)
        base = replace(base, regularise=_with_terms(base, flags))
    config = _parse_flags(command, base, flags, about)
    if file is not None and not _gives(flags, "env.env-packages"):
        _refuse_bundled_packages(config, file)
    if stored is not None and isinstance(config, FinetuneConfig):
        from robo_razor.training.resumption import refuse_other_run, with_task_id  # slow to import

        refuse_other_run(to_dict(stored), to_dict(with_task_id(config)))
    return config


def _starting_point[C: Settings](
    config_class: type[C], argv: list[str], data: dict[str, Any], file: str | None
) -> tuple[C, FinetuneConfig | None]:
    """Return the settings that flags change, with the chosen method already set.

    The second value holds the settings of the resumed run, which flags must not change.
    """
    if not issubclass(config_class, FinetuneConfig):
        return from_dict(config_class, data, file), None
    method = _take_option(list(argv), "--method")[1]
    stored = _resumed(argv, data, file)
    if stored is not None:
        from robo_razor.training.resumption import refuse_other_run  # slow to import

        given = {"method": method or data.get("method", stored.method.name)}
        refuse_other_run({"method": stored.method.name}, given)
        out = _take_option(list(argv), "--out")[1] or data["out"]
        data = merged(to_dict(stored), {**data, "out": out})
        return from_dict(config_class, data, file), stored
    if method is not None and method != data.get("method", method):
        unused = set(METHODS) - {method}
        data = {k: v for k, v in data.items() if k not in unused}
    if method is not None:
        data = {**data, "method": method}
    return from_dict(config_class, data, file), None


def _resumed(argv: list[str], data: dict[str, Any], file: str | None) -> FinetuneConfig | None:
    """Return the settings of the resumed run; None: no run is resumed."""
    flag = _take_option(list(argv), "--resume")[1]
    resume = data.get("resume") if flag is None else RESUME_VALUES.get(flag)
    out = _take_option(list(argv), "--out")[1] or data.get("out")
    if resume not in (True, "auto") or not isinstance(out, str) or not out:
        return None
    if flag == "true" and file is not None:
        raise ConfigError(
            "`--config` and `--resume` exclude each other: a resumed run uses its own config",
            remedy=f"Use `robo-razor finetune --resume --out {out}`, or `--resume auto`.",
        )
    from robo_razor.core.run.directory import RunDirectory  # slow to import
    from robo_razor.training.resumption import can_go_on, stored_settings

    run = RunDirectory(check_path("out", out))
    if resume == "auto" and not can_go_on(run):
        return None
    packages, plugins = _values_of(argv, "env.env-packages"), _values_of(argv, PLUGINS)
    return stored_settings(RunDirectory.open(run.path), packages, plugins)


def _refuse_bundled_packages(config: Settings, file: str) -> None:
    """Refuse code that came with a settings file."""
    env = getattr(config, "env", None)
    if isinstance(env, EnvConfig | PackagesConfig):
        refuse_packages_beside(env.env_packages, Path(file).absolute().parent, file)


def _with_resume_value(argv: list[str]) -> list[str]:
    """Return the arguments with a value after every `--resume`: alone it means true."""
    result: list[str] = []
    for i, word in enumerate(argv):
        following = argv[i + 1] if i + 1 < len(argv) else ""
        flag, mark, value = word.partition("=")
        if word == "--no-resume":
            result += ["--resume", "false"]
        elif flag == "--resume":
            result.append(flag)
            if mark or not following or following.startswith("-"):
                result.append(value.lower() or "true")
        elif result and result[-1] == "--resume":
            result.append(word.lower())
        else:
            result.append(word)
    return result


def _refuse_other_methods(base: FinetuneConfig, argv: list[str]) -> None:
    """Refuse flags of a method that is not chosen."""
    for word in argv:
        name = _flag_name(word).split(".", 1)[0] if word.startswith("--") else ""
        section = name.replace("-", "_")
        if "." in word and section != base.method.name and section in METHODS:
            raise ConfigError(
                f"`{word.split('=', 1)[0]}` belongs to the method {section!r}, but the method is "
                f"{base.method.name!r}, so it has no effect",
                remedy=f"Remove it or choose `--method {section}`.",
            )


def _with_terms(base: FinetuneConfig, argv: list[str]) -> tuple[RegulariserSettings, ...]:
    """Return the regularisers of the settings and of the flags; for the long help, all."""
    named = [
        _flag_name(word).split(".")[1].replace("-", "_")
        for word in argv
        if word.startswith("--regularise.") and _flag_name(word).count(".") > 1
    ]
    if HELP_ALL in argv:
        named += list(REGULARISERS)
    active = {term.name for term in base.regularise}
    new = [regulariser_class(name)() for name in dict.fromkeys(named) if name not in active]
    return *base.regularise, *new


def _parse_flags[C: Settings](command: str, base: C, argv: list[str], about: str) -> C:
    """Let tyro read the flags into a dataclass of the sections in use."""
    import tyro

    prog = f"robo-razor {command}"
    _refuse_unknown_flags(command, base, argv)
    _refuse_flags_given_twice(argv)
    if asks_for_help(argv):
        show_help(prog, base, argv, about)
    fields = columns(base)
    flag_class = dataclasses.make_dataclass(type(base).__name__, fields, kw_only=True)
    screen = io.StringIO()
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            parsed: Any = tyro.cli(flag_class, prog=prog, args=argv)
    except SystemExit:
        help_line = f"`{prog} --help` lists the options."
        raise ConfigError(_unboxed(screen.getvalue()), remedy=help_line) from None
    values = {name: getattr(parsed, name) for name, *_ in fields}
    if isinstance(base, FinetuneConfig):
        values["resume"] = RESUME_VALUES[values["resume"]]
        values["method"] = values.pop(base.method.name)
        terms = values.pop("regularise", None)
        values["regularise"] = tuple(getattr(terms, term.name) for term in base.regularise)
    return replace(base, **values)


def _unboxed(text: str) -> str:
    """Return the message inside the box that tyro draws around an error."""
    lines = [line.strip("│| ") for line in text.splitlines()]
    rules = [i for i, line in enumerate(lines) if line and set(line) <= set("-─╭╮╰╯+")]
    if len(rules) < 2:
        return " ".join(text.split())[:MAX_MESSAGE]
    return " ".join(line for line in lines[rules[0] + 1 : rules[1]] if line)[:MAX_MESSAGE]


def _refuse_flags_given_twice(argv: list[str]) -> None:
    seen: set[str] = set()
    for word in argv:
        if not word.startswith("--") or word == "--":
            continue
        section, dot, last = _flag_name(word).rpartition(".")
        name = section + dot + last.removeprefix("no-")
        if name in seen:
            raise ConfigError(f"`--{name}` is given twice", remedy="Leave one of them out.")
        seen.add(name)


def _refuse_unknown_flags(command: str, base: Settings, argv: list[str]) -> None:
    """Raise for the first unknown flag, with a suggestion."""
    known = flag_names(base)
    for word in argv:
        if not word.startswith("--") or word == "--":
            continue
        name = _flag_name(word)
        if name in known or word in (*HELP, HELP_ALL):
            continue
        if (instead := _removed(base, name)) is not None:
            raise removed(name, instead)
        hint = suggest_key(f"--{name}", [f"--{flag}" for flag in sorted(known)])
        raise ConfigError(
            f"Unknown option `{shown('--' + name)[1:-1]}` of `robo-razor {command}`.{hint}",
            remedy=f"`robo-razor {command} --help` lists the options.",
        )


def _removed(base: Settings, flag: str) -> str | None:
    """Return what to write instead of a removed flag; None: the flag never existed."""
    section, _, key = flag.replace("-", "_").rpartition(".")
    owner = type(base).sections().get(section, type(base)) if section else type(base)
    return owner.REMOVED.get(key)


def _flag_name(word: str) -> str:
    return word.removeprefix("--").split("=", 1)[0].replace("_", "-")


def _gives(argv: list[str], name: str) -> bool:
    return any(word.startswith("--") and _flag_name(word) == name for word in argv)


def _values_of(argv: list[str], name: str) -> tuple[str, ...]:
    """Return the values of an option: the arguments after it, or the text after its `=`."""
    values: list[str] = []
    inside = False
    for word in argv:
        if word.startswith("--"):
            inside = _flag_name(word) == name
            values += [word.split("=", 1)[1]] if inside and "=" in word else []
        elif inside:
            values.append(word)
    return tuple(values)


def _take_option(argv: list[str], option: str) -> tuple[list[str], str | None]:
    """Return the arguments without `option VALUE` (or `option=VALUE`), and the value."""
    others: list[str] = []
    value: str | None = None
    skip = False
    for i, word in enumerate(argv):
        if skip:
            skip = False
        elif word == option:
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                raise ConfigError(f"`{option}` needs a value after it")
            if value is not None:
                raise ConfigError(f"`{option}` is given twice", remedy="Leave one of them out.")
            value, skip = argv[i + 1], True
        elif word.startswith(f"{option}="):
            if value is not None:
                raise ConfigError(f"`{option}` is given twice", remedy="Leave one of them out.")
            value = word.split("=", 1)[1]
        else:
            others.append(word)
    return others, value
