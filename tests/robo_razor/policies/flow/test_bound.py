"""The divergence of paths that the product computes, on flows of which all densities are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from exact_flow import exact_flow, marginals, normal_kl, path_kl

from robo_razor.evaluation.divergences import compare
from robo_razor.policies.flow.adapter import Prefix
from robo_razor.policies.flow.distribution import FlowChunkDistribution
from robo_razor.policies.flow.encoding import KEY, Observations
from robo_razor.policies.flow.kernels import make_schedule

ROWS = 3000


@dataclass
class ExactFlow:
    """A policy whose one action is normal whatever it sees, and whose velocity is exact."""

    mean: float
    deviation: float
    horizon = action_dim = padded_dim = num_steps = 1

    def velocity(self, prefix, x, t):
        gain, offset = exact_flow(self.mean, self.deviation, float(t[0]))
        return gain * x + offset if bool((t == t[0]).all()) else self._each(x, t)

    def _each(self, x, t):
        pairs = [exact_flow(self.mean, self.deviation, float(each)) for each in t]
        gain, offset = torch.tensor(pairs).T[:, :, None, None]
        return gain * x + offset


@dataclass
class OtherEnd(ExactFlow):
    """The same up to the last step, which goes elsewhere."""

    last: float = 0.0

    def velocity(self, prefix, x, t):
        return super().velocity(prefix, x, t) + (t <= self.last)[:, None, None].float()


def distribution(flow, kernel, steps, noise=0.0, rows=ROWS):
    nothing = torch.zeros(rows, 1)
    batch = Prefix(nothing.bool(), (), (), nothing).tensors() | {KEY: torch.arange(rows)}
    return FlowChunkDistribution(
        Observations(flow, batch, rows),
        make_schedule(kernel, steps, noise),
        to_actions=lambda chunk: chunk,
    )


def measured(kernel, steps, noise, one, two):
    """Return KL(one || two) as the product estimates it over observations, and its error."""
    first, second = (distribution(ExactFlow(*flow), kernel, steps, noise) for flow in (one, two))
    with torch.no_grad():
        values = first.kl(second)
    return first.kl_kind, float(values.mean()), float(values.std()) / math.sqrt(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "noise"), [("sde", 0.5), ("inject", 0.3)])
@pytest.mark.parametrize("two", [(2.2, 0.5), (2.0, 0.7)])
def test_it_is_the_path_divergence_and_bounds_that_of_the_chunks(kernel, noise, two):
    one, schedule = (2.0, 0.5), make_schedule(kernel, 10, noise)
    kind, divergence, error = measured(kernel, 10, noise, one, two)
    ends = [marginals(schedule, *flow)[-1] for flow in (one, two)]
    assert kind == "upper bound"
    assert divergence == pytest.approx(path_kl(schedule, one, two), abs=4 * error + 1e-4)
    assert divergence - 4 * error >= normal_kl(*ends) > 0.0


def test_it_is_tight_where_one_step_forgets_the_noise():
    one, two = (2.0, 0.5), (2.3, 0.5)
    schedule = make_schedule("inject", 1, 0.4)
    _, divergence, error = measured("inject", 1, 0.4, one, two)
    ends = [marginals(schedule, *flow)[-1] for flow in (one, two)]
    assert error < 1e-5
    assert divergence == pytest.approx(normal_kl(*ends), rel=1e-4)


@torch.no_grad()
def test_a_last_step_without_noise_bounds_nothing_and_does_not_say_so():
    """Two policies that differ in the last step alone: unlike chunks, and a divergence of 0."""
    divergences = {}
    for kernel in ("cps", "sde"):
        one = distribution(ExactFlow(2.0, 0.5), kernel, 4, 0.4, rows=64)
        two = distribution(OtherEnd(2.0, 0.5, last=0.25), kernel, 4, 0.4, rows=64)
        divergences[kernel] = one.kl_kind, float(one.kl(two).mean()), compare(one, two)
        numbers = torch.rand(64, *one.path_shape, generator=torch.Generator().manual_seed(0))
        ends = [each.sample(numbers.clamp(1e-3, 1 - 1e-3))[:, -1] for each in (one, two)]
        assert float((ends[0] - ends[1]).abs().min()) > 0.2
    assert divergences["cps"][:2] == ("path divergence", 0.0)
    assert divergences["sde"][0] == "upper bound"
    assert divergences["sde"][1] > 0.1
    # Neither entropies nor total variations of chunks are made of path densities.
    assert set(divergences["cps"][2]) == set(divergences["sde"][2])
    assert "total_variation_chunk" not in divergences["cps"][2]
