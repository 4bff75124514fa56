"""Distances between a tuned policy and its base that may predict forgetting, one in each file.

A file registers one function under the key of its number in `summary.json`; another package does
the same (see `robo_razor.core.plugins`). The built-in predictors are the columns of the predictor
table in "RL's Razor" (arXiv 2509.04259), with sparsity as in arXiv 2507.17107. Each file states the
choices that the papers leave open. Distances of action distributions, which are measured on every
probe set, are in `robo_razor.evaluation.divergences`.

Example:
    >>> @predictor("weight_linf", label="Largest weight change", at_base=0.0)
    ... def weight_linf(comparison: Comparison) -> float:
    ...     changes = comparison.weight_changes.values()
    ...     return max((float(change.abs().max()) for change in changes), default=0.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from robo_razor.core.metrics import NEW_BASE
from robo_razor.core.plugins import PREDICTORS
from robo_razor.core.quantities import QUANTITIES, Quantity, quantity
from robo_razor.evaluation.activations import activation_change
from robo_razor.evaluation.probes import ProbeSet
from robo_razor.evaluation.weights import (
    changed_weights,
    diagonal_fisher,
    differences,
    singular_values,
)
from robo_razor.policies.policy import Policy

Cost = Literal["cheap", "expensive"]


class Comparison:
    """A tuned policy and its base. Values that several predictors need are computed once.

    Args:
        base: The frozen base.
        tuned: The tuned policy.
        probes: Name -> observations on which they may be compared.
        of_base: A cache of values of the base, which later comparisons share.
    """

    def __init__(
        self,
        base: Policy,
        tuned: Policy,
        probes: Mapping[str, ProbeSet],
        of_base: dict[str, dict[str, Tensor]] | None = None,
    ) -> None:
        self.base, self.tuned, self.probes = base, tuned, probes
        self._of_base = {} if of_base is None else of_base

    @cached_property
    def changed_weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return name -> base's and tuned's value of all weight tensors that differ."""
        return changed_weights(self.base, self.tuned)

    @cached_property
    def weight_changes(self) -> dict[str, Tensor]:
        """Return name -> tuned - base of all weight tensors that differ, float32."""
        return differences(self.changed_weights)

    @cached_property
    def singular_values(self) -> list[Tensor]:
        """Return the singular values of each changed matrix's change, descending."""
        return singular_values(self.weight_changes)

    @property
    def fisher(self) -> dict[str, Tensor]:
        """Return name -> diagonal of the base's Fisher information on `new_base_visited`."""
        if "fisher" not in self._of_base:
            self._of_base["fisher"] = diagonal_fisher(self.base, self.probes[NEW_BASE])
        return self._of_base["fisher"]

    @cached_property
    def activation_change(self) -> tuple[float, float]:
        """Return mean absolute and root mean square change on `new_base_visited`."""
        return activation_change(self.base, self.tuned, self.probes[NEW_BASE])


Measure = Callable[[Comparison], float | None]
"""Returns a distance; None where it cannot be measured."""


@dataclass(frozen=True)
class Predictor:
    """One distance.

    Attributes:
        name: Its key in `summary.json`.
        measure: Measures it.
        at_base: Its value where nothing has changed: 0 for a distance, 1 for a similarity.
        cost: "expensive" ones are measured with `tracking.distances: true` only.
        states: Probe sets without which it cannot be measured.
        needs_density: Whether it reads action distributions.
    """

    name: str
    measure: Measure
    at_base: float
    cost: Cost = "cheap"
    states: tuple[str, ...] = ()
    needs_density: bool = False

    @property
    def label(self) -> str:
        """Return its name in reports."""
        return quantity(self.name).label

    @property
    def unit(self) -> str:
        """Return its unit."""
        return quantity(self.name).unit

    def can_measure(self, comparison: Comparison) -> bool:
        """Return whether it can be measured on these policies and probe sets."""
        densities = comparison.base.has_density and comparison.tuned.has_density
        return all(name in comparison.probes for name in self.states) and (
            densities or not self.needs_density
        )


def predictor(
    name: str,
    *,
    at_base: float,
    label: str | None = None,
    unit: str = "",
    cost: Cost = "cheap",
    states: tuple[str, ...] = (),
    needs_density: bool = False,
) -> Callable[[Measure], Measure]:
    """Return a decorator that registers a function as a predictor.

    Args:
        name: Its key in `summary.json`.
        at_base: Its value where nothing has changed.
        label: Its name in reports; None: as in `core.quantities`, or its key.
        unit: Its unit, with a label.
        cost: "cheap" or "expensive".
        states: Probe sets that it needs.
        needs_density: Whether it reads action distributions.
    """

    def register(measure: Measure) -> Measure:
        if label is not None:
            QUANTITIES[name] = Quantity(label, unit)
        PREDICTORS.add(name, Predictor(name, measure, at_base, cost, states, needs_density))
        return measure

    return register


def predictors() -> list[Predictor]:
    """Return all predictors, built-in ones first and in the order of the summary."""
    order = {name: i for i, name in enumerate(QUANTITIES)}
    names = sorted(PREDICTORS.names(), key=lambda name: (order.get(name, len(order)), name))
    return [PREDICTORS.get(name) for name in names]


def measure_predictors(comparison: Comparison, *, expensive: bool = False) -> dict[str, float]:
    """Return name -> distance of all that can be measured.

    Args:
        comparison: The two policies.
        expensive: Whether to measure expensive predictors too.
    """
    distances: dict[str, float] = {}
    for entry in predictors():
        if (entry.cost == "cheap" or expensive) and entry.can_measure(comparison):
            value = entry.measure(comparison)
            if value is not None and math.isfinite(value):
                # A sum over no changes is the integer 0, and files have always had it as such.
                distances[entry.name] = value if isinstance(value, int) else float(value)
    return distances
