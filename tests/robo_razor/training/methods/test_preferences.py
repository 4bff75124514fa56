"""A method that learns from pairs of episodes, written as somebody outside would write it."""

from __future__ import annotations

import copy
import types
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from bandit import CONTEXTS, BanditPolicy, contexts, make_learner
from torch.nn.functional import logsigmoid

from robo_razor.core.errors import ConfigError
from robo_razor.core.settings.conversion import setting
from robo_razor.training.advantages import preference_pairs
from robo_razor.training.methods import Rows
from robo_razor.training.on_policy import OnPolicy
from robo_razor.training.regularisers.kl import KL
from robo_razor.training.step import Loss, Minibatch, Place, Step, Targets


@dataclass(frozen=True, kw_only=True)
class SimPO(OnPolicy):
    """Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734), without a reference."""

    NAME: ClassVar[str] = "simpo"
    rows: ClassVar[Rows] = "pairs"

    group_size: int = setting(4, low=2)
    """Episodes from each start state (>= 2)."""
    pairs_per_step: int = setting(4, low=1)
    """Pairs of a gradient step (>= 1)."""
    beta: float = setting(2.0, above=0.0)
    """Factor on the difference of the mean log-probabilities (> 0)."""
    margin: float = setting(0.5, low=0.0)
    """Difference that a pair should reach (>= 0)."""
    micro_batch_size: int | None = setting(None, low=1)
    """Decisions at once in memory (>= 1)."""

    def targets(self, batch):
        """Return no advantages: the pairs are all that is learnt from."""
        return Targets(torch.zeros(int(batch.decisions.sum())))

    def minibatches(self, rows, draw):
        """Return the pairs of every gradient step, in random order."""
        order = rows[torch.from_numpy(draw().permutation(len(rows)))]
        return list(order.split(self.pairs_per_step)) if len(rows) else []

    def loss(self, step):
        """Return -mean(log sigmoid(beta (score of the winner - score of the loser) - margin))."""
        score = self.beta * step.episode_means(step.log_prob)
        difference = score[step.winners] - score[step.losers]
        loss = -logsigmoid(difference - self.margin).mean()
        return Loss(loss, {"loss": loss.detach(), "accuracy": (difference > 0).float().mean()})


BRIEF = {
    "num_updates": 4,
    "episodes_per_update": 32,
    "learning_rate": 0.05,
    "warmup_updates": 0,
    "temperature": 1.0,
}


def learner_of(terms=(), **settings):
    return make_learner(SimPO(**(BRIEF | settings)), terms)


def preference(learner):
    """Return the mean log-probability of the right actions minus that of all others."""
    with torch.no_grad():
        log_probs = learner.policy.distribution({"context": torch.eye(CONTEXTS)}).log_probs
    right = log_probs[:, 0, 0].diagonal()
    return float((right - (log_probs[:, 0, 0].sum(-1) - right) / (log_probs.shape[-1] - 1)).mean())


def weights(learner):
    return [parameter.detach().clone() for parameter in learner.policy.module.parameters()]


def test_two_updates_raise_the_winners_against_the_losers():
    learner = learner_of()
    preferences = [preference(learner)]
    for update in (1, 2):
        metrics = learner.update(update)
        preferences.append(preference(learner))
    assert preferences[0] == pytest.approx(0.0, abs=1e-6)
    assert preferences[0] < preferences[1] < preferences[2]
    assert metrics["train/accuracy"] > 0.5
    assert metrics["train/gradient_steps"] >= 1


def test_it_learns_the_bandit():
    learner = learner_of(num_updates=30, learning_rate=0.2)
    success = [learner.update(update)["rollout/success_rate"] for update in range(1, 31)]
    assert success[0] < 0.45
    assert np.mean(success[-5:]) > 0.9


def test_it_resumes_bit_for_bit_with_a_regulariser():
    terms = [KL(weight=0.1)]
    uninterrupted = learner_of(terms)
    uninterrupted.update(1)
    state, middle = copy.deepcopy(uninterrupted.state()), weights(uninterrupted)
    expected = uninterrupted.update(2)
    resumed = learner_of(terms)
    with torch.no_grad():
        for parameter, value in zip(resumed.policy.module.parameters(), middle, strict=True):
            parameter.copy_(value)
    resumed.load_state(state)
    metrics = resumed.update(2)
    for a, b in zip(weights(uninterrupted), weights(resumed), strict=True):
        assert torch.equal(a, b)
    assert {key: value for key, value in metrics.items() if not key.startswith("time/")} == {
        key: value for key, value in expected.items() if not key.startswith("time/")
    }


