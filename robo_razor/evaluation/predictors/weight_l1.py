"""How far all weights moved together: the L1 norm of the change."""

from __future__ import annotations

from robo_razor.evaluation.predictors import Comparison, predictor


@predictor("weight_l1", at_base=0.0)
def weight_l1(comparison: Comparison) -> float:
    """Return the sum of the absolute changes of all weights."""
    changes = comparison.weight_changes.values()
    return sum(float(change.double().abs().sum()) for change in changes)
