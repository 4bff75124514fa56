"""How many directions of a layer the update uses."""

from __future__ import annotations

import math

import torch

from robo_razor.evaluation.predictors import Comparison, predictor


@predictor("effective_rank", at_base=0.0, cost="expensive")
def effective_rank(comparison: Comparison) -> float:
    """Return exp(entropy of the normalised singular values) over the full rank, in [0, 1].

    Roy and Vetterli, "The effective rank" (2007); mean over the changed matrices.
    """
    ranks = []
    for values in comparison.singular_values:
        share = values / values.sum()
        entropy = float(-torch.special.xlogy(share, share).sum())
        ranks.append(math.exp(entropy) / len(values))
    return sum(ranks) / len(ranks) if ranks else 0.0
