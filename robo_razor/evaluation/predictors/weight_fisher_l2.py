"""How far the weights moved, each weighed by its importance for the base."""

from __future__ import annotations

from robo_razor.core.metrics import NEW_BASE
from robo_razor.evaluation.predictors import Comparison, predictor
from robo_razor.evaluation.weights import fisher_norm


@predictor(
    "weight_fisher_l2", at_base=0.0, cost="expensive", states=(NEW_BASE,), needs_density=True
)
def weight_fisher_l2(comparison: Comparison) -> float:
    """Return sqrt(sum_i F_i (change of weight i)^2), F the base's diagonal Fisher information."""
    return fisher_norm(comparison.weight_changes, comparison.fisher)
