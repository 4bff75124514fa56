from __future__ import annotations

import math

import pytest
import torch

from robo_razor.evaluation.divergences import MEASURES, compare, decision_values
from robo_razor.policies.distributions import TokenChunkDistribution

B, H, A, K = 400, 4, 5, 7
CENTERS = torch.linspace(-1, 1, K)


def tokens(logits):
    return TokenChunkDistribution(logits, CENTERS)


def moved(shift, dimensions=A):
    """Return a uniform distribution and one whose bin 3 has `shift` more in some dimensions."""
    logits = torch.zeros(B, H, A, K)
    other = logits.clone()
    other[:, :, :dimensions, 3] += shift
    return tokens(logits), tokens(other)


def means(base, tuned):
    return {
        name: decision_values(name, v).mean().item() for name, v in compare(base, tuned).items()
    }


def binomial(n, p):
    return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


def test_the_same_distribution_is_at_distance_zero_exactly():
    logits = torch.randn(B, H, A, K, generator=torch.Generator().manual_seed(0)) * 3
    measures = compare(tokens(logits), tokens(logits.clone()))
    assert set(measures) == set(MEASURES)
    for name, values in measures.items():
        assert (name == "entropy_base") == bool(values.any())


@pytest.mark.parametrize("shift", [0.3, 1.5])
def test_logits_moved_by_a_known_amount_give_the_closed_values(shift):
    q = math.exp(shift) / (math.exp(shift) + K - 1)  # bin 3 of the moved one; p = 1 / K everywhere
    rest, p = (1 - q) / (K - 1), 1 / K
    measures = means(*moved(shift))
    close = {"rel": 1e-4, "abs": 1e-5}
    forward = p * math.log(p / q) + (1 - p) * math.log(p / rest)
    reverse = q * math.log(q / p) + (1 - q) * math.log(rest / p)
    assert measures["kl_base_tuned"] == pytest.approx(H * A * forward, **close)
    assert measures["kl_tuned_base"] == pytest.approx(H * A * reverse, **close)
    assert measures["kl_base_tuned"] != pytest.approx(measures["kl_tuned_base"], rel=0.01)
    entropy = -q * math.log(q) - (1 - q) * math.log(rest)
    assert measures["entropy_base"] == pytest.approx(H * A * math.log(K), **close)
    assert measures["entropy_change"] == pytest.approx(H * A * (entropy - math.log(K)), **close)
    assert measures["total_variation"] == pytest.approx(q - p, **close)
    overlap = (math.sqrt(p * q) + (K - 1) * math.sqrt(p * rest)) ** (H * A)
    assert measures["total_variation_chunk_lower"] == pytest.approx(1 - overlap, **close)
    assert measures["total_variation_chunk_upper"] == pytest.approx(
        math.sqrt(1 - overlap**2), **close
    )


@pytest.mark.parametrize("shift", [0.3, 1.5])
def test_the_total_variation_of_a_chunk_is_that_of_how_often_the_moved_bin_comes(shift):
    q = math.exp(shift) / (math.exp(shift) + K - 1)
    pairs = zip(binomial(H * A, 1 / K), binomial(H * A, q), strict=True)
    exact = 0.5 * sum(abs(x - y) for x, y in pairs)
    measures = means(*moved(shift))
    assert measures["total_variation_chunk"] == pytest.approx(exact, abs=0.01)
    assert measures["total_variation_chunk_lower"] < exact < measures["total_variation_chunk_upper"]


def test_only_the_moved_dimensions_are_apart():
    measures = compare(*moved(2.0, dimensions=2))
    for name in ("kl_base_tuned", "kl_tuned_base", "total_variation", "greedy_disagreement"):
        assert (measures[name][:, :2] > 0).all()
        assert not measures[name][:, 2:].any()
    # The likeliest bin of equals is the first.
    assert decision_values("greedy_disagreement", measures["greedy_disagreement"])[0] == 0.4
    assert measures["greedy_disagreement_chunk"].eq(1.0).all()


def test_what_is_measured_of_a_state_does_not_depend_on_the_others():
    numbers = torch.Generator().manual_seed(1)
    p, q = (torch.randn(B, H, A, K, generator=numbers) for _ in range(2))
    all_states, part = compare(tokens(p), tokens(q)), compare(tokens(p[:9]), tokens(q[:9]))
    for name in MEASURES:
        assert torch.equal(all_states[name][:9], part[name])


def test_of_a_bound_only_the_divergence_and_the_greedy_actions_are_told():
    class Flow:
        kl_kind = "upper bound"

        def __init__(self, mean):
            self.mean = mean

        def mode(self):
            return self.mean

        def kl(self, other):
            return (self.mean - other.mean).square().sum((1, 2))

    base = Flow(torch.zeros(2, H, A))
    assert means(base, Flow(torch.full((2, H, A), 0.1))) == {
        "kl_base_tuned": pytest.approx(H * A * 0.01),
        "kl_tuned_base": pytest.approx(H * A * 0.01),
        "greedy_disagreement": 1.0,
        "greedy_disagreement_chunk": 1.0,
    }
    near = means(base, Flow(torch.full((2, H, A), 0.01)))
    assert near["greedy_disagreement"] == 0.0
    assert set(means(base, base).values()) == {0.0}
