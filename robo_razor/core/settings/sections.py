"""Sections of settings: environments, tracking, checkpoints, samplers, and one per method.

The line under each field is its help on the command line, see `config`.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from robo_razor.core.errors import ConfigError, shown
from robo_razor.core.settings.conversion import Settings, mapping, path, setting

POLICY_PREFIX = "policy:"
"""Before the name of a policy that demonstrates, in `bc.demonstrations`."""

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


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
    """Let Meta-World render without shadows, at the policy's image size if any, unlike LeRobot."""

    def _check_together(self) -> None:
        for name in self.env_packages:
            if not _MODULE.fullmatch(name):
                raise ConfigError(
                    f"`env.env_packages` holds {shown(name)}, which is no package's name",
                    allowed="names such as gym_razor or my_package.envs",
                )
            if name.split(".")[0] in sys.stdlib_module_names:
                raise ConfigError(
                    f"`env.env_packages` holds {name!r}, which is a part of Python and registers "
                    "no environments",
                    allowed="installed packages that register Gymnasium ids",
                )


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
    """Share of wall time that tracking should stay under (0, 1]; exceeding it is warned of."""
    final_episodes_new: int = setting(200, low=1)
    """Episodes on the new task at step 0 and at the last checkpoint (greedy)."""
    alarm_retention: float = setting(0.8, low=0.0)
    """Warn when a prior skill's retention is below this beyond its 95 % interval (>= 0); 0:
    never."""
    distances: bool = False
    """Also measure the dear distances to the base, from Fisher-weighted weight changes to CKNNA."""

    def checkpoints(self, num_updates: int) -> tuple[int, ...]:
        """Return the steps in (0, num_updates] after which a run is saved and measured.

        They are evenly spaced and, for much changes at first, denser at the beginning. None comes
        right before the last one.
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
class PPOConfig(Settings):
    """Proximal policy optimisation on action chunks."""

    SECTION: ClassVar[str] = "ppo"

    learning_rate: float = setting(1.2e-4, above=0.0)
    """AdamW's learning rate of the policy (> 0)."""
    value_learning_rate: float = setting(1e-3, above=0.0)
    """AdamW's learning rate of the value head (> 0)."""
    warmup_updates: int = setting(4, low=0)
    """Updates over which the policy's learning rate rises (>= 0); Adam's first steps are large."""
    anneal_lr: bool = False
    """Lower the learning rates linearly to 0 over the run."""
    adapt_lr: bool = False
    """Keep each update's `approx_kl` near half of `target_kl` by changing the policy's rate."""
    episodes_per_update: int = setting(256, low=2)
    """Complete episodes collected before each update (>= 2)."""
    num_updates: int = setting(40, low=1)
    """Updates in the run (>= 1)."""
    gamma: float = setting(0.99, low=0.0, high=1.0)
    """Discount per decision (one action chunk), [0, 1]."""
    gae_lambda: float = setting(0.95, low=0.0, high=1.0)
    """Lambda of generalised advantage estimation, [0, 1]."""
    baseline: Literal["value", "group"] = "value"
    """What outcomes are compared with: the `value` head (GAE), or the other episodes of a
    `group`."""
    group_size: int = setting(8, low=2, high=10_000)
    """Episodes from the same start state with `baseline: group` (>= 2)."""
    clip_low: float = setting(0.2, above=0.0, high=1.0)
    """Probability ratios are clipped at 1 - clip_low, (0, 1]."""
    clip_high: float = setting(0.28, above=0.0)
    """Probability ratios are clipped at 1 + clip_high (> 0)."""
    ent_coef: float = setting(0.0, low=0.0)
    """Weight of the entropy bonus (>= 0)."""
    vf_coef: float = setting(0.5, low=0.0)
    """Weight of the value loss (>= 0)."""
    update_epochs: int = setting(3, low=1, high=10_000)
    """Passes over the collected decisions per update (>= 1)."""
    minibatch_size: int = setting(1024, low=1)
    """Decisions per gradient step (>= 1)."""
    target_kl: float | None = setting(0.3, above=0.0)
    """An update stops early when `approx_kl` to the collecting policy exceeds this; None: never."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    kl_coef: float = setting(0.0, low=0.0)
    """Weight of the KL penalty to the base (>= 0). The KL is measured with 0 too."""
    kl_direction: Literal["forward", "reverse"] = "forward"
    """Penalised KL: `forward` = KL(base || tuned), `reverse` = KL(tuned || base)."""
    value_warmup_updates: int = setting(1, low=0)
    """First updates that train the value head only (>= 0)."""
    detach_value: bool = True
    """Keep the value loss out of the trunk that the policy shares."""
    lora_rank: int = setting(0, low=0, high=4096)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    bf16: bool = False
    """Compute matrix products of rollouts and updates in bfloat16; tracking stays in float32."""
    temperature: float = setting(0.6, low=1e-3)
    """Softmax temperature of sampled actions (>= 0.001); densities are those of what is sampled."""
    ratio: Literal["step", "chunk"] = "step"
    """What is clipped: ratios of each denoising `step`, or of the `chunk`; tokens have one step."""
    micro_batch_size: int | None = setting(None, low=1)
    """Decisions at once in memory (>= 1), gradients are added up; None: the whole minibatch."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(Settings):
    """REINFORCE on action chunks with a binary reward, no critic and no KL term."""

    SECTION: ClassVar[str] = "reinforce"

    learning_rate: float = setting(1e-5, above=0.0)
    """AdamW's learning rate (> 0)."""
    warmup_updates: int = setting(2, low=0)
    """Updates over which the learning rate rises (>= 0)."""
    episodes_per_update: int = setting(256, low=2)
    """Complete episodes collected before each update (>= 2)."""
    num_updates: int = setting(40, low=1)
    """Updates in the run (>= 1)."""
    advantage: Literal["normalised", "one_zero"] = "normalised"
    """`normalised`: rewards minus their mean, over their deviation; `one_zero`: successes only."""
    num_minibatches: int = setting(4, low=1)
    """Gradient steps per update, each on other decisions (>= 1)."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    lora_rank: int = setting(0, low=0, high=4096)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    temperature: float = setting(0.4, low=1e-3)
    """Softmax temperature of sampled actions (>= 0.001); densities are those of what is sampled."""


@dataclass(frozen=True, kw_only=True)
class BCConfig(Settings):
    """Behaviour cloning: supervised fine-tuning on demonstrations."""

    SECTION: ClassVar[str] = "bc"

    demonstrations: str = path("expert", prefix=POLICY_PREFIX)
    """`expert` (scripted), `policy:NAME` (a policy's sampled successes), or a dataset's
    directory."""
    temperature: float = setting(1.0, low=1e-3)
    """Softmax temperature of a policy that demonstrates (>= 0.001)."""
    style: str = "b"
    """The scripted expert's style with `expert` (the base was pretrained on style `a`)."""
    statistics: Literal["base", "demonstrations"] = "base"
    """Whose statistics normalise: the `base`'s, or the `demonstrations`' (another policy then)."""
    noise: float = setting(0.15, low=0.0, high=1.0)
    """Noise on what the expert executes, in action units; labels stay clean (as in DART)."""
    episodes: int = setting(700, low=1)
    """Demonstrations used (>= 1); all there are when the directory holds fewer."""
    epochs: int = setting(10, low=1)
    """Passes over the demonstrations (>= 1)."""
    batch_size: int = setting(128, low=1)
    """Decisions per gradient step (>= 1)."""
    learning_rate: float = setting(5e-4, above=0.0)
    """AdamW's peak learning rate (> 0)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: `cosine` down to 0, or `constant`."""
    warmup_steps: int = setting(50, low=0)
    """Gradient steps over which the learning rate rises from 0 (>= 0)."""
    weight_decay: float = setting(0.0, low=0.0)
    """AdamW's weight decay (>= 0)."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    lora_rank: int = setting(0, low=0, high=4096)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    bf16: bool = False
    """Compute matrix products in bfloat16: much slower on a CPU that has to emulate it."""
