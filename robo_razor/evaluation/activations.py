"""Inputs and outputs of a policy's linear layers on a probe set.

Axis letters as in `types`; n observations of a probe set, D features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robo_razor.evaluation.probes import ProbeSet
from robo_razor.policies.policy import Policy


@torch.no_grad()
def activation_change(base: Policy, tuned: Policy, probe: ProbeSet) -> tuple[float, float]:
    """Return how much the outputs of linear layers change, except those of the last one (logits).

    Returns:
        Mean over layers of the mean absolute change, and of the root mean square change, of a unit.
    """
    absolute: list[float] = []
    square: list[float] = []
    for before, after in zip(_batches(base, probe), _batches(tuned, probe), strict=True):
        absolute = absolute or [0.0] * (len(before) - 1)
        square = square or [0.0] * (len(before) - 1)
        outputs = zip(before[:-1], after[:-1], strict=True)
        for layer, ((_, of_base), (_, of_tuned)) in enumerate(outputs):
            change = (of_tuned - of_base).flatten(1).double()
            absolute[layer] += float(change.abs().mean(1).sum())
            square[layer] += float(change.square().mean(1).sum())
    layers = max(1, len(absolute))
    return (
        sum(x / len(probe) for x in absolute) / layers,
        sum(math.sqrt(x / len(probe)) for x in square) / layers,
    )


@torch.no_grad()
def representation(policy: Policy, probe: ProbeSet) -> Tensor:
    """Return the inputs of the last linear layer, flat, float64 [n, D]."""
    return torch.cat([calls[-1][0].flatten(1).double() for calls in _batches(policy, probe)])


def _batches(policy: Policy, probe: ProbeSet) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield input and output of every linear layer in the order of calls, batch by batch."""
    size = policy.inference_batch  # a larger batch would be several calls
    for start in range(0, len(probe), size):
        inputs = probe.rows(start, start + size, policy.device)
        rows = min(size, len(probe) - start)
        with _watch_linear_layers(policy.module) as calls:
            policy.distribution(inputs).mode()
        # A policy may fill its batch up with more rows.
        yield [(layer_input[:rows], output[:rows]) for layer_input, output in calls]


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
