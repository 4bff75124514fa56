"""One-dimensional flows whose velocity, marginals and path divergence are known exactly."""

from __future__ import annotations

import math


def exact_flow(mean, deviation, t):
    """Return (gain, offset) of v(x, t) = gain x + offset for actions ~ N(mean, deviation^2)."""
    variance = (1 - t) ** 2 * deviation**2 + t**2
    noise, action = t / variance, (1 - t) * deviation**2 / variance
    gain = noise - action
    return gain, -mean - gain * (1 - t) * mean


def marginals(schedule, mean, deviation):
    """Return mean and variance of x before every step and after the last, in closed form."""
    found = [(0.0, 1.0)]
    for t, a, b, s in zip(
        schedule.time, schedule.state, schedule.velocity, schedule.std, strict=True
    ):
        gain, offset = exact_flow(mean, deviation, t)
        m, variance = found[-1]
        factor = a + b * gain
        found.append((factor * m + b * offset, factor**2 * variance + s**2))
    return found


def path_kl(schedule, one, two):
    """Return the divergence of path measures of two 1-D flows, in closed form."""
    total = 0.0
    for k in schedule.live:
        (m, variance) = marginals(schedule, *one)[k]
        (g1, o1), (g2, o2) = (exact_flow(*flow, schedule.time[k]) for flow in (one, two))
        gain, offset = g1 - g2, o1 - o2
        square = (gain * m + offset) ** 2 + gain**2 * variance
        total += schedule.velocity[k] ** 2 * square / (2 * schedule.std[k] ** 2)
    return total


def normal_kl(one, two):
    (m1, v1), (m2, v2) = one, two
    return 0.5 * (v1 / v2 + (m1 - m2) ** 2 / v2 - 1 - math.log(v1 / v2))
