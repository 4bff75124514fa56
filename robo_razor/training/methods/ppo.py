"""Proximal policy optimisation on action chunks.

One decision's chunk is one action, with one advantage. The ratios of its tokens are clipped one by
one (`ratio: step`), or as one ratio (`ratio: chunk`).

Axis letters as in `types`: M decisions of one update, B minibatch, E episodes.

An update of `learner.OnPolicyLearner`: collect whole episodes, turn them into advantages and value
targets (`targets`), go through them `update_epochs` times in minibatches, and make a gradient step
on each `loss` until the policy has moved by `target_kl`.

Differences from Schulman et al. 2017 and why:
- Whole episodes with a quota per update instead of fixed steps per environment, see `on_policy`.
- `clip_low` and `clip_high` may differ (Yu et al. 2025, DAPO's "clip higher").
- An update stops when `approx_kl` passes `target_kl`, checked before every gradient step.
- The value head trains alone at first and, by default, on features that it cannot change: a value
  loss through a shared trunk would move the policy.
- `adapt_lr` changes the policy's learning rate by how far the last update went (as in rsl_rl, but
  once per update and bounded to a factor of 10 around the setting).
- The value loss is not clipped, advantages are normalised over the whole batch, not the minibatch.
- One pass over the episodes by default: more passes move the policy further along the same noise.
  `docs/results/speed.md` has what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from robo_razor.core.errors import ConfigError
from robo_razor.core.settings.conversion import setting
from robo_razor.training.methods import METHODS
from robo_razor.training.on_policy import Clipped
from robo_razor.training.schedules import decay, warm_up

if TYPE_CHECKING:
    from torch import Tensor

    from robo_razor.core.settings.config import FinetuneConfig
    from robo_razor.core.types import EpisodeBatch
    from robo_razor.training.step import Loss, Step, Targets
    from robo_razor.training.update import Metrics


@METHODS.register("ppo")
@dataclass(frozen=True, kw_only=True)
class PPO(Clipped):
    """Proximal policy optimisation on action chunks."""

    trains_value: ClassVar[bool] = True
    REMOVED: ClassVar[Mapping[str, str]] = {
        "kl_coef": "A KL penalty is a regulariser of any method: `regularise: {kl: {weight: 0.02}}`"
        " (`--regularise.kl.weight 0.02`).",
        "kl_direction": "A KL penalty is a regulariser of any method: "
        "`regularise: {kl: {direction: reverse}}` (`--regularise.kl.direction reverse`).",
        "baseline": "Advantages within groups are another method: `method: grpo`.",
        "group_size": "Advantages within groups are another method: `method: grpo`.",
    }

    value_learning_rate: float = setting(1e-3, above=0.0)
    """AdamW's learning rate of the value head (> 0)."""
    anneal_lr: bool = False
    """Lower the learning rates linearly to 0 over the run."""
    adapt_lr: bool = False
    """Keep each update's `approx_kl` near half of `target_kl` by changing the policy's rate."""
    gamma: float = setting(0.99, low=0.0, high=1.0)
    """Discount per decision (one action chunk), [0, 1]."""
    gae_lambda: float = setting(0.6, low=0.0, high=1.0)
    """Lambda of generalised advantage estimation, [0, 1]."""
    ent_coef: float = setting(0.0, low=0.0)
    """Weight of the entropy bonus (>= 0)."""
    vf_coef: float = setting(0.5, low=0.0)
    """Weight of the value loss (>= 0)."""
    value_warmup_updates: int = setting(1, low=0)
    """First updates that train the value head only (>= 0)."""
    detach_value: bool = True
    """Keep the value loss out of the trunk that the policy shares."""

    def _check_together(self) -> None:
        if self.value_warmup_updates >= self.num_updates:
            raise ConfigError(
                f"ppo.value_warmup_updates = {self.value_warmup_updates} leaves no update for the "
                f"policy: ppo.num_updates = {self.num_updates}",
                allowed="value_warmup_updates < num_updates",
            )

    def validate(self, config: FinetuneConfig) -> None:
        """Refuse settings that contradict each other."""
        if self.adapt_lr and self.target_kl is None:
            raise ConfigError(
                "ppo.adapt_lr adapts the learning rate to ppo.target_kl, which is not set",
                remedy="Set `ppo.target_kl`, e.g. 0.05.",
            )

    def targets(self, batch: EpisodeBatch) -> Targets:
        """Turn recorded episodes into normalised advantages and value targets."""
        import torch

        from robo_razor.training.advantages import episode_gae, normalise
        from robo_razor.training.step import Targets, record_of, required

        record = record_of(batch)
        log_prob = required(record.log_prob, "record.log_prob")
        advantages, returns = episode_gae(
            record.reward,
            required(record.value, "record.value"),
            required(record.final_value, "record.final_value"),
            torch.from_numpy(batch.terminated),
            record.offsets,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        return Targets(normalise(advantages), self.by_ratio(log_prob), returns)

    def loss(self, step: Step) -> Loss:
        """Return the clipped surrogate, the value loss and the entropy bonus of some decisions."""
        from robo_razor.training.step import Loss, required

        warming_up = self.is_warming_up(step.update)
        value = step.value(detach=self.detach_value or warming_up)
        policy_loss, diagnostics = self.surrogate(step)
        returns = required(step.targets.returns, "targets.returns")
        critic_loss = value_loss(value.float(), returns)
        entropy = step.distribution.entropy().mean()
        loss = self.vf_coef * critic_loss
        if not warming_up:
            loss = loss + policy_loss - self.ent_coef * entropy
        return Loss(
            loss,
            {
                "policy_loss": policy_loss.detach(),
                "value_loss": critic_loss.detach(),
                "entropy": entropy.detach(),
                **diagnostics,
            },
        )

    # The value head trains alone at first -----------------------------------------------------

    def is_warming_up(self, update: int) -> bool:
        """Return whether an update, from 1, trains the value head only."""
        return update <= self.value_warmup_updates

    def is_regularised(self, update: int) -> bool:
        """Return true once the policy is trained."""
        return not self.is_warming_up(update)

    def stops(self, metrics: Metrics, update: int) -> bool:
        """Return true once the policy has moved by `target_kl`."""
        return not self.is_warming_up(update) and super().stops(metrics, update)

    # Rates ------------------------------------------------------------------------------------

    def rates(self, update: int, factor: float) -> tuple[float, ...]:
        """Return the learning rates of the policy and of the value head."""
        warmth = warm_up(update - self.value_warmup_updates, self.warmup_updates)
        left = decay("linear", update - 1, self.num_updates) if self.anneal_lr else 1.0
        return self.learning_rate * factor * warmth * left, self.value_learning_rate * left

    def adapted(self, factor: float, metrics: Metrics, update: int) -> float:
        """Return a larger factor after an update that moved too little, a smaller one otherwise."""
        if not self.adapt_lr or self.target_kl is None or self.is_warming_up(update):
            return factor
        wanted, approx_kl = 0.5 * self.target_kl, metrics["approx_kl"]
        if approx_kl > 1.5 * wanted:
            return max(0.1, factor / 1.5)
        return min(10.0, factor * 1.5) if approx_kl < wanted / 1.5 else factor

    def summary(self, history: Sequence[Metrics], batch: EpisodeBatch, targets: Targets) -> Metrics:
        """Return also how well the value head predicted the returns."""
        from robo_razor.training.advantages import explained_variance
        from robo_razor.training.step import record_of, required

        value = required(record_of(batch).value, "record.value")
        explained = explained_variance(value, required(targets.returns, "targets.returns"))
        return super().summary(history, batch, targets) | {"train/explained_variance": explained}


def value_loss(value: Tensor, targets: Tensor) -> Tensor:
    """Compute half the mean squared error of values float [B] against their targets float [B]."""
    return 0.5 * (value - targets).square().mean()
