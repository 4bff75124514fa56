"""Ways to fine-tune: one file each, named as its method.

A method is one frozen dataclass. Its fields are its settings, and the line under a field is that
setting's help; `@METHODS.register("name")` makes them the keys `name.FIELD`. Its functions are
pure: `targets` returns what to learn from a batch of episodes, `loss` what a gradient step
minimises. All state (optimizer, counters, an adapted rate) is in the learner that the method
chooses, which saves and resumes it.

Most methods are `training.on_policy.OnPolicy` and define these two functions only, see `grpo`.
Another package registers a method in a module that `--plugins` names, or by the entry-point group
`robo_razor.methods`.

Reading settings must be fast, so these files import torch inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from robo_razor.core.plugins import METHODS as METHODS  # exported: methods register there
from robo_razor.core.settings.sections import MethodSettings

if TYPE_CHECKING:
    from robo_razor.core.settings.config import FinetuneConfig
    from robo_razor.core.types import EpisodeBatch
    from robo_razor.training.learner import Context, Learner
    from robo_razor.training.step import Loss, Step, Targets

Rows = Literal["decisions", "episodes", "pairs"]
"""What a minibatch is made of: single decisions, whole episodes, or pairs of whole episodes.

A pair is two episodes from the same start state of which one ended better (`group_size` >= 2).
"""


@dataclass(frozen=True, kw_only=True)
class Method(MethodSettings):
    """A way to fine-tune; its fields are its settings."""

    needs_density: ClassVar[bool] = True
    """Whether the policy must give log-probabilities."""
    rows: ClassVar[Rows] = "decisions"
    """What a minibatch is made of, see `Rows`."""

    def validate(self, config: FinetuneConfig) -> None:
        """Refuse settings that cannot work, before anything is loaded or made.

        Args:
            config: All settings of the run.
        """

    def learner(self, context: Context) -> Learner:
        """Return the learner that makes the updates of a run."""
        raise NotImplementedError(f"{type(self).__name__} does not define `learner`")

    def targets(self, batch: EpisodeBatch) -> Targets:
        """Return what to learn from an update's episodes; `batch.record` has their decisions."""
        raise NotImplementedError(f"{type(self).__name__} does not define `targets`")

    def loss(self, step: Step) -> Loss:
        """Return what a gradient step minimises, a mean over its rows."""
        raise NotImplementedError(f"{type(self).__name__} does not define `loss`")
