"""How far two action distributions are apart, state by state: pure functions of tensors.

Axis letters as in `types`: B states, H actions in the executed chunk, A action dimensions, K bins.
An *action token* is one action dimension of one action in the chunk; there are H * A per decision.

What is exact for a distribution that factorises over tokens, p(a) = prod_i p_i(a_i):

- entropies and KL divergences of the chunk are sums over its tokens, so both are exact;
- the total variation TV = max_S |p(S) - q(S)| is not a sum. `total_variation` is the mean over
  tokens of 1/2 sum_k |p_i(k) - q_i(k)|, exact for each token, in [0, 1]. That of the whole chunk,
  `total_variation_chunk`, is an unbiased estimate: the mean of E_p[(1 - q/p)+] and E_q[(1 - p/q)+]
  over sampled chunks. It has exact bounds: with the Bhattacharyya coefficient
  b = prod_i sum_k sqrt(p_i(k) q_i(k)), 1 - b <= TV <= sqrt(1 - b^2) (Le Cam). A chunk has many
  tokens, so the chunk's TV is near 1 long before the tokens' TV;
- `greedy_disagreement` is the share of tokens whose likeliest bins differ, and
  `greedy_disagreement_chunk` whether any of them does.

Continuous actions have no tokens: there a greedy action disagrees if it differs by more than
`ACTION_TOLERANCE`. Of such densities only the KL (of a sampler's paths) is compared besides.

A policy without a density has no KL divergence. A surrogate takes its place, which is not a
divergence: `chunk_distance`, the mean squared distance of both policies' chunks in the base's
normalised action space and from the same noise.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from robo_razor.core.errors import PolicyError
from robo_razor.core.metrics import KL_BASE_TUNED, KL_DIRECTIONS, KL_TUNED_BASE
from robo_razor.core.quantities import NATS, quantity
from robo_razor.core.seeding import generator
from robo_razor.policies.distributions import ActionDistribution, TokenChunkDistribution

Behaviour = ActionDistribution | Tensor
"""What a policy does in B states: a distribution, or chunks [B, H, A] without a density."""

DIRECTIONS = KL_DIRECTIONS
ENTROPY_BASE = "entropy_base"
ENTROPY_CHANGE = "entropy_change"
TOTAL_VARIATION = "total_variation"
TOTAL_VARIATION_CHUNK = "total_variation_chunk"
TOTAL_VARIATION_LOWER = "total_variation_chunk_lower"
TOTAL_VARIATION_UPPER = "total_variation_chunk_upper"
DISAGREEMENT = "greedy_disagreement"
DISAGREEMENT_CHUNK = "greedy_disagreement_chunk"
TV_SAMPLES = 16
"""Chunks per state and direction from which a chunk's total variation is estimated."""
ACTION_TOLERANCE = 0.05
"""Difference from which two continuous actions count as different, of a range of [-1, 1]."""

MEASURES = (
    KL_BASE_TUNED,
    KL_TUNED_BASE,
    ENTROPY_BASE,
    ENTROPY_CHANGE,
    TOTAL_VARIATION,
    TOTAL_VARIATION_CHUNK,
    TOTAL_VARIATION_LOWER,
    TOTAL_VARIATION_UPPER,
    DISAGREEMENT,
    DISAGREEMENT_CHUNK,
)
"""The measures of two densities."""
CHUNK_DISTANCE = "chunk_distance"
"""The measure of two policies without a density."""
PREDICTORS = (
    TOTAL_VARIATION,
    TOTAL_VARIATION_CHUNK,
    ENTROPY_CHANGE,
    DISAGREEMENT,
    CHUNK_DISTANCE,
)
"""Measures besides the KL divergences that `distances` has for every probe set."""
KINDS = {
    TOTAL_VARIATION_CHUNK: "estimate",
    TOTAL_VARIATION_LOWER: "lower bound",
    TOTAL_VARIATION_UPPER: "upper bound",
    CHUNK_DISTANCE: "surrogate",
}
"""Kinds of the measures that are not exact; a KL divergence has the kind of its distribution."""


