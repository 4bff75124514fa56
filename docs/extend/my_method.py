"""A method of your own: an episode counts by how much better it ended than all the others."""

from dataclasses import dataclass

from robo_razor.core.settings.conversion import setting
from robo_razor.core.types import EpisodeBatch
from robo_razor.training.methods import METHODS
from robo_razor.training.on_policy import OnPolicy
from robo_razor.training.step import Loss, Step, Targets


@METHODS.register("my_method")
@dataclass(frozen=True, kw_only=True)
class MyMethod(OnPolicy):
    """REINFORCE whose baseline is the mean return of the other episodes (leave one out)."""

    entropy_bonus: float = setting(0.0, low=0.0)
    """Weight of the actions' entropy, which is subtracted from the loss (>= 0)."""

    def targets(self, batch: EpisodeBatch) -> Targets:
        """Return an advantage for every decision of an update's episodes."""
        import torch

        assert batch.record is not None  # training keeps the decisions of its episodes
        returns = torch.from_numpy(batch.episode_return).float()  # [E], one per episode
        of_others = (returns.sum() - returns) / (len(returns) - 1)
        advantages = returns - of_others
        return Targets(advantages[torch.from_numpy(batch.record.episode)])  # [M], per decision

    def loss(self, step: Step) -> Loss:
        """Return what a gradient step minimises, and what to log of it."""
        policy_loss = -(step.targets.advantages * step.log_prob).mean()
        entropy = step.distribution.entropy().mean()
        metrics = {"policy_loss": policy_loss.detach(), "entropy": entropy.detach()}
        return Loss(policy_loss - self.entropy_bonus * entropy, metrics)
