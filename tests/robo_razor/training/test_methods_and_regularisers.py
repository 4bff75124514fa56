"""What every method and every regulariser must do, whoever wrote them, alone and together."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from bandit import CONTEXTS, make_learner

from robo_razor.core.plugins import METHODS, REGULARISERS

BRIEF = {
    "num_updates": 4,
    "episodes_per_update": 16,
    "minibatch_size": 8,
    "micro_batch_size": 3,
    "batch_size": 8,
    "epochs": 10,
    "group_size": 4,
    "learning_rate": 0.05,
    "warmup_updates": 1,
    "value_warmup_updates": 1,
    "temperature": 1.0,
}
"""Settings of a method that make it brief, as far as it has them."""


def brief(kind, **settings):
    """Return a method or a regulariser with some settings, as far as it has them."""
    names = {item.name for item in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in settings.items() if key in names})


def variants():
    """Yield every regulariser, with each value of the settings that choose between a few."""
    for name in REGULARISERS:
        kind = REGULARISERS.get(name)
        yield pytest.param(kind(weight=0.5), id=name)
        for choice in ("new", "prior") if name == "kl" else ():
            yield pytest.param(
                kind(weight=0.5, on=choice, states=12, episodes=6, batch_size=5), id=f"kl-{choice}"
            )


def learner_of(name, terms=(), **settings):
    return make_learner(brief(METHODS.get(name), **(BRIEF | settings)), terms)


def weights(learner):
    return [p.detach().clone() for p in learner.policy.module.parameters()]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("term", variants())
@pytest.mark.parametrize("name", METHODS)
def test_any_method_goes_with_any_regulariser_and_resumes(name, term, rank):
    uninterrupted = learner_of(name, [term], lora_rank=rank)
    first = uninterrupted.update(1)
    state, penalties = (
        copy.deepcopy(uninterrupted.state()),
        copy.deepcopy(uninterrupted.context.penalties.state()),
    )
    middle = weights(uninterrupted)
    second = uninterrupted.update(2)
    assert second[f"regulariser/{term.name}"] > 0.0, "the policy has moved"
    assert f"regulariser/{term.name}" in first or name == "ppo"

    resumed = learner_of(name, [term], lora_rank=rank)
    with torch.no_grad():
        for parameter, value in zip(resumed.policy.module.parameters(), middle, strict=True):
            parameter.copy_(value)
    resumed.load_state(state)
    resumed.context.penalties.load_state(penalties)
    metrics = resumed.update(2)
    assert_equal(weights(uninterrupted), weights(resumed))
    assert {k: v for k, v in metrics.items() if not k.startswith("time/")} == pytest.approx(
        {k: v for k, v in second.items() if not k.startswith("time/")}, nan_ok=True, rel=0, abs=0
    )


@pytest.mark.parametrize("name", METHODS)
def test_without_a_weight_a_regulariser_changes_nothing(name):
    free = learner_of(name)
    terms = [REGULARISERS.get(term)(weight=0.0) for term in REGULARISERS]
    watched = learner_of(name, terms)
    for update in (1, 2):
        free.update(update), watched.update(update)
    for a, b in zip(weights(free), weights(watched), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("term", variants())
@pytest.mark.parametrize("name", METHODS)
def test_a_heavy_regulariser_holds_the_policy_near_its_base(name, term):
    def distance(terms):
        learner = learner_of(name, terms, learning_rate=0.02, update_epochs=10)
        for update in range(1, 4):
            learner.update(update)
        contexts = {"context": torch.eye(CONTEXTS)}
        with torch.no_grad():
            base, tuned = learner.base.distribution(contexts), learner.policy.distribution(contexts)
            return float(base.kl(tuned).mean())

    heavy = {"weight": 10.0} | ({"batch_size": 100} if term.name == "kl" else {})
    assert distance([dataclasses.replace(term, **heavy)]) < 0.8 * distance([])


def test_any_number_of_regularisers_go_together():
    terms = [REGULARISERS.get(name)(weight=0.1) for name in REGULARISERS]
    metrics = learner_of("reinforce", terms).update(1)
    assert {f"regulariser/{name}" for name in REGULARISERS} <= metrics.keys()


def test_no_term_takes_part_while_the_value_head_warms_up():
    terms = [REGULARISERS.get(name)(weight=0.1) for name in REGULARISERS]
    learner = learner_of("ppo", terms)
    assert not [key for key in learner.update(1) if key.startswith("regulariser/")]
    assert [key for key in learner.update(2) if key.startswith("regulariser/")]
