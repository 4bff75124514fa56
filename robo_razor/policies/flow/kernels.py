"""Transition kernels of stochastic flow samplers, with densities and divergences in closed form.

A flow-matching policy moves noise x at t = 1 to an action chunk at t = 0 along a velocity v(x, t),
with x_t = (1 - t) a + t e and v = e - a on average. A kernel turns one step from t to t' = t - 1/K
into a Gaussian whose mean is linear in (x, v) and whose standard deviation depends on t:

    x' ~ N(A x + B v, s^2)        dt = t' - t < 0

- `ode`: A = 1, B = dt, s = 0. Euler's rule, LeRobot's sampler.
- `sde`: the stochastic equation with the flow's marginals, as in Flow-GRPO (Liu et al. 2025, arXiv
  2505.05470, eq. 9) and as Flow-SDE in pi_RL (arXiv 2510.25889). With sigma = a sqrt(t / (1 - t))
  and c = sigma^2 / (2 t): A = 1 + c dt, B = dt (1 + c (1 - t)), s = sigma sqrt(-dt). At t = 1,
  where sigma has no bound, 1 - t is taken as 1/K.
- `cps`: coefficient-preserving sampling (Wang and Yu 2025, arXiv 2509.05952). From the estimates
  x0 = x - t v and e = x + (1 - t) v: mean = (1 - t') x0 + sqrt(t'^2 - s^2) e, s = t' sin(a pi / 2).
  The last step has no noise, so likelihood and divergence leave it out, and the sampler needs at
  least two steps.
- `inject`: Euler's rule plus noise, s = a sqrt(-dt). It widens the marginals.
- `learnt`: the same with a level a that a network computes from the observation, t and the action
  dimension, as in ReinFlow (Zhang et al. 2025, arXiv 2505.22094) and as Flow-Noise in pi_RL (arXiv
  2510.25889); see `noise_network`. The schedule's s is that of level 1.

The first sample x ~ N(0, I) at t = 1 has no parameters, so likelihood and divergence of a path are
those of its steps. By the data-processing inequality the divergence of paths is at least the
divergence of the points after the last step with noise. For `sde`, `inject` and `learnt` these are
the chunks, so it is an upper bound of the chunks' divergence. With `cps` these are the points
before the last step, which each policy maps to chunks differently: it is not a bound there.

Axis letters: B decisions, K steps, H actions in the predicted chunk, A action dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robo_razor.core.errors import ConfigError

KernelName = Literal["ode", "sde", "cps", "inject", "learnt"]


@dataclass(frozen=True)
class Schedule:
    """Coefficients of every step of a sampler, each of K numbers.

    Attributes:
        time: t at the start of each step, from 1 downwards.
        state: A, the factor on x.
        velocity: B, the factor on v.
        std: s, the standard deviation; 0 where the step has no noise. That of level 1 for `learnt`.
    """

    time: tuple[float, ...]
    state: tuple[float, ...]
    velocity: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.time)

    @property
    def live(self) -> tuple[int, ...]:
        """Return the steps that have noise, and so a likelihood."""
        return tuple(k for k, std in enumerate(self.std) if std > 0.0)

    def next_time(self, k: int) -> float:
        """Return t' at the end of step `k`."""
        return self.time[k + 1] if k + 1 < len(self) else 0.0


def make_schedule(kernel: KernelName, num_steps: int, noise: float = 0.0) -> Schedule:
    """Return the coefficients of a sampler.

    Args:
        kernel: See the module.
        num_steps: K, at least 1.
        noise: The level a: > 0 for `sde` and `inject`, in (0, 1] for `cps`, not read by `ode`; for
            `learnt` the level at the start.

    Raises:
        ConfigError: A number is out of range.
    """
    if num_steps < 1:
        raise ConfigError(f"The number of denoising steps is {num_steps}", allowed=">= 1")
    if kernel != "ode" and (noise <= 0.0 or (kernel == "cps" and noise > 1.0)):
        raise ConfigError(
            f"`flow.noise` = {noise:g} does not fit `flow.kernel: {kernel}`",
            allowed="(0, 1] for cps, above 0 for sde, inject and learnt",
        )
    dt = -1.0 / num_steps
    rows = []
    for k in range(num_steps):
        t = 1.0 + k * dt
        end = 0.0 if k + 1 == num_steps else t + dt
        rows.append((t, *_coefficients(kernel, t, end, noise)))
    time, state, velocity, std = zip(*rows, strict=True)
    return Schedule(time, state, velocity, std)


def _coefficients(
    kernel: KernelName, t: float, end: float, noise: float
) -> tuple[float, float, float]:
    """Return (A, B, s) of the step from `t` to `end`."""
    dt = end - t
    if kernel == "ode":
        return 1.0, dt, 0.0
    if kernel in ("inject", "learnt"):
        level = noise if kernel == "inject" else 1.0
        return 1.0, dt, level * math.sqrt(-dt)
    if kernel == "cps":
        std = end * math.sin(noise * math.pi / 2.0)
        scale = math.sqrt(max(0.0, end * end - std * std))
        return (1.0 - end) + scale, scale * (1.0 - t) - (1.0 - end) * t, std
    sigma_squared = noise * noise * t / max(1.0 - t, -dt)
    drift = sigma_squared / (2.0 * t)
    return 1.0 + drift * dt, dt * (1.0 + drift * (1.0 - t)), math.sqrt(-sigma_squared * dt)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the log-density of every step, float32 [B, K], nats.

    Args:
        x: Where each step ended, [B, K, H, A].
        mean: Its mean, [B, K, H, A].
        std: Its standard deviation, broadcastable to [B, K, H, A], > 0.
    """
    std = std.float()
    z = (x.float() - mean.float()) / std
    density = -0.5 * z.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
    return density.sum((-2, -1))


def gaussian_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(other_mean, other_std^2)) of every step, [B, K], nats.

    Summed along a path drawn from the first sampler and averaged over such paths, this is the
    divergence of the two samplers' path measures. Exactly 0 for equal arguments.

    Args:
        mean: [B, K, H, A], of the sampler that the path was drawn from.
        std: Broadcastable to [B, K, H, A], > 0.
        other_mean: [B, K, H, A], of the other sampler at the same points of the path.
        other_std: Its standard deviation.
    """
    ratio = std.float() / other_std.float()
    spread = 0.5 * (ratio.square() - 1.0) - ratio.log()
    shift = (mean.float() - other_mean.float()) / other_std.float()
    # Added last: next to the squared deviations a small shift would be rounded away.
    return (spread + 0.5 * shift.square()).expand_as(mean).sum((-2, -1))


def gaussian_entropy(std: Tensor, shape: torch.Size) -> Tensor:
    """Return the differential entropy of every step, [B, K], for means of `shape` [B, K, H, A]."""
    entropy = std.float().log() + 0.5 * (1.0 + math.log(2.0 * math.pi))
    return entropy.expand(shape).sum((-2, -1))
