"""The share of weights that changed by very little."""

from __future__ import annotations

from robo_razor.evaluation.predictors import Comparison, predictor
from robo_razor.evaluation.weights import share_of_equal

TOLERANCE = 1e-5
"""Largest change of a weight that counts as no change, as in arXiv 2507.17107."""


@predictor("sparsity_1e-5", at_base=1.0, cost="expensive")
def sparsity_1e_5(comparison: Comparison) -> float:
    """Return the share of weights that changed by at most 1e-5, in [0, 1]."""
    return share_of_equal(
        comparison.changed_weights, lambda before, after: (before - after).abs() <= TOLERANCE
    )
