"""Normalisation statistics of a policy's processors: whether they are there, and whose they are.

LeRobot keeps them in a step of each pipeline. It leaves a value as it is when the step has no
statistics of it, without a word, so `check_statistics` refuses that before a run begins. LeRobot's
own fine-tuning takes the statistics of the new data set; here the base's stay unless
`bc.statistics` says otherwise.

Differences to LeRobot's statistics of a data set: quantiles are those of all frames, not means over
episodes; a dimension that never changes has the scale 1, and one whose quantiles coincide that of
its range, where LeRobot divides by 1e-8: no observation is blown up.

Axis letters as in `types`: F frames, A action dimensions, S state; n is A or S.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.config import FinetuneConfig
from robo_razor.errors import ConfigError, PolicyError
from robo_razor.policy_inputs import STATE
from robo_razor.types import DemonstrationSet

ACTION = "action"
NEEDED = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""What LeRobot's modes of normalisation read."""
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Statistics = dict[str, dict[str, Tensor]]
"""Key of the policy -> name of a statistic -> float32 [n]."""


def check_statistics(policy: Any, config: FinetuneConfig) -> None:
    """Check that what a policy normalises has statistics, and that those asked for can be used.

    Args:
        policy: `PolicyHandle` of the base.
        config: The run's settings.

    Raises:
        PolicyError: Statistics are missing.
        ConfigError: `bc.statistics` asks for what the policy has no use for.
    """
    replaced: Collection[str] = ()
    if config.method == "bc" and config.bc.statistics == "demonstrations":
        replaced = replaceable(policy)
    for key, mode, lacking, there in _gaps(policy):
        if key in replaced:
            continue
        has = "; ".join(f"{k} ({', '.join(sorted(names))})" for k, names in there.items())
        raise PolicyError(
            f"The policy {policy.name!r} normalises {key!r} ({mode}), but its processors hold no "
            f"{' and '.join(lacking)} of it, and LeRobot would go on in raw units. Statistics that "
            f"there are: {has or 'none'}",
            remedy=_remedy(key),
        )


def _remedy(key: str) -> str:
    whole = "a checkpoint that was saved with its statistics"
    if key not in (STATE, ACTION):
        return f"Give {whole}."
    return (
        f"Give {whole}, or clone demonstrations and take theirs (`--method bc --bc.statistics "
        "demonstrations`)."
    )


def replaceable(policy: Any) -> tuple[str, ...]:
    """Return which of state and action a policy normalises, and so can with other statistics.

    Raises:
        ConfigError: It normalises neither.
    """
    steps = _normalisers(policy.preprocessor)
    keys = tuple(key for key in _numbers(policy) if any(_mode(step, key) for step in steps))
    if not keys:
        raise ConfigError(
            f"`bc.statistics` = 'demonstrations', but the policy {policy.name!r} normalises "
            "neither its state nor its actions",
            remedy="Leave `bc.statistics` at `base`.",
        )
    return keys


def demonstration_statistics(demonstrations: DemonstrationSet, policy: Any) -> Statistics:
    """Return the statistics of what a policy normalises, over all frames of demonstrations."""
    values = {STATE: demonstrations.state, ACTION: demonstrations.actions}
    return {key: statistics_of(values[key]) for key in replaceable(policy)}


def statistics_of(values: NDArray[np.float32]) -> dict[str, Tensor]:
    """Return LeRobot's statistics of every column of float32 [F, n]."""
    exact = values.astype(np.float64)
    low, high = exact.min(0), exact.max(0)
    still = low == high
    found = {
        "mean": np.where(still, low, exact.mean(0)),
        "std": np.where(still, 1.0, exact.std(0)),
        "min": np.where(still, low - 1.0, low),
        "max": np.where(still, high + 1.0, high),
    }
    found |= dict(zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0), strict=True))
    for lower, upper in (("q01", "q99"), ("q10", "q90")):
        same = found[lower] == found[upper]
        found[lower] = np.where(same, found["min"], found[lower])
        found[upper] = np.where(same, found["max"], found[upper])
    return {name: torch.from_numpy(column.astype(np.float32)) for name, column in found.items()}


def with_statistics(pipeline: Any, statistics: Statistics) -> Any:
    """Return a LeRobot pipeline with other statistics of some keys; the given one keeps its own."""
    changed = copy.copy(pipeline)
    changed.steps = [
        _changed(step, statistics) if _is_normaliser(step) else step for step in pipeline.steps
    ]
    return changed


def _changed(step: Any, statistics: Statistics) -> Any:
    changed = copy.copy(step)
    changed.stats = {**(step.stats or {}), **statistics}
    changed.to(device=step.device, dtype=step.dtype)  # makes the tensors that it computes with
    return changed


def _is_normaliser(step: Any) -> bool:
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    return isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep)


def _normalisers(pipeline: Any) -> list[Any]:
    return [step for step in pipeline.steps if _is_normaliser(step)]


def _numbers(policy: Any) -> list[str]:
    return [*([STATE] if policy.state_dim else []), ACTION]


def _mode(step: Any, key: str) -> str | None:
    """Return how a step normalises a key; None where it leaves it as it is."""
    kind = {ACTION: "ACTION", STATE: "STATE"}.get(key, "VISUAL")
    modes = {feature.value: mode.value for feature, mode in step.norm_map.items()}
    chosen = step.normalize_observation_keys
    left_out = chosen is not None and key not in (ACTION, *chosen)
    mode: str = modes.get(kind, "IDENTITY")
    return None if mode == "IDENTITY" or left_out else mode


def _gaps(policy: Any) -> Iterator[tuple[str, str, list[str], dict[str, list[str]]]]:
    """Yield key, mode, what is missing, and all that there is, where a step lacks statistics."""
    inputs = [*_numbers(policy), *policy.sources.image_keys]
    for pipeline, keys in ((policy.preprocessor, inputs), (policy.postprocessor, [ACTION])):
        for step in _normalisers(pipeline):
            there = {key: list(found) for key, found in (step.stats or {}).items()}
            for key in keys:
                mode = _mode(step, key)
                lacking = [n for n in NEEDED.get(mode or "", ()) if n not in there.get(key, ())]
                if mode is not None and lacking:
                    yield key, mode, lacking, there
