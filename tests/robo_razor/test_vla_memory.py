"""The computed memory of the real shapes, against what is known of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "vla_memory.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("vla_memory", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_autograd_keeps_is_counted_once(benchmark):
    weight = torch.ones(3, requires_grad=True)
    given = torch.ones(5, 3)

    def work():
        first = given * weight  # keeps the input, and the weight, which is a parameter
        return (first.exp() + given * weight).sum()  # the exponential, and the input again

    assert benchmark.saved_bytes(work, [weight]) == given.nbytes + 4 * 15


def test_smolvla_has_its_published_size(benchmark):
    policy = benchmark.build("smolvla", "bfloat16")
    adapter = benchmark.make_adapter(policy)
    counts = benchmark.parts(policy, adapter)
    assert counts["all"] == pytest.approx(450e6, rel=0.01)
    assert counts["vision"] + counts["language"] + counts["expert"] == counts["all"]
    lora, expert = (
        benchmark.fixed_memory(policy, adapter, what, 16) for what in ("lora", "expert")
    )
    assert lora["base"] == 0
    assert expert["moments"] == 2 * expert["gradients"]
    assert expert["base"] == 4 * counts["expert"]  # in float32
    assert lora["training"] < expert["training"]
    everything = benchmark.trained(policy, adapter, "all", rank=0)
    assert sum(p.numel() for p in everything) == counts["language"] + counts["expert"]


def test_what_is_trained_counts_as_float32(benchmark):
    """Of pi0 in bfloat16: the expert alone with LoRA, everything with `own`."""
    found = {}
    for what in ("lora", "own"):
        policy = benchmark.build("pi0", "bfloat16")
        adapter = benchmark.make_adapter(policy)
        before = benchmark.size(policy.parameters())
        found[what] = benchmark.fixed_memory(policy, adapter, what, 16)
        assert found[what]["loading"] == 2 * before
        counts = benchmark.parts(policy, adapter)
        low = sum(p.numel() for p in policy.parameters() if p.element_size() == 2)
        # Vision and norms are float32 anyway.
        assert low == pytest.approx(counts["language"] if what == "lora" else 0, rel=0.01)
    assert found["own"]["gradients"] == found["own"]["moments"] / 2
    assert found["own"]["weights"] > 1.5 * found["lora"]["weights"]
