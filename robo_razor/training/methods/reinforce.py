"""REINFORCE on action chunks, with a binary reward and without a critic.

The algorithm of the robot experiment in "RL's Razor" (arXiv 2509.04259, appendix B.2): whole
episodes, reward 1 for success and 0 for failure, advantages = normalised rewards. With
`advantage: one_zero` (the paper's 1-0 REINFORCE) successes count 1 and failures 0, which is
behaviour cloning of the policy's own successes: on-policy data without negatives.

Differences from the paper:
- Rewards are normalised over the update's decisions, not over its episodes. Failures last longer,
  so over episodes most decisions would have a negative advantage. A loss that mostly lowers
  probabilities drives the policy far away: here to 39 nats from the base in eight updates.
- An update makes `num_minibatches` gradient steps, each on other decisions, so all but the first
  are slightly off-policy. Importance weights do not correct this.

Axis letters as in `types`: M decisions of one update, B minibatch, E episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from robo_razor.core.settings.conversion import setting
from robo_razor.training.methods import METHODS
from robo_razor.training.on_policy import Draw, OnPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from robo_razor.core.types import EpisodeBatch
    from robo_razor.training.step import Loss, Step, Targets


@METHODS.register("reinforce")
@dataclass(frozen=True, kw_only=True)
class Reinforce(OnPolicy):
    """REINFORCE on action chunks with a binary reward, no critic and no KL term."""

    learning_rate: float = setting(1e-5, above=0.0, main=True)
    """AdamW's learning rate (> 0)."""
    temperature: float = setting(0.4, low=1e-3)
    """Softmax temperature of sampled actions (>= 0.001); densities are those of what is sampled."""
    advantage: Literal["normalised", "one_zero"] = setting("normalised", main=True)
    """`normalised`: rewards minus their mean, over their deviation; `one_zero`: successes only."""
    num_minibatches: int = setting(4, low=1)
    """Gradient steps per update, each on other decisions (>= 1)."""

    def targets(self, batch: EpisodeBatch) -> Targets:
        """Return the advantages of the episodes' outcomes; leave out decisions with advantage 0."""
        import torch

        from robo_razor.training.step import Targets, record_of

        outcomes = torch.from_numpy(batch.success[record_of(batch).episode])
        advantages = outcome_advantages(outcomes, self.advantage)
        return Targets(advantages, useful=torch.nonzero(advantages).squeeze(1))

    def minibatches(self, rows: Tensor, draw: Draw) -> list[Tensor]:
        """Return the rows of `num_minibatches` gradient steps, each decision in one of them."""
        import torch

        if len(rows) == 0:
            return []
        order = rows[torch.from_numpy(draw().permutation(len(rows)))]
        return list(order.tensor_split(min(self.num_minibatches, len(rows))))

    def loss(self, step: Step) -> Loss:
        """Return the score function's loss of some decisions."""
        from robo_razor.training.step import Loss

        loss = reinforce_loss(step.log_prob, step.targets.advantages)
        entropy = step.distribution.entropy().mean()
        return Loss(loss, {"policy_loss": loss.detach(), "entropy": entropy.detach()})


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
        return reward.new_zeros(reward.shape)
    return (reward - reward.mean()) / deviation


def reinforce_loss(log_prob: Tensor, advantages: Tensor) -> Tensor:
    """Compute -mean(A log pi) (Williams 1992) of log-probabilities and advantages float [B]."""
    return -(advantages * log_prob).mean()
