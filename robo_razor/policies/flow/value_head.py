"""The critic of a flow policy: a small head on the policy's features of an observation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robo_razor.core.seeding import derive

WIDTH = 128


class ValueHead(nn.Module):
    """Two hidden layers; all new heads are equal and return 0.

    Args:
        features: F, the size of the policy's features.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("value head"))
            self.layers = nn.Sequential(
                nn.LayerNorm(features),
                nn.Linear(features, WIDTH),
                nn.SiLU(),
                nn.Linear(WIDTH, WIDTH),
                nn.SiLU(),
                nn.Linear(WIDTH, 1),
            )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Return values [B] of features float32 [B, F]."""
        value: Tensor = self.layers(features)
        return value.squeeze(-1)
