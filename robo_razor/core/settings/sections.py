"""Sections of settings: environments, tracking, checkpoints, samplers, methods, regularisers.

The line under each field is its help on the command line, see `config`.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from robo_razor.core.errors import ConfigError, shown
from robo_razor.core.settings.conversion import Settings, mapping, setting

POLICY_PREFIX = "policy:"
"""Before the name of a policy that demonstrates, in `bc.demonstrations`."""

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def check_modules(key: str, names: tuple[str, ...], lacks: str, allowed: str) -> None:
    """Check that a setting names modules that a user may want to import.

    Args:
        key: The setting.
        names: Its value.
        lacks: What Python's own modules do not register.
        allowed: What it may name instead.

    Raises:
        ConfigError: A name is not a module's, or a part of Python.
    """
    for name in names:
        if not _MODULE.fullmatch(name):
            raise ConfigError(
                f"`{key}` holds {shown(name)}, which is not a package's name",
                allowed="names such as gym_razor or my_package.envs",
            )
        if name.split(".")[0] in sys.stdlib_module_names:
            raise ConfigError(
                f"`{key}` holds {name!r}, which is a part of Python and registers {lacks}",
                allowed=allowed,
            )


def _check_env_packages(names: tuple[str, ...]) -> None:
    check_modules(
        "env.env_packages",
        names,
        "no environments",
        "installed packages that register Gymnasium ids",
    )


@dataclass(frozen=True, kw_only=True)
class EnvConfig(Settings):
    """How environments are run in parallel."""

    SECTION: ClassVar[str] = "env"

    num_envs: int = setting(64, low=1, high=10_000)
    """Environments stepped in parallel (>= 1). Scores do not depend on it."""
    num_workers: int = setting(2, low=1, high=1024)
    """Worker processes that share the environments (>= 1); about one per CPU core."""
    image_size: int = setting(64, low=16, high=512)
    """Camera images' height and width, pixels [16, 512]; must be what the policy was trained on."""
    max_episode_steps: int | None = setting(None, low=1)
    """Control steps before an episode is truncated; None: the task's own limit."""
    reward_type: Literal["sparse", "shaped"] = "sparse"
    """Reward: `sparse` (1 at success) or `shaped` (staged; where the task offers it)."""
    env_packages: tuple[str, ...] = ("gym_razor",)
    """Python packages imported so that they register their Gymnasium ids."""
    lerobot: str = mapping()
    """Fields of LeRobot's config for tasks `lerobot:TYPE/TASK`, e.g. '{fps: 20}'."""
    fast_images: bool = False
    """Let Meta-World render without shadows and at the policy's image size, unlike LeRobot."""

    def _check_together(self) -> None:
        _check_env_packages(self.env_packages)


