from __future__ import annotations

import pytest
import torch
from toy_demonstrations import demonstrations
from toy_policy import tiny_policy

from robo_razor.evaluation.probes import demonstration_probe
from robo_razor.evaluation.weights import (
    changed_weights,
    diagonal_fisher,
    fisher_norm,
    policy_weights,
    share_of_equal,
    singular_values,
    weight_changes,
)


@pytest.fixture(scope="module")
def probe():
    return demonstration_probe(demonstrations((25, 20)), tiny_policy(), 45)


def uniform_policy():
    policy = tiny_policy()
    for parameter in policy.module.action_head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    return policy


def test_the_value_head_is_not_a_weight_of_the_policy():
    policy = tiny_policy()
    with torch.no_grad():
        for parameter in policy.module.value_parameters():
            parameter.add_(1.0)
    assert not changed_weights(tiny_policy(), policy)


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
    changes, written = weight_changes(base, tuned), weight_changes(base, merged)
    assert changes.keys() == written.keys()
    assert all(torch.equal(changes[name], written[name]) for name in changes)
    ranks = [int((values > 1e-4 * values[0]).sum()) for values in singular_values(changes)]
    assert set(ranks) == {2}


def test_singular_values_are_those_of_matrices_and_convolutions():
    changes = {"bias": torch.full((9,), 50.0), "conv": 2.0 * torch.eye(4).view(4, 1, 2, 2)}
    (values,) = singular_values(changes)
    assert values.tolist() == pytest.approx([2.0] * 4)


def test_only_tensors_that_changed_count_as_weights_that_did_not():
    changed = {"w": (torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 2.0]))}
    assert share_of_equal(changed, torch.eq) == 0.75
    assert share_of_equal({}, torch.eq) == 1.0


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
