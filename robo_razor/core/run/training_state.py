"""The state of a run beyond the policy's weights: optimizers and counters.

Tensors are stored as safetensors, everything else as JSON. There is no pickle, so reading cannot
run code. File names follow LeRobot's where it has them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robo_razor.core.errors import CheckpointError, shown
from robo_razor.core.files import read_json

if TYPE_CHECKING:
    import torch

_OPTIMIZER_TENSORS = "optimizer_state.safetensors"
_OPTIMIZER_GROUPS = "optimizer_param_groups.json"
_TENSORS = "tensors.safetensors"
_STEP = "training_step.json"


@dataclass
class TrainingState:
    """Everything beyond the policy's weights that a run needs to go on exactly where it stopped."""

    step: int
    """Updates done."""
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> `optimizer.state_dict()`."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further tensors by name, e.g. running statistics."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Plain values (JSON), e.g. counters and an adapted learning rate."""


def save_training_state(directory: Path, state: TrainingState) -> None:
    """Write `state` into `directory`: safetensors and JSON only."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    groups: dict[str, Any] = {}
    for name, optimizer in state.optimizers.items():
        split, scalars = _split_optimizer(name, optimizer["state"])
        tensors |= split
        groups[name] = {"param_groups": optimizer["param_groups"], "scalars": scalars}
    save_file(tensors, directory / _OPTIMIZER_TENSORS)
    (directory / _OPTIMIZER_GROUPS).write_text(json.dumps(groups), encoding="utf-8")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    save_file(plain, directory / _TENSORS)
    step = {"step": state.step, "extra": state.extra}
    (directory / _STEP).write_text(json.dumps(step), encoding="utf-8")


def load_training_state(directory: Path) -> TrainingState:
    """Read what `save_training_state` wrote; tensors are on the CPU.

    Raises:
        CheckpointError: A file is missing or truncated.
    """
    step = read_json(directory / _STEP)
    groups = read_json(directory / _OPTIMIZER_GROUPS)
    tensors = load_tensors(directory / _OPTIMIZER_TENSORS)
    with fits(directory):
        return TrainingState(
            step=int(step["step"]),
            optimizers={n: _join_optimizer(n, group, tensors) for n, group in groups.items()},
            tensors=load_tensors(directory / _TENSORS),
            extra=dict(step["extra"]),
        )


@contextlib.contextmanager
def fits(where: Path) -> Iterator[None]:
    """Turn errors inside the block, which uses a saved state, into one that says what to do.

    Raises:
        CheckpointError: The state does not fit this run.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())[:300]
        raise CheckpointError(
            f"The training state in {where} does not fit this run: {type(e).__name__}: {reason}",
            remedy="Somebody changed it, or another version made it. Delete that checkpoint's "
            "directory: `--resume` then goes on from the one before.",
        ) from e


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Let an optimizer go on from a saved `state_dict`.

    Raises:
        ValueError: It belongs to other parameters, or to another kind of optimizer.
    """
    import torch

    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for key, value in group.items():
            if key != "params" and not _alike(value, saved_group[key]):
                raise ValueError(f"`{key}` of an optimizer is {shown(saved_group[key])}")
    optimizer.load_state_dict(saved)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"`{key}` of an optimizer is {shown(value)}")
            if value.dim() and value.shape != parameter.shape:
                raise ValueError(f"`{key}` of an optimizer has shape {list(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"`{key}` of an optimizer is not finite")


def _alike(expected: Any, value: Any) -> bool:
    """Return whether a value has the type of the expected one, and is finite."""
    if isinstance(expected, tuple):
        is_tuple = isinstance(value, tuple) and len(expected) == len(value)
        return is_tuple and all(_alike(a, b) for a, b in zip(expected, value, strict=True))
    if isinstance(expected, int | float) and not isinstance(expected, bool):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return type(expected) is type(value)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: The file is missing or truncated.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error})",
            remedy="Use another checkpoint of the run, or copy the file again.",
        ) from error
    return tensors


def _split_optimizer(
    name: str, state: Mapping[int, Mapping[str, Any]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and scalars, both keyed by name/parameter/key."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for parameter, values in state.items():
        for key, value in values.items():
            full = f"{name}/{parameter}/{key}"
            if isinstance(value, torch.Tensor):
                tensors[full] = value.detach().cpu().contiguous()
            else:
                scalars[full] = value
    return tensors, scalars


def _join_optimizer(
    name: str, group: dict[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for full, value in {**tensors, **group["scalars"]}.items():
        owner, parameter, key = full.split("/", 2)
        if owner == name:
            state.setdefault(int(parameter), {})[key] = value
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in item.items()}
        for item in group["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
