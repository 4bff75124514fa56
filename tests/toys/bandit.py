"""A contextual bandit with a policy of one linear layer, for tests of methods and regularisers."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from robo_razor.core.ranks import ALONE
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DecisionRecord, EpisodeBatch
from robo_razor.policies.distributions import TokenChunkDistribution
from robo_razor.policies.lora import add_lora, merge_lora
from robo_razor.policies.policy import Policy
from robo_razor.training.learner import Context
from robo_razor.training.regularisers import Penalties

CONTEXTS, BINS = 4, 5


class BanditPolicy(Policy):
    """A linear softmax over five actions given one of four contexts, and a linear value."""

    name, has_density = "bandit", True

    def __init__(self):
        self.module = nn.ModuleDict(
            {"policy": nn.Linear(CONTEXTS, BINS), "value": nn.Linear(CONTEXTS, 1)}
        )
        for parameter in self.module.parameters():
            nn.init.zeros_(parameter)
        self.bin_centers = torch.linspace(-1, 1, BINS)

    def policy_parameters(self):
        return [p for p in self.module["policy"].parameters() if p.requires_grad]

    def value_parameters(self):
        return list(self.module["value"].parameters())

    def add_lora(self, rank):
        return add_lora([self.module["policy"]], rank)

    def frozen_copy(self):
        frozen = copy.copy(self)
        frozen.module = copy.deepcopy(self.module)
        merge_lora(frozen.module)
        frozen.module.eval().requires_grad_(False)
        return frozen

    def distribution(self, batch):
        logits = self.module["policy"](batch["context"])[:, None, None]
        return TokenChunkDistribution(logits, self.bin_centers, self.temperature)

    def distribution_and_value(self, batch, value_detach=True):
        return self.distribution(batch), self.module["value"](batch["context"])[:, 0]

    def bc_loss(self, batch):
        log_prob = self.distribution(batch).log_prob(batch["action"])
        return -log_prob.mean(), {}


def contexts(rows):
    """Return the number of each episode's context, which is its right action too, int64 [E]."""
    return torch.tensor([row.seed % CONTEXTS for row in rows])


def inputs_of(rows):
    return {"context": torch.nn.functional.one_hot(contexts(rows), CONTEXTS).float()}


def bandit_rollout(policy):
    """Return a service that plays one-decision episodes: action k is right in context k."""

    def rollout(rows, *, mode, record, sampling_seed, whole=False):
        n = len(rows)
        inputs = inputs_of(rows)
        generator = torch.Generator().manual_seed(sampling_seed % 2**31)
        with torch.no_grad():
            distribution, value = policy.distribution_and_value(inputs)
            actions = distribution.sample(torch.rand(n, 1, 1, generator=generator))
            log_prob = distribution.log_prob(actions)
        success = distribution.tokens(actions)[:, 0, 0] == contexts(rows)
        ones = np.ones(n, dtype=np.int64)
        return EpisodeBatch(
            rows=tuple(rows),
            instructions=("",) * n,
            success=success.numpy(),
            decisions=ones,
            control_steps=ones,
            episode_return=success.double().numpy(),
            terminated=ones.astype(bool),
            truncated=~ones.astype(bool),
            record=DecisionRecord(
                inputs, actions, log_prob, value, success.float(), np.arange(n + 1), torch.zeros(n)
            ),
        )

    return rollout


class Windows:
    """Every context with its right action, in place of the windows of demonstrations."""

    def __init__(self, policy, repeats=8):
        self.context = torch.eye(CONTEXTS).repeat(repeats, 1)
        self.action = policy.bin_centers[torch.arange(CONTEXTS)].repeat(repeats)[:, None, None]

    def __len__(self):
        return len(self.context)

    def weight(self, rows):
        return len(rows)

    def batch(self, rows):
        index = torch.from_numpy(rows)
        return {"context": self.context[index], "action": self.action[index]}


def make_learner(method, regularise=(), *, ranks=ALONE, alter=None, **settings):
    """Return what makes a method's updates on the bandit.

    Args:
        method: With its settings.
        regularise: Regularisers, which are prepared.
        ranks: This process among those of the run.
        alter: Changes the policy after its base was copied.
        **settings: Of the run.
    """
    policy = BanditPolicy()
    base = policy.frozen_copy()
    if method.lora_rank:
        torch.manual_seed(0)
        policy.add_lora(method.lora_rank)
    if alter is not None:
        alter(policy)
    penalties = Penalties(regularise)
    context = Context(
        config=FinetuneConfig(
            method=method, task="bandit", regularise=tuple(regularise), **settings
        ),
        policy=policy,
        base=base,
        rollout=bandit_rollout(policy),
        demonstrations=lambda: None,
        prior={"Other": "another bandit"},
        ranks=ranks,
        penalties=penalties,
    )
    learner = method.learner(context)
    if method.clones:
        learner.sampler = Windows(policy)
    penalties.prepare(context)
    return learner
