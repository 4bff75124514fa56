"""Action distributions over chunks: sample, mode, log-probability, entropy, KL divergence.

Axis letters: B batch, H actions in the executed chunk, A action dimensions, K bins. Everything is
summed over H and A, so that all quantities are **per decision**, in nats. Randomness always comes
from the caller as uniform numbers: equal numbers give equal actions.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from robo_razor.core.errors import PolicyError

KLKind = Literal["exact", "closed form", "upper bound", "path divergence"]


class ActionDistribution(Protocol):
    """Distribution of action chunks [B, H, A] given B observations.

    A *sample* may be more than the chunk, such as the denoising path to it. Then `uniforms` have
    the policy's `noise_shape`, `log_prob` is the log-probability of the whole sample, and the
    policy's `to_actions` gives the chunk. Such a distribution is a `StepwiseDistribution`.
    """

    @property
    def kl_kind(self) -> KLKind:
        """Return what `kl` is: the divergence, a bound on it, or the divergence of paths."""

    def sample(self, uniforms: Tensor) -> Tensor:
        """Return actions [B, H, A] by the inverse CDF of `uniforms` [B, H, A] in (0, 1)."""

    def mode(self) -> Tensor:
        """Return the most likely actions [B, H, A]."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability (or log-density) [B] of actions [B, H, A]."""

    def entropy(self) -> Tensor:
        """Return the entropy [B]."""

    def kl(self, other: Any) -> Tensor:
        """Return KL(self || other) [B]; `other` is a distribution of the same kind."""


@runtime_checkable
class StepwiseDistribution(Protocol):
    """A distribution that draws a sample in several random steps: tokens, or denoising steps."""

    def log_prob_steps(self, path: Tensor) -> Tensor:
        """Return the log-probability of every random step of samples, float [B, K]."""


def log_prob_steps(distribution: ActionDistribution, sample: Tensor) -> Tensor:
    """Return the log-probability of every random step that led to a sample.

    Returns:
        float [B, K], or [B] for a distribution that draws the chunk at once.
    """
    if isinstance(distribution, StepwiseDistribution):
        return distribution.log_prob_steps(sample)
    return distribution.log_prob(sample)


class TokenChunkDistribution:
    """Independent categorical distribution over bins for every action and dimension; exact.

    Args:
        logits: Unnormalised log-probabilities [B, H, A, K].
        bin_centers: Action value of each bin [K], ascending.
        temperature: Divides the logits, in (0, inf); densities are those of the sampled actions.
    """

    kl_kind: KLKind = "exact"

    def __init__(self, logits: Tensor, bin_centers: Tensor, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise PolicyError(
                f"The sampling temperature is {temperature}", allowed="numbers above 0"
            )
        scaled = logits if temperature == 1.0 else logits / temperature
        self.log_probs = torch.log_softmax(scaled.float(), dim=-1)
        self.bin_centers = bin_centers

    def sample(self, uniforms: Tensor) -> Tensor:
        """Return actions [B, H, A] by the inverse CDF of `uniforms` [B, H, A] in (0, 1)."""
        # In double precision: the cumulative sum of many small probabilities must not drift.
        cumulative = self.log_probs.double().exp().cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        tokens = (cumulative <= uniforms.double()[..., None]).sum(-1)
        return self.bin_centers[tokens.clamp(max=len(self.bin_centers) - 1)]

    def mode(self) -> Tensor:
        """Return the most likely actions [B, H, A]."""
        return self.bin_centers[self.log_probs.argmax(-1)]

    def tokens(self, actions: Tensor) -> Tensor:
        """Return the index int64 of the bin whose centre is nearest to each action."""
        edges = (self.bin_centers[1:] + self.bin_centers[:-1]) / 2
        return torch.bucketize(actions.contiguous(), edges)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability [B] of the bins nearest to actions [B, H, A]."""
        tokens = self.tokens(actions)[..., None]
        return self.log_probs.gather(-1, tokens).squeeze(-1).sum((-2, -1))

    def log_prob_steps(self, actions: Tensor) -> Tensor:
        """Return the log-probability of each bin of actions [B, H, A] by itself, [B, H A]."""
        tokens = self.tokens(actions)[..., None]
        return self.log_probs.gather(-1, tokens).flatten(1)

    def entropy(self) -> Tensor:
        """Return the entropy [B]."""
        return -(self.log_probs.exp() * self.log_probs).sum((-3, -2, -1))

    def kl(self, other: TokenChunkDistribution) -> Tensor:
        """Return KL(self || other) [B].

        Raises:
            PolicyError: `other` is not a categorical distribution over the same bins.
        """
        return self.kl_terms(other).sum((-2, -1))

    def kl_terms(self, other: TokenChunkDistribution) -> Tensor:
        """Return KL(self || other) of every action and dimension [B, H, A]."""
        if not isinstance(other, TokenChunkDistribution) or not torch.equal(
            self.bin_centers, other.bin_centers
        ):
            raise PolicyError(
                "Two policies with different action bins have no KL divergence",
                allowed="policies that share num_bins and bin_mu, such as a base and the policy "
                "that was tuned from it",
            )
        difference = self.log_probs - other.log_probs
        return (self.log_probs.exp() * difference).sum(-1)


class GaussianChunkDistribution:
    """Independent normal distribution for every action and dimension; closed forms.

    Args:
        mean: Mean action [B, H, A].
        log_std: Log of the standard deviation, broadcastable to [B, H, A].
    """

    kl_kind: KLKind = "closed form"

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std.expand_as(mean)

    def sample(self, uniforms: Tensor) -> Tensor:
        """Return actions [B, H, A] by the inverse CDF of `uniforms` [B, H, A] in (0, 1)."""
        normal = torch.special.ndtri(uniforms.double()).to(self.mean.dtype)
        actions: Tensor = self.mean + self.log_std.exp() * normal
        return actions

    def mode(self) -> Tensor:
        """Return the mean actions [B, H, A]."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-density [B] of actions [B, H, A]."""
        z = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum((-2, -1))

    def entropy(self) -> Tensor:
        """Return the differential entropy [B]."""
        return (self.log_std + 0.5 * (1 + math.log(2 * math.pi))).sum((-2, -1))

    def kl(self, other: GaussianChunkDistribution) -> Tensor:
        """Return KL(self || other) [B].

        Raises:
            PolicyError: `other` is not Gaussian.
        """
        if not isinstance(other, GaussianChunkDistribution):
            raise PolicyError(
                f"A Gaussian and a {type(other).__name__} have no KL divergence here",
                allowed="two distributions of the same kind",
            )
        ratio = self.log_std - other.log_std
        scaled = (self.mean - other.mean) * (-other.log_std).exp()
        return (0.5 * ((2 * ratio).exp() + scaled**2 - 1) - ratio).sum((-2, -1))
