"""Normalisation statistics of a policy's processors: checks, and other statistics for a run.

LeRobot stores them in a step of each pipeline. Without statistics of a value the step leaves it in
raw units, silently. So missing statistics are refused: by `check_held_statistics` when a policy is
loaded, or by `check_statistics` before a run that may replace them. Statistics must be finite and
have the value's shape. An input needs a width: LeRobot would divide by 1e-8. An action without
width comes out as a constant, as in LeRobot, but it cannot be learnt. LeRobot's fine-tuning takes
the statistics of the new data set; here the base's stay, unless `bc.statistics` replaces them.

Differences to LeRobot's statistics of a data set, so that no observation becomes huge: quantiles
are over all frames, not means over episodes. A dimension that never changes has the scale 1, and
one with equal quantiles the scale of its range, where LeRobot divides by 1e-8.

Axis letters as in `types`: F frames, A action dimensions, S state; n is A or S.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.errors import CheckpointError, ConfigError, PolicyError, shown
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DemonstrationSet
from robo_razor.policies.inputs import STATE

if TYPE_CHECKING:
    from robo_razor.policies.policy import Policy

ACTION = "action"
NEEDED = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""LeRobot's modes of normalisation -> the statistics that they need."""
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

LARGEST_EPS = 0.01
CLIPPED_BY = ("pi05_prepare_state_tokenizer_processor_step",)
"""Steps that clip a normalised state to [-1, 1], so that none of its values can become huge."""

Statistics = dict[str, dict[str, Tensor]]
"""Key of the policy -> name of a statistic -> float32 [n]."""


def check_statistics(policy: Policy, config: FinetuneConfig) -> None:
    """Check that a policy has the statistics that it needs, or gets them from the run.

    Args:
        policy: The base.
        config: The run's settings.

    Raises:
        PolicyError: Statistics are missing, or actions to be cloned have no width.
        ConfigError: `bc.statistics` replaces statistics, but the policy normalises nothing.
    """
    replaced: Collection[str] = ()
    if config.method.replaces_statistics:
        replaced = replaceable(policy)
    _check_complete(policy, replaced)
    if config.method.clones and ACTION not in replaced:
        _check_targets(policy)


def _check_targets(policy: Policy) -> None:
    """Check that actions can be normalised: cloning learns normalised actions."""
    for step in _normalisers(policy.preprocessor):
        held = _held(step).get(ACTION, {})
        mode = _mode(step, ACTION)
        if mode is None or any(name not in held for name in NEEDED[mode]):
            continue
        flat = (_width(mode, held) <= step.eps).flatten()
        if flat.any():
            raise PolicyError(
                f"The policy {policy.name!r} was made from actions that never change in dimension "
                f"{int(flat.nonzero()[0])} ({_width_name(mode)} is 0 there): cloning would divide "
                f"other actions by {step.eps:g}",
                remedy="Take the statistics of the demonstrations (`--bc.statistics "
                "demonstrations`), or another base.",
            )


def check_held_statistics(policy: Policy, directory: Path, *, complete: bool) -> None:
    """Check the statistics of a policy's files, before it normalises anything with them.

    Args:
        policy: The policy, just loaded.
        directory: Its folder, for the errors.
        complete: Whether missing statistics are an error.

    Raises:
        CheckpointError: A statistic is not finite, or has another shape; a width is negative, or
            zero where an input would be divided by it.
        PolicyError: Statistics are missing.
    """
    _check_modes(policy, directory)
    if complete:
        _check_complete(policy, ())
    clipped = any(
        getattr(step, "_registry_name", None) in CLIPPED_BY for step in policy.preprocessor.steps
    )
    inputs = [*_numbers(policy), *policy.sources.image_keys]
    for pipeline, keys in ((policy.preprocessor, inputs), (policy.postprocessor, [ACTION])):
        files = getattr(pipeline, "_serialized_state_filenames", None) or ()
        for index, step in enumerate(pipeline.steps):
            if not _is_normaliser(step):
                continue
            file = files[index] if index < len(files) else None
            where = str(directory / (file or f"{pipeline.name}.json"))
            _check_eps(step, where)
            for key in keys:
                divides = key != ACTION and not (clipped and key == STATE)
                _check_held(policy, step, key, where, divides)


