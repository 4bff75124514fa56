"""Resuming a run: whether `out` holds one, with which settings, and where its paths lead.

A run stores its settings as the user wrote them, without paths of the machine. A separate file,
which archives leave out, has the directory in which the run was begun. A relative path that does
not exist in the current directory is looked up from that one, so `--resume` works in any directory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ConfigError, RunDirectoryError, shown
from robo_razor.core.run.directory import CONFIG, RunDirectory
from robo_razor.core.settings.config import POLICY_PREFIX, FinetuneConfig
from robo_razor.core.settings.conversion import flatten, from_dict, path_keys, replace, to_dict
from robo_razor.core.settings.env_packages import refuse_packages_beside, refuse_plugins_beside
from robo_razor.training.methods.bc import BC

RESUME_MAY_CHANGE = ("out", "resume")
"""Keys that may differ from the interrupted run's; with any other it would be another run."""
EXPERT = "expert"
"""The value of `bc.demonstrations` for the task's scripted expert."""


def settle_resume(config: FinetuneConfig) -> FinetuneConfig:
    """Return settings whose `resume` is true or false, where it is `auto`.

    It is true where `out` holds a checkpoint of a run with these settings. A run that ended before
    its first checkpoint is removed. Of several ranks only the first removes anything, and all of
    them decide before the first one writes: call it before the ranks connect.

    Raises:
        ConfigError: `out` holds a run with other settings.
        RunDirectoryError: It holds something else, or a run that another process is writing.
    """
    if config.resume != "auto":
        return config
    run = RunDirectory(str(config.out))  # `resume` needs it
    if can_go_on(run):
        stored = stored_settings(run, config.env.env_packages, config.plugins)
        refuse_other_run(to_dict(stored), to_dict(with_task_id(config)))
        return replace(config, resume=True)
    if os.environ.get("RANK", "0") in ("", "0"):
        if run.is_running():
            raise RunDirectoryError(
                f"Another process is starting a run in {shown(str(run.path))}",
                remedy="Wait for it, stop it, or choose another output directory.",
            )
        run.discard_unstarted()
    return replace(config, resume=False)


def stored_config(config: FinetuneConfig) -> FinetuneConfig:
    """Return the settings of the run that `config` resumes; else `config` itself."""
    if not config.resume:
        return config
    run = RunDirectory.open(str(config.out))  # `resume` needs it
    stored = stored_settings(run, config.env.env_packages, config.plugins)
    return replace(stored, out=config.out, resume=True)


def can_go_on(run: RunDirectory) -> bool:
    """Return whether a directory holds a run with a checkpoint."""
    return run.has_config() and run.last_step() is not None


def stored_settings(
    run: RunDirectory, named_packages: tuple[str, ...] = (), named_plugins: tuple[str, ...] = ()
) -> FinetuneConfig:
    """Return the settings of a run, with relative paths that lead there from this directory.

    Args:
        run: The run's directory.
        named_packages: Packages of environments that the user named, see `env_packages`.
        named_plugins: Plugins that the user named.

    Raises:
        ConfigError: They cannot be read, or name a package inside the run's directory.
    """
    source, data = f"{run.path / CONFIG}", run.config_data()
    refuse_plugins_beside(data, run.path, source, named_plugins)
    config = from_dict(FinetuneConfig, data, source=source)
    unnamed = [name for name in config.env.env_packages if name not in named_packages]
    refuse_packages_beside(unnamed, run.path, source)
    begun_in = run.begun_in()
    if begun_in is None or begun_in == Path.cwd():
        return config
    method = config.method
    if isinstance(method, BC):
        source = _resolve_demonstrations(method.demonstrations, begun_in)
        method = replace(method, demonstrations=source)
    return replace(config, policy=_resolve_policy(config.policy, begun_in), method=method)


def _resolve(path: str, begun_in: Path) -> str:
    """Return a path that is relative to another directory so that it is valid in this one."""
    resolved = begun_in / path  # an absolute path does not change
    return str(resolved) if resolved.exists() else path


def _resolve_policy(name: str, begun_in: Path) -> str:
    path = _resolve(name, begun_in)
    if path == name:
        return name
    from robo_razor.policies.load import shipped_policies  # slow to import

    return name if name in shipped_policies() else path


def _resolve_demonstrations(source: str, begun_in: Path) -> str:
    if source == EXPERT:
        return source
    if source.startswith(POLICY_PREFIX):
        name = source.removeprefix(POLICY_PREFIX)
        return POLICY_PREFIX + _resolve_policy(name, begun_in)
    return _resolve(source, begun_in)


def with_task_id(config: FinetuneConfig) -> FinetuneConfig:
    """Return settings that name the new task by its id, as a run stores them."""
    from robo_razor.rollout.environments import task_id  # slow to import

    return replace(config, task=task_id(config.task, config.env.env_packages))


def refuse_other_run(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a run is resumed with the settings it had.

    Raises:
        ConfigError: A key differs that would make it another run.
    """
    old, new = flatten(before), flatten(now)
    paths = path_keys(FinetuneConfig)
    for key, value in new.items():
        if key in RESUME_MAY_CHANGE or old.get(key) == value:
            continue
        if key in paths and _path_key(old.get(key), paths[key]) == _path_key(value, paths[key]):
            continue
        raise ConfigError(
            f"`{key}` = {shown(value)} differs from the run that is resumed, which has "
            f"{shown(old.get(key))}: it would become another run",
            remedy="Leave the flag out, or start a new run with `--policy` set to this one.",
        )


def _path_key(value: Any, prefix: str) -> Any:
    """Return a key of a path that is equal for equal files."""
    if not isinstance(value, str) or not value:
        return value
    has_prefix = bool(prefix) and value.startswith(prefix)
    return has_prefix, os.path.abspath(value.removeprefix(prefix) if has_prefix else value)
