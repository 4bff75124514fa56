"""The distribution of a flow policy's chunks, by the paths of a stochastic sampler.

The density of a chunk cannot be computed, but the density of the sampler's path to it can. So a
*sample* here is the whole path, float32 [B, K + 1, H, D]. Its first entry is the noise, its last
the chunk in the policy's normalised action space; `FlowPolicy.to_actions` cuts and scales it.
Log-probabilities are those of the path's steps, and `kl` is the divergence of path measures. Where
the last step has noise it is an upper bound of the divergence of the chunks (see `kernels`).

Dimensions that only pad the action have no trained velocity. They follow the law of training,
x_t = t e, which has no parameters, so the likelihood of the real ones is exact.

Axis letters: B decisions, K denoising steps, H actions in the predicted chunk, D padded action
dimensions, A real ones, P paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robo_razor.core.errors import PolicyError
from robo_razor.core.seeding import generator
from robo_razor.policies.distributions import KLKind
from robo_razor.policies.flow.adapter import Prefix
from robo_razor.policies.flow.encoding import Observations
from robo_razor.policies.flow.kernels import (
    Schedule,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    make_schedule,
)
from robo_razor.policies.flow.noise_network import NoiseNetwork

PATH_SEED = "divergence of paths"


class FlowChunkDistribution:
    """Distribution over the paths of a flow policy to its chunks.

    Args:
        observations: The policy's observations.
        schedule: The stochastic sampler.
        to_actions: Turns normalised chunks [B, H, A] into actions of the environment.
        kl_paths: Paths per decision from which `kl` is estimated, at least 1.
        noise: Returns the noise level of the steps, with the `learnt` kernel.
    """

    def __init__(
        self,
        observations: Observations,
        schedule: Schedule,
        *,
        to_actions: Callable[[Tensor], Tensor],
        kl_paths: int = 1,
        noise: NoiseNetwork | None = None,
    ) -> None:
        self.observations, self.schedule = observations, schedule
        self.adapter = observations.adapter
        self.num_paths = kl_paths
        self.noise = noise
        self._to_actions = to_actions
        self._drawn: tuple[Tensor, Tensor] | None = None
        self._paths: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def kl_kind(self) -> KLKind:
        """Return whether `kl` bounds the divergence of the chunks.

        It does not where the last step has no noise: two policies may differ in that step alone,
        and then turn equal paths into different chunks.
        """
        ends_with_noise = len(self.schedule) - 1 in self.schedule.live
        return "upper bound" if ends_with_noise else "path divergence"

    # Samples --------------------------------------------------------------------------------

    @property
    def path_shape(self) -> tuple[int, int, int]:
        """Return the shape (K + 1, H, D) of one path."""
        return len(self.schedule) + 1, self.adapter.horizon, self.adapter.padded_dim

    @torch.no_grad()
    def sample(self, uniforms: Tensor) -> Tensor:
        """Return paths [B, K + 1, H, D] from uniforms of that shape in (0, 1)."""
        noise = torch.special.ndtri(uniforms.double()).float()
        path, log_prob = self.observations.run(self._sample, noise)
        self._drawn = path, log_prob
        return path

    def mode(self) -> Tensor:
        """Return the actions of LeRobot's sampler from zero noise.

        Returns:
            float32 [B, executed H, A] in the environment's units.
        """
        adapter = self.adapter
        noise = torch.zeros(len(self.observations), adapter.horizon, adapter.padded_dim)
        return self._to_actions(self.integrate(noise.to(self._device)))

    @torch.no_grad()
    def integrate(self, noise: Tensor) -> Tensor:
        """Return the normalised chunks [B, H, A] of LeRobot's sampler from noise [B, H, D].

        All padded dimensions evolve, as in LeRobot.
        """
        ode = make_schedule("ode", len(self.schedule))

        def run(prefix: Prefix, x: Tensor) -> tuple[Tensor]:
            for t, step in zip(ode.time, ode.velocity, strict=True):
                x = x + step * self.adapter.velocity(prefix, x, _times(t, x))
            return (x[..., : self.adapter.action_dim],)

        return self.observations.run(run, noise)[0]

    # Densities ------------------------------------------------------------------------------

    def log_prob(self, path: Tensor) -> Tensor:
        """Return the log-density [B] of all steps of paths [B, K + 1, H, D]."""
        return self.log_prob_steps(path).sum(-1)

    def log_prob_steps(self, path: Tensor) -> Tensor:
        """Return the log-density of every step that has noise, [B, live steps].

        It covers the whole predicted chunk and the real action dimensions. For paths that were just
        sampled it is known already; others are replayed in one batched call.

        Raises:
            PolicyError: `path` does not have the shape of a path.
        """
        if self._drawn is not None and path is self._drawn[0] and not torch.is_grad_enabled():
            return self._drawn[1]
        self._check(path)

        def replay(prefix: Prefix, rows: Tensor) -> tuple[Tensor]:
            mean, std = self._moments(prefix, rows)
            return (gaussian_log_prob(self._ends(rows), mean, std),)

        return self.observations.run(replay, path)[0]

    def entropy(self) -> Tensor:
        """Return the entropy [B] of a path's steps; only learnt noise depends on observations."""
        chunk = (len(self.schedule.live), self.adapter.horizon, self.adapter.action_dim)

        def measure(std: Tensor) -> Tensor:
            return gaussian_entropy(std, torch.Size((len(std), *chunk))).sum(-1)

        if self.noise is None:
            return measure(self._unit_std.expand(len(self.observations), -1, -1, -1))
        return self.observations.run(lambda prefix: (measure(self._std(prefix)),))[0]

    # Divergence -----------------------------------------------------------------------------

    def kl(self, other: FlowChunkDistribution) -> Tensor:
        """Return the divergence [B] of the path measures; `kl_kind` says what it bounds.

        An average over `kl_paths` paths. Their noise depends on the observation alone, so it is
        equal every time and independent of other rows. Gradients flow through the means, not
        through the choice of the path.
        """
        return self.kl_of_paths(other).mean(-1)

    def kl_standard_error(self, other: FlowChunkDistribution) -> Tensor:
        """Return the standard error [B] of `kl` over its paths; NaN with a single one."""
        return self.kl_of_paths(other).std(-1) / math.sqrt(self.num_paths)

    def kl_of_paths(self, other: FlowChunkDistribution) -> Tensor:
        """Return the divergence along every path drawn from self, [B, P].

        Raises:
            PolicyError: `other` has another sampler or another action space.
        """
        same = isinstance(other, FlowChunkDistribution) and self.schedule == other.schedule
        same = same and (self.noise is None) == (other.noise is None)
        if not same or self.path_shape != other.path_shape:
            raise PolicyError(
                "Two policies with different samplers have no KL divergence",
                allowed="flow policies of one family with equal `flow` settings, such as a base "
                "and the policy that was tuned from it",
            )
        along: list[Tensor] = []
        for index in range(self.num_paths):
            path, mean, std = self._path(index)
            along.append(gaussian_kl(mean, std, *other.moments(path)).sum(-1))
        divergences = torch.stack(along, -1)
        if not torch.is_grad_enabled() and not bool(torch.isfinite(divergences).all()):
            raise PolicyError(
                "The KL divergence of two flow policies is NaN or infinite: the weights of one of "
                "them overflow.",
                remedy="Training diverged: take an earlier checkpoint of the run.",
            )
        return divergences

    def moments(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Gaussian of every live step at the points of a path.

        Returns:
            Means [B, live steps, H, A] and standard deviations that broadcast to them.
        """
        self._check(path)
        mean, std = self.observations.run(self._moments, path)
        return mean, std

    def _path(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a path drawn from self and its moments; cached, as the base's never change."""
        if index in self._paths and not torch.is_grad_enabled():
            return self._paths[index]
        with torch.no_grad():
            noise = _path_noise(self.observations.keys, self.path_shape, index).to(self._device)
            path = self.observations.run(self._sample, noise)[0]
        # Replayed like the means of `other`, so that equal weights give equal numbers.
        drawn = path, *self.moments(path)
        if not torch.is_grad_enabled():
            self._paths[index] = drawn
        return drawn

    # Steps ----------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return next(iter(self.observations.batch.values())).device

    @property
    def _unit_std(self) -> Tensor:
        """Return the schedule's standard deviations, float32 [1, live steps, 1, 1]."""
        std = [self.schedule.std[k] for k in self.schedule.live]
        return torch.tensor(std, device=self._device)[None, :, None, None]

    def _std(self, prefix: Prefix) -> Tensor:
        """Return the standard deviation of the live steps, [B, live steps, 1, 1 or A]."""
        if self.noise is None:
            return self._unit_std.expand(len(prefix), -1, -1, -1)
        time = torch.tensor([self.schedule.time[k] for k in self.schedule.live])
        level: Tensor = self.noise(prefix.features, time.to(self._device))
        return self._unit_std * level

    def _sample(self, prefix: Prefix, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return paths and the log-density of their live steps for noise [B, K + 1, H, D]."""
        schedule, real = self.schedule, self.adapter.action_dim
        std = self._std(prefix)
        spread = dict(zip(schedule.live, std.unbind(1), strict=True))
        x, ends, means = noise[:, 0], [noise[:, 0]], []
        for k, t in enumerate(schedule.time):
            velocity = self.adapter.velocity(prefix, x, _times(t, x))
            mean = (schedule.state[k] * x + schedule.velocity[k] * velocity)[..., :real]
            following = mean
            if k in spread:
                following = mean + spread[k] * noise[:, k + 1, :, :real]
            padding = schedule.next_time(k) * noise[:, 0, :, real:]
            x = torch.cat([following, padding], -1)
            ends.append(x)
            means.append(mean)
        path = torch.stack(ends, 1)
        live = torch.stack([means[k] for k in schedule.live], 1)
        return path, gaussian_log_prob(self._ends(path), live, std)

    def _moments(self, prefix: Prefix, path: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean [B, live steps, H, A] and deviation of all live steps of paths."""
        schedule, live = self.schedule, list(self.schedule.live)
        real = self.adapter.action_dim
        x = path[:, live]
        velocity = self._velocities(prefix, x)[..., :real]
        factors = torch.tensor(
            [[schedule.state[k], schedule.velocity[k]] for k in live], device=path.device
        )[:, :, None, None]
        mean = factors[:, 0] * x[..., :real] + factors[:, 1] * velocity
        return mean, self._std(prefix)

    def _velocities(self, prefix: Prefix, x: Tensor) -> Tensor:
        """Return the velocities [B, live steps, H, D] at x, the points before the live steps.

        In one call, unless checkpointing holds the activations of one step at a time.
        """
        times = [self.schedule.time[k] for k in self.schedule.live]
        rows, steps = x.shape[:2]
        if self.observations.checkpointing and torch.is_grad_enabled():
            velocities = [
                checkpoint(
                    self.adapter.velocity,
                    prefix,
                    x[:, i],
                    _times(t, x),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for i, t in enumerate(times)
            ]
            return torch.stack(velocities, 1)
        t = torch.tensor(times, device=x.device).repeat(rows)
        velocity = self.adapter.velocity(prefix.repeat(steps), x.flatten(0, 1), t)
        return velocity.view(rows, steps, *velocity.shape[1:])

    def _ends(self, path: Tensor) -> Tensor:
        """Return where the live steps of paths ended, [B, live steps, H, A]."""
        return path[:, [k + 1 for k in self.schedule.live], :, : self.adapter.action_dim]

    def _check(self, path: Tensor) -> None:
        expected = (len(self.observations), *self.path_shape)
        if tuple(path.shape) != expected:
            raise PolicyError(
                f"A flow policy cannot read a sample of shape {tuple(path.shape)}",
                allowed=f"denoising paths of shape {expected}, as `sample` returns them",
                remedy="Set `flow.num_steps` to the value with which the sample was drawn.",
            )


def _times(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.float32, device=x.device)


def _path_noise(keys: Sequence[int], shape: tuple[int, ...], index: int) -> Tensor:
    """Return standard normal numbers float32 [B, *shape]; each row depends on its key alone."""
    rows = [generator(PATH_SEED, index, k).standard_normal(shape, dtype="float32") for k in keys]
    return torch.from_numpy(np.stack(rows))