def _check_modes(policy: Policy, directory: Path) -> None:
    """Check that the pipelines normalise as the configuration says, where that is known."""
    if not policy.has_density and not policy.family.normalises_as_configured:
        return  # other types of LeRobot normalise in other steps
    configured = {
        getattr(kind, "value", kind): mode.value
        for kind, mode in policy.config.normalization_mapping.items()
    }
    inputs = [*_numbers(policy)[:-1], *policy.sources.image_keys]
    for pipeline, keys in ((policy.preprocessor, inputs), (policy.postprocessor, [ACTION])):
        for key in keys:
            expected = configured.get(_kind(key), "IDENTITY")
            modes = [mode for step in _normalisers(pipeline) if (mode := _mode(step, key))]
            if modes != [expected] * (expected != "IDENTITY"):
                actual = " and ".join(modes) or "IDENTITY"
                raise CheckpointError(
                    f"The policy in {directory} normalises {key!r} by {expected}, as its "
                    f"config.json says, but the pipeline {pipeline.name!r} by {actual}",
                    remedy="Its files are of different policies: take another checkpoint.",
                )


def _check_eps(step: Any, where: str) -> None:
    eps = step.eps
    is_number = isinstance(eps, int | float) and math.isfinite(eps)
    if not is_number or not 0 <= eps <= LARGEST_EPS:
        raise CheckpointError(
            f"The normaliser of {where} adds {shown(eps)} to what it divides by (`eps`)",
            allowed=f"numbers from 0 to {LARGEST_EPS}; LeRobot's is 1e-8",
            remedy="Take another checkpoint.",
        )


def _check_held(policy: Policy, step: Any, key: str, where: str, divides: bool) -> None:
    """Check the statistics that one step holds of one value."""
    mode = _mode(step, key)
    held = _held(step).get(key, {})
    if mode is None or any(name not in held for name in NEEDED[mode]):
        return
    shape = _shape(policy, key)
    for name in NEEDED[mode]:
        values = held[name]
        _check_shape(f"{name} of {key!r} in {where}", values, shape)
        bad = ~torch.isfinite(values)
        if bad.any():
            raise CheckpointError(
                f"The {name} of {key!r} in {where} is {_first(values, bad)}, which is not a finite "
                "number: nothing could be normalised with it",
                remedy="Take another checkpoint, or compute the statistics again and save it.",
            )
    width = _width(mode, held)
    eps = float(step.eps)
    if (width < 0).any():
        raise CheckpointError(
            f"The {_width_name(mode)} of {key!r} in {where} is {_first(width, width < 0)}",
            allowed="numbers above 0",
            remedy="Take another checkpoint, or compute the statistics again and save it.",
        )
    if divides and (width <= eps).any():
        raise CheckpointError(
            f"The {_width_name(mode)} of {key!r} in {where} is {_first(width, width <= eps)}: any "
            f"difference from the data there is divided by {eps:g} and hides all other inputs",
            allowed=f"numbers above {eps:g}",
            remedy="Set it to 1 where the data never change, or take another checkpoint.",
        )


def _held(step: Any) -> Statistics:
    """Return the statistics that a step computes with."""
    held: Statistics = step._tensor_stats
    return held


def _width(mode: str, held: dict[str, Tensor]) -> Tensor:
    """Return the divisor of a mode of normalisation, without LeRobot's `eps`."""
    low, high = (held[name].float() for name in NEEDED[mode])
    return high if mode == "MEAN_STD" else high - low


def _width_name(mode: str) -> str:
    """Return the statistics from which `_width` is computed, for errors."""
    low, high = NEEDED[mode]
    return high if mode == "MEAN_STD" else f"{high} - {low}"


def _shape(policy: Policy, key: str) -> tuple[int, ...]:
    """Return the shape that a policy's configuration gives a value."""
    features = {**(policy.config.input_features or {}), **(policy.config.output_features or {})}
    return tuple(features[key].shape)


