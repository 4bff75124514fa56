"""`robo-razor manifest`: write start states to a file, or check that they are still the same."""

from __future__ import annotations

from rich.console import Console

from robo_razor.core.settings.config import ManifestConfig
from robo_razor.rollout.start_states import (
    Manifest,
    ManifestCheck,
    check_manifest,
    make_manifest,
)


def run_manifest(config: ManifestConfig, console: Console | None = None) -> Manifest:
    """Make a manifest as the settings say and write it, or check one against this installation.

    Raises:
        ManifestError: The file cannot be used, or a start state differs from it.
    """
    console = console or Console()
    if config.check is not None:
        check = check_manifest(config)
        console.print(check_text(config, check), soft_wrap=True, markup=False)
        return check.manifest
    manifest = make_manifest(config)
    text = f"{config.out}: {len(manifest)} rows, {len(manifest.tasks)} tasks\nhash {manifest.hash}"
    console.print(text, soft_wrap=True, markup=False)
    return manifest


def check_text(config: ManifestConfig, check: ManifestCheck) -> str:
    """Return how many start states agree with a manifest."""
    n = len(check.manifest)
    part = "all" if check.known == n else f"{check.known} of"
    text = f"{config.check}: {part} {n} start states are as in the manifest."
    return text if check.known == n else f"{text} It has no hash for the others."
