from __future__ import annotations

import math

import pytest
import torch
from exact_flow import exact_flow, marginals, normal_kl, path_kl

from robo_razor.core.errors import ConfigError
from robo_razor.policies.flow.kernels import (
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    make_schedule,
)

SETTINGS = [("sde", 0.5), ("cps", 0.4), ("inject", 0.3)]


def test_euler_goes_down_in_equal_steps():
    schedule = make_schedule("ode", 4)
    assert schedule.time == (1.0, 0.75, 0.5, 0.25)
    assert schedule.state == (1.0,) * 4
    assert schedule.velocity == pytest.approx((-0.25,) * 4)
    assert schedule.live == ()
    assert schedule.next_time(3) == 0.0


def test_coefficients_of_the_papers():
    # Flow-GRPO: mean = x + [v + sigma^2 / (2 t) (x + (1 - t) v)] dt, deviation sigma sqrt(|dt|).
    sde = make_schedule("sde", 10, 0.7)
    t, dt, x, v = sde.time[4], -0.1, 1.3, -0.4
    sigma = 0.7 * math.sqrt(t / (1 - t))
    mean = x + (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * dt
    assert sde.state[4] * x + sde.velocity[4] * v == pytest.approx(mean)
    assert sde.std[4] == pytest.approx(sigma * math.sqrt(0.1))
    # At t = 1 the deviation is bounded: 1 - t is taken as 1/K there.
    assert sde.std[0] == pytest.approx(0.7)
    # CPS: mean = (1 - t') x0 + sqrt(t'^2 - s^2) e with s = t' sin(eta pi / 2).
    cps = make_schedule("cps", 10, 0.5)
    end = t - 0.1
    std = end * math.sin(0.25 * math.pi)
    mean = (1 - end) * (x - t * v) + math.sqrt(end**2 - std**2) * (x + (1 - t) * v)
    assert cps.state[4] * x + cps.velocity[4] * v == pytest.approx(mean)
    assert cps.std[4] == pytest.approx(std)
    assert cps.live == tuple(range(9))
    assert make_schedule("inject", 10, 0.3).std == pytest.approx((0.3 * math.sqrt(0.1),) * 10)


def test_the_stochastic_equation_keeps_the_marginals():
    """Euler alone shrinks the spread; with the noise it stays near the target's."""
    target = (2.0, 0.5)

    def spread(kernel, steps, noise=0.0):
        m, variance = marginals(make_schedule(kernel, steps, noise), *target)[-1]
        assert m == pytest.approx(2.0, abs=0.05)
        return math.sqrt(variance)

    assert spread("ode", 10) == pytest.approx(0.431, abs=0.002)
    assert spread("sde", 10, 0.7) == pytest.approx(0.480, abs=0.001)
    assert spread("cps", 10, 0.7) == pytest.approx(0.370, abs=0.001)
    for noise in (0.3, 0.5, 0.7):
        assert abs(spread("sde", 10, noise) - 0.5) < abs(spread("ode", 10) - 0.5)
        assert spread("sde", 400, noise) == pytest.approx(0.5, abs=0.005)
    assert spread("inject", 400, 0.7) > 0.55


@pytest.mark.parametrize(("kernel", "noise"), SETTINGS)
@pytest.mark.parametrize("two", [(2.2, 0.5), (2.0, 0.7), (-1.0, 0.3)])
def test_the_path_divergence_bounds_that_of_the_marginals(kernel, noise, two):
    schedule = make_schedule(kernel, 10, noise)
    one = (2.0, 0.5)
    if kernel == "cps":  # its last step has no noise: the bound is that of what goes into it
        ends = [marginals(schedule, *flow)[-2] for flow in (one, two)]
    else:
        ends = [marginals(schedule, *flow)[-1] for flow in (one, two)]
    assert path_kl(schedule, one, two) >= normal_kl(*ends) > 0.0
    assert path_kl(schedule, one, one) == 0.0


def test_the_bound_is_tight_where_one_step_forgets_the_noise():
    schedule = make_schedule("inject", 1, 0.4)
    one, two = (2.0, 0.5), (2.3, 0.5)
    ends = [marginals(schedule, *flow)[-1] for flow in (one, two)]
    assert ends[0] == pytest.approx((2.0, 0.16))
    assert path_kl(schedule, one, two) == pytest.approx(normal_kl(*ends))
    assert normal_kl(*ends) == pytest.approx(0.3**2 / (2 * 0.4**2))


def test_sampled_paths_agree_with_the_closed_forms():
    schedule, one, two = make_schedule("sde", 10, 0.5), (2.0, 0.5), (2.1, 0.55)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 11, generator=generator)
    x, ratio, closed = noise[:, 0], 0.0, 0.0
    for k in range(10):
        means = []
        for flow in (one, two):
            gain, offset = exact_flow(*flow, schedule.time[k])
            mean = schedule.state[k] * x + schedule.velocity[k] * (gain * x + offset)
            means.append(mean[:, None, None, None])
        std = torch.full((1, 1, 1), schedule.std[k])
        x = means[0].flatten() + schedule.std[k] * noise[:, k + 1]
        end = x[:, None, None, None]
        ratio = (
            ratio + gaussian_log_prob(end, means[0], std) - gaussian_log_prob(end, means[1], std)
        )
        closed = closed + gaussian_kl(means[0], std, means[1], std)
    end_mean, end_variance = marginals(schedule, *one)[-1]
    assert float(x.mean()) == pytest.approx(end_mean, abs=0.03)
    assert float(x.var()) == pytest.approx(end_variance, rel=0.06)
    assert float(closed.mean()) == pytest.approx(path_kl(schedule, one, two), rel=0.03)
    error = float((ratio - closed).std()) / math.sqrt(4000)
    assert float(ratio.mean()) == pytest.approx(float(closed.mean()), abs=4 * error)


def test_gaussians_agree_with_torch():
    torch.manual_seed(0)
    x, mean, other = torch.randn(3, 5, 2, 4, 3)
    std, other_std = (
        torch.tensor([0.2, 0.7])[:, None, None],
        torch.tensor([0.3, 0.5])[:, None, None],
    )
    p = torch.distributions.Normal(mean, std.expand_as(mean))
    q = torch.distributions.Normal(other, other_std.expand_as(mean))
    assert torch.allclose(gaussian_log_prob(x, mean, std), p.log_prob(x).sum((-2, -1)), atol=1e-4)
    expected = torch.distributions.kl_divergence(p, q).sum((-2, -1))
    assert torch.allclose(gaussian_kl(mean, std, other, other_std), expected, rtol=1e-5)
    assert torch.allclose(gaussian_entropy(std, mean.shape), p.entropy().sum((-2, -1)))
    assert torch.equal(gaussian_kl(mean, std, mean, std), torch.zeros(5, 2))


@pytest.mark.parametrize(("kernel", "noise"), [("sde", 0.0), ("cps", 1.5), ("inject", -1.0)])
def test_noise_out_of_range_is_refused(kernel, noise):
    with pytest.raises(ConfigError, match=r"flow.noise.*flow.kernel"):
        make_schedule(kernel, 10, noise)


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="denoising steps"):
        make_schedule("ode", 0)
