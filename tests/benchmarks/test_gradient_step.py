"""The limit of a gradient step contains all of its matrix products; how fast is not tested."""

from __future__ import annotations

import json

import gradient_step
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

SMALL = ["--minibatch-size", "8", "--repeats", "1", "--threads", "1"]

pytestmark = [pytest.mark.gl, pytest.mark.lerobot]


@pytest.fixture
def step():
    settings = gradient_step.parse(SMALL)
    return gradient_step.make_step(settings, bf16=False)


def test_a_product_counts_multiplications_and_additions():
    recorder = gradient_step.Recorder()
    left, right = torch.zeros(3, 4), torch.zeros(4, 5)
    with recorder:
        _ = left @ right
        torch.addmm(torch.zeros(5), left, right)
    assert gradient_step.Products(recorder.products).flop == 2 * (2 * 3 * 4 * 5)


def test_all_products_of_a_step_are_in_the_limit(step):
    with FlopCounterMode(display=False) as counter:
        step()
    with gradient_step.Recorder() as recorder:
        step()
    products = gradient_step.Products(recorder.products)
    in_place = sum(
        product.flop * count
        for product, count in recorder.products.items()
        if product.name == "addmm_"
    )
    assert products.flop - in_place == counter.get_total_flops()  # torch leaves these out
    assert in_place > 0
    assert {left.dtype for left, _, _ in products.shares[0]} == {torch.float32}
    products()


def test_threads_share_the_products(step):
    with gradient_step.Recorder() as recorder:
        step()
    alone, shared = (gradient_step.Products(recorder.products, threads) for threads in (1, 3))
    assert shared.flop == alone.flop
    counts = [[count for *_, count in share] for share in shared.shares]
    assert [sum(of_one) for of_one in zip(*counts, strict=True)] == [
        count for *_, count in alone.shares[0]
    ]
    before = torch.get_num_threads()
    shared()
    assert torch.get_num_threads() == before


def test_parts_make_the_same_products(step):
    parts = gradient_step.make_step(
        gradient_step.parse([*SMALL, "--micro-batch-size", "4"]), bf16=False
    )
    totals = []
    for make in (step, parts):
        with gradient_step.Recorder() as recorder:
            make()
        totals.append(gradient_step.Products(recorder.products).flop)
    assert totals[0] == totals[1]


def test_the_command_writes_shares(tmp_path, capsys):
    file = tmp_path / "shares.json"
    gradient_step.main([*SMALL, "--json", str(file)])
    assert "matrix products alone / gradient step" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["threads"] == 1
    assert document["machine"]["cores"] >= 1
    result = document["float32"]
    assert 0.0 < result["share"] < 2.0
    assert result["gflop"] > 0.0
    assert result["operators"] > 100