def _check_shape(what: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Check that a statistic has a number for every dimension, or for every channel of images."""
    actual = tuple(values.shape)
    fits = actual == shape
    if len(shape) == 3:  # per channel, or per pixel
        fits = len(actual) == 3 and all(n in (1, m) for n, m in zip(actual, shape, strict=True))
        fits = fits and actual[0] == shape[0]
    if not fits:
        raise CheckpointError(
            f"The {what} has the shape {list(actual)}, but the value has {list(shape)}",
            remedy="The statistics are of other data: take another checkpoint.",
        )


def _first(values: Tensor, chosen: Tensor) -> str:
    """Return the first of the chosen numbers with its dimension."""
    index = chosen.nonzero()[0].tolist()
    number = float(values[tuple(index)])
    dimension = index[0] if len(index) == 1 or not any(index[1:]) else index
    return f"{number:g} in dimension {dimension}"


def _check_complete(policy: Policy, replaced: Collection[str]) -> None:
    """Check that a policy has the statistics that it needs, except of keys to be replaced."""
    for key, mode, missing, held in _gaps(policy):
        if key in replaced:
            continue
        has = "; ".join(f"{k} ({', '.join(sorted(names))})" for k, names in held.items())
        raise PolicyError(
            f"The policy {policy.name!r} normalises {key!r} ({mode}), but its processors hold no "
            f"{' and '.join(missing)} of it, and LeRobot would leave it in raw units. Its "
            f"statistics are: {has or 'none'}",
            remedy=_remedy(key),
        )


def _remedy(key: str) -> str:
    complete = "Give a checkpoint that was saved with its statistics"
    if key not in (STATE, ACTION):
        return f"{complete}."
    return (
        f"{complete}, or clone demonstrations and take their statistics (`--method bc "
        "--bc.statistics demonstrations`)."
    )


def replaceable(policy: Policy) -> tuple[str, ...]:
    """Return which of state and action a policy normalises, so that statistics can be replaced.

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


def demonstration_statistics(demonstrations: DemonstrationSet, policy: Policy) -> Statistics:
    """Return the statistics that a policy needs, over all frames of demonstrations."""
    values = {STATE: demonstrations.state, ACTION: demonstrations.actions}
    return {key: statistics_of(values[key]) for key in replaceable(policy)}


def statistics_of(values: NDArray[np.float32]) -> dict[str, Tensor]:
    """Return LeRobot's statistics of every column of float32 [F, n]."""
    exact = values.astype(np.float64)
    low, high = exact.min(0), exact.max(0)
    still = low == high
    columns = {
        "mean": np.where(still, low, exact.mean(0)),
        "std": np.where(still, 1.0, exact.std(0)),
        "min": np.where(still, low - 1.0, low),
        "max": np.where(still, high + 1.0, high),
    }
    columns |= dict(
        zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0), strict=True)
    )
    for lower, upper in (("q01", "q99"), ("q10", "q90")):
        same = columns[lower] == columns[upper]
        columns[lower] = np.where(same, columns["min"], columns[lower])
        columns[upper] = np.where(same, columns["max"], columns[upper])
    return {name: torch.from_numpy(column.astype(np.float32)) for name, column in columns.items()}


def with_statistics(pipeline: Any, statistics: Statistics) -> Any:
    """Return a copy of a LeRobot pipeline with other statistics of some keys."""
    changed = copy.copy(pipeline)
    changed.steps = [
        _changed(step, statistics) if _is_normaliser(step) else step for step in pipeline.steps
    ]
    return changed


def _changed(step: Any, statistics: Statistics) -> Any:
    changed = copy.copy(step)
    changed.stats = {**(step.stats or {}), **statistics}
    changed.to(device=step.device, dtype=step.dtype)  # makes tensors of the statistics
    return changed


def _is_normaliser(step: Any) -> bool:
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    return isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep)


def _normalisers(pipeline: Any) -> list[Any]:
    return [step for step in pipeline.steps if _is_normaliser(step)]


def _numbers(policy: Policy) -> list[str]:
    return [*([STATE] if policy.state_dim else []), ACTION]


def _kind(key: str) -> str:
    """Return LeRobot's name of the kind of a value."""
    return {ACTION: "ACTION", STATE: "STATE"}.get(key, "VISUAL")


def _mode(step: Any, key: str) -> str | None:
    """Return how a step normalises a key; None where it leaves it as it is."""
    kind = _kind(key)
    modes = {feature.value: mode.value for feature, mode in step.norm_map.items()}
    chosen = step.normalize_observation_keys
    left_out = chosen is not None and key not in (ACTION, *chosen)
    mode: str = modes.get(kind, "IDENTITY")
    return None if mode == "IDENTITY" or left_out else mode


def _gaps(policy: Policy) -> Iterator[tuple[str, str, list[str], dict[str, list[str]]]]:
    """Yield key, mode, missing statistics and held statistics, where a step lacks some."""
    inputs = [*_numbers(policy), *policy.sources.image_keys]
    for pipeline, keys in ((policy.preprocessor, inputs), (policy.postprocessor, [ACTION])):
        for step in _normalisers(pipeline):
            held = {key: list(statistics) for key, statistics in (step.stats or {}).items()}
            for key in keys:
                mode = _mode(step, key)
                missing = [n for n in NEEDED.get(mode or "", ()) if n not in held.get(key, ())]
                if mode is not None and missing:
                    yield key, mode, missing, held
