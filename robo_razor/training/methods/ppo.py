"""Proximal policy optimisation on action chunks.

One decision's chunk is one action: its log-probability is summed over H control steps and A
dimensions. Axis letters as in `types`: M decisions of one update, B minibatch, E episodes.

Differences from Schulman et al. 2017 and why:
- Whole episodes with a quota per update instead of fixed steps per environment, see `on_policy`.
- `clip_low` and `clip_high` may differ (Yu et al. 2025, DAPO's "clip higher").
- An update stops when `approx_kl` passes `target_kl`, checked before every gradient step.
- The value head trains alone at first and, by default, on features it cannot change: a value loss
  through a shared trunk moves the policy by itself.
- `baseline="group"` replaces the critic by the other episodes from the same start state; groups
  that all ended alike teach nothing and are left out of the gradient steps.
- `adapt_lr` changes the policy's learning rate by what the last update did (as in rsl_rl, but once
  per update and bounded to a factor of 10 around the setting).
- With a `temperature` the KL penalty is between the sampled distributions.
- The value loss is not clipped, advantages are normalised over the whole batch, not the minibatch.

A policy that denoises makes a decision in K random steps. With `ratio="step"` each step's ratio is
clipped by itself, as in Flow-GRPO (arXiv 2505.05470) and pi_RL (arXiv 2510.25889): the ratio of the
whole chunk is their product, and leaves the clip range at once. Unlike there, steps are summed, so
that at equal weights the gradient, and always `approx_kl` and the KL penalty, are per decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.errors import ConfigError
from robo_razor.core.run.training_state import restore_optimizer
from robo_razor.core.seeding import generator
from robo_razor.core.settings.config import FinetuneConfig, PPOConfig
from robo_razor.core.types import DecisionRecord, EpisodeBatch
from robo_razor.policies.distributions import log_prob_steps
from robo_razor.policies.flow.precision import has_low_precision
from robo_razor.training.advantages import (
    discounted_returns,
    episode_gae,
    explained_variance,
    group_advantages,
    normalise,
)
from robo_razor.training.methods import (
    METHODS,
    MethodState,
    Metrics,
    Services,
    autocast,
    clip_gradients,
)
from robo_razor.training.methods.on_policy import OnPolicyMethod

EVALUATION_BATCH = 256


def ppo_policy_loss(
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


def value_loss(value: Tensor, targets: Tensor) -> Tensor:
    """Compute half the mean squared error of values float [B] against their targets float [B]."""
    return 0.5 * (value - targets).square().mean()


@dataclass(frozen=True)
class Targets:
    """What an update learns from; all float [M], `old_log_prob` maybe [M, K] of every step."""

    advantages: Tensor
    returns: Tensor
    old_log_prob: Tensor


def compute_targets(batch: EpisodeBatch, config: PPOConfig) -> Targets:
    """Turn recorded episodes into normalised advantages and value targets."""
    record = batch.record
    assert record is not None
    assert record.value is not None
    assert record.final_value is not None
    assert record.log_prob is not None
    terminated = torch.from_numpy(batch.terminated)
    if config.baseline == "group":
        nothing = torch.zeros(len(batch))
        returns = discounted_returns(record.reward, nothing, record.offsets, gamma=config.gamma)
        outcomes = returns[torch.from_numpy(record.offsets[:-1])]
        per_episode = group_advantages(outcomes, config.group_size)
        advantages = per_episode[torch.from_numpy(record.episode)]
        useful = advantages != 0
        # Scaled over what is learnt from, and not shifted: 0 stays "nothing to learn here".
        scale = advantages[useful].square().mean().sqrt() if useful.any() else torch.ones(())
        return Targets(advantages / scale, returns, _by_ratio(record.log_prob, config))
    advantages, returns = episode_gae(
        record.reward,
        record.value,
        record.final_value,
        terminated,
        record.offsets,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    return Targets(normalise(advantages), returns, _by_ratio(record.log_prob, config))


def _by_ratio(log_prob: Tensor, config: PPOConfig) -> Tensor:
    """Return log-probabilities [B] or [B, K] as the ratio that is clipped needs them."""
    return log_prob.sum(-1) if log_prob.ndim == 2 and config.ratio == "chunk" else log_prob


@METHODS.register("ppo")
class PPO(OnPolicyMethod):
    """PPO with whole episodes, a value head or group baselines, and an exact KL to the base."""

    def __init__(self, config: FinetuneConfig, policy: Any, base: Any, services: Services) -> None:
        super().__init__(config, policy, base, services, config.ppo)
        self.ppo = config.ppo
        self.group_size = self.ppo.group_size if self.ppo.baseline == "group" else 1
        self.rate_factor = 1.0
        self.value_parameters = [p for p in policy.value_parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.policy_parameters, "lr": self.ppo.learning_rate},
                {"params": self.value_parameters, "lr": self.ppo.value_learning_rate},
            ],
            weight_decay=0.0,
            eps=1e-5,
        )

    @classmethod
    def validate(cls, config: FinetuneConfig) -> None:
        """Refuse settings that contradict each other."""
        ppo = config.ppo
        if ppo.adapt_lr and ppo.target_kl is None:
            raise ConfigError(
                "ppo.adapt_lr is set, but ppo.target_kl is not: there is nothing to adapt to",
                remedy="Set `ppo.target_kl`, e.g. 0.05.",
            )
        if ppo.baseline == "group" and ppo.episodes_per_update % ppo.group_size:
            raise ConfigError(
                f"ppo.episodes_per_update = {ppo.episodes_per_update} is not a multiple of "
                f"ppo.group_size = {ppo.group_size}",
                remedy="With `ppo.baseline: group`, every start state gets `group_size` episodes.",
            )

    def state(self) -> MethodState:
        """Return the optimizer's state and the adapted rate."""
        return MethodState(
            optimizers={"ppo": self.optimizer.state_dict()},
            extra={"rate_factor": self.rate_factor},
        )

    def load_state(self, state: MethodState) -> None:
        """Take over the optimizer's state and the adapted rate."""
        restore_optimizer(self.optimizer, state.optimizers["ppo"])
        factor = float(state.extra["rate_factor"])
        if not 0.0 < factor < math.inf:
            raise ValueError(f"`rate_factor` is {factor}")
        self.rate_factor = factor

    def _collect(self, update: int) -> EpisodeBatch:
        with autocast(self.policy.device, self.ppo.bf16):
            return super()._collect(update)

    def _learn(self, batch: EpisodeBatch, update: int) -> Metrics:
        """Make the gradient steps; return their diagnostics."""
        record = batch.record
        assert record is not None
        warming_up = update <= self.ppo.value_warmup_updates and self.ppo.baseline == "value"
        self._set_learning_rates(update)
        targets = compute_targets(batch, self.ppo)
        self.policy.module.eval()  # dropout would make the ratio noise
        if self.ppo.bf16 or has_low_precision(self.policy.module):
            # The ratio must be 1 at equal weights: rounding to less than float32 depends on the
            # batch, and what was collected was computed in others than those of the update.
            targets = Targets(targets.advantages, targets.returns, self._log_probs(record))
        history: list[Metrics] = []
        minibatches = self._minibatches(self._useful(targets), update)
        for rows in minibatches:
            history.append(self._gradient_step(record, targets, rows, warming_up))
            self.services.on_gradient_steps(len(history), len(minibatches))
            if "stopped" in history[-1]:
                break
        if not warming_up and history:
            self._adapt_rate(history[-1]["approx_kl"])
        return self._learn_metrics(history, record, targets)

    def _useful(self, targets: Targets) -> Tensor:
        """Return the decisions to learn from, int64 [m]: with groups, those with an advantage."""
        if self.ppo.baseline == "value":
            return torch.arange(len(targets.advantages))
        return torch.nonzero(targets.advantages).squeeze(1)

    def _adapt_rate(self, approx_kl: float) -> None:
        if not self.ppo.adapt_lr or self.ppo.target_kl is None:
            return
        wanted = 0.5 * self.ppo.target_kl
        if approx_kl > 1.5 * wanted:
            self.rate_factor = max(0.1, self.rate_factor / 1.5)
        elif approx_kl < wanted / 1.5:
            self.rate_factor = min(10.0, self.rate_factor * 1.5)

    def _set_learning_rates(self, update: int) -> None:
        ppo, factor = self.ppo, 1.0
        if ppo.anneal_lr:
            factor = 1.0 - (update - 1) / ppo.num_updates
        value_only = ppo.value_warmup_updates if ppo.baseline == "value" else 0
        warmth = min(1.0, max(0, update - value_only) / max(1, ppo.warmup_updates))
        rates = (ppo.learning_rate * self.rate_factor * warmth, ppo.value_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor

    def _minibatches(self, useful: Tensor, update: int) -> list[Tensor]:
        """Return the rows of every gradient step; each epoch in its own fixed random order."""
        steps = math.ceil(len(useful) / self.ppo.minibatch_size)
        minibatches: list[Tensor] = []
        for epoch in range(self.ppo.update_epochs):
            random = generator(self.config.seed, "ppo order", update, epoch)
            order = useful[torch.from_numpy(random.permutation(len(useful)))]
            minibatches += list(order.tensor_split(steps)) if steps else []
        return minibatches

    def _gradient_step(
        self, record: DecisionRecord, targets: Targets, rows: Tensor, warming_up: bool
    ) -> Metrics:
        """Make one gradient step, unless the policy has already moved by `target_kl`."""
        ppo = self.ppo
        self.optimizer.zero_grad(set_to_none=True)
        sums: Metrics = {}
        mine = torch.from_numpy(record.held(rows.numpy()))
        for part in torch.split(mine, ppo.micro_batch_size or len(rows)):
            if len(part) == 0:  # all of the minibatch is held by other ranks
                continue
            share = len(part) / len(rows)
            loss, found = self._loss(record, targets, part, warming_up)
            maxima = {"ratio_max": max(sums.get("ratio_max", 0.0), found["ratio_max"])}
            sums = {key: sums.get(key, 0.0) + share * x for key, x in found.items()} | maxima
            self._check_finite(loss)
            (loss * share).backward()  # type: ignore[no-untyped-call]
        sums = self.ranks.totals(sums, maxima=("ratio_max",))
        if ppo.target_kl is not None and sums["approx_kl"] > ppo.target_kl and not warming_up:
            self.optimizer.zero_grad(set_to_none=True)
            return {"approx_kl": sums["approx_kl"], "stopped": 1.0}
        self.ranks.sum_gradients([*self.policy_parameters, *self.value_parameters])
        policy_norm = clip_gradients(self.policy_parameters, ppo.max_grad_norm)
        clip_gradients(self.value_parameters, ppo.max_grad_norm)
        self.optimizer.step()
        return sums | {"grad_norm": policy_norm}

    def _loss(
        self, record: DecisionRecord, targets: Targets, rows: Tensor, warming_up: bool
    ) -> tuple[Tensor, Metrics]:
        """Return the loss of some decisions (a mean) and their diagnostics (means, one maximum)."""
        ppo, device = self.ppo, self.policy.device
        inputs = self._inputs(record, rows.numpy())
        penalty = torch.zeros((), device=device)
        with autocast(device, ppo.bf16):
            distribution, value = self.policy.distribution_and_value(
                inputs, value_detach=ppo.detach_value or warming_up
            )
            actions = record.select_actions(rows.numpy()).to(device)
            log_prob = log_prob_steps(distribution, actions)
            if ppo.kl_coef > 0.0 and not warming_up:
                penalty = self._penalty(distribution, inputs)
        policy_loss, found = ppo_policy_loss(
            _by_ratio(log_prob, ppo),
            targets.old_log_prob[rows].to(device),
            targets.advantages[rows].to(device),
            clip_low=ppo.clip_low,
            clip_high=ppo.clip_high,
        )
        entropy = distribution.entropy().mean()
        critic_loss = value_loss(value.float(), targets.returns[rows].to(device))
        loss = torch.zeros((), device=device)
        if ppo.baseline == "value":
            loss = loss + ppo.vf_coef * critic_loss
        if not warming_up:
            loss = loss + policy_loss - ppo.ent_coef * entropy + ppo.kl_coef * penalty
        return loss, {
            "policy_loss": float(policy_loss.detach()),
            "value_loss": float(critic_loss.detach()),
            "entropy": float(entropy.detach()),
            **{key: float(tensor) for key, tensor in found.items()},
        }

    def _penalty(self, distribution: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the KL to the base (or its bound), averaged over the minibatch (scalar).

        In the precision of the update, for both: equal weights are no distance apart then.
        """
        with torch.no_grad():
            base = self.base.distribution(inputs)
        divergence: Tensor = (
            base.kl(distribution) if self.ppo.kl_direction == "forward" else distribution.kl(base)
        )
        return divergence.mean()

    def _log_probs(self, record: DecisionRecord) -> Tensor:
        """Return log-probabilities as `Targets` has them, in the update's precision.

        The forward pass is that of a gradient step, which is not cut into the small batches of a
        policy that acts, so it needs no more memory than a step does.
        """
        assert record.log_prob is not None
        found = torch.zeros_like(_by_ratio(record.log_prob, self.ppo))
        mine = record.held(np.arange(len(record)))
        size = min(EVALUATION_BATCH, self.ppo.micro_batch_size or self.ppo.minibatch_size)
        for start in range(0, len(mine), size):
            rows = mine[start : start + size]
            found[torch.from_numpy(rows)] = self._log_probs_of(record, rows).cpu().to(found.dtype)
        return self.ranks.sum_(found)

    def _log_probs_of(self, record: DecisionRecord, rows: NDArray[np.int64]) -> Tensor:
        """Return those of a few decisions; the graph of the forward pass ends with the call."""
        with autocast(self.policy.device, self.ppo.bf16):
            distribution = self.policy.distribution(self._inputs(record, rows))
            sample = record.select_actions(rows).to(self.policy.device)
            return _by_ratio(log_prob_steps(distribution, sample), self.ppo).detach()

    def _learn_metrics(
        self, history: list[Metrics], record: DecisionRecord, targets: Targets
    ) -> Metrics:
        assert record.value is not None
        steps = [step for step in history if "stopped" not in step]
        metrics = {
            f"train/{key}": float(np.mean([step[key] for step in steps]))
            for key in (steps[0] if steps else {})
        }
        return metrics | {
            "train/approx_kl": history[-1]["approx_kl"] if history else 0.0,
            "train/gradient_steps": float(len(steps)),
            "train/stopped_by_target_kl": float(bool(history) and "stopped" in history[-1]),
            "train/explained_variance": explained_variance(record.value, targets.returns),
            "train/advantage_nonzero": float((targets.advantages != 0).float().mean()),
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
        }