def test_micro_batches_of_pairs_add_up_to_the_minibatch():
    def move(policy):
        with torch.no_grad():
            policy.module["policy"].weight.copy_(torch.arange(20.0).reshape(5, 4).sin())

    def first_step(size):
        method = SimPO(**BRIEF, micro_batch_size=size, pairs_per_step=100)
        return make_learner(method, [KL(weight=0.5)], alter=move).update(1)

    expected = first_step(None)
    assert expected["train/gradient_steps"] == 1.0
    assert expected["regulariser/kl"] > 0.1
    for size in (2, 5, 7):
        metrics = first_step(size)
        for key in ("train/loss", "regulariser/kl", "train/grad_norm", "train/accuracy"):
            assert metrics[key] == pytest.approx(expected[key], rel=1e-5), (size, key)


def test_minibatches_consist_of_whole_pairs_of_one_start_state():
    learner = learner_of()
    batch = learner._collect(1)
    minibatches = learner._minibatches(batch, learner.method.targets(batch), 1)
    assert minibatches
    paired = torch.cat([minibatch.pairs for minibatch in minibatches]).flatten()
    assert len(paired) == len(torch.unique(paired)), "an episode is in one pair at most"
    for minibatch in minibatches:
        assert len(minibatch.pairs) <= 4
        assert sorted(minibatch.rows.tolist()) == sorted(minibatch.pairs.flatten().tolist())
        for winner, loser in minibatch.pairs.tolist():
            assert batch.rows[winner].seed == batch.rows[loser].seed
            assert batch.success[winner]
            assert not batch.success[loser]


def test_the_best_is_paired_with_the_worst_and_ties_give_no_pair():
    outcomes = np.array([0.0, 2.0, 1.0, 3.0, 1.0, 1.0, 0.0, 5.0])
    pairs = preference_pairs(outcomes, ["a", "a", "a", "a", "b", "b", "c", "d"])
    assert pairs.tolist() == [[3, 0], [1, 2]]
    odd = preference_pairs(np.array([1.0, 0.0, 1.0]), ["a", "a", "a"])
    assert odd.tolist() == [[0, 1]]
    assert preference_pairs(np.zeros(4), ["a"] * 4).shape == (0, 2)


def test_an_update_whose_episodes_all_ended_alike_makes_no_step():
    learner = learner_of()
    batch = learner._collect(1)
    batch.success[:] = False
    batch.episode_return[:] = 1.0
    before = weights(learner)
    assert learner._learn(batch, 1)["train/gradient_steps"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))


def test_a_step_sums_and_averages_over_the_decisions_of_each_episode():
    policy = BanditPolicy()
    step = Step(
        policy,
        policy,
        dict,
        episode=torch.tensor([7, 7, 7, 2, 2, 5]),
        pairs=torch.tensor([[7, 2], [5, 7]]),
    )
    values = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 4.0])
    assert step.episode_sums(values).tolist() == [30.0, 4.0, 9.0]
    assert step.episode_means(values).tolist() == [15.0, 4.0, 3.0]
    assert step.winners.tolist() == [2, 1]
    assert step.losers.tolist() == [0, 2]


def test_a_step_without_pairs_says_so():
    policy = BanditPolicy()
    step = Step(policy, policy, dict, episode=torch.tensor([0, 1]), place=Place())
    with pytest.raises(AttributeError, match='set the method\'s `rows` to "pairs"'):
        _ = step.winners


def test_parts_of_a_minibatch_hold_whole_pairs():
    episode = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5])
    pairs = torch.tensor([[0, 1], [3, 2], [4, 5]])
    minibatch = Minibatch(torch.arange(12), pairs)
    parts = minibatch.split(5, episode)
    assert [part.pairs.tolist() for part in parts] == [[[0, 1]], [[3, 2]], [[4, 5]]]
    assert [part.rows.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [10, 11]]
    assert [len(part.pairs) for part in minibatch.split(10, episode)] == [2, 1]
    assert len(minibatch.split(100, episode)) == 1


def test_pairs_take_groups_and_one_process():
    @dataclass(frozen=True, kw_only=True)
    class Single(SimPO):
        group_size: int = setting(1, low=1)
        """Episodes from each start state (>= 1)."""

    with pytest.raises(ConfigError, match=r"pairs of episodes.*`group_size` is 1"):
        make_learner(Single(**BRIEF))
    ranks = types.SimpleNamespace(size=2, rank=0, is_main=True)
    with pytest.raises(ConfigError, match="two episodes of a pair may be on different ones"):
        make_learner(SimPO(**BRIEF), ranks=ranks)


def test_the_bandit_gives_winners_the_right_action():
    """What the test of preferences relies on."""
    batch = learner_of()._collect(1)
    tokens = batch.record.actions[:, 0, 0]
    right = BanditPolicy().bin_centers[contexts(batch.rows)]
    assert torch.equal(tokens == right, torch.from_numpy(batch.success))
