"""Settings of every command, with their defaults.

The line under each field is its help on the command line. Ranges are checked when an object is
built, whatever it is built from (flags, YAML, Python). Nothing heavy is imported here: no torch,
mujoco or lerobot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from robo_razor.errors import ConfigError, did_you_mean
from robo_razor.settings import (
    Settings,
    describe_fields,
    from_dict,
    load_yaml,
    read_yaml,
    replace,
    setting,
    to_dict,
    to_yaml,
)

__all__ = [
    "BCConfig",
    "CheckpointConfig",
    "CollectConfig",
    "CompareConfig",
    "EnvConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "FlowConfig",
    "ManifestConfig",
    "PPOConfig",
    "PretrainConfig",
    "RolloutConfig",
    "Settings",
    "SweepConfig",
    "TrackingConfig",
    "describe_fields",
    "from_dict",
    "load_yaml",
    "read_yaml",
    "replace",
    "to_dict",
    "to_yaml",
]

POLICY_PREFIX = "policy:"
"""Before the name of a policy that demonstrates, in `bc.demonstrations`."""
HELD_OUT_SEED = 1_000_000
"""Start states with seeds from here on are never trained on."""

MAIN_TASK = "gym_razor/PlaceCanInBin-v0"


# --- Parts shared by commands ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EnvConfig(Settings):
    """How environments are run in parallel."""

    SECTION: ClassVar[str] = "env"

    num_envs: int = setting(64, low=1)
    """Environments stepped in parallel (>= 1). Scores do not depend on it."""
    num_workers: int = setting(2, low=1)
    """Worker processes that share the environments (>= 1); about one per CPU core."""
    image_size: int = setting(64, low=16, high=512)
    """Camera images' height and width, pixels [16, 512]; must be what the policy was trained on."""
    max_episode_steps: int | None = setting(None, low=1)
    """Control steps before an episode is truncated; None: the task's own limit."""
    reward_type: Literal["sparse", "shaped"] = "sparse"
    """Reward: `sparse` (1 at success) or `shaped` (staged; where the task offers it)."""
    env_packages: tuple[str, ...] = ("gym_razor",)
    """Python packages imported so that they register their Gymnasium ids."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(Settings):
    """What is measured at step 0 and at every checkpoint."""

    SECTION: ClassVar[str] = "tracking"

    every: float = setting(0.25, above=0.0)
    """Distance between checkpoints: below 1 a fraction of the run, else a number of updates."""
    early: int = setting(2, low=0)
    """With `every` below 1: checkpoints before the first, each at half the distance of the next."""
    episodes_new: int = setting(50, low=1)
    """Episodes on the new task per checkpoint (greedy), on held-out start states."""
    episodes_new_sampled: int = setting(25, low=0)
    """Episodes on the new task per checkpoint with sampled actions; 0: none."""
    episodes_prior: int = setting(10, low=0)
    """Episodes per prior skill and checkpoint, on the same start states as the base; 0: none."""
    kl_states: int = setting(128, low=1)
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


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Settings):
    """How a flow-matching policy (SmolVLA, pi0, pi0.5) is sampled and trained."""

    SECTION: ClassVar[str] = "flow"

    kernel: Literal["sde", "cps", "inject"] = "sde"
    """Sampler: `sde` (the flow's marginals), `cps` (coefficient-preserving), `inject` (added)."""
    noise: float = setting(0.5, above=0.0)
    """Its noise level (> 0); a KL of denoising paths shrinks with its square."""
    num_steps: int | None = setting(None, low=1)
    """Denoising steps (>= 1); None: the policy's own."""
    kl_paths: int = setting(1, low=1)
    """Denoising paths per observation from which a KL divergence is estimated (>= 1)."""
    train: Literal["own", "expert", "all"] = "own"
    """What is trained: as the policy's `own` settings say, the action `expert` alone, or `all`."""


# --- Methods --------------------------------------------------------------------------------------


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
    group_size: int = setting(8, low=2)
    """Episodes from the same start state with `baseline: group` (>= 2)."""
    clip_low: float = setting(0.2, above=0.0, high=1.0)
    """Probability ratios are clipped at 1 - clip_low, (0, 1]."""
    clip_high: float = setting(0.28, above=0.0)
    """Probability ratios are clipped at 1 + clip_high (> 0)."""
    ent_coef: float = setting(0.0, low=0.0)
    """Weight of the entropy bonus (>= 0)."""
    vf_coef: float = setting(0.5, low=0.0)
    """Weight of the value loss (>= 0)."""
    update_epochs: int = setting(3, low=1)
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
    lora_rank: int = setting(0, low=0)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    bf16: bool = False
    """Compute in bfloat16 where the device is faster with it."""
    temperature: float = setting(0.6, above=0.0)
    """Softmax temperature of sampled actions (> 0); densities are those of what is sampled."""
    ratio: Literal["step", "chunk"] = "step"
    """What is clipped: ratios of each denoising `step`, or of the `chunk`; tokens have one step."""
    micro_batch_size: int | None = setting(None, low=1)
    """Decisions at once in memory (>= 1), gradients are added up; None: the whole minibatch."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(Settings):
    """REINFORCE on action chunks with a binary reward, no critic and no KL term."""

    SECTION: ClassVar[str] = "reinforce"

    learning_rate: float = setting(5e-5, above=0.0)
    """AdamW's learning rate (> 0)."""
    warmup_updates: int = setting(2, low=0)
    """Updates over which the learning rate rises (>= 0)."""
    episodes_per_update: int = setting(256, low=2)
    """Complete episodes collected before each update (>= 2)."""
    num_updates: int = setting(24, low=1)
    """Updates in the run (>= 1)."""
    advantage: Literal["normalised", "one_zero"] = "normalised"
    """`normalised`: rewards minus their mean, over their deviation; `one_zero`: successes only."""
    num_minibatches: int = setting(4, low=1)
    """Gradient steps per update, each on other decisions (>= 1)."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    lora_rank: int = setting(0, low=0)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    temperature: float = setting(0.4, above=0.0)
    """Softmax temperature of sampled actions (> 0); densities are those of what is sampled."""


@dataclass(frozen=True, kw_only=True)
class BCConfig(Settings):
    """Behaviour cloning: supervised fine-tuning on demonstrations."""

    SECTION: ClassVar[str] = "bc"

    demonstrations: str = "expert"
    """`expert` (scripted), `policy:NAME` (a policy's sampled successes), or a dataset's
    directory."""
    temperature: float = setting(1.0, above=0.0)
    """Softmax temperature of a policy that demonstrates (> 0)."""
    style: str = "b"
    """The scripted expert's style with `expert` (the base was pretrained on style `a`)."""
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
    lora_rank: int = setting(0, low=0)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    bf16: bool = False
    """Compute in bfloat16 where the device is faster with it."""


# --- Commands -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """Fine-tune a policy on a new task and measure at every checkpoint what it forgets."""

    method: str = "ppo"
    """How to fine-tune; `robo-razor list methods` shows them."""
    policy: str = "razor-base"
    """Base policy: `razor-base`, a run or checkpoint directory, or a hub id."""
    task: str = MAIN_TASK
    """Gymnasium id of the new task."""
    prior_tasks: str = "prior"
    """Skills that may be forgotten: `prior` (all of them), `none`, or names with commas."""
    out: str | None = None
    """Run directory to create; None: a fresh one under `runs/`."""
    resume: bool = False
    """Go on with the run in `out` from its last checkpoint."""
    seed: int = setting(0, low=0, high=HELD_OUT_SEED - 1)
    """Seed of start states, sampling and initialisation."""
    freeze_vision: bool = True
    """Keep the image encoder as it is in the base, where the policy has one; halves an update."""
    device: str = "auto"
    """Torch device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    torch_threads: int | None = setting(None, low=1)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""
    tracking: TrackingConfig = TrackingConfig()
    """What is measured at step 0 and at every checkpoint."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Which checkpoints stay on disk."""
    flow: FlowConfig = FlowConfig()
    """How a flow-matching policy (SmolVLA, pi0, pi0.5) is sampled and trained."""
    ppo: PPOConfig = PPOConfig()
    """Settings of `--method ppo`."""
    reinforce: ReinforceConfig = ReinforceConfig()
    """Settings of `--method reinforce`."""
    bc: BCConfig = BCConfig()
    """Settings of `--method bc`."""

    METHODS: ClassVar[tuple[str, ...]] = ("bc", "ppo", "reinforce")

    def inactive_sections(self) -> tuple[str, ...]:
        """Return the sections of the methods that are not chosen."""
        return tuple(name for name in self.METHODS if name != self.method)

    def _check_together(self) -> None:
        if self.method not in self.METHODS:
            raise ConfigError(
                f"Unknown method {self.method!r}.{did_you_mean(self.method, self.METHODS)}",
                allowed=", ".join(self.METHODS),
                remedy="Set `method` (or `--method`) to one of them.",
            )
        if self.resume and self.out is None:
            raise ConfigError(
                "`resume` is set but `out` is not: there is no run to go on with",
                remedy="Name the run directory: `robo-razor finetune --resume --out runs/NAME`.",
            )
        ppo = self.ppo
        if self.method == "ppo" and ppo.value_warmup_updates >= ppo.num_updates:
            raise ConfigError(
                f"ppo.value_warmup_updates = {ppo.value_warmup_updates} leaves no update for the "
                f"policy: ppo.num_updates = {ppo.num_updates}",
                allowed="value_warmup_updates < num_updates",
            )

    @property
    def method_config(self) -> Settings:
        """The settings of the chosen method."""
        section: Settings = getattr(self, self.method)
        return section


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Measure a policy's success on skills, with 95 % intervals, on fixed start states."""

    policy: str = "razor-base"
    """Policy: `razor-base`, a run or checkpoint directory, or a hub id."""
    skills: str = "all"
    """`prior`, `new`, `all`, or skill names or Gymnasium ids with commas."""
    episodes: int | None = setting(None, low=1)
    """Episodes per skill (>= 1); None: the manifest's, else 200, or 2000 with `until_width`."""
    manifest: str | None = None
    """Start states: a manifest's file or a shipped one's name (`razor`); None: held-out seeds."""
    until_width: float | None = setting(None, above=0.0, high=1.0)
    """Stop a skill once its 95 % interval, high minus low, is this narrow (0, 1]; None: run all."""
    mode: Literal["greedy", "sample"] = "greedy"
    """Actions: the most likely (`greedy`) or drawn from the policy (`sample`)."""
    json: str | None = None
    """File to write the result to."""
    resume: bool = False
    """Go on with an interrupted evaluation; its finished episodes stand in `JSON.unfinished`."""
    seed: int = setting(0, low=0)
    """Seed of sampled actions."""
    seed_offset: int = setting(HELD_OUT_SEED, low=0)
    """Seed of the first start state; from 1000000 on they are held out from training."""
    device: str = "auto"
    """Torch device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    torch_threads: int | None = setting(None, low=1)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""

    def _check_together(self) -> None:
        if self.resume and self.json is None:
            raise ConfigError(
                "`resume` is set but `json` is not: finished episodes are kept next to that file",
                remedy="Name the file of the interrupted evaluation (`--json FILE`).",
            )
        if self.manifest is not None and self.seed_offset != HELD_OUT_SEED:
            raise ConfigError(
                f"`seed_offset` = {self.seed_offset} would not be read: `manifest` has the seeds",
                remedy="Leave one of them out.",
            )


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(Settings):
    """Write down the start states of an evaluation, or check that they are still the same."""

    skills: str = "all"
    """`prior`, `new`, `all`, or skill names or Gymnasium ids with commas."""
    episodes: int | None = setting(None, low=1)
    """Rows per skill (>= 1); None: 200, or all that the manifest to check has."""
    seed_offset: int = setting(HELD_OUT_SEED, low=0)
    """Seed of the first start state; from 1000000 on they are held out from training."""
    out: str = "manifest.json"
    """File to write (.json or .json.gz)."""
    check: str | None = None
    """Write nothing; compare this manifest's (file or name) start states with this installation."""
    env: EnvConfig = EnvConfig(image_size=16)
    """How environments are run in parallel."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Settings):
    """Run a policy on a task, with an instruction of your own if you like, and film it."""

    policy: str = "razor-base"
    """Policy: `razor-base`, a run or checkpoint directory, a hub id, or `expert`."""
    task: str = MAIN_TASK
    """Gymnasium id of the task."""
    instruction: str | None = None
    """Your own words for the policy; None: the task's."""
    episodes: int = setting(9, low=1)
    """Episodes to run (>= 1)."""
    video: str | None = None
    """Video file to write (.mp4 or .gif): the episodes in a grid."""
    video_size: int = setting(192, low=32, high=1024)
    """Height and width of one episode in the video, pixels [32, 1024]."""
    mode: Literal["greedy", "sample"] = "greedy"
    """Actions: the most likely (`greedy`) or drawn from the policy (`sample`)."""
    seed: int = setting(HELD_OUT_SEED, low=0)
    """Seed of the first start state."""
    device: str = "auto"
    """Torch device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    torch_threads: int | None = setting(None, low=1)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig(num_envs=9)
    """How environments are run in parallel."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig(Settings):
    """Write demonstrations of a scripted expert or of a policy as a LeRobotDataset."""

    task: str = MAIN_TASK
    """Gymnasium id of the task, several with commas, or `prior`."""
    policy: str = "expert"
    """Who acts: `expert` (the task's scripted one), `razor-base`, a checkpoint, or a hub id."""
    style: str = "a"
    """The scripted expert's style: `a` (that of the base's pretraining) or `b`."""
    episodes: int = setting(100, low=1)
    """Successful episodes to write per task (>= 1)."""
    out: str = "demonstrations"
    """Dataset directory to create."""
    noise: float = setting(0.0, low=0.0, high=1.0)
    """Standard deviation of noise on executed actions; clean actions are recorded (as in DART)."""
    seed: int = setting(0, low=0, high=HELD_OUT_SEED - 1)
    """Seed of the first start state."""
    device: str = "auto"
    """Torch device for a policy: `auto`, `cpu`, `cuda`, ..."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """Make the base policy from scratch: perception first, then cloning of all prior skills."""

    out: str = "runs/pretrain"
    """Run directory to create."""
    tasks: str = "prior"
    """Skills to learn: `prior` (all of them) or names with commas."""
    style: str = "a"
    """The scripted experts' style."""
    chunk_size: int = setting(4, low=1)
    """Actions per decision (>= 1)."""
    episodes: int = setting(500, low=1)
    """Demonstrations per task (>= 1)."""
    disturbance: float = setting(0.3, low=0.0, high=1.0)
    """Probability that an expert's decision is disturbed; the clean one is the label (as in
    DART)."""
    noise: float = setting(0.5, low=0.0, high=1.0)
    """Standard deviation of disturbances, in action units [0, 1]."""
    seed: int = setting(0, low=0, high=HELD_OUT_SEED - 1)
    """Seed of start states, noise and initialisation."""
    perception_epochs: float = setting(2.0, low=0.0)
    """Epochs on landmark positions alone, before cloning (>= 0)."""
    epochs: float = setting(3.0, above=0.0)
    """Epochs of cloning before the first round of corrections (> 0)."""
    correction_rounds: int = setting(2, low=0)
    """Rounds in which the policy acts and the experts label where it gets to (>= 0), as in
    DAgger."""
    correction_episodes: int = setting(250, low=1)
    """Episodes per task and round on average (>= 1); weak skills get more after the first round."""
    correction_epochs: float = setting(1.0, above=0.0)
    """Epochs over all data after each round but the last (> 0)."""
    final_epochs: float = setting(3.0, above=0.0)
    """Epochs over all data after the last round, with a falling learning rate (> 0)."""
    label_smoothing_bins: float = setting(0.0, low=0.0)
    """Standard deviation of soft action labels, in bins; 0: hard labels."""
    ema_decay: float = setting(0.998, low=0.0, high=0.99999)
    """Decay per gradient step of the weight average that is saved."""
    batch_size: int = setting(128, low=1)
    """Decisions per gradient step (>= 1)."""
    learning_rate: float = setting(8e-4, above=0.0)
    """AdamW's peak learning rate (> 0)."""
    perception_learning_rate: float = setting(3e-3, above=0.0)
    """The same while only landmark positions are learnt (> 0)."""
    bf16: bool | None = None
    """Compute gradients in bfloat16; None: where the processor is faster with it."""
    warmup_steps: int = setting(200, low=0)
    """Gradient steps over which the learning rate rises from 0 (>= 0)."""
    weight_decay: float = setting(1e-4, low=0.0)
    """AdamW's weight decay (>= 0)."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    torch_threads: int | None = setting(None, low=1)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """Put runs next to each other: success against forgetting, at matched new-task success."""

    runs: tuple[str, ...] = ()
    """Run directories that `robo-razor finetune` made, or directories of sweeps (one or more)."""
    out: str = "report"
    """Directory for the page `index.html`, `report.md`, `report.json`, CSV and figures."""
    match: tuple[float, ...] = ()
    """New-task success rates [0, 1] at which runs are compared; empty: chosen from the runs."""
    merge: tuple[str, ...] = ()
    """Arms of a sweep to compare as settings of one, e.g. `ppo,ppo_rates`; the first names them."""
    videos: int = setting(2, low=0, high=20)
    """Videos of base and tuned on the same start states [0, 20], where checkpoints are at hand."""
    allow_unlike: bool = False
    """Compare runs of unlike versions, renderers or bases too; the report says what differs."""

    def _check_together(self) -> None:
        if bad := [level for level in self.match if not 0.0 <= level <= 1.0]:
            raise ConfigError(f"match = {bad[0]} is no success rate", allowed="values in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Run an experiment file: methods and settings times seeds, resumable, several at a time."""

    file: str = ""
    """Experiment file (YAML): what all runs share, the arms, and the values each goes through."""
    out: str | None = None
    """Directory of all runs; None: the file's `out`, else `runs/` and the file's `name`."""
    arms: str = "all"
    """Arms to run now (names with commas) and the runs they need, or `all`."""
    backend: Literal["local", "ray"] = "local"
    """Where runs go: `local`, or a `ray` cluster whose machines share this file system."""
    parallel: int | None = setting(None, low=1)
    """Runs at a time (>= 1); None: the file's `parallel`, else what cores and memory carry."""
    attempts: int = setting(3, low=1)
    """Times that a run is started in one go when something kills it (>= 1)."""
    retry_failed: bool = True
    """Try again what failed in an earlier sweep."""
    dry_run: bool = False
    """Check the file, show the runs, and start none."""
