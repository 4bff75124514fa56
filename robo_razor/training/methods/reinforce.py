"""REINFORCE on action chunks, with a binary reward and without a critic or a KL term.

The algorithm of the robot experiment in "RL's Razor" (arXiv 2509.04259, appendix B.2): whole
episodes, reward 1 for success and 0 for failure, advantages = normalised rewards. With
`advantage: one_zero` (there: 1-0 REINFORCE) successes count 1 and failures 0, which is behaviour
cloning of the policy's own successes: the ingredient "on-policy" without negatives.

Differences from the paper:
- Rewards are normalised over the update's decisions, not over its episodes. Failures last longer,
  so over episodes most decisions would have a negative advantage, and a loss that mostly lowers
  probabilities drives the policy away from itself: here to 39 nats from the base in eight updates.
- An update makes `num_minibatches` gradient steps, each on other decisions, so all but the first
  are slightly off-policy; no importance weights correct it.
Axis letters as in `types`: M decisions of one update, B minibatch, E episodes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robo_razor.core.run.training_state import restore_optimizer
from robo_razor.core.seeding import generator
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DecisionRecord, EpisodeBatch
from robo_razor.training.methods import METHODS, MethodState, Metrics, Services, clip_gradients
from robo_razor.training.methods.on_policy import OnPolicyMethod


def outcome_advantages(success: Tensor, kind: Literal["normalised", "one_zero"]) -> Tensor:
    """Return one advantage per decision, float32 [M], from its episode's outcome, bool [M].

    `normalised`: (r - mean) / standard deviation over the decisions; all 0 if all ended alike.
    `one_zero`: r.
    """
    reward = success.float()
    if kind == "one_zero":
        return reward
    deviation = reward.std(correction=0)
    if deviation == 0:
        return torch.zeros_like(reward)
    return (reward - reward.mean()) / deviation


def reinforce_loss(log_prob: Tensor, advantages: Tensor) -> Tensor:
    """Compute -mean(A log pi) (Williams 1992) of log-probabilities and advantages float [B]."""
    return -(advantages * log_prob).mean()


@METHODS.register("reinforce")
class Reinforce(OnPolicyMethod):
    """REINFORCE with whole episodes and a binary reward."""

    def __init__(self, config: FinetuneConfig, policy: Any, base: Any, services: Services) -> None:
        super().__init__(config, policy, base, services, config.reinforce)
        self.reinforce = config.reinforce
        self.optimizer = torch.optim.AdamW(
            self.policy_parameters, lr=self.reinforce.learning_rate, weight_decay=0.0, eps=1e-5
        )

    def state(self) -> MethodState:
        """Return the optimizer's state."""
        return MethodState(optimizers={"reinforce": self.optimizer.state_dict()})

    def load_state(self, state: MethodState) -> None:
        """Take over the optimizer's state."""
        restore_optimizer(self.optimizer, state.optimizers["reinforce"])

    def _learn(self, batch: EpisodeBatch, update: int) -> Metrics:
        record = batch.record
        assert record is not None
        outcomes = torch.from_numpy(batch.success[record.episode])
        advantages = outcome_advantages(outcomes, self.reinforce.advantage)
        self._set_learning_rate(update)
        self.policy.module.eval()  # dropout would make the log-probabilities noise
        minibatches = self._minibatches(advantages, update)
        history = []
        for rows in minibatches:
            history.append(self._gradient_step(record, advantages, rows))
            self.services.on_gradient_steps(len(history), len(minibatches))
        found = {
            f"train/{key}": float(np.mean([step[key] for step in history]))
            for key in (history[0] if history else {})
        }
        return found | {
            "train/gradient_steps": float(len(history)),
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
        }

    def _set_learning_rate(self, update: int) -> None:
        factor = min(1.0, update / max(1, self.reinforce.warmup_updates))
        for group in self.optimizer.param_groups:
            group["lr"] = self.reinforce.learning_rate * factor

    def _minibatches(self, advantages: Tensor, update: int) -> list[Tensor]:
        """Return the rows of every gradient step; decisions without advantage are left out."""
        useful = torch.nonzero(advantages).squeeze(1)
        if len(useful) == 0:
            return []
        order = generator(self.config.seed, "reinforce order", update).permutation(len(useful))
        count = min(self.reinforce.num_minibatches, len(useful))
        return list(useful[torch.from_numpy(order)].tensor_split(count))

    def _gradient_step(self, record: DecisionRecord, advantages: Tensor, rows: Tensor) -> Metrics:
        device = self.policy.device
        self.optimizer.zero_grad(set_to_none=True)
        found: Metrics = {}
        mine = record.held(rows.numpy())
        if len(mine):
            distribution = self.policy.distribution(self._inputs(record, mine))
            log_prob = distribution.log_prob(record.select_actions(mine).to(device))
            loss = reinforce_loss(log_prob, advantages[torch.from_numpy(mine)].to(device))
            self._check_finite(loss)
            share = len(mine) / len(rows)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            found = {
                "policy_loss": share * float(loss.detach()),
                "entropy": share * float(distribution.entropy().mean().detach()),
            }
        self.ranks.sum_gradients(self.policy_parameters)
        norm = clip_gradients(self.policy_parameters, self.reinforce.max_grad_norm)
        self.optimizer.step()
        return self.ranks.totals(found) | {"grad_norm": norm}
