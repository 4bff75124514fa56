"""What on-policy methods share: settings as inherited fields, and choices to override.

`OnPolicy` learns from whole episodes of the current policy, `Clipped` several times from the same
ones, with clipped ratios. The loop that calls them is `learner.OnPolicyLearner`.

Whole episodes with a quota per update, not fixed steps per environment: fast, successful episodes
are not over-represented, and nothing depends on the number of environments. With a `temperature`
the sampled distribution is the one that is trained; `kl_base_tuned` is always that of the policies
themselves.

Axis letters as in `types`: M decisions of one update, B minibatch, K random steps of a decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from robo_razor.core.settings.conversion import setting
from robo_razor.training.methods import Method
from robo_razor.training.schedules import warm_up

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from robo_razor.core.types import EpisodeBatch
    from robo_razor.policies.policy import Policy
    from robo_razor.training.learner import Context, OnPolicyLearner
    from robo_razor.training.step import Step, Targets
    from robo_razor.training.update import Metrics

Draw = Callable[..., "np.random.Generator"]
"""Returns the random numbers of an update that belong to some integers, such as the epoch."""


@dataclass(frozen=True, kw_only=True)
class OnPolicy(Method):
    """Learns from whole episodes that it collects before each update."""

    trains_value: ClassVar[bool] = False
    """Whether the policy's value head is trained too, at `rates()[1]`."""
    group_size = 1  # a method may make it a field: the number of episodes from each start state
    micro_batch_size: ClassVar[int | None] = None

    learning_rate: float = setting(1e-4, above=0.0, main=True)
    """AdamW's learning rate of the policy (> 0)."""
    warmup_updates: int = setting(2, low=0)
    """Updates over which the policy's learning rate rises (>= 0); Adam's first steps are large."""
    momentum: float = setting(0.9, low=0.0, high=0.9999)
    """AdamW's first beta, [0, 1): the share of the mean gradient that earlier steps make up."""
    episodes_per_update: int = setting(256, low=2, main=True)
    """Complete episodes collected before each update (>= 2)."""
    num_updates: int = setting(40, low=1, main=True)
    """Updates in the run (>= 1)."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    lora_rank: int = setting(0, low=0, high=4096, main=True)
    """Rank of low-rank updates (LoRA); 0: all weights are trained."""
    temperature: float = setting(1.0, low=1e-3)
    """Softmax temperature of sampled actions (>= 0.001); densities are those of what is sampled."""

    def learner(self, context: Context) -> OnPolicyLearner:
        """Return the learner that collects episodes and learns from them."""
        from robo_razor.training.learner import OnPolicyLearner

        return OnPolicyLearner(self, context)

    # What a method may override ---------------------------------------------------------------

    def rates(self, update: int, factor: float) -> tuple[float, ...]:
        """Return the learning rate of the policy and, where it is trained, of the value head.

        Args:
            update: Number of the update, from 1.
            factor: The last result of `adapted`; 1 at first.
        """
        return (self.learning_rate * factor * warm_up(update, self.warmup_updates),)

    def minibatches(self, rows: Tensor, draw: Draw) -> list[Tensor]:
        """Return the rows of every gradient step of an update; here one step, on all of them.

        Args:
            rows: int64, numbers of the decisions to learn from, or of episodes or pairs of episodes
                (see the class attribute `rows`).
            draw: Returns a random generator to shuffle them with.
        """
        return [rows] if len(rows) else []

    def replays(self, policy: Policy) -> bool:
        """Return whether to compute the actors' log-probabilities again before an update."""
        return False

    @property
    def replay_size(self) -> int:
        """Return how many decisions are computed again at once."""
        return 256

    def stops(self, metrics: Metrics, update: int) -> bool:
        """Return whether an update ends before the gradient step with these diagnostics."""
        return False

    def adapted(self, factor: float, metrics: Metrics, update: int) -> float:
        """Return the factor on the next update's rate after the last step's diagnostics."""
        return factor

    def is_regularised(self, update: int) -> bool:
        """Return whether regularisers take part in an update."""
        return True

    def summary(self, history: Sequence[Metrics], batch: EpisodeBatch, targets: Targets) -> Metrics:
        """Return what to log of an update besides the means of its steps' diagnostics."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Clipped(OnPolicy):
    """Learns several times from the same episodes, with ratios of probabilities that are clipped.

    A decision is made in K random steps: action tokens, or denoising steps. With `ratio="step"`
    each step's ratio is clipped by itself, as in GRPO (arXiv 2402.03300), Flow-GRPO (2505.05470)
    and pi_RL (2510.25889): the ratio of the whole chunk is their product, and leaves the clip range
    at once. Unlike there, steps are summed, so that at equal weights the gradient, and always
    `approx_kl`, are per decision.
    """

    learning_rate: float = setting(1.8e-4, above=0.0, main=True)
    """AdamW's learning rate of the policy (> 0)."""
    clip_low: float = setting(0.2, above=0.0, high=1.0)
    """Probability ratios are clipped at 1 - clip_low, (0, 1]."""
    clip_high: float = setting(0.28, above=0.0)
    """Probability ratios are clipped at 1 + clip_high (> 0)."""
    ratio: Literal["step", "chunk"] = "step"
    """What is clipped: ratios of each `step` (action token or denoising step), or of a `chunk`."""
    update_epochs: int = setting(1, low=1, high=10_000)
    """Passes over the collected decisions per update (>= 1)."""
    minibatch_size: int = setting(1024, low=1, main=True)
    """Decisions per gradient step (>= 1)."""
    micro_batch_size: int | None = setting(None, low=1)  # type: ignore[misc]
    """Decisions at once in memory (>= 1), gradients are added up; None: the whole minibatch."""
    target_kl: float | None = setting(0.3, above=0.0)
    """An update stops early when `approx_kl` to the collecting policy exceeds this; None: never."""
    temperature: float = setting(0.6, low=1e-3)
    """Softmax temperature of sampled actions (>= 0.001); densities are those of what is sampled."""
    bf16: bool = False
    """Compute matrix products of rollouts and updates in bfloat16; tracking stays in float32."""

    def minibatches(self, rows: Tensor, draw: Draw) -> list[Tensor]:
        """Return the rows of every gradient step; each epoch in its own fixed random order."""
        import torch

        steps = math.ceil(len(rows) / self.minibatch_size)
        minibatches: list[Tensor] = []
        for epoch in range(self.update_epochs if steps else 0):
            order = rows[torch.from_numpy(draw(epoch).permutation(len(rows)))]
            minibatches += order.tensor_split(steps)
        return minibatches

    def replays(self, policy: Policy) -> bool:
        """Return true where something is rounded to less than float32.

        The ratio must be 1 at equal weights. Such rounding depends on the batch, and episodes are
        collected in other batches than those of the update.
        """
        from robo_razor.policies.flow.precision import has_low_precision

        return self.bf16 or has_low_precision(policy.module)

    @property
    def replay_size(self) -> int:
        """Return how many decisions are computed again at once: at most a gradient step's."""
        return min(super().replay_size, self.micro_batch_size or self.minibatch_size)

    def stops(self, metrics: Metrics, update: int) -> bool:
        """Return true once the policy has moved by `target_kl`."""
        return self.target_kl is not None and metrics.get("approx_kl", 0.0) > self.target_kl

    def summary(self, history: Sequence[Metrics], batch: EpisodeBatch, targets: Targets) -> Metrics:
        """Return how far the update went and whether it was stopped."""
        last = history[-1] if history else {}
        return {
            "train/approx_kl": last.get("approx_kl", 0.0),
            "train/stopped_by_target_kl": float("stopped" in last),
            "train/advantage_nonzero": float((targets.advantages != 0).float().mean()),
        }

    def by_ratio(self, log_prob: Tensor) -> Tensor:
        """Return log-probabilities [B] or [B, K] with the steps that `ratio` clips apart."""
        return log_prob.sum(-1) if log_prob.ndim == 2 and self.ratio == "chunk" else log_prob

    def surrogate(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clipped surrogate of a step and its diagnostics, see `clipped_surrogate`."""
        from robo_razor.training.step import required

        return clipped_surrogate(
            self.by_ratio(step.log_prob_steps),
            required(step.targets.log_prob, "targets.log_prob"),
            step.targets.advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the clipped surrogate (Schulman et al. 2017, eq. 7, with two clip widths).

    L = -mean(min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)),  r = exp(log_prob - old_log_prob)

    With K steps per decision, r is a step's ratio, and the terms of a decision are summed.

    Args:
        log_prob: float [B] or [B, K], of the chunk or its steps under the policy that is tuned.
        old_log_prob: The same under the policy that collected it.
        advantages: float [B].
        clip_low: Ratios below 1 - clip_low get no gradient where that would lower them further.
        clip_high: Likewise above 1 + clip_high.

    Returns:
        The loss (scalar) and detached scalars: `approx_kl` = mean((r - 1) - log r), an estimate of
        KL(old || new) that is never negative, `clip_fraction`, `ratio_max`.
    """
    import torch

    steps = log_prob.shape[1] if log_prob.ndim == 2 else 1
    if log_prob.ndim == 2:
        advantages = advantages[:, None]
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).mean() * steps
    with torch.no_grad():
        diagnostics = {
            "approx_kl": ((ratio - 1.0) - log_ratio).mean() * steps,
            "clip_fraction": (ratio != clipped).float().mean(),
            "ratio_max": ratio.max(),
        }
    return loss, diagnostics
