"""The KL penalty: its formula, its states, and what it refuses."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch
from bandit import CONTEXTS, BanditPolicy, inputs_of, make_learner

from robo_razor.core.errors import ConfigError, PolicyError
from robo_razor.core.settings.config import HELD_OUT_SEED, FinetuneConfig
from robo_razor.core.types import EpisodeRow
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.regularisers.kl import KL
from robo_razor.training.step import Step


def moved(policy):
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in policy.policy_parameters():
            parameter.add_(torch.randn_like(parameter))
    return policy


def make_step():
    policy = BanditPolicy()
    base = policy.frozen_copy()
    moved(policy)
    rows = [EpisodeRow("bandit", seed) for seed in range(CONTEXTS)]
    return Step(policy, base, lambda: inputs_of(rows))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_penalty_is_the_mean_divergence_in_its_direction(direction):
    step = make_step()
    base, tuned = (d.log_probs[:, 0, 0] for d in (step.base_distribution, step.distribution))
    first, second = (base, tuned) if direction == "forward" else (tuned, base)
    expected = (first.exp() * (first - second)).sum(-1).mean()
    penalty = KL(direction=direction).penalty(step, {})
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    assert step.policy.module["policy"].weight.grad.abs().sum() > 0
    assert step.base.module["policy"].weight.grad is None


@pytest.mark.parametrize("ent_coef", [0.0, 0.01])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_on_the_batch_it_is_what_ppos_own_penalty_was(direction, ent_coef):
    """loss = vf value + surrogate - ent entropy + weight KL, as ppo.py had it, bit for bit.

    With an entropy bonus autograd adds three gradients up in another order: equal to rounding.
    """
    settings = {
        "num_updates": 4,
        "episodes_per_update": 32,
        "minibatch_size": 16,
        "micro_batch_size": 5,
        "learning_rate": 0.1,
        "value_warmup_updates": 0,
        "warmup_updates": 0,
        "temperature": 0.7,
        "ent_coef": ent_coef,
        "target_kl": None,
    }
    old_method = make_learner(OldPPO(**settings, direction=direction), alter=moved)
    term = make_learner(PPO(**settings), [KL(weight=0.3, direction=direction)], alter=moved)
    for update in (1, 2):
        old_method.update(update), term.update(update)
    pairs = zip(old_method.policy.module.parameters(), term.policy.module.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5 if ent_coef else 0.0)


class OldPPO(PPO):
    """PPO with the penalty in its own loss."""

    def __init__(self, *, direction="forward", **settings):
        super().__init__(**settings)
        object.__setattr__(self, "direction", direction)

    def loss(self, step):
        from robo_razor.training.step import Loss

        inputs = step.inputs
        value = step.value(detach=self.detach_value)
        with torch.no_grad():
            base = step.base.distribution(inputs)
        tuned, _ = step.distribution, step.log_prob_steps  # in the order of then: sums round alike
        penalty = (base.kl(tuned) if self.direction == "forward" else tuned.kl(base)).mean()
        policy_loss, _ = self.surrogate(step)
        critic_loss = 0.5 * (value.float() - step.targets.returns).square().mean()
        loss = torch.zeros(()) + self.vf_coef * critic_loss
        loss = loss + policy_loss - self.ent_coef * tuned.entropy().mean() + 0.3 * penalty
        return Loss(loss, {"approx_kl": 0.0})


@pytest.mark.parametrize(("on", "tasks"), [("new", ["bandit"]), ("prior", ["another bandit"])])
def test_states_are_visited_once_and_never_where_skills_are_evaluated(on, tasks):
    learner = make_learner(PPO(num_updates=2))
    asked = []
    rollout = learner.context.rollout

    def watch(rows, **settings):
        asked.append((rows, settings))
        return rollout(rows, **settings)

    context = dataclasses.replace(learner.context, rollout=watch)
    inputs = KL(on=on, episodes=9, states=7).prepare(context)
    ((rows, settings),) = asked
    assert [row.task for row in rows] == tasks * 9
    assert max(row.seed for row in rows) < HELD_OUT_SEED
    assert [row.row_id for row in rows] == list(range(9))
    assert settings["mode"] == "greedy"
    assert settings["whole"], "every rank holds all of them"
    assert inputs["context"].shape == (7, CONTEXTS)
    assert KL().prepare(context) == {}


def test_a_step_takes_some_of_the_states_at_random_and_always_the_same():
    step = make_step()
    inputs = {"context": torch.eye(CONTEXTS).repeat(8, 1)}
    term = KL(on="prior", batch_size=3)
    assert torch.equal(term.penalty(step, inputs), term.penalty(step, inputs))
    every = KL(on="prior", batch_size=100).penalty(step, inputs)
    torch.testing.assert_close(every, KL().penalty(make_step(), {}))


def test_a_policy_without_a_density_is_refused():
    policy = types.SimpleNamespace(name="act", has_density=False)
    with pytest.raises(PolicyError, match=r"'act' has no action density.*regularise\.l2"):
        KL().validate(FinetuneConfig(), policy, {})
    with pytest.raises(ConfigError, match="there are no prior skills"):
        KL(on="prior").validate(FinetuneConfig(), BanditPolicy(), {})
