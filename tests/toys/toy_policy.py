"""A tiny razor policy for the toy environment, new or cloned from its expert for a moment."""

from __future__ import annotations

import toy_env


def tiny_policy(seed: int = 0, state: int = 7, **settings):
    import torch  # not before: many only want the names of the tasks

    from robo_razor.policies.load import create_policy

    torch.manual_seed(seed)
    sizes = {
        "dim_model": 32,
        "n_layers": 1,
        "n_heads": 2,
        "dim_feedforward": 64,
        "dim_head": 32,
        "stem_channels": (4, 4, 8),
        "num_landmarks": 0,
        "num_bins": 7,
        "image_size": 16,
        "image_jitter": 0.0,
    }
    return create_policy([0.0] * state, [0.7] * (state - 1) + [1.0], **(sizes | settings))


def save_tiny_policy(directory, seed: int = 0, **settings) -> str:
    tiny_policy(seed, **settings).save(directory)
    return str(directory)


NEW, RED, GREEN = "toy/ReachBlue-v0", "toy/ReachRed-v0", "toy/ReachGreen-v0"
assert set(toy_env.TASKS) == {NEW, RED, GREEN}
