"""A copy of the vision-language model's settings and tokenizer in the policy's folder.

LeRobot's SmolVLA reads the settings and the tokenizer of its backbone from a folder or hub id that
its configuration names, and fails where they are missing. So a saved policy gets a copy without
weights (the policy's file has them), and loading prefers the copy. Files from the hub are copied
from the hub's cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robo_razor.core.errors import CheckpointError

VLM_FOLDER = "vlm"
VLM_FILES = (
    *("config.json", "generation_config.json", "processor_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.json", "chat_template.jinja"),
)
"""The only files to copy: the folder may hold others, and checkpoints are shared."""
VLM_MARKS = ("tokenizer_config.json", "tokenizer.json", "config.json")
"""Files of which every backbone has at least one."""


def read_vlm(folder: Path) -> dict[str, bytes]:
    """Return file name -> content of a backbone's settings and tokenizer.

    The content is read now: the checkpoint that a policy was loaded from may be deleted later.
    """
    files = [folder / name for name in VLM_FILES]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def check_links(folder: Path) -> None:
    """Check that no file of a backbone in a policy's folder is a link out of that folder.

    It would be copied into every checkpoint. The hub's cache consists of links into itself.

    Raises:
        CheckpointError: A file is such a link.
    """
    roots = [folder.resolve()]
    roots += [parent.parent.resolve() / "blobs" for parent in folder.parents if _is_cache(parent)]
    for name in VLM_FILES:
        file = folder / name
        if file.is_symlink() and not any(file.resolve().is_relative_to(root) for root in roots):
            raise CheckpointError(
                f"{file} is a link that leads out of the policy's folder",
                remedy="If you trust it, put a copy of the file in its place.",
            )


def _is_cache(folder: Path) -> bool:
    return folder.name == "snapshots" and folder.parent.name.startswith("models--")


def named_vlm(name: str | None) -> Path | None:
    """Return the local folder that a backbone's name is; None for other names."""
    return Path(name) if name and Path(name).is_dir() else None


def cached_vlm(name: str | None) -> Path | None:
    """Return the folder of the hub's cache that has a backbone, if any.

    After a policy was built from a hub id, the cache has all files that building it takes.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in VLM_MARKS if name else ():
        try:
            path = try_to_load_from_cache(str(name), file)
        except HFValidationError:  # a folder that existed earlier, or on another machine
            return None
        if isinstance(path, str):
            return Path(path).parent
    return None


def missing_vlm(name: str | None, directory: Path) -> str | None:
    """Return the hub id of a backbone that must come from the hub; None for a local one, or none.

    Args:
        name: Name of the backbone, from `PolicyFamily.backbone`.
        directory: The policy's folder.
    """
    is_local = named_vlm(name) is not None or (directory / VLM_FOLDER).is_dir()
    return None if is_local else name


@contextlib.contextmanager
def local_vlm(config: Any, directory: Path) -> Iterator[str | None]:
    """Let a configuration name the copy in a policy's folder while the policy is built.

    Then the backbone's weights are not loaded separately: the policy's file has them.

    Args:
        config: The policy's configuration.
        directory: The policy's folder.

    Yields:
        The copy's path, or None where there is no copy; then nothing is changed.
    """
    folder = directory / VLM_FOLDER
    if not folder.is_dir():
        yield None
        return
    if not hasattr(config, "vlm_model_name"):
        yield str(folder)
        return
    before = config.vlm_model_name, config.load_vlm_weights
    config.vlm_model_name, config.load_vlm_weights = str(folder), False
    try:
        yield str(folder)
    finally:
        config.vlm_model_name, config.load_vlm_weights = before
