"""Whether the policies find the same observations alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robo_razor.core.metrics import NEW_BASE, PRIOR
from robo_razor.evaluation.activations import representation
from robo_razor.evaluation.predictors import Comparison, predictor

NEIGHBOURS = 10
"""k of CKNNA, the default of its authors."""


@predictor("cknna", at_base=1.0, cost="expensive", states=(NEW_BASE,), needs_density=True)
def cknna(comparison: Comparison) -> float | None:
    """Return the alignment of what the policies' last layers read; None on too few observations.

    On prior skills' states (for the paper: unrelated inputs), or else on the new task's.
    """
    unrelated = comparison.probes.get(PRIOR, comparison.probes[NEW_BASE])
    if len(unrelated) <= NEIGHBOURS:
        return None
    before, after = (representation(p, unrelated) for p in (comparison.base, comparison.tuned))
    return alignment(before, after)


def alignment(first: Tensor, second: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Return the centred kernel nearest-neighbour alignment of representations [n, D] and [n, D'].

    Huh et al., "The Platonic Representation Hypothesis" (2024): CKA of linear kernels K and L, of
    which only pairs (i, j) count where j is among the k nearest neighbours of i by both; with the
    unbiased HSIC of Song et al. (JMLR 2012, equation 5). 1 for equal representations, about 0 for
    unrelated ones.

    Args:
        first: Representations of n observations.
        second: Others of the same observations.
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


def _hsic(one: Tensor, two: Tensor) -> Tensor:
    """Return the unbiased HSIC of two kernels [n, n] (Song et al. 2012, equation 5)."""
    n = len(one)
    k, m = one.clone().fill_diagonal_(0.0), two.clone().fill_diagonal_(0.0)
    value = (k * m.T).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (value - 2.0 * (k @ m).sum() / (n - 2)) / (n * (n - 3))
