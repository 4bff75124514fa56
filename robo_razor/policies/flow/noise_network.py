"""The network of the `learnt` kernel: how far each denoising step of a flow policy spreads.

As in ReinFlow (Zhang et al. 2025, arXiv 2505.22094), a small network next to the velocity computes
the standard deviation of the noise of every step, within bounds. Only the policy gradient trains
it: cloning does not use it, and greedy actions have no noise. pi_RL (arXiv 2510.25889) does the
same with VLAs and calls it Flow-Noise.

Choices of this implementation:
- It reads the pooled prefix (the policy's encoding of the observation) and t, not the noisy chunk,
  so the noise of all steps is known before the first one.
- One level for the whole chunk of each action dimension, not one for every action in it.
- The level is in units of sqrt(-dt), like that of `inject`: the bounds mean the same with any
  number of steps. At the start it is `flow.noise` everywhere; a sigmoid bounds its logarithm.

Axis letters: B decisions, K steps, A action dimensions, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robo_razor.core.seeding import derive

WIDTH = 64
FREQUENCIES = 4


class NoiseNetwork(nn.Module):
    """One hidden layer; all new networks are equal and return one level everywhere.

    Args:
        features: F, the size of the policy's features.
        action_dim: A.
    """

    def __init__(self, features: int, action_dim: int) -> None:
        super().__init__()
        self.level, self.low, self.high = 0.5, 0.1, 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("noise network"))
            self.norm = nn.LayerNorm(features)
            self.hidden = nn.Linear(features + 2 * FREQUENCIES, WIDTH)
            self.output = nn.Linear(WIDTH, action_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def bound(self, level: float, low: float, high: float) -> None:
        """Set the level of a new network and the bounds of all levels, low < level < high."""
        self.level, self.low, self.high = level, low, high

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """Return the noise level of every step, float32 [B, K, 1, A] in (low, high).

        Args:
            features: float32 [B, F].
            time: t at the start of each step, float32 [K].
        """
        with torch.autocast(features.device.type, enabled=False):  # densities need precision
            factor = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=time.device)
            angle = time[:, None] * factor
            clock = torch.cat([angle.sin(), angle.cos()], -1)
            normalised = self.norm(features.float())
            rows, steps = len(normalised), len(clock)
            joined = torch.cat(
                [normalised[:, None].expand(-1, steps, -1), clock[None].expand(rows, -1, -1)], -1
            )
            shift = self.output(torch.nn.functional.silu(self.hidden(joined)))
            share = (math.log(self.level) - math.log(self.low)) / self._width
            start = math.log(share / (1.0 - share))
            level = torch.exp(math.log(self.low) + self._width * torch.sigmoid(start + shift))
        return level[:, :, None, :]

    @property
    def _width(self) -> float:
        """Return the distance of the bounds' logarithms, the range of the sigmoid."""
        return math.log(self.high) - math.log(self.low)
