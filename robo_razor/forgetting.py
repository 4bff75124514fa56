"""What fine-tuning did to the rest: forgetting per prior skill and KL divergence to the base.

Forgetting of a skill = success before - success after; retention = success after / success before.
Both arms run on the same start states, so differences are paired. The KL divergence is in nats per
decision, in both directions, on three sets of observations ("RL's Razor", arXiv 2509.04259,
predicts forgetting from KL(base || tuned) on the new task's inputs):

- `new_base_visited`: what the base sees when it tries the new task;
- `new_tuned_visited`: what the tuned policy sees there;
- `prior`: what the base sees when it performs the prior skills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from robo_razor.types import DecisionRecord

DIRECTIONS = ("kl_base_tuned", "kl_tuned_base")
PROBE_BATCH = 256


@dataclass(frozen=True)
class SkillForgetting:
    """How much of one skill is left; intervals have 95 % confidence.

    Attributes:
        base_success_rate: Before, on the same start states.
        retention: After / before; None if the base never succeeded.
        retention_interval: Wilson interval of the rate after, divided by the rate before.
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
    low, high = wilson_interval(int(after.sum()), len(after))
    return SkillForgetting(
        base_success_rate=rate,
        retention=float(after.mean()) / rate if rate else None,
        retention_interval=(low / rate, high / rate) if rate else None,
        forgetting=difference.value,
        forgetting_interval=difference.interval,
        p_value=mcnemar_exact(before, after).p_value,
    )


@dataclass(frozen=True)
class ProbeSet:
    """Observations on which action distributions are compared.

    Attributes:
        inputs: Prepared policy inputs, tensors of first axis n.
        episode: int64 [n], the episode each comes from; observations of one are alike.
    """

    inputs: dict[str, Tensor]
    episode: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.episode)


def make_probe(record: DecisionRecord, n: int, episodes: NDArray[np.int64]) -> ProbeSet:
    """Take up to `n` decisions, evenly spread over all those of the given episodes."""
    owner = record.episode
    index = np.flatnonzero(np.isin(owner, episodes))
    if len(index) > n:
        index = index[np.linspace(0, len(index) - 1, n).round().astype(np.int64)]
    return ProbeSet(record.select(index), owner[index])


@dataclass(frozen=True)
class Divergence:
    """A KL divergence over a probe set, in nats per decision.

    Attributes:
        values: float64 [n], one per observation.
        mean: Their mean.
        standard_error: Of the mean, with episodes as the independent units; NaN below two.
        kind: "exact", "closed form" or "upper bound".
    """

    values: NDArray[np.float64]
    mean: float
    standard_error: float
    kind: str


@torch.no_grad()
def measure_kl(base: Any, tuned: Any, probe: ProbeSet) -> dict[str, Divergence]:
    """Compute both KL divergences between two policies on a probe set.

    Args:
        base: `PolicyHandle` of the base.
        tuned: `PolicyHandle` of the tuned policy.
        probe: Observations.

    Returns:
        "kl_base_tuned" = KL(base || tuned) and "kl_tuned_base" = KL(tuned || base).
    """
    values: dict[str, list[Tensor]] = {name: [] for name in DIRECTIONS}
    kind = ""
    for start in range(0, len(probe), PROBE_BATCH):
        inputs = {
            key: tensor[start : start + PROBE_BATCH].to(tuned.device)
            for key, tensor in probe.inputs.items()
        }
        before, after = base.distribution(inputs), tuned.distribution(inputs)
        values["kl_base_tuned"].append(before.kl(after).double().cpu())
        values["kl_tuned_base"].append(after.kl(before).double().cpu())
        kind = before.kl_kind
    return {
        name: _divergence(torch.cat(parts).numpy(), probe.episode, kind)
        for name, parts in values.items()
    }


@torch.no_grad()
def mean_entropy(policy: Any, probe: ProbeSet) -> float:
    """Return the mean entropy of a policy on a probe set, nats per decision."""
    inputs = {key: tensor.to(policy.device) for key, tensor in probe.inputs.items()}
    return float(policy.distribution(inputs).entropy().mean())


def divergence_entry(divergence: Divergence) -> dict[str, Any]:
    """Return a divergence as plain values, for `action_kl.json`."""
    quantiles = np.quantile(divergence.values, [0.5, 0.9, 1.0])
    error = divergence.standard_error
    return {
        "mean": divergence.mean,
        "standard_error": error if np.isfinite(error) else None,
        "median": float(quantiles[0]),
        "p90": float(quantiles[1]),
        "max": float(quantiles[2]),
        "n": len(divergence.values),
        "kind": divergence.kind,
        "unit": "nats per decision",
    }


def _divergence(values: NDArray[np.float64], episode: NDArray[np.int64], kind: str) -> Divergence:
    mean = float(values.mean())
    names = np.unique(episode)
    error = float("nan")
    if len(names) > 1:
        # Observations of an episode are alike: the episode is the unit (ratio estimator).
        sums = np.array([(values[episode == name] - mean).sum() for name in names])
        scale = len(names) / (len(names) - 1)
        error = float(np.sqrt(scale * np.square(sums).sum()) / len(values))
    return Divergence(values, mean, error, kind)
