"""Behaviour cloning: supervised fine-tuning on demonstrations.

Each policy has its loss in LeRobot. Those of razor, ACT and SmolVLA leave padding out. Those of
pi0, pi0.5 and, unless `do_mask_loss_for_padding` is set, Diffusion learn the repeated action like
any other. `windows` describes how demonstrations become batches, `imitation` the order of batches.

With `bc.statistics: demonstrations` the policy changes its normalisation before its first gradient
step, so step 0 measures the unchanged base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from robo_razor.core.errors import ConfigError, DemonstrationError, shown
from robo_razor.core.settings.conversion import path, setting
from robo_razor.core.settings.sections import POLICY_PREFIX
from robo_razor.training.methods import METHODS, Method

if TYPE_CHECKING:
    from robo_razor.core.settings.config import FinetuneConfig
    from robo_razor.rollout.demonstrations import DemonstrationSource
    from robo_razor.training.imitation import DemonstrationLearner
    from robo_razor.training.learner import Context
    from robo_razor.training.step import Loss, Step


def demonstration_source(config: FinetuneConfig) -> DemonstrationSource:
    """Return the demonstrations of a run with `method: bc`.

    Raises:
        ConfigError: It has another method.
    """
    from robo_razor.rollout.demonstrations import DemonstrationSource

    bc = config.method
    if not isinstance(bc, BC):
        raise ConfigError(
            f"The method {bc.name!r} has no demonstrations", allowed="methods derived from `BC`"
        )
    return DemonstrationSource(
        source=bc.demonstrations,
        episodes=bc.episodes,
        task=config.task,
        env=config.env,
        seed=config.seed,
        style=bc.style,
        noise=bc.noise,
        temperature=bc.temperature,
        device=config.device,
        rename=config.rename,
    )


@METHODS.register("bc")
@dataclass(frozen=True, kw_only=True)
class BC(Method):
    """Behaviour cloning: supervised fine-tuning on demonstrations."""

    needs_density: ClassVar[bool] = False
    clones = True

    demonstrations: str = path("expert", prefix=POLICY_PREFIX, main=True)
    """`expert` (scripted), `policy:NAME` (a policy's sampled successes), or a dataset's
    directory."""
    temperature: float = setting(1.0, low=1e-3)
    """Softmax temperature of a policy that demonstrates (>= 0.001)."""
    style: str = "b"
    """The scripted expert's style with `expert` (the base was pretrained on style `a`)."""
    statistics: Literal["base", "demonstrations"] = "base"
    """Statistics that normalise: the `base`'s, or the `demonstrations`' (another policy then)."""
    noise: float = setting(0.15, low=0.0, high=1.0)
    """Noise on what the expert executes, in action units; labels stay clean (as in DART)."""
    episodes: int = setting(700, low=1, main=True)
    """Demonstrations to use (>= 1); all of them if the directory holds fewer."""
    epochs: int = setting(10, low=1, main=True)
    """Passes over the demonstrations (>= 1)."""
    batch_size: int = setting(128, low=1, main=True)
    """Decisions per gradient step (>= 1)."""
    learning_rate: float = setting(5e-4, above=0.0, main=True)
    """AdamW's peak learning rate (> 0)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: `cosine` down to 0, or `constant`."""
    warmup_steps: int = setting(50, low=0)
    """Gradient steps over which the learning rate rises from 0 (>= 0)."""
    weight_decay: float = setting(0.0, low=0.0)
    """AdamW's weight decay (>= 0)."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    lora_rank: int = setting(0, low=0, high=4096, main=True)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    bf16: bool = False
    """Compute matrix products in bfloat16: much slower on a CPU that has to emulate it."""

    @property
    def replaces_statistics(self) -> bool:
        """Return whether the policy will normalise with the demonstrations' statistics."""
        return self.statistics == "demonstrations"

    def validate(self, config: FinetuneConfig) -> None:
        """Refuse a directory without a dataset, and a policy that does not exist.

        Raises:
            DemonstrationError: The directory holds no dataset, or its metadata are wrong.
            RoboRazorError: The policy does not exist.
        """
        from robo_razor.rollout.dataset.metadata import describe

        source = self.demonstrations
        if source == "expert":
            return
        if source.startswith(POLICY_PREFIX):
            from robo_razor.policies.load import locate_policy

            locate_policy(source.removeprefix(POLICY_PREFIX))  # raises if it does not exist
            return
        try:
            missing = not (Path(source) / "meta" / "info.json").exists()
        except (OSError, ValueError):  # not a valid path, such as one of 300 letters
            missing = True
        if missing:
            raise DemonstrationError(
                f"There are no demonstrations in {shown(source)} (`bc.demonstrations`)",
                allowed="`expert`, `policy:NAME`, or the directory of a LeRobotDataset v3",
                remedy=f"Make one: `robo-razor collect --task {config.task} --out DIR`.",
            )
        describe(source)

    def learner(self, context: Context) -> DemonstrationLearner:
        """Return the learner that trains on the demonstrations."""
        from robo_razor.training.imitation import DemonstrationLearner

        return DemonstrationLearner(self, context)

    def loss(self, step: Step) -> Loss:
        """Return LeRobot's loss of the policy on some windows, and its parts that are numbers."""
        from torch import Tensor

        from robo_razor.training.step import Loss

        loss, parts = step.policy.bc_loss(step.batch)
        numbers = {k: x for k, x in parts.items() if isinstance(x, int | float | Tensor)}
        return Loss(loss, {**numbers, "loss": loss.detach()})
