from __future__ import annotations

import math
import types

import numpy as np
import pytest
import torch
from registries import let_add
from toy_demonstrations import demonstrations
from toy_policy import tiny_policy

from robo_razor.core.errors import RegistryError
from robo_razor.core.plugins import PREDICTORS, load_plugins
from robo_razor.core.quantities import QUANTITIES
from robo_razor.evaluation.predictors import (
    Comparison,
    Predictor,
    measure_predictors,
    predictor,
    predictors,
)
from robo_razor.evaluation.predictors.cknna import alignment
from robo_razor.evaluation.probes import demonstration_probe
from robo_razor.evaluation.weights import singular_values
from robo_razor.report.format import predictor_name

CHEAP = {"weight_l1", "weight_l2"}
EXPENSIVE = {
    "weight_fisher_l2", "weight_spectral", "effective_rank", "sparsity_fp32", "sparsity_1e-5",
    "sparsity_bf16", "activation_l1", "activation_l2", "cknna",
}  # fmt: skip


@pytest.fixture(scope="module")
def probe():
    return demonstration_probe(demonstrations((25, 20)), tiny_policy(), 45)


def moved(scale, seed=1):
    policy = tiny_policy()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return policy


def measured(name, **parts):
    """Return one predictor of a comparison of which only some parts are made up."""
    return PREDICTORS.get(name).measure(types.SimpleNamespace(**parts))


def test_every_file_is_a_predictor_with_a_label():
    by_name = {item.name: item for item in predictors()}
    assert set(PREDICTORS.built_in()) == set(by_name) == CHEAP | EXPENSIVE
    assert all(isinstance(item, Predictor) for item in by_name.values())
    for name, item in by_name.items():
        assert item.cost == ("cheap" if name in CHEAP else "expensive")
        assert item.label == QUANTITIES[name].label == predictor_name(name)
    assert list(by_name) == [name for name in QUANTITIES if name in by_name]  # as in old summaries


@pytest.mark.parametrize("name", sorted(CHEAP | EXPENSIVE))
def test_every_predictor_is_0_or_1_at_the_base_exactly(name, probe):
    item = PREDICTORS.get(name)
    comparison = Comparison(tiny_policy().frozen_copy(), tiny_policy(), {"new_base_visited": probe})
    assert item.at_base in (0.0, 1.0)
    assert item.can_measure(comparison)
    assert item.measure(comparison) == item.at_base


def test_only_the_cheap_ones_are_measured_unless_asked(probe):
    comparison = Comparison(tiny_policy().frozen_copy(), moved(0.1), {"prior": probe})
    assert set(measure_predictors(comparison)) == CHEAP


def test_what_has_no_states_or_no_density_is_left_out(probe):
    base, tuned = tiny_policy().frozen_copy(), moved(0.1)
    of_states = {name for name in EXPENSIVE if PREDICTORS.get(name).states}
    without = measure_predictors(Comparison(base, tuned, {"prior": probe}), expensive=True)
    assert set(without) == (CHEAP | EXPENSIVE) - of_states
    tuned.has_density = False
    sets = {"new_base_visited": probe}
    assert measure_predictors(Comparison(base, tuned, sets), expensive=True) == without


def test_distances_grow_with_the_change(probe):
    base, of_base = tiny_policy().frozen_copy(), {}
    sets = {"new_base_visited": probe, "prior": probe}

    def measure(scale):
        comparison = Comparison(base, moved(scale), sets, of_base)
        return measure_predictors(comparison, expensive=True)

    near, far = measure(1e-3), measure(0.1)
    assert set(near) == CHEAP | EXPENSIVE
    for name in EXPENSIVE - {"effective_rank", "cknna"}:
        assert (near[name] < far[name]) != name.startswith("sparsity"), name
    assert far["cknna"] < near["cknna"] < 1.0
    assert measure(0.1) == far  # nothing is drawn anew
    assert set(of_base) == {"fisher"}


def test_weight_norms_count_every_weight_but_the_value_head():
    policy = tiny_policy()
    with torch.no_grad():
        policy.module.state_projection.weight.add_(0.01)
        for parameter in policy.module.value_parameters():
            parameter.add_(1.0)
    n = policy.module.state_projection.weight.numel()
    distances = measure_predictors(Comparison(tiny_policy(), policy, {}))
    assert distances["weight_l1"] == pytest.approx(0.01 * n, rel=1e-4)
    assert distances["weight_l2"] == pytest.approx(0.01 * math.sqrt(n), rel=1e-4)


