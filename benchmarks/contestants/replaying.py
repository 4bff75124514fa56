"""Replay of denoising paths with gradients, as in every PPO gradient step of a flow policy.

The policy is a tiny SmolVLA (see `tests/toys/tiny_vla.py`), because no real weights are available.
Both sides encode the observations once, compute the log-probabilities of all denoising steps of the
same paths, and go backward. One side calls the action expert once for all steps, the other once per
step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from contestants.cloning import parameters

TESTS = Path(__file__).parents[2] / "tests" / "toys"


def write_policy(settings: Any) -> None:
    """Write the policy's folder."""
    sys.path.append(str(TESTS))
    from tiny_vla import save_tiny_smolvla

    save_tiny_smolvla(settings.folder / "smolvla", num_steps=settings.denoising_steps)


def replay(settings: Any, meter: Any, sequential: bool = False) -> None:
    """Compute and differentiate log-probabilities over and over."""
    from robo_razor.policies.flow.distribution import FlowChunkDistribution, _times
    from robo_razor.policies.load import load_policy

    class Sequential(FlowChunkDistribution):
        """The same distribution, replayed step after step."""

        def _means(self, prefix: Any, path: Any) -> Any:
            schedule, real, means = self.schedule, self.adapter.action_dim, []
            for k in schedule.live:
                x = path[:, k]
                velocity = self.adapter.velocity(prefix, x, _times(schedule.time[k], x))
                mean = schedule.state[k] * x + schedule.velocity[k] * velocity
                means.append(mean[..., :real])
            return torch.stack(means, 1)

    torch.set_num_threads(settings.threads)
    policy = load_policy(settings.folder / "smolvla")
    rng = np.random.default_rng(0)
    rows, size = settings.replay_batch, policy.image_size
    observation = {
        "pixels": {
            name: rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
            for name in policy.camera_names
        },
        "agent_pos": rng.normal(size=(rows, policy.state_dim)).astype(np.float32),
    }
    inputs = policy.prepare(observation, ["lift the red block"] * rows)
    uniforms = torch.from_numpy(rng.uniform(0.001, 0.999, (rows, *policy.noise_shape)))
    with torch.no_grad():
        path = policy.distribution(inputs).sample(uniforms)
    meter.facts["trained_parameters"] = parameters(policy.module)
    meter.facts["steps"] = len(policy.schedule.live)
    kind = Sequential if sequential else FlowChunkDistribution
    with mock.patch("robo_razor.policies.flow.policy.FlowChunkDistribution", kind):
        while True:
            meter.boundary()
            policy.module.zero_grad(set_to_none=True)
            log_prob = policy.distribution(inputs).log_prob(path)
            log_prob.mean().backward()
            meter.notes["log_prob"] = float(log_prob.detach().mean())
            meter.add(rows)