def compare(base: Behaviour, tuned: Behaviour) -> dict[str, Tensor]:
    """Compare what two policies do in the same states.

    Args:
        base: The base's action distribution, or its chunks [B, H, A] if it has no density.
        tuned: The same of the tuned policy.

    Returns:
        Measure (one of `MEASURES`, or `CHUNK_DISTANCE`) -> float64 [B], or [B, A] where it is known
        for every action dimension. Then the value of the decision is the sum over A for KLs and
        entropies, else the mean.

    Raises:
        PolicyError: One of the two has a density and the other has none.
    """
    if isinstance(base, Tensor) and isinstance(tuned, Tensor):
        return {CHUNK_DISTANCE: (base.double() - tuned.double()).square().mean(1).cpu()}
    if isinstance(base, Tensor) or isinstance(tuned, Tensor):
        raise PolicyError(
            "A policy with an action density cannot be compared with one without",
            allowed="two policies of the same type, such as a base and its tuned copy",
        )
    if isinstance(base, TokenChunkDistribution) and isinstance(tuned, TokenChunkDistribution):
        measures = _tokens(base, tuned)
    else:
        measures = _paths(base, tuned)
    return {name: value.double().cpu() for name, value in measures.items()}


def _paths(base: ActionDistribution, tuned: ActionDistribution) -> dict[str, Tensor]:
    """Compare densities of which only the KL and the greedy actions are known."""
    differs = (base.mode() - tuned.mode()).abs() > ACTION_TOLERANCE
    return {
        KL_BASE_TUNED: base.kl(tuned),
        KL_TUNED_BASE: tuned.kl(base),
        DISAGREEMENT: differs.double().mean(1),
        DISAGREEMENT_CHUNK: differs.flatten(1).any(-1),
    }


def decision_values(name: str, values: Tensor) -> Tensor:
    """Return a measure per decision, [B], from values that `compare` returned."""
    if values.ndim == 1:
        return values
    return values.sum(-1) if unit(name) == NATS else values.mean(-1)


def unit(name: str) -> str:
    """Return the unit of a measure."""
    return quantity(name).unit


def _tokens(base: TokenChunkDistribution, tuned: TokenChunkDistribution) -> dict[str, Tensor]:
    p, q = base.log_probs, tuned.log_probs
    entropy_base, entropy_tuned = (-(x.exp() * x).sum(-1) for x in (p, q))
    total_variation = 0.5 * (p.exp() - q.exp()).abs().sum(-1)
    differs = p.argmax(-1) != q.argmax(-1)
    # log of the Bhattacharyya coefficient; rounding must not take it above 0.
    overlap = torch.logsumexp((p.double() + q.double()) / 2, -1).sum((1, 2)).clamp(max=0.0).exp()
    same = (p == q).flatten(1).all(-1)  # exactly 0 there, despite rounding
    apart = torch.where(same, 0.0, 1.0)
    return {
        KL_BASE_TUNED: base.kl_terms(tuned).sum(1),
        KL_TUNED_BASE: tuned.kl_terms(base).sum(1),
        ENTROPY_BASE: entropy_base.sum(1),
        ENTROPY_CHANGE: (entropy_tuned - entropy_base).sum(1),
        TOTAL_VARIATION: total_variation.mean(1),
        TOTAL_VARIATION_CHUNK: _token_total_variation(p, q),
        TOTAL_VARIATION_LOWER: (1.0 - overlap) * apart,
        TOTAL_VARIATION_UPPER: (1.0 - overlap.square()).clamp(min=0.0).sqrt() * apart,
        DISAGREEMENT: differs.double().mean(1),
        DISAGREEMENT_CHUNK: differs.flatten(1).any(-1),
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


@functools.lru_cache(maxsize=8)
def _uniforms(shape: tuple[int, ...]) -> Tensor:
    """Return the same numbers in (0, 1) every time, float64 [B, H, A, TV_SAMPLES]."""
    numbers = generator("total variation").random((*shape, TV_SAMPLES))
    return torch.from_numpy(numbers.clip(2.0**-25, 1.0 - 2.0**-25))
