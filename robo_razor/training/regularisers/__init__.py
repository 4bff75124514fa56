"""Terms that hold a policy near its base: one file each, named as its regulariser.

A regulariser is one frozen dataclass. Its fields are its settings (`regularise.NAME.FIELD`, the
line under a field is its help), and it is part of a run whose settings have a section of that
name. `prepare` returns tensors that it needs, once, at the run's start; they are saved and resumed.
`penalty` is pure. Any number of regularisers work with any method: the loss of a gradient step is
the method's, plus `weight` times each penalty. The log has each penalty as `regulariser/NAME`.

Reading settings must be fast, so these files import torch inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robo_razor.core.plugins import REGULARISERS as REGULARISERS  # exported: they register there
from robo_razor.core.settings.sections import RegulariserSettings

if TYPE_CHECKING:
    from torch import Tensor

    from robo_razor.core.ranks import Ranks
    from robo_razor.core.settings.config import FinetuneConfig
    from robo_razor.policies.policy import Policy
    from robo_razor.training.learner import Context
    from robo_razor.training.step import Loss, Step
    from robo_razor.training.update import Part


@dataclass(frozen=True, kw_only=True)
class Regulariser(RegulariserSettings):
    """A term of the loss; its fields are its settings."""

    @property
    def is_of_batch(self) -> bool:
        """Return whether the penalty is a mean over the rows of the step.

        Such a penalty is computed for every part of a step (micro-batches, the ranks' shares).
        Other penalties depend on the weights or on other rows, and are computed once per step.
        """
        return False

    def validate(self, config: FinetuneConfig, base: Policy, prior: Mapping[str, str]) -> None:
        """Refuse settings that cannot work, before anything is written.

        Args:
            config: The run's settings.
            base: The policy that the run starts from.
            prior: Skill -> task of the skills that may be forgotten.
        """

    def prepare(self, context: Context) -> dict[str, Tensor]:
        """Return the tensors that the penalty needs besides a step, computed from the base."""
        return {}

    def penalty(self, step: Step, kept: dict[str, Tensor]) -> Tensor:
        """Return the penalty (scalar, >= 0) with a gradient.

        Args:
            step: The gradient step; for a penalty that is not of the batch it may have no rows.
            kept: The tensors that `prepare` returned.
        """
        raise NotImplementedError(f"{type(self).__name__} has no penalty")


class Penalties:
    """The regularisers of a run and their tensors.

    Args:
        terms: The regularisers.
    """

    def __init__(self, terms: Sequence[Regulariser] = ()) -> None:
        self.terms = tuple(terms)
        self.kept: dict[str, dict[str, Tensor]] = {term.name: {} for term in terms}

    def prepare(self, context: Context) -> None:
        """Let every regulariser prepare its tensors; all ranks must call it."""
        for term in self.terms:
            self.kept[term.name] = term.prepare(context)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save, by `NAME/KEY`."""
        return {
            f"{name}/{key}": tensor
            for name, tensors in self.kept.items()
            for key, tensor in tensors.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned."""
        self.kept = {term.name: {} for term in self.terms}
        for full, tensor in state.items():
            name, _, key = full.partition("/")
            self.kept[name][key] = tensor

    def added(self, loss: Loss, step: Step, share: float = 1.0) -> Loss:
        """Return the loss of some rows plus the penalties that are means over them.

        Args:
            loss: The method's loss.
            step: The rows.
            share: Factor on the penalties, where a part's share of the loss is not its share of the
                rows.
        """
        from robo_razor.training.step import Loss

        value, metrics = loss.value, dict(loss.metrics)
        for term in self.terms:
            if term.is_of_batch:
                penalty = self._penalty(term, step)
                value = value + term.weight * share * penalty
                metrics[_key(term)] = share * penalty.detach()
        return Loss(value, metrics)

    def parts(self, step: Step, ranks: Ranks, share: float | None = None) -> list[Part]:
        """Return the penalties that are computed once for a gradient step.

        Args:
            step: This rank's rows of it.
            ranks: Their shares add up to one penalty.
            share: The share of these rows in the step. If it is set, penalties of the batch are
                returned too, and must not be `added` elsewhere.
        """
        from robo_razor.training.update import Part

        once = [term for term in self.terms if not term.is_of_batch]
        of_batch = [term for term in self.terms if term.is_of_batch and share]
        parts = []
        if once:
            parts.append(Part(1.0 / ranks.size, lambda: self._sum(once, step)))
        if of_batch and share:
            parts.append(Part(share, lambda: self._sum(of_batch, step)))
        return parts

    def _sum(self, terms: Sequence[Regulariser], step: Step) -> Loss:
        from robo_razor.training.step import Loss

        penalties = [(term, self._penalty(term, step)) for term in terms]
        value = sum(term.weight * penalty for term, penalty in penalties)
        return Loss(value, {_key(term): penalty.detach() for term, penalty in penalties})  # type: ignore[arg-type]

    def _penalty(self, term: Regulariser, step: Step) -> Tensor:
        with step.precision():
            return term.penalty(step, self.kept[term.name])


def _key(term: Regulariser) -> str:
    return f"regulariser/{term.name}"
