"""The computed memory and operations of the real shapes, against what is known of them."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.vla

FILE = Path(__file__).parents[2] / "benchmarks" / "vla_memory.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("vla_memory", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_autograd_keeps_is_counted_once(benchmark):
    weight = torch.ones(3, requires_grad=True)
    batch = torch.ones(5, 3)

    def work():
        first = batch * weight  # keeps the input, and the weight, which is a parameter
        return (first.exp() + batch * weight).sum()  # the exponential, and the input again

    assert benchmark.saved_bytes(work, [weight]) == batch.nbytes + 4 * 15


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
    sizes = {}
    for what in ("lora", "own"):
        policy = benchmark.build("pi0", "bfloat16")
        adapter = benchmark.make_adapter(policy)
        before = benchmark.size(policy.parameters())
        sizes[what] = benchmark.fixed_memory(policy, adapter, what, 16)
        assert sizes[what]["loading"] == 2 * before
        counts = benchmark.parts(policy, adapter)
        low = sum(p.numel() for p in policy.parameters() if p.element_size() == 2)
        # Vision and norms are float32 anyway.
        assert low == pytest.approx(counts["language"] if what == "lora" else 0, rel=0.01)
    assert sizes["own"]["gradients"] == sizes["own"]["moments"] / 2
    assert sizes["own"]["weights"] > 1.5 * sizes["lora"]["weights"]


def test_operations_of_a_layer_and_of_attention(benchmark):
    """On the meta device: 2 per multiplication of the products, and twice that backwards."""
    rows, width, heads = 5, 12, 3
    layer = torch.nn.Linear(width, 3 * width, device="meta")
    linear = 2 * rows * width * 3 * width
    attention = 2 * 2 * rows * rows * width
    batch = torch.empty(rows, width, device="meta")

    def work():
        parts = layer(batch).view(1, rows, 3, heads, width // heads).transpose(1, 3).unbind(2)
        return F.scaled_dot_product_attention(*parts).sum()

    with torch.no_grad():
        assert benchmark.operations(work) == linear + attention
    # What is given needs no gradient: the layer's weights are its only product.
    assert benchmark.operations(lambda: work().backward()) == 2 * linear + 3 * attention
    batch.requires_grad_(True)
    assert benchmark.operations(lambda: work().backward()) == 3 * (linear + attention)


def test_smolvla_encodes_with_as_many_operations_as_by_hand(benchmark):
    policy = benchmark.build("smolvla", "float32")
    decision = benchmark.Decision(policy, benchmark.make_adapter(policy))
    patches, width = (512 // 16) ** 2, 768
    block = 2 * patches * (4 * width**2 + 2 * width * 3072) + 4 * patches**2 * width
    patched = 2 * patches * width * 3 * 16**2
    joined = patches // 4**2  # by the connector
    image = patched + 12 * block + 2 * joined * 4**2 * width * 960
    tokens = 2 * joined + policy.config.tokenizer_max_length + 1  # the last one is the state
    layer = 2 * tokens * (2 * 960**2 + 2 * 960 * 320 + 3 * 960 * 2560) + 4 * tokens**2 * 960
    state = 2 * policy.config.max_state_dim * 960
    assert benchmark.operations(decision.encode) == 2 * image + 16 * layer + state


@pytest.mark.slow
def test_operations_of_a_decision_fit_together(benchmark):
    policy = benchmark.build("smolvla", "float32")
    operations = benchmark.operations_per_decision(policy, benchmark.make_adapter(policy))
    # As many steps in one call.
    assert operations["act"] == operations["encode"] + operations["replay"]
    # The keys come from outside, without a backward pass.
    assert 2 * operations["replay"] < operations["ppo"] < 3 * operations["replay"]
    names = ("encode", "bc_expert", "bc_own", "bc_all")
    in_order = [operations[name] for name in names]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) == len(names)


def test_times_are_operations_over_what_the_device_does(benchmark):
    names = ("bc_own", "bc_all", "bc_expert", "encode", "act", "replay", "ppo")
    operations = dict.fromkeys(names, 10**12)
    setting = argparse.Namespace(
        tflops=100.0, utilisation=0.5, bc_batch=50, decisions=100, epochs=3
    )
    seconds = benchmark.times(operations, setting)
    assert seconds["bc_step_own"] == 1.0
    assert seconds["ppo_update"] == 2.0 * (1 + 1 + 3)  # acting, log-densities anew, epochs
    assert seconds["ppo_update_encoding_anew"] == 2.0 * (1 + 1 + 3 + 4)
    assert seconds["ppo_update_checkpointing"] == 2.0 * (1 + 1 + 6)
