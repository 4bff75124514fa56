"""The share of weights that are exactly unchanged."""

from __future__ import annotations

from robo_razor.evaluation.predictors import Comparison, predictor
from robo_razor.evaluation.weights import share_of_equal


@predictor("sparsity_fp32", at_base=1.0, cost="expensive")
def sparsity_fp32(comparison: Comparison) -> float:
    """Return the share of weights that did not change at all, in [0, 1]."""
    return share_of_equal(comparison.changed_weights, lambda before, after: before == after)
