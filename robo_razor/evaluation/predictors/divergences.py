"""How far two action distributions are apart, state by state: pure functions of tensors.

Axis letters as in `types`: B states, H actions in the executed chunk, A action dimensions, K bins.
An *action token* is one action dimension of one action in the chunk; there are H * A per decision.

What is exact for a distribution that factorises over tokens, p(a) = prod_i p_i(a_i):

- entropies and KL divergences of the chunk are sums over its tokens, so both are exact;
- the total variation TV = max_S |p(S) - q(S)| is no sum. `total_variation` is the mean over tokens
  of 1/2 sum_k |p_i(k) - q_i(k)|, exact for each token, in [0, 1]. That of the whole chunk,
  `total_variation_chunk`, is an unbiased estimate: the mean of E_p[(1 - q/p)+] and E_q[(1 - p/q)+]
  over sampled chunks. Exact bounds stand beside it: with the Bhattacharyya coefficient
  b = prod_i sum_k sqrt(p_i(k) q_i(k)), 1 - b <= TV <= sqrt(1 - b^2) (Le Cam). A chunk has many
  tokens, so its TV is near 1 long before theirs are;
- `greedy_disagreement` is the share of tokens whose likeliest bins differ, and
  `greedy_disagreement_chunk` whether any of them does.

Continuous actions have no tokens: there a greedy action disagrees if it differs by more than
`ACTION_TOLERANCE`, and there is no `total_variation` but only that of the chunk. Where the KL is
that of a sampler's paths nothing else but the greedy actions is compared.

A policy without a density has no KL divergence. A surrogate takes its place, which is none: the
mean squared distance `chunk_distance` of what both do, in the base's normalised action space and
from the same noise.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from robo_razor.core.metrics import KL_DIRECTIONS
from robo_razor.core.seeding import generator
from robo_razor.policies.distributions import TokenChunkDistribution

DIRECTIONS = KL_DIRECTIONS
TV_SAMPLES = 16
"""Chunks per state and direction from which a chunk's total variation is estimated."""
ACTION_TOLERANCE = 0.05
"""Difference of continuous actions that counts as another action, of a range of [-1, 1]."""

UNITS = {
    "kl_base_tuned": "nats per decision",
    "kl_tuned_base": "nats per decision",
    "entropy_base": "nats per decision",
    "entropy_change": "nats per decision",
    "total_variation": "mean over action tokens, [0, 1]",
    "total_variation_chunk": "per decision, [0, 1]",
    "total_variation_chunk_lower": "per decision, [0, 1]",
    "total_variation_chunk_upper": "per decision, [0, 1]",
    "greedy_disagreement": "share of action tokens",
    "greedy_disagreement_chunk": "share of decisions",
}
"""What is measured of two densities, in which units."""
SURROGATES = {"chunk_distance": "squared normalised action units"}
"""What is measured of two policies without a density."""
KINDS = {
    "total_variation_chunk": "estimate",
    "total_variation_chunk_lower": "lower bound",
    "total_variation_chunk_upper": "upper bound",
    "chunk_distance": "surrogate",
}
"""What is not exact; that of a KL divergence is its distribution's."""


def compare(base: Any, tuned: Any) -> dict[str, Tensor]:
    """Compare two action distributions over the same states.

    Args:
        base: The base's `ActionDistribution`, or its chunks [B, H, A] if it has no density.
        tuned: The tuned policy's.

    Returns:
        Measure (a key of `UNITS` or `SURROGATES`) -> float64 [B], or [B, A] where it is known for
        every action dimension; then the decision's is the sum over A for KLs and entropies, else
        the mean.
    """
    if isinstance(base, Tensor):
        return {"chunk_distance": (base.double() - tuned.double()).square().mean(1).cpu()}
    if isinstance(base, TokenChunkDistribution):
        return {name: value.double().cpu() for name, value in _tokens(base, tuned).items()}
    measures = {"kl_base_tuned": base.kl(tuned), "kl_tuned_base": tuned.kl(base)}
    differs = (base.mode() - tuned.mode()).abs() > ACTION_TOLERANCE
    measures["greedy_disagreement"] = differs.double().mean(1)
    measures["greedy_disagreement_chunk"] = differs.flatten(1).any(-1)
    if base.kl_kind in ("exact", "closed form"):
        before, after = base.entropy(), tuned.entropy()
        measures |= {"entropy_base": before, "entropy_change": after - before}
        measures["total_variation_chunk"] = _total_variation(base, tuned)
    return {name: value.double().cpu() for name, value in measures.items()}


