"""Weights that a policy's file has in float32, though LeRobot builds the policy in bfloat16.

In LeRobot SmolVLA's backbone is bfloat16 (with some versions of transformers the action expert
too), and with `dtype: bfloat16` nearly all of pi0 and pi0.5. LeRobot converts any file to this.
Weights that a run trained are float32 and must stay so, or every reload would round its progress
away.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from robo_razor.core.run.directory import WEIGHTS
from robo_razor.policies.flow.adapter import FlowAdapter, parameters_of
from robo_razor.policies.weights import without_wrappers

logger = logging.getLogger(__name__)

SAFETENSORS_FLOAT32 = "F32"
GIB = 2**30


def restore_float32(
    module: nn.Module, adapter: FlowAdapter, directory: Path, saved_here: bool
) -> None:
    """Read weights again that are float32 in the file and less precise in the policy.

    Of a file that another program wrote only SmolVLA's expert is read again. It always computes in
    float32 here, while LeRobot's precision for it depends on where the backbone comes from. Other
    weights are bfloat16 because the policy's configuration says so.

    Args:
        module: The policy, as LeRobot loaded it.
        adapter: The adapter of the policy.
        directory: The policy's folder.
        saved_here: Whether robo_razor wrote the file.
    """
    from safetensors import safe_open

    parameters = dict(module.named_parameters())
    expert = parameters_of(adapter.expert_modules()) if adapter.float32_expert else []
    allowed = {id(p) for p in (parameters.values() if saved_here else expert)}
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        rounded = {
            name: stored
            for stored, name in without_wrappers(file.keys()).items()
            if id(parameters.get(name)) in allowed
            and parameters[name].dtype != torch.float32
            and file.get_slice(stored).get_dtype() == SAFETENSORS_FLOAT32
        }
        adapter.to_float32([*expert, *(parameters[name] for name in rounded)])
        with torch.no_grad():
            for name, stored in rounded.items():
                parameters[name].copy_(file.get_tensor(stored))


def has_low_precision(module: nn.Module) -> bool:
    """Return whether any weight of a module is less precise than float32."""
    return any(p.is_floating_point() and p.element_size() < 4 for p in module.parameters())


def trains_low_encoder(adapter: FlowAdapter, trained: Iterable[nn.Parameter]) -> bool:
    """Return whether the vision-language model is trained and still less precise than float32."""
    encoder = {id(p) for p in adapter.prefix_modules()[0].parameters()}
    return any(id(p) in encoder and p.element_size() < 4 for p in trained)


def held_bytes(*modules: nn.Module) -> int:
    """Return the bytes of the modules' parameters; shared memory counts once."""
    return sum({p.data_ptr(): p.nbytes for m in modules for p in m.parameters()}.values())


def warn_of_float32(kind: str, before: int, after: int) -> None:
    """Warn how much memory a vision-language model takes that is trained in float32.

    Args:
        kind: LeRobot's type of the policy.
        before: Bytes of policy and base as they were loaded.
        after: Bytes of both in the precision of the run.
    """
    logger.warning(
        "The %s policy is in bfloat16, but to train its vision-language model it and its base "
        "become float32: together their weights take %.2f GiB instead of %.2f. Train only the "
        "action expert (`--flow.train expert`) or low-rank updates (`--ppo.lora-rank 16`, "
        "`--bc.lora-rank 16`) to stay in bfloat16.",
        kind,
        after / GIB,
        before / GIB,
    )
