"""Where LeRobot's policies have their image encoder, and how it is kept as it is."""

from __future__ import annotations

from typing import Any

from torch import nn

ENCODERS = {"act": "model.backbone", "diffusion": "diffusion.rgb_encoder"}
"""LeRobot's policy type -> its image encoder, for policies that do not tell it themselves."""


def image_encoder(module: Any) -> nn.Module | None:
    """Return the image encoder of a LeRobot policy, None where it is not known."""
    path = ENCODERS.get(module.config.type)
    encoder: nn.Module | None = None if path is None else module.get_submodule(path)
    return encoder


def freeze_encoder(encoder: nn.Module) -> None:
    """Stop training an encoder, and let it normalise by what it learnt before."""
    encoder.requires_grad_(False)
    for layer in encoder.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(_keep_statistics)


def _keep_statistics(layer: nn.Module, _: Any) -> None:
    """Let a frozen layer normalise by its statistics, whatever mode the policy is in."""
    layer.training = False
