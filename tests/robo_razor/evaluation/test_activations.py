from __future__ import annotations

import pytest
import torch
from toy_demonstrations import demonstrations
from toy_policy import tiny_policy

from robo_razor.evaluation.activations import activation_change, representation
from robo_razor.evaluation.probes import demonstration_probe


@pytest.fixture(scope="module")
def probe():
    return demonstration_probe(demonstrations((25, 20)), tiny_policy(), 45)


def test_activations_count_all_layers_but_the_logits(probe):
    base, tuned = tiny_policy(), tiny_policy()
    with torch.no_grad():
        tuned.module.action_head[-1].bias.add_(5.0)
    assert activation_change(base, tuned, probe) == (0.0, 0.0)
    with torch.no_grad():
        tuned.module.action_head[0].bias.add_(0.7)
    change = activation_change(base, tuned, probe)
    layers = 2 + 1 + 4 + 1  # cameras, state, one block, first of the action head
    assert change[0] == pytest.approx(0.7 / layers, rel=1e-5)
    assert change[1] == pytest.approx(0.7 / layers, rel=1e-5)


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
