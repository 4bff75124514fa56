"""Group-relative policy optimisation: PPO's clipped loss, and outcomes compared within a group.

Shao et al. 2024 (arXiv 2402.03300): several episodes begin at each start state. An episode's
advantage is how much better it ended than its group, A = (r - mean) / std, without a critic. With
`divide_by_std: false` A = r - mean, as in Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): then a
group does not weigh more because its outcomes are more similar.

Differences from the first paper and why:
- The loss is a mean over the decisions of all episodes, not a mean of episodes' means, in which
  short episodes would count more (the length bias that Dr. GRPO removes too).
- Groups whose episodes all ended alike are left out of the gradient steps, as in DAPO (Yu et al.
  2025), from which the two clip widths come too.
- The standard deviation is that of the group itself (divided by n, not n - 1).
- The KL to the base is not part of the loss: it is a regulariser of any method
  (`regularise: {kl: ...}`), exact where the policy has tokens, not estimated from samples.
- An update stops when `approx_kl` passes `target_kl`.

Axis letters as in `types`: M decisions of one update, E episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robo_razor.core.errors import ConfigError
from robo_razor.core.settings.conversion import setting
from robo_razor.training.methods import METHODS
from robo_razor.training.on_policy import Clipped

if TYPE_CHECKING:
    from torch import Tensor

    from robo_razor.core.types import EpisodeBatch
    from robo_razor.training.step import Loss, Step, Targets


@METHODS.register("grpo")
@dataclass(frozen=True, kw_only=True)
class GRPO(Clipped):
    """Group-relative policy optimisation: episodes compared with others from the same start."""

    group_size: int = setting(8, low=2, high=10_000, main=True)
    """Episodes from each start state (>= 2)."""
    divide_by_std: bool = True
    """Divide by the standard deviation in a group (GRPO), or do not (Dr. GRPO)."""

    def _check_together(self) -> None:
        if self.episodes_per_update % self.group_size:
            raise ConfigError(
                f"{self.name}.episodes_per_update = {self.episodes_per_update} is not a multiple "
                f"of {self.name}.group_size = {self.group_size}",
                remedy="Every start state gets `group_size` episodes.",
            )

    def targets(self, batch: EpisodeBatch) -> Targets:
        """Return for every decision how much better its episode ended than its group."""
        import torch

        from robo_razor.training.step import Targets, record_of, required

        record = record_of(batch)
        log_prob = required(record.log_prob, "record.log_prob")
        outcomes = torch.from_numpy(batch.episode_return).float()
        per_episode = group_advantages(outcomes, self.group_size, self.divide_by_std)
        advantages = per_episode[torch.from_numpy(record.episode)]
        useful = torch.nonzero(advantages).squeeze(1)
        return Targets(advantages, self.by_ratio(log_prob), useful=useful)

    def loss(self, step: Step) -> Loss:
        """Return the clipped surrogate of some decisions."""
        from robo_razor.training.step import Loss

        loss, diagnostics = self.surrogate(step)
        entropy = step.distribution.entropy().mean().detach()
        return Loss(loss, {"policy_loss": loss.detach(), "entropy": entropy, **diagnostics})


def group_advantages(returns: Tensor, group_size: int, divide_by_std: bool = True) -> Tensor:
    """Return (r - mean) or (r - mean) / std of every episode within its group.

    Args:
        returns: float [E], grouped: episodes g*group_size:(g+1)*group_size share a start state.
        group_size: Episodes per start state, at least 2.
        divide_by_std: Whether to divide.

    Returns:
        float [E]; 0 in groups whose episodes all ended alike.
    """
    grouped = returns.reshape(-1, group_size)
    centred = grouped - grouped.mean(1, keepdim=True)
    alike = (grouped == grouped[:, :1]).all(1, keepdim=True)  # rounding would leave 1e-7
    if divide_by_std:
        centred = centred / grouped.std(1, keepdim=True, correction=0).masked_fill(alike, 1.0)
    return centred.masked_fill(alike, 0.0).reshape(-1)
