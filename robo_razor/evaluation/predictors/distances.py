"""Distances between a tuned policy and its base besides those of their action distributions.

The columns of the predictor table in "RL's Razor" (arXiv 2509.04259), with sparsity as in arXiv
2507.17107. What the papers leave open is decided here and said in each function. Everything is of
the policy: the value head, which no action depends on, is left out, and low-rank updates count by
what they add to the weights.

- Cheap: `weight_l1`, `weight_l2`.
- Dear (`tracking.distances: true`): `weight_fisher_l2`, `weight_spectral`, `effective_rank`,
  `sparsity_fp32`, `sparsity_1e-5`, `sparsity_bf16`, `activation_l1`, `activation_l2`, `cknna`.

At the base itself all norms and the rank are 0, the sparsities and `cknna` 1.

Axis letters as in `types`; n observations of a probe set, D features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robo_razor.core.metrics import NEW_BASE, PRIOR
from robo_razor.core.seeding import generator
from robo_razor.evaluation.probes import ProbeSet, evenly
from robo_razor.policies.lora import LowRankLinear

ABSOLUTE_TOLERANCE = 1e-5
"""Largest change of a weight that `sparsity_1e-5` counts as none, as in arXiv 2507.17107."""
FISHER_STATES = 32
NEIGHBOURS = 10
"""k of CKNNA, the default of its authors."""


class Distances:
    """Measures distances to one base; keeps what of the base need not be computed again.

    Args:
        base: `Policy` of the base.
        dear: Whether to measure the dear ones too.
    """

    def __init__(self, base: Any, dear: bool = False) -> None:
        self.base = base
        self.dear = dear
        self.fisher: dict[str, Tensor] | None = None

    def measure(self, tuned: Any, probes: Mapping[str, ProbeSet]) -> dict[str, float]:
        """Return name -> distance.

        Args:
            tuned: `Policy` of the tuned policy.
            probes: Probe sets by name. Fisher information and activations are taken on
                `new_base_visited`, representations on `prior` (for the paper: unrelated inputs), or
                else also there; without the sets, these distances are left out.
        """
        changes = weight_changes(self.base, tuned)
        found = weight_norms(changes)
        if not self.dear:
            return found
        found |= matrix_norms(changes)
        found |= sparsity(policy_weights(self.base), policy_weights(tuned))
        if not tuned.has_density or NEW_BASE not in probes:
            return found
        if self.fisher is None:
            self.fisher = diagonal_fisher(self.base, probes[NEW_BASE])
        found["weight_fisher_l2"] = fisher_norm(changes, self.fisher)
        found |= activation_change(self.base, tuned, probes[NEW_BASE])
        unrelated = probes.get(PRIOR, probes[NEW_BASE])
        if len(unrelated) > NEIGHBOURS:
            before, after = (representation(p, unrelated) for p in (self.base, tuned))
            found["cknna"] = cknna(before, after)
        return {name: value for name, value in found.items() if math.isfinite(value)}


# --- Weights --------------------------------------------------------------------------------------


def policy_weights(policy: Any) -> dict[str, Tensor]:
    """Return name -> weight of everything the actions depend on, low-rank updates merged."""
    owner = getattr(policy.module, "value_parameters", None)
    value = {id(parameter) for parameter in owner()} if owner is not None else set()
    weights = {
        name: parameter.detach()
        for name, parameter in policy.module.named_parameters()
        if id(parameter) not in value
    }
    for name, layer in _low_rank_layers(policy.module):
        del weights[f"{name}.lora_down"], weights[f"{name}.lora_up"]
        weights[f"{name}.weight"] = layer.updated_weight().detach()
    return weights


def weight_changes(base: Any, tuned: Any) -> dict[str, Tensor]:
    """Return name -> tuned - base of all weights that differ."""
    before, after = policy_weights(base), policy_weights(tuned)
    return {
        name: after[name].float() - weight.float()
        for name, weight in before.items()
        if not torch.equal(weight, after[name])
    }


def weight_norms(changes: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the L1 and L2 norm of the change of all weights."""
    parts = [change.double() for change in changes.values()]
    return {
        "weight_l1": sum(float(part.abs().sum()) for part in parts),
        "weight_l2": math.sqrt(sum(float(part.square().sum()) for part in parts)),
    }


def matrix_norms(changes: Mapping[str, Tensor]) -> dict[str, float]:
    """Return spectral norm and effective rank of the changes of matrices.

    `weight_spectral` is the largest singular value of any change: the spectral norm of the
    block-diagonal matrix of all of them. `effective_rank` is exp(entropy of the normalised singular
    values) (Roy and Vetterli, "The effective rank", 2007) over the full rank, mean over the changed
    matrices, in [0, 1]. Convolutions count as matrices [out, rest]; vectors are left out.
    """
    largest, ranks = 0.0, []
    for change in changes.values():
        if change.ndim < 2:
            continue
        values = torch.linalg.svdvals(change.flatten(1)).double()
        largest = max(largest, float(values[0]))
        share = values / values.sum()
        entropy = float(-torch.special.xlogy(share, share).sum())
        ranks.append(math.exp(entropy) / len(values))
    return {
        "weight_spectral": largest,
        "effective_rank": sum(ranks) / len(ranks) if ranks else 0.0,
    }


