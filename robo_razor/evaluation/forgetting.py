"""What fine-tuning changed: forgetting per prior skill and distance to the base.

Forgetting of a skill = success before - success after; retention = success after / success before.
Both policies run on the same start states, so differences are paired. `probes` lists the sets of
observations on which action distributions are compared, `divergences` the measures; "RL's Razor"
(arXiv 2509.04259) predicts forgetting from KL(base || tuned) on the new task's inputs.

Axis letters: n observations of a probe set, A action dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.files import finite
from robo_razor.evaluation.divergences import (
    DIRECTIONS,
    KINDS,
    Behaviour,
    compare,
    decision_values,
    unit,
)
from robo_razor.evaluation.probes import ProbeSet
from robo_razor.policies.policy import Policy
from robo_razor.statistics.bootstrap import paired_bootstrap, retention_interval
from robo_razor.statistics.intervals import mcnemar_exact

PROBE_BATCH = 256


@dataclass(frozen=True)
class SkillForgetting:
    """How much of one skill the policy kept; intervals have 95 % confidence.

    Attributes:
        base_success_rate: Before, on the same start states.
        retention: After / before; None if the base never succeeded.
        retention_interval: Paired over start states, see `statistics.retention_interval`.
        forgetting: Before - after; negative if the skill improved.
        forgetting_interval: Paired bootstrap over start states.
        p_value: McNemar's exact test that nothing changed.
    """

    base_success_rate: float
    retention: float | None
    retention_interval: tuple[float, float] | None
    forgetting: float
    forgetting_interval: tuple[float, float]
    p_value: float


def skill_forgetting(base: Sequence[bool], tuned: Sequence[bool]) -> SkillForgetting:
    """Compare outcomes before and after, bool per start state in the same order."""
    before, after = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    difference = paired_bootstrap(before, after, resamples=2000)
    rate = float(before.mean())
    return SkillForgetting(
        base_success_rate=rate,
        retention=float(after.mean()) / rate if rate else None,
        retention_interval=retention_interval(before, after).interval if rate else None,
        forgetting=difference.value,
        forgetting_interval=difference.interval,
        p_value=mcnemar_exact(before, after).p_value,
    )


@dataclass(frozen=True, repr=False)
class Divergence:
    """One measure of how far two policies are apart, over a probe set.

    Attributes:
        values: float64 [n], one per observation.
        mean: Their mean.
        standard_error: Of the mean, with episodes as the independent units; NaN below two.
        kind: "exact", "closed form", "estimate", "lower bound", "upper bound" or "path divergence".
        unit: Unit of the values, e.g. "nats per decision".
        per_dimension: float64 [A], the mean for every action dimension, if it is known. `mean` is
            their sum for measures in nats, else their mean.
        per_dimension_error: float64 [A], standard errors of `per_dimension`.
    """

    values: NDArray[np.float64]
    mean: float
    standard_error: float
    kind: str
    unit: str = "nats per decision"
    per_dimension: NDArray[np.float64] | None = None
    per_dimension_error: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        """Return one line, without the values."""
        return (
            f"Divergence(mean={self.mean:.6g}, standard_error={self.standard_error:.3g}, "
            f"kind={self.kind!r}, unit={self.unit!r}, n={len(self.values)})"
        )


@dataclass(frozen=True)
class ProbeResult:
    """Everything that was measured on one probe set.

    Attributes:
        probe: The observations.
        measures: Name, one of `divergences.MEASURES` or `CHUNK_DISTANCE`, -> measure.
        temperature: Softmax temperature at which both policies were compared.
        wall_s: Time that measuring took, in seconds.
    """

    probe: ProbeSet
    measures: dict[str, Divergence]
    temperature: float
    wall_s: float

    def mean(self, name: str) -> float | None:
        """Return the mean of a measure; None where it was not measured or is not finite."""
        measure = self.measures.get(name)
        return measure.mean if measure is not None and np.isfinite(measure.mean) else None


@torch.no_grad()
def behaviour(policy: Policy, probe: ProbeSet) -> list[Behaviour]:
    """Return what a policy does on a probe set, in batches of `PROBE_BATCH`.

    Its action distributions, or without a density its chunks, see `Policy.chunks`.
    """
    act: Callable[[dict[str, Tensor]], Behaviour] = (
        policy.distribution if policy.has_density else policy.chunks
    )
    return [
        act(probe.rows(start, start + PROBE_BATCH, policy.device))
        for start in range(0, len(probe), PROBE_BATCH)
    ]


@torch.no_grad()
def measure_probe(
    base: Policy, tuned: Policy, probe: ProbeSet, before: list[Behaviour] | None = None
) -> ProbeResult:
    """Compare two policies on a probe set.

    Args:
        base: The base.
        tuned: The tuned policy.
        probe: Observations.
        before: What `behaviour(base, probe)` returned earlier; None: it is computed. The base does
            not change, so one computation serves all checkpoints.
    """
    start = time.perf_counter()
    before = behaviour(base, probe) if before is None else before
    parts = [compare(p, q) for p, q in zip(before, behaviour(tuned, probe), strict=True)]
    first = before[0]
    kl_kind = "exact" if isinstance(first, Tensor) else first.kl_kind
    measures = {}
    for name in parts[0]:
        values = torch.cat([part[name] for part in parts])
        total = decision_values(name, values).numpy()
        kind = kl_kind if name in DIRECTIONS else KINDS.get(name, "exact")
        dimensions = values.numpy() if values.ndim == 2 else None
        measures[name] = _divergence(total, dimensions, probe.episode, kind, unit(name))
    return ProbeResult(probe, measures, float(tuned.temperature), time.perf_counter() - start)


def divergence_entry(divergence: Divergence) -> dict[str, Any]:
    """Return a divergence as plain values, for `action_kl.json`."""
    quantiles = np.quantile(divergence.values, [0.5, 0.9, 1.0])
    entry: dict[str, Any] = {
        "mean": divergence.mean,
        "standard_error": finite(divergence.standard_error),
        "median": float(quantiles[0]),
        "p90": float(quantiles[1]),
        "max": float(quantiles[2]),
        "n": len(divergence.values),
        "kind": divergence.kind,
        "unit": divergence.unit,
    }
    if divergence.per_dimension is not None and divergence.per_dimension_error is not None:
        entry["per_dimension"] = {
            "mean": divergence.per_dimension.tolist(),
            "standard_error": [finite(x) for x in divergence.per_dimension_error.tolist()],
        }
    return entry


def probe_entry(result: ProbeResult, total_s: float) -> dict[str, Any]:
    """Return what was measured on a probe set as plain values, for `action_kl.json`.

    Args:
        result: What was measured.
        total_s: Seconds that measuring the checkpoint took in all.
    """
    measures = {name: divergence_entry(measure) for name, measure in result.measures.items()}
    return measures | {
        "hash": result.probe.hash(),
        "n": len(result.probe),
        "episodes": len(np.unique(result.probe.episode)),
        "temperature": result.temperature,
        "wall_s": result.wall_s,
        "share_of_tracking": result.wall_s / total_s,
    }


def _divergence(
    values: NDArray[np.float64],
    dimensions: NDArray[np.float64] | None,
    episode: NDArray[np.int64],
    kind: str,
    unit: str,
) -> Divergence:
    return Divergence(
        values=values,
        mean=float(values.mean()),
        standard_error=float(_standard_error(values[:, None], episode)[0]),
        kind=kind,
        unit=unit,
        per_dimension=None if dimensions is None else dimensions.mean(0),
        per_dimension_error=None if dimensions is None else _standard_error(dimensions, episode),
    )


def _standard_error(values: NDArray[np.float64], episode: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the standard error of the mean of every column of [n, A]; NaN below two episodes."""
    names, owner = np.unique(episode, return_inverse=True)
    if len(names) < 2:
        return np.full(values.shape[1], np.nan)
    # Observations of one episode depend on each other: the episode is the unit (ratio estimator).
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, owner, values - values.mean(0))
    scale = len(names) / (len(names) - 1)
    error: NDArray[np.float64] = np.sqrt(scale * np.square(sums).sum(0)) / len(values)
    return error
