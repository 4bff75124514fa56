from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_policy import NEW, tiny_policy

from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.types import make_rows
from robo_razor.evaluation.divergences import DIRECTIONS
from robo_razor.evaluation.forgetting import (
    behaviour,
    divergence_entry,
    measure_probe,
    skill_forgetting,
)
from robo_razor.evaluation.probes import ProbeSet, make_probe
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.episodes import run_episodes


@pytest.fixture(scope="module")
def record():
    config = EnvConfig(num_envs=8, image_size=16, env_packages=("toy_env",))
    env = make_env(NEW, config, chunk_size=4)
    return run_episodes(env, tiny_policy(), make_rows(NEW, range(12)), "sample", "inputs").record


def moved(policy, scale):
    other = tiny_policy()
    other.module.load_state_dict(policy.module.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.policy_parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return other


def measure_kl(base, tuned, probe):
    measures = measure_probe(base, tuned, probe).measures
    return {name: measures[name] for name in DIRECTIONS}


def test_nothing_is_forgotten_by_the_same_policy(record):
    policy = tiny_policy()
    probe = make_probe(record, 40, np.arange(12))
    for divergence in measure_kl(policy.frozen_copy(), policy, probe).values():
        assert divergence.mean == 0.0
        assert not divergence.values.any()
        assert divergence.kind == "exact"
    same = skill_forgetting([True, False, True], [True, False, True])
    assert (same.retention, same.forgetting, same.p_value) == (1.0, 0.0, 1.0)


def test_a_destroyed_policy_has_forgotten_everything():
    gone = skill_forgetting([True] * 30, [False] * 30)
    assert (gone.retention, gone.forgetting) == (0.0, 1.0)
    assert gone.retention_interval[1] < 0.2
    assert gone.p_value < 1e-6


def test_retention_is_a_ratio_and_forgetting_a_difference():
    before, after = [True] * 8 + [False] * 2, [True] * 6 + [False] * 4
    result = skill_forgetting(before, after)
    assert result.base_success_rate == 0.8
    assert result.retention == pytest.approx(0.75)
    assert result.forgetting == pytest.approx(0.2)
    assert result.forgetting_interval[0] <= 0.2 <= result.forgetting_interval[1]


def test_a_skill_that_the_base_never_had_has_no_retention():
    result = skill_forgetting([False] * 5, [True] * 5)
    assert result.retention is None
    assert result.retention_interval is None
    assert result.forgetting == -1.0


def test_kl_grows_with_the_distance_and_has_two_directions(record):
    base = tiny_policy()
    probe = make_probe(record, 60, np.arange(12))
    near, far = (measure_kl(base, moved(base, scale), probe) for scale in (0.02, 0.2))
    for name in near:
        assert 0.0 < near[name].mean < far[name].mean
        assert far[name].standard_error > 0.0
    assert far["kl_base_tuned"].mean != far["kl_tuned_base"].mean
    turned = measure_kl(moved(base, 0.2), base, probe)
    assert turned["kl_tuned_base"].mean == pytest.approx(far["kl_base_tuned"].mean)


def test_kl_is_the_sum_over_probabilities_written_out(record):
    base = tiny_policy()
    other = moved(base, 0.1)
    probe = make_probe(record, 10, np.arange(12))
    p = base.distribution(probe.inputs).log_probs.detach().double()
    q = other.distribution(probe.inputs).log_probs.detach().double()
    expected = (p.exp() * (p - q)).sum((1, 2, 3)).mean()
    divergence = measure_kl(base, other, probe)["kl_base_tuned"].mean
    assert divergence == pytest.approx(float(expected), rel=1e-4)


def test_a_probe_is_spread_over_the_chosen_episodes(record):
    probe = make_probe(record, 12, np.array([2, 3, 7]))
    assert len(probe) == 12
    assert set(probe.episode) == {2, 3, 7}
    assert len(make_probe(record, 10_000, np.arange(12))) == len(record)


def test_the_standard_error_counts_episodes_not_observations(record):
    base = tiny_policy()
    probe = make_probe(record, 60, np.arange(12))
    single = make_probe(record, 60, np.array([0]))
    assert measure_kl(base, moved(base, 0.1), probe)["kl_base_tuned"].standard_error > 0
    entry = divergence_entry(measure_kl(base, moved(base, 0.1), single)["kl_base_tuned"])
    assert entry["standard_error"] is None
    assert entry["unit"] == "nats per decision"


def test_the_standard_error_of_two_episodes_is_half_their_difference(record):
    base, other = tiny_policy(), moved(tiny_policy(), 0.1)
    complete = make_probe(record, len(record), np.arange(12))
    # Two observations, each seen by an episode three times: no more is known than from two.
    rows = torch.tensor([0, 0, 0, 9, 9, 9])
    inputs = {key: value[rows] for key, value in complete.inputs.items()}
    result = measure_probe(base, other, ProbeSet(inputs, np.repeat([0, 1], 3)))
    for measure in result.measures.values():
        apart = abs(measure.values[0] - measure.values[-1])
        if measure.kind != "estimate":  # an estimate's samples differ
            assert measure.standard_error == pytest.approx(apart / 2, abs=1e-6)
    kl = result.measures["kl_base_tuned"]
    assert kl.per_dimension.sum() == pytest.approx(kl.mean)
    assert result.measures["greedy_disagreement"].per_dimension.mean() == pytest.approx(
        result.measures["greedy_disagreement"].mean
    )


def test_what_is_known_of_the_base_need_not_be_computed_again(record):
    base, other = tiny_policy(), moved(tiny_policy(), 0.1)
    probe = make_probe(record, 40, np.arange(12))
    known = behaviour(base, probe)
    base.distribution = None  # may not be asked again
    measures = measure_probe(base, other, probe, known).measures
    expected = measure_probe(tiny_policy(), other, probe).measures
    assert {k: v.mean for k, v in measures.items()} == {k: v.mean for k, v in expected.items()}


def test_entropy_of_an_almost_uniform_policy(record):
    probe = make_probe(record, 5, np.arange(12))
    policy = tiny_policy()
    for parameter in policy.module.action_head.parameters():
        torch.nn.init.zeros_(parameter)
    entropy = measure_probe(policy, policy, probe).mean("entropy_base")
    assert entropy == pytest.approx(4 * 5 * np.log(7), rel=1e-4)