def test_low_rank_updates_have_a_low_effective_rank():
    base, tuned = tiny_policy().frozen_copy(), tiny_policy()
    tuned.add_lora(2)
    with torch.no_grad():
        for name, parameter in tuned.module.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_()
    comparison, merged = (Comparison(base, x, {}) for x in (tuned, tuned.frozen_copy()))
    assert measure_predictors(comparison) == measure_predictors(merged)
    assert PREDICTORS.get("effective_rank").measure(comparison) < 2 / 7


def test_spectral_norm_and_rank_of_known_matrices():
    one = 3.0 * torch.outer(torch.tensor([0.6, 0.8]), torch.tensor([1.0, 0.0, 0.0]))
    values = singular_values({"a": one, "bias": torch.full((9,), 50.0)})
    assert measured("weight_spectral", singular_values=values) == pytest.approx(3.0)
    assert measured("effective_rank", singular_values=values) == pytest.approx(1 / 2)
    full = singular_values({"a": 2.0 * torch.eye(4), "conv": torch.eye(4).view(4, 1, 2, 2)})
    assert measured("weight_spectral", singular_values=full) == pytest.approx(2.0)
    assert measured("effective_rank", singular_values=full) == pytest.approx(1.0)


def test_sparsity_depends_on_tolerance_and_dtype():
    changed = {"w": (torch.ones(4), torch.tensor([1.0, 1 + 1e-6, 1 + 1e-3, 2.0]))}
    expected = {"sparsity_fp32": 0.25, "sparsity_1e-5": 0.5, "sparsity_bf16": 0.75}
    for name, share in expected.items():
        assert measured(name, changed_weights=changed) == share


def test_a_predictor_of_another_package_is_measured_and_named(tmp_path, monkeypatch):
    (tmp_path / "my_predictors.py").write_text(
        "from robo_razor.evaluation.predictors import predictor\n\n"
        '@predictor("weight_linf", label="Largest weight change", at_base=0.0)\n'
        "def weight_linf(comparison):\n"
        "    changes = comparison.weight_changes.values()\n"
        "    return max((float(change.abs().max()) for change in changes), default=0.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    let_add(monkeypatch, PREDICTORS)
    for name in ("weight_linf",):
        monkeypatch.setitem(QUANTITIES, name, None)  # so that it is taken back
    load_plugins(["my_predictors"])
    base = tiny_policy()
    assert measure_predictors(Comparison(base, tiny_policy(), {}))["weight_linf"] == 0.0
    distances = measure_predictors(Comparison(base, moved(0.1), {}))
    assert list(distances) == ["weight_l1", "weight_l2", "weight_linf"]
    assert distances["weight_linf"] > 0.1
    assert predictor_name("weight_linf") == "Largest weight change"


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(RegistryError, match="already registered"):
        predictor("weight_l1", at_base=0.0)(lambda comparison: 0.0)


def test_cknna_of_equal_turned_and_unrelated_representations():
    numbers = torch.Generator().manual_seed(0)
    one = torch.randn(80, 12, generator=numbers, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=numbers, dtype=torch.float64)).Q
    assert alignment(one, one) == 1.0
    assert alignment(one, one @ turn) == pytest.approx(1.0)
    other = torch.randn(80, 12, generator=numbers, dtype=torch.float64)
    assert abs(alignment(one, other)) < 0.2
    noisy = one + 0.5 * other
    assert 0.2 < alignment(one, noisy) < alignment(one, one + 0.1 * other) < 1.0


def test_cknna_written_out(probe):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 30, 4))
    y = x + 0.4 * y

    def kernels(a, b, k=10):
        """Kernels of a and b where both have the pair among the nearest; by loops."""
        gram = [a @ a.T, b @ b.T]
        near = [[set(np.argsort(-np.where(np.arange(30) == i, -np.inf, g[i]))[:k]) for i in range(30)] for g in gram]  # fmt: skip  # noqa: E501
        both = np.array(
            [[j in near[0][i] and j in near[1][i] for j in range(30)] for i in range(30)]
        )
        return [g * both for g in gram]

    def hsic(a, b, n=30):
        a, b = (m - np.diag(np.diag(m)) for m in kernels(a, b))
        one = np.ones(n)
        total = np.trace(a @ b) + one @ a @ one * (one @ b @ one) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * one @ a @ b @ one) / (n * (n - 3))

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert alignment(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)
