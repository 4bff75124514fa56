"""Weights of a policy and of its base: what changed, and how much that matters to the base.

The value head is left out, as no action depends on it. Low-rank updates count by what they add to
the weights.

Axis letters as in `types`; n observations of a probe set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from robo_razor.core.seeding import generator
from robo_razor.evaluation.probes import ProbeSet, evenly
from robo_razor.policies.lora import LowRankLinear
from robo_razor.policies.policy import Policy

Equality = Callable[[Tensor, Tensor], Tensor]
"""Base's and tuned's weights -> bool, True where they count as equal."""
FISHER_STATES = 32
"""Observations on which the Fisher information is estimated."""


def policy_weights(policy: Policy) -> dict[str, Tensor]:
    """Return name -> weight of everything the actions depend on, low-rank updates merged."""
    value = {id(parameter) for parameter in policy.all_value_parameters()}
    weights = {
        name: parameter.detach()
        for name, parameter in policy.module.named_parameters()
        if id(parameter) not in value
    }
    for name, layer in _low_rank_layers(policy.module):
        del weights[f"{name}.lora_down"], weights[f"{name}.lora_up"]
        weights[f"{name}.weight"] = layer.updated_weight().detach()
    return weights


def changed_weights(base: Policy, tuned: Policy) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name -> base's and tuned's value of every weight tensor that differs anywhere."""
    before, after = policy_weights(base), policy_weights(tuned)
    return {
        name: (weight, after[name])
        for name, weight in before.items()
        if not torch.equal(weight, after[name])
    }


def weight_changes(base: Policy, tuned: Policy) -> dict[str, Tensor]:
    """Return name -> tuned - base of all weights that differ, float32."""
    return differences(changed_weights(base, tuned))


def differences(changed: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return name -> tuned - base, float32."""
    return {name: after.float() - before.float() for name, (before, after) in changed.items()}


def share_of_equal(changed: Mapping[str, tuple[Tensor, Tensor]], equal: Equality) -> float:
    """Return the share of weights that did not change, in [0, 1].

    Only tensors with a changed weight count: a frozen encoder, or a part that no gradient reaches,
    has nothing to do with how sparse updates are. An embedding counts with all its words, also
    those that the task never uses.

    Args:
        changed: Name -> base's and tuned's value of each of those tensors.
        equal: Says which weights count as equal.
    """
    total = sum(before.numel() for before, _ in changed.values())
    unchanged = sum(int(equal(before, after).sum()) for before, after in changed.values())
    return unchanged / total if total else 1.0


def singular_values(changes: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the singular values of the changes of matrices, float64 and descending.

    Convolutions count as matrices [out, rest]; vectors are left out.
    """
    return [
        torch.linalg.svdvals(change.flatten(1)).double()
        for change in changes.values()
        if change.ndim > 1
    ]


def diagonal_fisher(
    base: Policy, probe: ProbeSet, states: int = FISHER_STATES
) -> dict[str, Tensor]:
    """Return the diagonal of the base's Fisher information, by name of the weight.

    F_i = E_x E_a~base(.|x) [(d log base(a|x) / d theta_i)^2], over up to `states` observations x
    with one action chunk a each, sampled with the same numbers every time. Per decision, in nats
    per squared weight. It is 0 for an encoder where the observations are encoded already.
    """
    model = base.frozen_copy()
    model.module.requires_grad_(True)
    try:
        return _diagonal_fisher(model, probe, states)
    finally:
        model.module.requires_grad_(False)  # the copy of a large base shares its parameters


def _diagonal_fisher(model: Policy, probe: ProbeSet, states: int) -> dict[str, Tensor]:
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


def _low_rank_layers(module: nn.Module) -> list[tuple[str, LowRankLinear]]:
    return [(n, layer) for n, layer in module.named_modules() if isinstance(layer, LowRankLinear)]
