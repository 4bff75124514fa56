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
