"""Measure how near a gradient step of PPO comes to the arithmetic limit of this machine.

Example: `python benchmarks/gradient_step.py --json gradient_step.json`

The share is the time that the matrix products of a step take alone, divided by the time of the
whole step: loss, gradients, clipping and optimizer, as `robo-razor finetune --method ppo` makes
it, with the image encoder frozen. The products are recorded from one step: the same shapes, the
same memory layouts, the same precision, as often as there. Equal products reuse their random
factors, so small ones come out of the cache. Both run in turn, in one process, with the same
threads.

The limit contains only what a library computes as one matrix product (`mm`, `addmm`, `bmm`, and
those inside attention). Element-wise work, reductions, copies, Python and the optimizer are not in
it, so a share of 1 cannot be reached. Decisions are random: what they hold changes no time.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from env_throughput import machine
from torch.utils._python_dispatch import TorchDispatchMode

from robo_razor.core.machine import keep_freed_memory, torch_threads
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DecisionRecord, EpisodeBatch, make_rows
from robo_razor.policies.distributions import log_prob_steps
from robo_razor.policies.load import load_policy
from robo_razor.training.learner import Context, OnPolicyLearner
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.step import Minibatch, Place
from robo_razor.training.update import bf16_is_fast

AIM = 0.75
TASK = "gym_razor/PlaceCanInBin-v0"
INSTRUCTION = "put the can in the bin"
UPDATE = 100
"""Number of the update that a step pretends to belong to: warm-ups are over."""


@dataclass(frozen=True)
class Product:
    """A matrix product, or a batch of them, as it was asked for.

    Attributes:
        name: The operator.
        left: Size and strides of the left factor.
        right: Those of the right factor.
        dtype: Type of both.
    """

    name: str
    left: tuple[tuple[int, ...], tuple[int, ...]]
    right: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: torch.dtype

    @property
    def flop(self) -> int:
        """Return how many multiplications and additions it takes."""
        return 2 * int(np.prod(self.left[0])) * self.right[0][-1]


class Recorder(TorchDispatchMode):
    """Records the matrix products that are computed inside a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record an operator's products and compute it."""
        name = func.name().split("::")[-1].split(".")[0]
        self.calls[name] += 1
        for left, right in _factors(name.removesuffix("_"), args):
            product = Product(name, _layout(left), _layout(right), left.dtype)
            self.products[product] += 1
        return func(*args, **(kwargs or {}))


def _layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tensor.shape), tensor.stride()


