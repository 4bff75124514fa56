"""Diffusion Policy (Chi et al. 2023): chunks by denoising, without a density here."""

from __future__ import annotations

from torch import nn

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.families import PolicyFamily
from robo_razor.policies.policy import LeRobotModule


@FAMILIES.register("diffusion")
class Diffusion(PolicyFamily):
    """LeRobot's `diffusion`. Its loss includes padding, unless it is set to mask it."""

    normalises_as_configured = True

    def image_encoder(self, module: LeRobotModule) -> nn.Module:
        """Return the image encoder."""
        return module.get_submodule("diffusion.rgb_encoder")
