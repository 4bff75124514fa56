"""Weights that a policy's file has in float32, though LeRobot builds the policy in bfloat16.

LeRobot's SmolVLA has its backbone in bfloat16 (with some versions of transformers the action expert
too), pi0 and pi0.5 with `dtype: bfloat16` nearly everything. It loads any file into that. What we
trained is float32 and must be again, or every reload would round a run's progress away.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robo_razor.flow.families import FlowAdapter, parameters_of

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
SAFETENSORS_FLOAT32 = "F32"
GIB = 2**30


def restore_float32(module: Any, adapter: FlowAdapter, directory: Path, ours: bool) -> None:
    """Read again in float32 what the file has in float32 and the policy in less.

    Of a file that is not ours only for SmolVLA's expert, which always computes in float32 here: how
    LeRobot builds it depends on where the backbone comes from. Another policy of bfloat16 was asked
    for by its configuration.

    Args:
        module: The policy, as LeRobot loaded it.
        adapter: Of the policy.
        directory: Where its file is.
        ours: Whether we wrote it.
    """
    from safetensors import safe_open

    parameters = dict(module.named_parameters())
    expert = parameters_of(adapter.expert_modules()) if module.config.type == "smolvla" else []
    allowed = {id(p) for p in (parameters.values() if ours else expert)}
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        rounded = [
            name
            for name in file.keys()  # noqa: SIM118  # it is no mapping
            if id(parameters.get(name)) in allowed
            and parameters[name].dtype != torch.float32
            and file.get_slice(name).get_dtype() == SAFETENSORS_FLOAT32
        ]
        adapter.to_float32([*expert, *(parameters[name] for name in rounded)])
        with torch.no_grad():
            for name in rounded:
                parameters[name].copy_(file.get_tensor(name))


def warn_of_float32(module: Any, adapter: FlowAdapter, trained: Iterable[nn.Parameter]) -> None:
    """Tell how much memory it takes that the encoder, of bfloat16, is trained in float32.

    Args:
        module: The policy, before `FlowAdapter.to_float32`.
        adapter: Of the policy.
        trained: What is trained.
    """
    encoder = {id(p) for p in parameters_of(adapter.prefix_modules())}
    if not any(id(p) in encoder and p.element_size() < 4 for p in trained):
        return
    gib = sum(2 * p.numel() for p in module.parameters() if p.element_size() < 4) / GIB
    logger.warning(
        "The %s policy is in bfloat16, but its vision-language model is trained, for which it and "
        "its base become float32: their weights take %.2f GiB each instead of %.2f. Train only the "
        "action expert (`--flow.train expert`) or low-rank updates (`--ppo.lora-rank 16`, "
        "`--bc.lora-rank 16`) to leave it in bfloat16.",
        module.config.type,
        2 * gib,
        gib,
    )
