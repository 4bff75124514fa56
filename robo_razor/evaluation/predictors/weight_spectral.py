"""How much the most changed direction of any layer changed: the spectral norm of the change."""

from __future__ import annotations

from robo_razor.evaluation.predictors import Comparison, predictor


@predictor("weight_spectral", at_base=0.0, cost="expensive")
def weight_spectral(comparison: Comparison) -> float:
    """Return the largest singular value of any matrix's change.

    It is the spectral norm of the block-diagonal matrix of all changes.
    """
    return max([0.0, *(float(values[0]) for values in comparison.singular_values)])
