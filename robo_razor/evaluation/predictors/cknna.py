"""How similar the nearest neighbours of observations are in both policies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robo_razor.core.metrics import NEW_BASE, PRIOR
from robo_razor.evaluation.activations import representation
from robo_razor.evaluation.predictors import Comparison, predictor

NEIGHBOURS = 10
"""k of CKNNA, its authors' default."""


@predictor("cknna", at_base=1.0, cost="expensive", states=(NEW_BASE,), needs_density=True)
def cknna(comparison: Comparison) -> float | None:
    """Return the alignment of the inputs of both last layers; None on too few observations.

    Observations are states of prior skills (the paper's unrelated inputs), or else of the new task.
    """
    unrelated = comparison.probes.get(PRIOR, comparison.probes[NEW_BASE])
    if len(unrelated) <= NEIGHBOURS:
        return None
    before, after = (representation(p, unrelated) for p in (comparison.base, comparison.tuned))
    return alignment(before, after)


def alignment(first: Tensor, second: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Return the centred kernel nearest-neighbour alignment of representations [n, D] and [n, D'].

    Huh et al., "The Platonic Representation Hypothesis" (2024): CKA of linear kernels K and L over
    pairs (i, j) where j is among the k nearest neighbours of i in both; with the unbiased HSIC of
    Song et al. (JMLR 2012, equation 5). 1 for equal representations, about 0 for unrelated ones.

    Args:
        first: Representations of n observations.
        second: Other representations of the same observations.
        neighbours: k, less than n.
    """
    kernels = first @ first.T, second @ second.T
    masks = [_nearest(kernel, neighbours) for kernel in kernels]

    def aligned(i: int, j: int) -> float:
        mask = masks[i] * masks[j]
        return float(_hsic(mask * kernels[i], mask * kernels[j]))

    if torch.equal(first, second):
        return 1.0
    scale = aligned(0, 0) * aligned(1, 1)
    return aligned(0, 1) / math.sqrt(scale) if scale > 0.0 else math.nan


def _nearest(kernel: Tensor, neighbours: int) -> Tensor:
    """Return a matrix [n, n] of ones where the column is a nearest neighbour of the row."""
    others = kernel.clone().fill_diagonal_(-math.inf)
    index = others.topk(neighbours, dim=1).indices
    return torch.zeros_like(kernel).scatter_(1, index, 1.0)


def _hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased HSIC of two kernels [n, n] (Song et al. 2012, equation 5)."""
    n = len(first)
    k, m = first.clone().fill_diagonal_(0.0), second.clone().fill_diagonal_(0.0)
    value = (k * m.T).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (value - 2.0 * (k @ m).sum() / (n - 2)) / (n * (n - 3))
