"""The share of weights that are unchanged after rounding to bfloat16."""

from __future__ import annotations

from robo_razor.evaluation.predictors import Comparison, predictor
from robo_razor.evaluation.weights import share_of_equal


@predictor("sparsity_bf16", at_base=1.0, cost="expensive")
def sparsity_bf16(comparison: Comparison) -> float:
    """Return the share of weights that are equal in bfloat16, in [0, 1].

    "RL's Razor" finds that sparse updates are an artefact of that rounding.
    """
    return share_of_equal(
        comparison.changed_weights, lambda before, after: before.bfloat16() == after.bfloat16()
    )