@dataclass(frozen=True, kw_only=True)
class PackagesConfig(Settings):
    """Packages that register environments."""

    SECTION: ClassVar[str] = "env"

    env_packages: tuple[str, ...] = ("gym_razor",)
    """Python packages imported so that they register their Gymnasium ids."""

    def _check_together(self) -> None:
        _check_env_packages(self.env_packages)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Settings):
    """What is measured at step 0 and at every checkpoint."""

    SECTION: ClassVar[str] = "tracking"

    every: float = setting(0.25, above=0.0)
    """Distance between checkpoints: below 1 a fraction of the run, else a number of updates."""
    early: int = setting(2, low=0, high=30)
    """With `every` below 1: checkpoints before the first, each at half the distance of the next."""
    episodes_new: int = setting(50, low=1)
    """Episodes on the new task per checkpoint (greedy), on held-out start states."""
    episodes_new_sampled: int = setting(25, low=0)
    """Episodes on the new task per checkpoint with sampled actions; 0: none."""
    episodes_prior: int = setting(10, low=0)
    """Episodes per prior skill and checkpoint, on the same start states as the base; 0: none."""
    kl_states: int = setting(128, low=1, high=100_000)
    """Observations per probe set on which the KL divergence to the base is computed."""
    max_share: float = setting(0.15, above=0.0, high=1.0)
    """Warn when tracking takes more than this share of the wall time (0, 1]."""
    final_episodes_new: int = setting(200, low=1)
    """Episodes on the new task at step 0 and at the last checkpoint (greedy)."""
    alarm_retention: float = setting(0.8, low=0.0)
    """Warn when the 95 % interval of a prior skill's retention lies below this (>= 0); 0: never."""
    distances: bool = False
    """Also compute the expensive distance measures (Fisher-weighted weight change, CKNNA, ...)."""

    def checkpoints(self, num_updates: int) -> tuple[int, ...]:
        """Return the steps in (0, num_updates] after which a run is saved and measured.

        They are evenly spaced, but denser at the beginning, where much changes. None comes right
        before the last one.
        """
        spacing = self.every if self.every >= 1 else self.every * num_updates
        interval = max(1, min(math.ceil(round(spacing, 6)), num_updates))
        steps = {s for s in range(0, num_updates, interval) if num_updates - s >= interval / 2}
        if self.every < 1:
            steps |= {math.ceil(round(spacing / 2**k, 6)) for k in range(1, self.early + 1)}
        return (*sorted(steps - {0, num_updates}), num_updates)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Settings):
    """Which checkpoints stay on disk."""

    SECTION: ClassVar[str] = "checkpoint"

    keep: int = setting(3, low=1)
    """Newest checkpoints kept (>= 1); `best` is kept as well. Evaluations are never deleted."""
    every_minutes: float | None = setting(None, above=0.0)
    """Minutes after which a run also saves itself between its measurements (> 0); None: never."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Settings):
    """How a flow-matching policy (SmolVLA, pi0, pi0.5) is sampled and trained."""

    SECTION: ClassVar[str] = "flow"

    kernel: Literal["sde", "cps", "inject", "learnt"] = "sde"
    """`sde` (the flow's marginals), `cps` (coefficient-preserving), `inject` or `learnt` noise."""
    noise: float = setting(0.5, above=0.0)
    """Noise level (> 0), of `learnt` at the start; a path KL shrinks with its square."""
    noise_low: float = setting(0.1, above=0.0)
    """Lowest level that `learnt` noise can take (> 0)."""
    noise_high: float = setting(1.0, above=0.0)
    """Highest level that `learnt` noise can take (> 0)."""
    num_steps: int | None = setting(None, low=1, high=1000)
    """Denoising steps (>= 1); None: the policy's own."""
    kl_paths: int = setting(1, low=1, high=10_000)
    """Denoising paths per observation from which a KL divergence is estimated (>= 1)."""
    train: Literal["own", "expert", "all"] = "own"
    """What is trained: as the policy's `own` settings say, the action `expert` alone, or `all`."""
    prefix_gib: float = setting(2.0, low=0.0)
    """Memory for encoded observations kept until PPO's update, if their encoder is frozen, GiB."""
    checkpointing: bool = False
    """Compute denoising steps anew in the backward pass: less memory, more time."""

    def _check_together(self) -> None:
        if self.kernel == "learnt" and not self.noise_low < self.noise < self.noise_high:
            raise ConfigError(
                f"`flow.noise` = {self.noise:g} does not lie between `flow.noise_low` = "
                f"{self.noise_low:g} and `flow.noise_high` = {self.noise_high:g}",
                remedy="Learnt noise starts at `flow.noise` and stays within the two.",
            )


@dataclass(frozen=True, kw_only=True)
class MethodSettings(Settings):
    """Settings of a way to fine-tune; `robo_razor.training.methods` describes what it does.

    A class that is registered in `METHODS` as `ppo` has this name, and its settings the keys
    `ppo.KEY`.
    """

    NAME: ClassVar[str] = ""

    # Where a method has such a setting, its field overrides these.
    lora_rank = 0
    bf16 = False
    clones = False
    """Whether the method learns the actions of demonstrations, which the policy must normalise."""

    @property
    def name(self) -> str:
        """Return the name under which the method is registered."""
        return self.NAME

    @property
    def replaces_statistics(self) -> bool:
        """Whether the policy will normalise with the statistics of demonstrations."""
        return False


@dataclass(frozen=True, kw_only=True)
class RegulariserSettings(Settings):
    """Settings of a term that holds a policy near its base, see `robo_razor.training.regularisers`.

    A class that is registered in `REGULARISERS` as `l2` has this name, and its settings the keys
    `regularise.l2.KEY`.
    """

    NAME: ClassVar[str] = ""

    weight: float = setting(1.0, low=0.0, main=True)
    """Weight of the penalty in the loss (>= 0)."""

    @property
    def name(self) -> str:
        """Return the name under which the regulariser is registered."""
        return self.NAME
