"""A contextual bandit with a policy of one linear layer, for tests of on-policy methods."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from robo_razor.core.types import DecisionRecord, EpisodeBatch
from robo_razor.policies.distributions import TokenChunkDistribution

CONTEXTS, BINS = 4, 5


class BanditPolicy:
    """A linear softmax over five actions given one of four contexts, and a linear value."""

    name, has_density, device = "bandit", True, torch.device("cpu")
    temperature, chunk_size, action_dim = 1.0, 1, 1

    def __init__(self):
        self.module = nn.ModuleDict(
            {"policy": nn.Linear(CONTEXTS, BINS), "value": nn.Linear(CONTEXTS, 1)}
        )
        for parameter in self.module.parameters():
            nn.init.zeros_(parameter)
        self.bin_centers = torch.linspace(-1, 1, BINS)

    def policy_parameters(self):
        return list(self.module["policy"].parameters())

    def value_parameters(self):
        return list(self.module["value"].parameters())

    def distribution(self, batch):
        logits = self.module["policy"](batch["context"])[:, None, None]
        return TokenChunkDistribution(logits, self.bin_centers, self.temperature)

    def distribution_and_value(self, batch, value_detach=True):
        return self.distribution(batch), self.module["value"](batch["context"])[:, 0]


def bandit_rollout(policy):
    """Return a service that plays one-decision episodes: action k is right in context k."""

    def rollout(rows, *, mode, record, sampling_seed):
        n = len(rows)
        context = torch.tensor([row.seed % CONTEXTS for row in rows])
        inputs = {"context": torch.nn.functional.one_hot(context, CONTEXTS).float()}
        generator = torch.Generator().manual_seed(sampling_seed % 2**31)
        with torch.no_grad():
            distribution, value = policy.distribution_and_value(inputs)
            actions = distribution.sample(torch.rand(n, 1, 1, generator=generator))
            log_prob = distribution.log_prob(actions)
        success = distribution.tokens(actions)[:, 0, 0] == context
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