def sparsity(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of weights that did not change, in [0, 1].

    Only tensors of which any weight changed count: a frozen encoder, or a part that no gradient
    reaches, would say nothing about updates. In an embedding, words that the task never uses do.
    `sparsity_fp32` counts exactly equal weights, `sparsity_1e-5` those that moved by no more than
    that, `sparsity_bf16` those that are equal once both are rounded to bfloat16: "RL's Razor" finds
    that sparse updates are an artefact of that rounding.
    """
    kept = {"sparsity_fp32": 0, "sparsity_1e-5": 0, "sparsity_bf16": 0}
    total = 0
    for name, one in before.items():
        two = after[name]
        if torch.equal(one, two):
            continue
        total += one.numel()
        kept["sparsity_fp32"] += int((one == two).sum())
        kept["sparsity_1e-5"] += int(((one - two).abs() <= ABSOLUTE_TOLERANCE).sum())
        kept["sparsity_bf16"] += int((one.bfloat16() == two.bfloat16()).sum())
    return {name: count / total if total else 1.0 for name, count in kept.items()}


def diagonal_fisher(base: Any, probe: ProbeSet, states: int = FISHER_STATES) -> dict[str, Tensor]:
    """Return the diagonal of the base's Fisher information, by name of the weight.

    F_i = E_x E_a~base(.|x) [(d log base(a|x) / d theta_i)^2], over up to `states` observations x
    with one action chunk a each, sampled with the same numbers every time. Per decision, in nats
    per squared weight. Weights of an encoder that the observations have passed already have none.
    """
    model = base.frozen_copy()
    model.module.requires_grad_(True)
    try:
        return _diagonal_fisher(model, probe, states)
    finally:
        model.module.requires_grad_(False)  # the copy of a large base shares its parameters


def _diagonal_fisher(model: Any, probe: ProbeSet, states: int) -> dict[str, Tensor]:
    names = policy_weights(model).keys()
    weights = {name: p for name, p in model.module.named_parameters() if name in names}
    fisher = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    index = evenly(np.arange(len(probe)), states)
    shape = (len(index), *model.noise_shape)
    numbers = generator("fisher").random(shape).clip(2.0**-25, 1.0 - 2.0**-25)
    uniforms = torch.from_numpy(numbers).to(model.device)
    for row, state in enumerate(index):
        inputs = probe.rows(int(state), int(state) + 1, model.device)
        with torch.enable_grad():
            distribution = model.distribution(inputs)
            actions = distribution.sample(uniforms[row : row + 1]).detach()
            log_prob = distribution.log_prob(actions).sum()
            gradients = torch.autograd.grad(log_prob, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                fisher[name] += gradient.square() / len(index)
    return fisher


def fisher_norm(changes: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> float:
    """Return sqrt(sum_i F_i (change of theta_i)^2); half its square approximates a small KL."""
    parts = (
        float((fisher[name].double() * change.double().square()).sum())
        for name, change in changes.items()
        if name in fisher
    )
    return math.sqrt(sum(parts))


# --- Activations ----------------------------------------------------------------------------------


@torch.no_grad()
def activation_change(base: Any, tuned: Any, probe: ProbeSet) -> dict[str, float]:
    """Return how much the outputs of linear layers change, the last one's (logits) left out.

    Mean over layers of the mean absolute change (`activation_l1`) and of the root mean square
    change (`activation_l2`) of a unit.
    """
    absolute: list[float] = []
    square: list[float] = []
    for before, after in zip(_batches(base, probe), _batches(tuned, probe), strict=True):
        absolute = absolute or [0.0] * (len(before) - 1)
        square = square or [0.0] * (len(before) - 1)
        for layer, ((_, one), (_, two)) in enumerate(zip(before[:-1], after[:-1], strict=True)):
            change = (two - one).flatten(1).double()
            absolute[layer] += float(change.abs().mean(1).sum())
            square[layer] += float(change.square().mean(1).sum())
    layers = max(1, len(absolute))
    return {
        "activation_l1": sum(x / len(probe) for x in absolute) / layers,
        "activation_l2": sum(math.sqrt(x / len(probe)) for x in square) / layers,
    }


@torch.no_grad()
def representation(policy: Any, probe: ProbeSet) -> Tensor:
    """Return what the last linear layer reads, flat, float64 [n, D]."""
    return torch.cat([calls[-1][0].flatten(1).double() for calls in _batches(policy, probe)])


def cknna(first: Tensor, second: Tensor, neighbours: int = NEIGHBOURS) -> float:
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
    one, two = first @ first.T, second @ second.T
    masks = [_nearest(kernel, neighbours) for kernel in (one, two)]

    def alignment(i: int, j: int) -> float:
        mask = masks[i] * masks[j]
        return float(_hsic(mask * (one, two)[i], mask * (one, two)[j]))

    if torch.equal(first, second):
        return 1.0
    scale = alignment(0, 0) * alignment(1, 1)
    return alignment(0, 1) / math.sqrt(scale) if scale > 0.0 else math.nan


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


def _batches(policy: Any, probe: ProbeSet) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield input and output of every linear layer in the order of calls, batch by batch."""
    size = int(getattr(policy, "inference_batch", 32))  # more would be several calls
    for start in range(0, len(probe), size):
        inputs = probe.rows(start, start + size, policy.device)
        rows = min(size, len(probe) - start)
        with _watch_linear_layers(policy.module) as calls:
            policy.distribution(inputs).mode()
        # A policy may fill its batch up with more rows.
        yield [(read[:rows], written[:rows]) for read, written in calls]


@contextlib.contextmanager
def _watch_linear_layers(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    calls: list[tuple[Tensor, Tensor]] = []

    def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((inputs[0], output))

    handles = [
        layer.register_forward_hook(watch)
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _low_rank_layers(module: nn.Module) -> list[tuple[str, LowRankLinear]]:
    return [(n, layer) for n, layer in module.named_modules() if isinstance(layer, LowRankLinear)]
