"""How much the units of the network change: mean absolute change."""

from __future__ import annotations

from robo_razor.core.metrics import NEW_BASE
from robo_razor.evaluation.predictors import Comparison, predictor


@predictor("activation_l1", at_base=0.0, cost="expensive", states=(NEW_BASE,), needs_density=True)
def activation_l1(comparison: Comparison) -> float:
    """Return the mean absolute change of a unit, mean over all linear layers but the last."""
    return comparison.activation_change[0]
