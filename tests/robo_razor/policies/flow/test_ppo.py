"""PPO on denoising paths: that it learns, and what its ratios are."""

from __future__ import annotations

import math

import pytest
import tiny_vla
import torch
from flow_bandit import make_ppo
from toy_runs import own_warnings

from robo_razor.core.settings.config import FlowConfig
from robo_razor.training.on_policy import clipped_surrogate
from robo_razor.training.regularisers.kl import KL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_vla.save_tiny_smolvla(tmp_path_factory.mktemp("flow") / "policy")


@pytest.mark.parametrize("ratio", ["step", "chunk"])
def test_ppo_learns_from_outcomes_and_the_divergence_grows(folder, ratio):
    method = make_ppo(folder, ratio=ratio)
    updates = [method.update(update) for update in range(1, 9)]
    success = [metrics["rollout/success_rate"] for metrics in updates]
    assert success[-1] > success[0] + 0.5, success
    divergence = [metrics["train/kl_base_tuned"] for metrics in updates]
    assert divergence[-1] > divergence[2] > divergence[0] > 0.0
    assert method.base.name == method.policy.name


def test_steps_are_clipped_one_by_one():
    """A step that went too far loses its gradient, and the others keep theirs."""
    log_prob = torch.tensor([[0.0, 0.5], [0.0, 0.1]], requires_grad=True)
    loss, diagnostics = clipped_surrogate(
        log_prob, torch.zeros(2, 2), torch.tensor([1.0, -2.0]), clip_low=0.2, clip_high=0.2
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(1.0 + 1.2 - 2.0 - 2.0 * math.exp(0.1)) / 2)
    expected = [[-0.5, 0.0], [1.0, math.exp(0.1)]]
    assert torch.allclose(log_prob.grad, torch.tensor(expected))
    # Per decision, as the divergence of whole paths.
    terms = [math.exp(0.5) - 1.5, math.exp(0.1) - 1.1]
    assert diagnostics["approx_kl"].item() == pytest.approx(sum(terms) / 2)
    assert diagnostics["clip_fraction"].item() == pytest.approx(0.25)


def test_a_single_step_is_the_chunk():
    torch.manual_seed(0)
    new, old, advantages = torch.randn(3, 8)
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    of_chunk, diagnostics = clipped_surrogate(new, old, advantages, **clip)
    of_step, same = clipped_surrogate(new[:, None], old[:, None], advantages, **clip)
    assert torch.equal(of_chunk, of_step)
    assert diagnostics == same


def test_small_parts_add_up_to_the_same_gradient(folder):
    gradients = []
    for size in (None, 40):
        method = make_ppo(folder, micro_batch_size=size, update_epochs=1, max_grad_norm=1e9)
        method.update(1)
        gradients.append([p.grad.clone() for p in method.policy_parameters if p.grad is not None])
    for expected, parts in zip(*gradients, strict=True):
        assert torch.allclose(expected, parts, atol=1e-4 * float(expected.abs().max()) + 1e-7)


def test_a_penalty_keeps_the_policy_near_its_base(folder):
    free, held = (
        make_ppo(folder, kl=weight, num_updates=2, update_epochs=4) for weight in (0.0, 3.0)
    )
    for update in (1, 2):
        far, near = free.update(update), held.update(update)
    assert near["train/kl_base_tuned"] < 0.7 * far["train/kl_base_tuned"]


def test_small_parts_have_the_same_penalty(folder):
    """The paths of the penalty depend on the decision, not on its place in a part."""
    gradients = []
    for size in (None, 4):
        method = make_ppo(
            folder,
            micro_batch_size=size,
            update_epochs=1,
            max_grad_norm=1e9,
            kl=1.0,
            learning_rate=1e-9,
        )
        torch.manual_seed(0)
        with torch.no_grad():  # penalty and gradient are 0 at equal weights
            for parameter in method.policy_parameters:
                parameter.add_(0.02 * torch.randn_like(parameter))
        method.base_outcomes = (True,)  # what it learns from outcomes does not matter here
        method.update(1)
        gradients.append([p.grad.clone() for p in method.policy_parameters if p.grad is not None])
    for expected, parts in zip(*gradients, strict=True):
        assert torch.allclose(expected, parts, atol=1e-3 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_equal_weights_cost_no_penalty_in_bfloat16(folder, direction, monkeypatch):
    """Base and tuned are compared in one precision; `own` trains what encodes the state."""
    penalties = []
    original = KL.penalty

    def watch(self, *arguments):
        penalties.append(float(original(self, *arguments).detach()))
        return torch.zeros(())

    monkeypatch.setattr(KL, "penalty", watch)
    method = make_ppo(
        folder,
        FlowConfig(train="own"),
        bf16=True,
        kl=1.0,
        direction=direction,
        update_epochs=1,
        minibatch_size=40,
        learning_rate=1e-30,
    )
    method.update(1)
    assert penalties == [0.0] * 3


def test_a_temperature_that_does_nothing_is_warned_of(folder, caplog):
    make_ppo(folder)
    assert not own_warnings(caplog)
    make_ppo(folder, temperature=0.9)
    assert "`ppo.temperature` = 0.9 has no effect" in caplog.text
    assert "flow.noise" in caplog.text
