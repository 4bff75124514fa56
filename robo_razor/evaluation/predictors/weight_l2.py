"""How far the weights moved: the L2 norm of the change."""

from __future__ import annotations

import math

from robo_razor.evaluation.predictors import Comparison, predictor


@predictor("weight_l2", at_base=0.0)
def weight_l2(comparison: Comparison) -> float:
    """Return the square root of the sum of the squared changes of all weights."""
    changes = comparison.weight_changes.values()
    return math.sqrt(sum(float(change.double().square().sum()) for change in changes))
