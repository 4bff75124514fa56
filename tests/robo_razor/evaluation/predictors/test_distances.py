from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_demonstrations import demonstrations
from toy_policy import tiny_policy

from robo_razor.evaluation.predictors.distances import (
    Distances,
    activation_change,
    cknna,
    diagonal_fisher,
    fisher_norm,
    matrix_norms,
    policy_weights,
    representation,
    sparsity,
    weight_changes,
    weight_norms,
)
from robo_razor.evaluation.probes import demonstration_probe

DEAR = {
    "weight_fisher_l2", "weight_spectral", "effective_rank", "sparsity_fp32", "sparsity_1e-5",
    "sparsity_bf16", "activation_l1", "activation_l2", "cknna",
}  # fmt: skip


@pytest.fixture(scope="module")
def probe():
    return demonstration_probe(demonstrations((25, 20)), tiny_policy(), 45)


def moved(scale, seed=1):
    policy = tiny_policy()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return policy


def uniform_policy():
    policy = tiny_policy()
    for parameter in policy.module.action_head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    return policy


def test_the_base_is_at_distance_zero_exactly(probe):
    base = tiny_policy().frozen_copy()
    found = Distances(base, dear=True).measure(tiny_policy(), {"new_base_visited": probe})
    assert set(found) == DEAR | {"weight_l1", "weight_l2"}
    ones = {"sparsity_fp32", "sparsity_1e-5", "sparsity_bf16", "cknna"}
    assert {name for name, value in found.items() if value == 1.0} == ones
    assert {name for name, value in found.items() if value == 0.0} == set(found) - ones


def test_only_the_cheap_ones_are_measured_unless_asked(probe):
    found = Distances(tiny_policy().frozen_copy()).measure(moved(0.1), {"prior": probe})
    assert set(found) == {"weight_l1", "weight_l2"}


def test_distances_grow_with_the_change(probe):
    distances = Distances(tiny_policy().frozen_copy(), dear=True)
    sets = {"new_base_visited": probe, "prior": probe}
    near, far = (distances.measure(moved(scale), sets) for scale in (1e-3, 0.1))
    for name in DEAR - {"effective_rank", "cknna"}:
        assert (near[name] < far[name]) != name.startswith("sparsity"), name
    assert far["cknna"] < near["cknna"] < 1.0
    assert distances.measure(moved(0.1), sets) == far  # nothing is drawn anew


def test_weight_norms_count_every_weight_but_the_value_head():
    policy = tiny_policy()
    with torch.no_grad():
        policy.module.state_projection.weight.add_(0.01)
        for parameter in policy.module.value_parameters():
            parameter.add_(1.0)
    n = policy.module.state_projection.weight.numel()
    found = weight_norms(weight_changes(tiny_policy(), policy))
    assert found["weight_l1"] == pytest.approx(0.01 * n, rel=1e-4)
    assert found["weight_l2"] == pytest.approx(0.01 * math.sqrt(n), rel=1e-4)


def test_low_rank_updates_count_by_what_they_add():
    base, tuned = tiny_policy().frozen_copy(), tiny_policy()
    tuned.add_lora(2)
    assert not weight_changes(base, tuned)
    with torch.no_grad():
        for name, parameter in tuned.module.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_()
    merged = tuned.frozen_copy()
    assert (
        policy_weights(tuned).keys() == policy_weights(merged).keys() == policy_weights(base).keys()
    )
    assert weight_norms(weight_changes(base, tuned)) == weight_norms(weight_changes(base, merged))
    assert matrix_norms(weight_changes(base, tuned))["effective_rank"] < 2 / 7


def test_spectral_norm_and_rank_of_known_matrices():
    one = 3.0 * torch.outer(torch.tensor([0.6, 0.8]), torch.tensor([1.0, 0.0, 0.0]))
    found = matrix_norms({"a": one, "bias": torch.full((9,), 50.0)})
    assert found["weight_spectral"] == pytest.approx(3.0)
    assert found["effective_rank"] == pytest.approx(1 / 2)
    full = matrix_norms({"a": 2.0 * torch.eye(4), "conv": torch.eye(4).view(4, 1, 2, 2)})
    assert full == {"weight_spectral": pytest.approx(2.0), "effective_rank": pytest.approx(1.0)}