def decision_values(name: str, values: Tensor) -> Tensor:
    """Return a measure per decision, [B], from what `compare` returned."""
    if values.ndim == 1:
        return values
    return values.sum(-1) if unit(name) == "nats per decision" else values.mean(-1)


def unit(name: str) -> str:
    """Return what a measure counts."""
    return (UNITS | SURROGATES)[name]


def _tokens(base: TokenChunkDistribution, tuned: TokenChunkDistribution) -> dict[str, Tensor]:
    p, q = base.log_probs, tuned.log_probs
    entropy_base, entropy_tuned = (-(x.exp() * x).sum(-1) for x in (p, q))
    total_variation = 0.5 * (p.exp() - q.exp()).abs().sum(-1)
    differs = p.argmax(-1) != q.argmax(-1)
    # log of the Bhattacharyya coefficient; rounding must not take it above 0.
    overlap = torch.logsumexp((p.double() + q.double()) / 2, -1).sum((1, 2)).clamp(max=0.0).exp()
    same = (p == q).flatten(1).all(-1)  # exactly 0, whatever rounding says
    apart = torch.where(same, 0.0, 1.0)
    return {
        "kl_base_tuned": base.kl_terms(tuned).sum(1),
        "kl_tuned_base": tuned.kl_terms(base).sum(1),
        "entropy_base": entropy_base.sum(1),
        "entropy_change": (entropy_tuned - entropy_base).sum(1),
        "total_variation": total_variation.mean(1),
        "total_variation_chunk": _token_total_variation(p, q),
        "total_variation_chunk_lower": (1.0 - overlap) * apart,
        "total_variation_chunk_upper": (1.0 - overlap.square()).clamp(min=0.0).sqrt() * apart,
        "greedy_disagreement": differs.double().mean(1),
        "greedy_disagreement_chunk": differs.flatten(1).any(-1),
    }


def _token_total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Estimate the total variation of the chunk [B] from log-probabilities [B, H, A, K]."""
    ratio = (q - p).double()
    estimates = []
    for log_probs, log_ratio in ((p, ratio), (q, -ratio)):
        cumulative = log_probs.double().exp().cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        uniforms = _uniforms(tuple(p.shape[:3])).to(p.device)
        tokens = torch.searchsorted(cumulative, uniforms, right=True)
        tokens = tokens.clamp(max=p.shape[-1] - 1)
        chunk = log_ratio.gather(-1, tokens).sum((1, 2))  # [B, samples]
        estimates.append((-torch.expm1(chunk)).clamp(min=0.0).mean(-1))
    return (estimates[0] + estimates[1]) / 2


def _total_variation(base: Any, tuned: Any) -> Tensor:
    """Estimate the total variation of the chunk [B] from samples of any two densities."""
    shape = tuple(base.mode().shape)
    uniforms = _uniforms(shape)
    estimates = []
    for first, second in ((base, tuned), (tuned, base)):
        for sample in uniforms.unbind(-1):
            actions = first.sample(sample.to(base.mode().device))
            ratio = second.log_prob(actions).double() - first.log_prob(actions).double()
            estimates.append((-torch.expm1(ratio)).clamp(min=0.0))
    return torch.stack(estimates).mean(0)


@functools.lru_cache(maxsize=8)
def _uniforms(shape: tuple[int, ...]) -> Tensor:
    """Return the same numbers in (0, 1) every time, float64 [B, H, A, TV_SAMPLES]."""
    numbers = generator("total variation").random((*shape, TV_SAMPLES))
    return torch.from_numpy(numbers.clip(2.0**-25, 1.0 - 2.0**-25))
