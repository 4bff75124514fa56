"""The folder of a vision-language model that a policy names, kept inside the policy's own folder.

LeRobot's SmolVLA reads the settings and the tokenizer of its backbone from a folder or hub id that
its configuration names, and stops where that is not at hand. Beside a saved policy we keep a copy,
without weights (those are in the policy's own file), and load from it wherever there is one. What
came from the hub lies in the hub's cache, and is copied from there.
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
"""What is copied: the folder may be any of this machine's, and a checkpoint is passed on."""
VLM_MARKS = ("tokenizer_config.json", "tokenizer.json", "config.json")
"""Files of which one at least is fetched with any backbone."""


def read_vlm(folder: Path) -> dict[str, bytes]:
    """Return file name -> content of a backbone's settings and tokenizer.

    By content: the checkpoint that a policy was loaded from may be gone when it is saved.
    """
    files = [folder / name for name in VLM_FILES]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def check_links(folder: Path) -> None:
    """Check that no file of a backbone in a policy's folder is a link to somewhere else.

    It would be copied into every checkpoint. The hub's cache consists of links into itself.

    Raises:
        CheckpointError: One is.
    """
    roots = [folder.resolve()]
    roots += [place.parent.resolve() / "blobs" for place in folder.parents if _is_cache(place)]
    for name in VLM_FILES:
        file = folder / name
        if file.is_symlink() and not any(file.resolve().is_relative_to(root) for root in roots):
            raise CheckpointError(
                f"{file} is a link that leads out of the policy's folder",
                remedy="If you trust it, put a copy of the file in its place.",
            )


def _is_cache(place: Path) -> bool:
    return place.name == "snapshots" and place.parent.name.startswith("models--")


def named_vlm(name: str | None) -> Path | None:
    """Return the local folder that a backbone's name is, None for others."""
    return Path(name) if name and Path(name).is_dir() else None


def cached_vlm(name: str | None) -> Path | None:
    """Return the folder of the hub's cache that has a backbone, if any.

    Right after the policy was built from a hub id it has all that building it takes.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in VLM_MARKS if name else ():
        try:
            path = try_to_load_from_cache(str(name), file)
        except HFValidationError:  # a folder of another time or machine
            return None
        if isinstance(path, str):
            return Path(path).parent
    return None


def missing_vlm(name: str | None, directory: Path) -> str | None:
    """Return the hub id of a backbone that only the hub has; None if there is none or it is here.

    Args:
        name: Of the backbone, as `PolicyFamily.backbone` gives it.
        directory: The policy's folder.
    """
    here = named_vlm(name) is not None or (directory / VLM_FOLDER).is_dir()
    return None if here else name


@contextlib.contextmanager
def local_vlm(config: Any, directory: Path) -> Iterator[str | None]:
    """Let a configuration name the copy in a policy's folder while the policy is built.

    The weights of the backbone are not loaded on their own then: the policy's file has them.

    Args:
        config: The policy's configuration.
        directory: The policy's folder.

    Yields:
        The copy's path, or None where there is none and nothing is changed.
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
