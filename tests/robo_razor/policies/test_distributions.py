import math

import pytest
import torch

from robo_razor.core.errors import PolicyError
from robo_razor.policies.distributions import (
    GaussianChunkDistribution,
    TokenChunkDistribution,
    log_prob_steps,
)

CENTERS = torch.linspace(-1, 1, 5)


def logits(seed: int = 0, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 2, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2


def test_token_log_prob_is_the_sum_over_the_chunk():
    distribution = TokenChunkDistribution(logits(), CENTERS)
    actions = CENTERS[torch.randint(0, 5, (3, 2, 4))]
    expected = sum(
        distribution.log_probs[:, h, a].gather(-1, distribution.tokens(actions)[:, h, a, None])[
            :, 0
        ]
        for h in range(2)
        for a in range(4)
    )
    torch.testing.assert_close(distribution.log_prob(actions), expected)


def test_token_log_probs_of_the_bins_sum_to_that_of_the_chunk():
    distribution = TokenChunkDistribution(torch.randn(3, 4, 2, 5), torch.linspace(-1, 1, 5))
    actions = distribution.sample(torch.rand(3, 4, 2))
    steps = distribution.log_prob_steps(actions)
    assert steps.shape == (3, 8)
    torch.testing.assert_close(steps.sum(-1), distribution.log_prob(actions))
    assert log_prob_steps(distribution, actions).equal(steps)


def test_token_log_prob_takes_the_nearest_bin():
    distribution = TokenChunkDistribution(logits(), CENTERS)
    actions = CENTERS[torch.randint(0, 5, (3, 2, 4))]
    noise = torch.rand(3, 2, 4) * 0.4 - 0.2
    assert torch.equal(distribution.log_prob(actions + noise), distribution.log_prob(actions))


def test_token_probabilities_of_all_chunks_sum_to_one():
    distribution = TokenChunkDistribution(logits(batch=1)[:, :1, :2], CENTERS)
    pairs = torch.cartesian_prod(CENTERS, CENTERS)
    total = sum(distribution.log_prob(pair.view(1, 1, 2)).exp() for pair in pairs)
    assert total.item() == pytest.approx(1.0, abs=1e-6)


def test_token_samples_have_the_right_frequencies():
    n = 40_000
    distribution = TokenChunkDistribution(logits(batch=1)[:, :1, :1].expand(n, 1, 1, 5), CENTERS)
    uniforms = torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(1))
    tokens = distribution.tokens(distribution.sample(uniforms)).flatten()
    frequencies = torch.bincount(tokens, minlength=5) / n
    probabilities = distribution.log_probs[0, 0, 0].exp()
    assert (frequencies - probabilities).abs().max() < 4 * 0.5 / math.sqrt(n)


def test_token_sample_is_the_inverse_cdf():
    probabilities = torch.tensor([0.1, 0.0, 0.4, 0.5, 0.0])
    distribution = TokenChunkDistribution(
        probabilities.log().clamp(min=-1e30).view(1, 1, 1, 5), CENTERS
    )
    for uniform, index in ((1e-9, 0), (0.0999, 0), (0.1001, 2), (0.4999, 2), (0.5001, 3)):
        action = distribution.sample(torch.full((1, 1, 1), uniform))
        assert action.item() == CENTERS[index]
    assert distribution.sample(torch.full((1, 1, 1), 1 - 1e-9, dtype=torch.float64)) == CENTERS[3]


def test_temperature_sharpens_and_is_part_of_the_density():
    cold = TokenChunkDistribution(logits(), CENTERS, temperature=0.5)
    warm = TokenChunkDistribution(logits(), CENTERS)
    assert bool((cold.entropy() < warm.entropy()).all())
    assert torch.equal(cold.mode(), warm.mode())
    torch.testing.assert_close(cold.log_probs, torch.log_softmax(logits() * 2, -1))
    with pytest.raises(PolicyError, match="temperature is 0"):
        TokenChunkDistribution(logits(), CENTERS, temperature=0)


def test_token_entropy_of_the_uniform_distribution():
    distribution = TokenChunkDistribution(torch.zeros(2, 2, 4, 5), CENTERS)
    torch.testing.assert_close(distribution.entropy(), torch.full((2,), 8 * math.log(5)))


def test_token_kl_is_exactly_zero_for_the_same_logits():
    same = TokenChunkDistribution(logits(), CENTERS).kl(TokenChunkDistribution(logits(), CENTERS))
    assert same.tolist() == [0.0, 0.0, 0.0]


def test_token_kl_is_the_mean_log_ratio():
    p, q = (TokenChunkDistribution(logits(seed, 1)[:, :1, :1], CENTERS) for seed in (0, 1))
    expected = sum(
        p.log_prob(c.view(1, 1, 1)).exp()
        * (p.log_prob(c.view(1, 1, 1)) - q.log_prob(c.view(1, 1, 1)))
        for c in CENTERS
    )
    torch.testing.assert_close(p.kl(q), expected)
    assert p.kl(q) > 0
    assert p.kl(q) != q.kl(p)
    assert p.kl_kind == "exact"


def test_token_kl_terms_sum_to_the_kl():
    p, q = (TokenChunkDistribution(logits(seed), CENTERS) for seed in (0, 1))
    assert p.kl_terms(q).shape == (3, 2, 4)
    torch.testing.assert_close(p.kl_terms(q).sum((1, 2)), p.kl(q))


def test_kl_of_different_kinds_is_an_error():
    token = TokenChunkDistribution(logits(), CENTERS)
    normal = GaussianChunkDistribution(torch.zeros(3, 2, 4), torch.zeros(4))
    with pytest.raises(PolicyError, match="different action bins"):
        token.kl(TokenChunkDistribution(logits(), CENTERS * 0.5))
    with pytest.raises(PolicyError, match="different action bins"):
        token.kl(normal)
    with pytest.raises(PolicyError, match="same kind"):
        normal.kl(token)


def test_gaussian_matches_torch():
    torch.manual_seed(0)
    means, stds = torch.randn(2, 3, 2, 4), torch.rand(2, 4) + 0.5
    p, q = (GaussianChunkDistribution(m, s.log()) for m, s in zip(means, stds, strict=True))
    tp, tq = (
        torch.distributions.Normal(m, s.expand(3, 2, 4)) for m, s in zip(means, stds, strict=True)
    )
    actions = torch.randn(3, 2, 4)
    torch.testing.assert_close(p.log_prob(actions), tp.log_prob(actions).sum((1, 2)))
    torch.testing.assert_close(p.entropy(), tp.entropy().sum((1, 2)))
    torch.testing.assert_close(p.kl(q), torch.distributions.kl_divergence(tp, tq).sum((1, 2)))
    assert p.kl(p).tolist() == [0.0, 0.0, 0.0]
    uniforms = torch.rand(3, 2, 4)
    torch.testing.assert_close(p.sample(uniforms), tp.icdf(uniforms), rtol=1e-4, atol=1e-5)
    assert torch.equal(p.mode(), means[0])
    assert p.kl_kind == "closed form"
