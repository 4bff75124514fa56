"""What a result depends on beyond its episodes: versions, machine, renderer, code, policy, config.

`differences` lists what makes two results incomparable. Three things are decisive: the versions of
the packages that simulate and infer, the OpenGL renderer, and the settings that change what a
policy sees or how long it may take. Everything else (processor, threads, git state, other settings)
is harmless: it changes the last bits only, or is what the comparison is about.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from robo_razor.core.machine import cpu_count
from robo_razor.core.settings.conversion import Settings, flatten, to_dict

AGAINST = " against "
DECISIVE_PACKAGES = (
    "robo-razor",
    "torch",
    "lerobot",
    "gymnasium",
    "mujoco",
    "robosuite",
    "numpy",
)
PACKAGES = (
    *DECISIVE_PACKAGES,
    *("transformers", "safetensors"),
    *("metaworld", "gym-pusht", "gym-aloha"),  # LeRobot's simulators
)

DECISIVE_SETTINGS = (
    "mode",
    "env.image_size",
    "env.max_episode_steps",
    "env.reward_type",
    "env.lerobot",
    "env.fast_images",
    "flow.kernel",
    "flow.noise",
    "flow.num_steps",
)
"""Settings that must be equal if two success rates, or two divergences, are to be compared."""

_CHECKOUT = Path(__file__).resolve().parents[2]
_GIT_TIME_LIMIT_S = 10.0


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is missing.

    Nothing is imported, so this is cheap.
    """
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_state(checkout: Path = _CHECKOUT) -> dict[str, Any] | None:
    """Return the commit of a git checkout and whether tracked files differ from it.

    Args:
        checkout: Directory that holds `.git`; default: the one this package runs from.

    Returns:
        `{"commit", "dirty"}`, or None where there is no checkout (an installed package) or no git.
    """
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(checkout: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_TIME_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class HashedModule(Protocol):
    """The part of a torch module that a hash reads."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return name -> tensor of all weights."""


class HashedPolicy(Protocol):
    """The part of a `Policy` that a hash reads."""

    @property
    def module(self) -> HashedModule:
        """Return the module with the weights."""

    @property
    def preprocessor(self) -> Any:
        """Return LeRobot's pipeline to the policy."""

    @property
    def postprocessor(self) -> Any:
        """Return LeRobot's pipeline from the policy."""

    @property
    def device(self) -> object:
        """Return the device that it computes on."""


def policy_hash(policy: HashedPolicy) -> str:
    """Return the SHA-256 of a policy's weights and of its processors' statistics.

    Equal for equal numbers, wherever they were loaded from and however they are stored.

    Args:
        policy: A `Policy`.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in _tensors(policy):
        value = tensor.detach().cpu().contiguous()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()  # runs may store the same numbers in another precision
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(policy: HashedPolicy) -> Iterator[tuple[str, Any]]:
    yield from sorted(policy.module.state_dict().items())
    for part in ("preprocessor", "postprocessor"):
        for i, step in enumerate(getattr(getattr(policy, part), "steps", ())):
            if hasattr(step, "state_dict"):
                for name, tensor in sorted(step.state_dict().items()):
                    yield f"{part}.{i}.{name}", tensor


def fingerprint(
    *,
    policy: HashedPolicy | None = None,
    env: object = None,
    config: Settings | None = None,
) -> dict[str, Any]:
    """Return what should be equal for two results to be comparable.

    Args:
        policy: The `Policy` that was measured; adds its hash and device.
        env: The vector environment that was used, after its first reset; adds the OpenGL renderer,
            where the environment gives it (`env.gl_renderer`).
        config: The settings.
    """
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_cores": cpu_count(),
        "packages": package_versions(),
        "git": git_state(),
        "gl_backend": os.environ.get("MUJOCO_GL"),
        "gl_renderer": getattr(env, "gl_renderer", None),
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "device": None if policy is None else str(policy.device),
        "policy_hash": None if policy is None else policy_hash(policy),
        "config": None if config is None else to_dict(config),
    }


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], *, harmless: bool = False
) -> list[str]:
    """Return what makes two results incomparable.

    Args:
        first: Fingerprint of one result.
        second: Fingerprint of the other. A value that either lacks does not count.
        harmless: Also list the harmless differences.

    Returns:
        One clause per difference, the decisive ones first; empty: they can be compared.
    """
    first_values, second_values = flatten(dict(first)), flatten(dict(second))
    keys = [
        key
        for key in (*first_values, *(k for k in second_values if k not in first_values))
        if _differ(first_values, second_values, key)
    ]
    decisive = [key for key in keys if _is_decisive(key, first_values, second_values)]
    listed = [*decisive, *(key for key in keys if key not in decisive)] if harmless else decisive
    return [f"{_label(key)}: {first_values[key]}{AGAINST}{second_values[key]}" for key in listed]


def _differ(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> bool:
    if key.startswith("config."):  # None is a value there
        return key in first and key in second and first[key] != second[key]
    a, b = first.get(key), second.get(key)
    if key.startswith("packages.") and a and b:  # 2.7.1+cpu and 2.7.1+cu126 are one release
        a, b = str(a).split("+")[0], str(b).split("+")[0]
    return a is not None and b is not None and a != b


def _is_decisive(key: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    section, _, name = key.partition(".")
    if section == "packages":
        return name in DECISIVE_PACKAGES
    if section == "config":
        return name in DECISIVE_SETTINGS
    if key == "gl_backend":  # says less than the renderer's name
        return not (first.get("gl_renderer") and second.get("gl_renderer"))
    return key == "gl_renderer"


def _label(key: str) -> str:
    section, _, name = key.partition(".")
    names = {"gl_renderer": "OpenGL renderer", "gl_backend": "MUJOCO_GL"}
    if section == "packages":
        return f"version of {name}"
    return f"setting {name}" if section == "config" else names.get(key, key.replace(".", " "))