def _factors(name: str, args: Sequence[Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the pairs of factors that an operator multiplies."""
    if name in ("mm", "bmm"):
        return [(args[0], args[1])]
    if name in ("addmm", "baddbmm"):
        return [(args[1], args[2])]
    if name.startswith("_scaled_dot_product") and not name.endswith("backward"):
        query, key, value = args[:3]
        weights = _weights(query, key)
        return [(query, key.transpose(-1, -2)), (weights, value)]
    if name.startswith("_scaled_dot_product"):
        gradient, query, key, value = args[:4]
        weights = _weights(query, key)
        return [
            (query, key.transpose(-1, -2)),  # the weights, once more
            (weights.transpose(-1, -2), gradient),
            (gradient, value.transpose(-1, -2)),
            (weights, key),
            (weights.transpose(-1, -2), query),
        ]
    return []


def _weights(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return memory for attention's weights."""
    return query.new_empty(*query.shape[:-1], key.shape[-2])


class Products:
    """The recorded products alone, one after another, in as many threads as the step has.

    Args:
        products: What to compute, and how often.
        threads: In how many threads at the same time, each with an equal share; 1: in this one.
    """

    def __init__(self, products: Counter[Product], threads: int = 1) -> None:
        self.flop = sum(product.flop * count for product, count in products.items())
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.shares = [
            [
                (
                    _filled(product.left, product.dtype),
                    _filled(product.right, product.dtype),
                    count // threads + (thread < count % threads),
                )
                for product, count in products.items()
            ]
            for thread in range(threads)
        ]

    def __call__(self) -> None:
        """Compute all of them."""
        if self.pool is None:
            _multiply(self.shares[0])
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        list(self.pool.map(_multiply, self.shares))
        torch.set_num_threads(before)


def _multiply(work: list[tuple[torch.Tensor, torch.Tensor, int]]) -> None:
    for left, right, count in work:
        for _ in range(count):
            torch.matmul(left, right)


def _filled(layout: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype) -> torch.Tensor:
    size, stride = layout
    tensor = torch.empty_strided(size, stride, dtype=dtype)
    return tensor.copy_(torch.randn(size))


def make_step(settings: argparse.Namespace, bf16: bool) -> Callable[[], None]:
    """Return what makes one gradient step of PPO on random decisions."""
    method = PPO(
        bf16=bf16,
        minibatch_size=settings.minibatch_size,
        micro_batch_size=settings.micro_batch_size,
        target_kl=None,
    )
    config = FinetuneConfig(policy=settings.policy, task=TASK, device="cpu", method=method)
    policy = load_policy(settings.policy, "cpu")
    base = policy.frozen_copy()
    policy.freeze_vision()
    policy.share_frozen(base)

    def unused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the benchmark makes its own decisions")

    context = Context(config, policy, base, rollout=unused, demonstrations=unused)
    learner = OnPolicyLearner(method, context)
    batch = random_batch(policy, settings.minibatch_size)
    targets = method.targets(batch)
    learner.updater.set_rates(*method.rates(UPDATE, 1.0))
    rows = torch.arange(settings.minibatch_size)
    policy.temperature = method.temperature
    return functools.partial(_step, learner, batch, targets, rows)


def _step(learner: Any, batch: EpisodeBatch, targets: Any, rows: torch.Tensor) -> None:
    learner._gradient_step(batch, targets, Minibatch(rows), Place(0, UPDATE, 0))


def random_batch(policy: Any, decisions: int) -> EpisodeBatch:
    """Return episodes of one decision each, with encoded pictures and actions of the policy."""
    rng = np.random.default_rng(0)
    size = policy.image_size
    observation = {
        "pixels": {
            name: rng.integers(0, 256, (decisions, size, size, 3), dtype=np.uint8)
            for name in policy.camera_names
        },
        policy.sources.state(): rng.normal(size=(decisions, policy.state_dim)).astype(np.float32),
    }
    inputs = policy.encode(policy.prepare(observation, [INSTRUCTION] * decisions))
    with torch.no_grad():
        distribution, value = policy.distribution_and_value(inputs)
        uniforms = torch.from_numpy(rng.uniform(0.001, 0.999, (decisions, *policy.noise_shape)))
        actions = distribution.sample(uniforms)
        log_prob = log_prob_steps(distribution, actions)
    success = rng.random(decisions) < 0.5
    record = DecisionRecord(
        inputs=inputs,
        actions=actions,
        log_prob=log_prob,
        value=value,
        reward=torch.from_numpy(success.astype(np.float32)),
        offsets=np.arange(decisions + 1),
        final_value=torch.zeros(decisions),
    )
    ones = np.ones(decisions, dtype=np.int64)
    return EpisodeBatch(
        rows=make_rows(TASK, range(decisions)),
        instructions=(INSTRUCTION,) * decisions,
        success=success,
        decisions=ones,
        control_steps=policy.chunk_size * ones,
        episode_return=success.astype(np.float64),
        terminated=np.ones(decisions, dtype=bool),
        truncated=np.zeros(decisions, dtype=bool),
        record=record,
    )


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Return the wall time and the processor time of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(settings: argparse.Namespace, bf16: bool) -> dict[str, Any]:
    """Measure one precision."""
    step = make_step(settings, bf16)
    step()
    threads = torch.get_num_threads()
    with torch_threads(1), Recorder() as recorder:  # it sees the operators of this thread only
        step()
    parts = settings.micro_batch_size is None
    products = Products(recorder.products, threads if parts else 1)
    products()
    shares, cpu_shares, times = [], [], []
    for _ in range(settings.repeats):
        alone, whole = seconds(products), seconds(step)
        shares.append(alone[0] / whole[0])
        cpu_shares.append(alone[1] / whole[1])
        times.append((alone[0], whole[0]))
    alone_s, whole_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "share": statistics.median(shares),
        "range": [min(shares), max(shares)],
        "cpu_share": statistics.median(cpu_shares),
        "products_s": alone_s,
        "step_s": whole_s,
        "gflop": products.flop / 1e9,
        "products_gflop_per_s": products.flop / 1e9 / alone_s,
        "step_gflop_per_s": products.flop / 1e9 / whole_s,
        "decisions_per_s": settings.minibatch_size / whole_s,
        "operators": sum(recorder.calls.values()),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved repetitions")
    parser.add_argument("--policy", default="razor-base")
    parser.add_argument("--minibatch-size", type=int, default=1024, help="decisions per step")
    parser.add_argument("--micro-batch-size", type=int, help="decisions in memory at once")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: one per core")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 even where it is emulated")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse(arguments)
    keep_freed_memory()
    results: dict[str, Any] = {"machine": machine(), "aim": AIM}
    with torch_threads(settings.threads):
        results["threads"] = torch.get_num_threads()
        for name, bf16 in (("float32", False), ("bfloat16", True)):
            if bf16 and not (bf16_is_fast() or settings.bf16):
                print("bfloat16: not measured, this processor emulates it")
                continue
            result = results[name] = measure(settings, bf16)
            low, high = result["range"]
            print(
                f"{name}: matrix products alone / gradient step: {result['share']:.2f} "
                f"[{low:.2f}, {high:.2f}], aim {AIM}, by processor time "
                f"{result['cpu_share']:.2f}; {result['gflop']:.0f} GFLOP at "
                f"{result['step_gflop_per_s']:.0f} against "
                f"{result['products_gflop_per_s']:.0f} GFLOP per s; "
                f"{result['decisions_per_s']:.0f} decisions per s"
            )
    if settings.json:
        settings.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
