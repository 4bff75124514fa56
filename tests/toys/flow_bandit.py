"""A flow policy's episodes of one decision, and PPO on them."""

from __future__ import annotations

import numpy as np
import tiny_vla
import torch

from robo_razor.core.settings.config import FinetuneConfig, FlowConfig
from robo_razor.core.types import DecisionRecord, EpisodeBatch
from robo_razor.policies.load import load_policy
from robo_razor.training.learner import Context
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.regularisers import Penalties
from robo_razor.training.regularisers.kl import KL

EPISODES = 96


def observations(rows, policy):
    n = len(rows)
    state = np.zeros((n, tiny_vla.STATE), np.float32)
    state[:, 0] = [1.0 if row.seed % 2 else -1.0 for row in rows]
    image = np.zeros((n, 16, 16, 3), np.uint8)
    seen = {"pixels": {"front": image, "wrist": image}, "agent_pos": state}
    return policy.prepare(seen, ["go"] * n)


def forwards(policy):
    """Return a service with episodes of one decision: go forwards along the first dimension."""

    def rollout(rows, *, mode, record, sampling_seed, whole=False):
        inputs = observations(rows, policy)
        n = len(rows)
        with torch.no_grad():
            distribution, value = policy.distribution_and_value(inputs)
            numbers = np.random.default_rng(sampling_seed).random((n, *policy.noise_shape))
            path = distribution.sample(torch.from_numpy(numbers.clip(1e-6, 1 - 1e-6)))
            log_prob = distribution.log_prob_steps(path)
        success = policy.to_actions(path)[..., 0].mean(1) > 0.5
        ones = np.ones(n, dtype=np.int64)
        return EpisodeBatch(
            rows=tuple(rows),
            instructions=("go",) * n,
            success=success,
            decisions=ones,
            control_steps=ones,
            episode_return=success.astype(float),
            terminated=ones.astype(bool),
            truncated=~ones.astype(bool),
            record=DecisionRecord(
                inputs,
                path,
                log_prob,
                value,
                torch.from_numpy(success).float(),
                np.arange(n + 1),
                torch.zeros(n),
            ),
        )

    return rollout


def make_ppo(folder, flow=None, alter=None, kl=None, direction="forward", **settings):
    """Return PPO on a folder's policy.

    Args:
        folder: Of the policy, or a configured `Policy`.
        flow: Its settings.
        alter: Changes the policy before its base is copied, e.g. its precision.
        kl: Weight of a KL penalty on the batch; None: there is none.
        direction: Of that KL.
        **settings: Of PPO.
    """
    ppo = {
        "episodes_per_update": EPISODES,
        "num_updates": 8,
        "minibatch_size": EPISODES,
        "update_epochs": 3,
        "learning_rate": 4e-3,
        "value_learning_rate": 3e-3,
        "warmup_updates": 0,
        "value_warmup_updates": 0,
        "target_kl": None,
    }
    method = PPO(**(ppo | settings))
    terms = () if kl is None else (KL(weight=kl, direction=direction),)
    config = FinetuneConfig(method=method, flow=flow or FlowConfig(), regularise=terms)
    policy = load_policy(folder)
    if alter is not None:
        alter(policy)
    policy.configure(config.flow)
    base = policy.frozen_copy()
    if config.method.lora_rank:
        torch.manual_seed(0)
        policy.add_lora(config.method.lora_rank)
    policy.share_frozen(base)
    context = Context(
        config=config,
        policy=policy,
        base=base,
        rollout=forwards(policy),
        demonstrations=lambda: None,
        penalties=Penalties(terms),
    )
    return method.learner(context)
