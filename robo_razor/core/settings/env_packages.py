"""Packages that a settings file may name, of environments or plugins: none that came with it.

A package that is named is imported, and so it runs. A run, an archive or a settings file may come
from a stranger, with a module beside it that Python imports if this is the current directory. So
the packages of a file must be installed or lie elsewhere; the command line may name any package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robo_razor.core.errors import ConfigError
from robo_razor.core.settings.config import EnvConfig

ENV_PACKAGES, PLUGINS = "env.env_packages", "plugins"
"""Settings that name packages to import."""


def refuse_packages_beside(
    names: Iterable[str], folder: Path, source: str, key: str = ENV_PACKAGES
) -> None:
    """Check that packages that a file names did not come with it.

    A package may lie beside the file where it is installed there (`pip install --editable`), or
    where PYTHONPATH names the place in full.

    Args:
        names: Packages, or modules in them.
        folder: Directory of the file.
        source: The file, for the error.
        key: The setting that holds them.

    Raises:
        ConfigError: One lies in that directory or below it.
    """
    inside = folder.resolve()
    for name in names:
        if name in EnvConfig().env_packages:
            continue
        flag = f"--{key.replace('_', '-')}"
        for place in _places(name.split(".")[0]):
            if place.is_relative_to(inside) and not _is_chosen(name.split(".")[0], place):
                raise ConfigError(
                    f"{source} names the package {name!r} (`{key}`), which lies beside "
                    f"it in {place}: a file may not bring code of its own",
                    remedy=f"If you trust it, name it yourself: `{flag} {name}`.",
                )


def refuse_plugins_beside(
    data: Mapping[str, Any], folder: Path, source: str, named: Iterable[str] = ()
) -> None:
    """Check that the plugins of a file did not come with it, before they are imported.

    Args:
        data: The file's content.
        folder: Its directory.
        source: The file, for the error.
        named: Plugins that the user named too.

    Raises:
        ConfigError: One lies in that directory or below it.
    """
    value = data.get(PLUGINS, ())
    names = value if isinstance(value, list | tuple) else [value]
    texts = [name for name in names if isinstance(name, str) and name not in named]
    refuse_packages_beside(texts, folder, source, PLUGINS)


def _places(package: str) -> list[Path]:
    """Return where Python would load a package from, without loading it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # importing it raises the error
        return []
    if spec is None:
        return []
    files = [*(spec.submodule_search_locations or ()), *filter(None, [spec.origin])]
    return [Path(file).resolve() for file in files if Path(file).is_absolute()]


def _is_chosen(package: str, place: Path) -> bool:
    """Return whether the user chose the place of a package."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(Path(e).is_absolute() and place.is_relative_to(Path(e).resolve()) for e in entries if e):
        return True
    return package in importlib.metadata.packages_distributions()