def test_sparsity_depends_on_tolerance_and_dtype():
    before = {"w": torch.ones(4), "frozen": torch.ones(100)}
    after = {"w": torch.tensor([1.0, 1 + 1e-6, 1 + 1e-3, 2.0]), "frozen": torch.ones(100)}
    found = sparsity(before, after)
    assert found == {"sparsity_fp32": 0.25, "sparsity_1e-5": 0.5, "sparsity_bf16": 0.75}


def test_fisher_information_of_a_uniform_policy(probe):
    base = uniform_policy()
    fisher = diagonal_fisher(base, probe)
    assert not any("value_head" in name for name in fisher)
    # The logit of a bin has p (1 - p) for every action in the chunk.
    expected = base.chunk_size * (1 / 7) * (6 / 7)
    assert float(fisher["action_head.2.bias"].mean()) == pytest.approx(expected, rel=0.1)


def test_fisher_information_leaves_a_base_that_it_shares_frozen(probe, monkeypatch):
    """The copy of a flow-matching base has its parameters: what follows must not train them."""
    base = uniform_policy().frozen_copy()
    monkeypatch.setattr(base, "frozen_copy", lambda: base)
    diagonal_fisher(base, probe, states=2)
    assert not any(p.requires_grad for p in base.module.parameters())


def test_half_the_squared_fisher_norm_is_a_small_kl(probe):
    base, tuned = uniform_policy(), uniform_policy()
    with torch.no_grad():
        tuned.module.action_head[-1].bias.view(5, 7)[:, 2] += 0.05
        before, after = (p.distribution(probe.inputs) for p in (base, tuned))
        kl = float(before.kl(after).mean())
    norm = fisher_norm(weight_changes(base, tuned), diagonal_fisher(base, probe, states=45))
    assert norm**2 / 2 == pytest.approx(kl, rel=0.3)


def test_activations_count_all_layers_but_the_logits(probe):
    base, tuned = tiny_policy(), tiny_policy()
    with torch.no_grad():
        tuned.module.action_head[-1].bias.add_(5.0)
    assert activation_change(base, tuned, probe) == {"activation_l1": 0.0, "activation_l2": 0.0}
    with torch.no_grad():
        tuned.module.action_head[0].bias.add_(0.7)
    found = activation_change(base, tuned, probe)
    layers = 2 + 1 + 4 + 1  # cameras, state, one block, first of the action head
    assert found["activation_l1"] == pytest.approx(0.7 / layers, rel=1e-5)
    assert found["activation_l2"] == pytest.approx(0.7 / layers, rel=1e-5)


def test_representations_are_what_the_logits_are_made_of(probe):
    policy = tiny_policy()
    features = representation(policy, probe)
    assert features.shape[0] == len(probe)
    head = policy.module.action_head[-1]
    hidden = features.view(len(probe), -1, head.in_features).float()
    logits = head(hidden).view(len(probe), -1, 5, 7)[:, : policy.chunk_size]
    with torch.no_grad():
        expected = policy.distribution(probe.inputs).log_probs
    assert torch.allclose(torch.log_softmax(logits, -1), expected, atol=1e-5)


def test_cknna_of_equal_turned_and_unrelated_representations():
    numbers = torch.Generator().manual_seed(0)
    one = torch.randn(80, 12, generator=numbers, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=numbers, dtype=torch.float64)).Q
    assert cknna(one, one) == 1.0
    assert cknna(one, one @ turn) == pytest.approx(1.0)
    other = torch.randn(80, 12, generator=numbers, dtype=torch.float64)
    assert abs(cknna(one, other)) < 0.2
    noisy = one + 0.5 * other
    assert 0.2 < cknna(one, noisy) < cknna(one, one + 0.1 * other) < 1.0


def test_cknna_written_out(probe):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 30, 4))
    y = x + 0.4 * y

    def kernels(a, b, k=10):
        """Kernels of a and b where both have the pair among the nearest; by loops."""
        gram = [a @ a.T, b @ b.T]
        near = [[set(np.argsort(-np.where(np.arange(30) == i, -np.inf, g[i]))[:k]) for i in range(30)] for g in gram]  # fmt: skip  # noqa: E501
        both = np.array(
            [[j in near[0][i] and j in near[1][i] for j in range(30)] for i in range(30)]
        )
        return [g * both for g in gram]

    def hsic(a, b, n=30):
        a, b = (m - np.diag(np.diag(m)) for m in kernels(a, b))
        one = np.ones(n)
        total = np.trace(a @ b) + one @ a @ one * (one @ b @ one) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * one @ a @ b @ one) / (n * (n - 3))

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert cknna(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)
