"""The one gradient step: what its parts add up to, and that nothing infinite reaches weights."""

from __future__ import annotations

import functools

import pytest
import torch

from robo_razor.core.errors import TrainingError
from robo_razor.training.step import Loss
from robo_razor.training.update import STOPPED, Part, Update, how_to_calm


def make_update(parameters, max_grad_norm=1e9, rate=0.1, side_by_side=False):
    return Update(
        torch.optim.SGD(parameters, lr=rate),
        [parameters],
        max_grad_norm=max_grad_norm,
        name="toy",
        remedy="Lower `toy.learning_rate`.",
        side_by_side=side_by_side,
    )


def mean_of(weight, rows):
    def loss():
        errors = (weight - rows).square()
        return Loss(
            errors.mean(), {"loss": errors.mean().detach(), "error_max": errors.max().detach()}
        )

    return loss


def test_parts_add_up_to_the_mean_over_all_rows():
    rows = torch.tensor([0.0, 1.0, 5.0, 6.0, 9.0])
    results = []
    for sizes in ([5], [3, 2], [1, 1, 1, 1, 1]):
        weight = torch.nn.Parameter(torch.tensor([2.0]))
        parts = [Part(len(p) / 5, mean_of(weight, p)) for p in torch.split(rows, sizes)]
        metrics = make_update([weight]).step(parts)
        results.append((weight.item(), metrics["loss"], metrics["grad_norm"]))
        assert metrics["error_max"] == 49.0
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6)
    assert results[0][2] == pytest.approx(abs(2 * (2.0 - float(rows.mean()))), rel=1e-6)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_parts_side_by_side_give_the_same_bits_on_any_number_of_threads(threads):
    rows = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        weight = torch.nn.Parameter(torch.ones(300, 300))
        unused = torch.nn.Parameter(torch.ones(2))

        def part(some, weight=weight):
            losses = (some @ weight).tanh()
            return Loss(losses.mean(), {"loss": losses.mean().detach()})

        parts = [Part(0.1, functools.partial(part, some)) for some in rows.split(4)]
        update = make_update([weight, unused], side_by_side=True)
        metrics = [update.step(parts) for _ in range(3)]
        assert torch.get_num_threads() == count
        assert unused.grad is None
        results.append((metrics, weight.detach()))
    for metrics, weight in results[1:]:
        assert metrics == results[0][0]
        assert torch.equal(weight, results[0][1])


def test_a_loss_that_is_not_finite_beside_others_leaves_the_threads_as_they_were(threads):
    threads(2)
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    parts = [Part(0.25, lambda: Loss(weight.sum() * float("nan")))] * 4
    with pytest.raises(TrainingError, match="became nan") as caught:
        make_update([weight], side_by_side=True).step(parts)
    assert torch.get_num_threads() == 2
    assert caught.value.__traceback__ is not None  # it holds the frames of the step
    assert weight.item() == 2.0


def test_parameters_that_share_a_gradient_are_not_counted_twice(threads):
    threads(2)
    first, second = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))

    def loss():
        return Loss((first + second).sum() + first.sum())

    make_update([first, second], side_by_side=True, rate=1.0).step([Part(0.25, loss)] * 4)
    assert first.tolist() == [-2.0] * 3
    assert second.tolist() == [-1.0] * 3


def test_the_fault_of_a_part_beside_others_is_raised_and_nothing_changes(threads):
    threads(2)
    weight = torch.nn.Parameter(torch.tensor([2.0]))

    def broken():
        raise ZeroDivisionError("in a part")

    losses = [mean_of(weight, torch.zeros(1)), broken, mean_of(weight, torch.zeros(1))]
    update = make_update([weight], side_by_side=True)
    with pytest.raises(ZeroDivisionError, match="in a part"):
        update.step([Part(1 / 3, loss) for loss in losses])
    assert torch.get_num_threads() == 2
    assert weight.item() == 2.0
    assert update.step([Part(1.0, losses[0])])["loss"] == 4.0


def test_a_step_that_is_stopped_changes_nothing():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    parts = [Part(1.0, mean_of(weight, torch.zeros(1)))]
    metrics = make_update([weight]).step(parts, lambda metrics: metrics["loss"] > 3.0)
    assert metrics == {"loss": 4.0, "error_max": 4.0, STOPPED: 1.0}
    assert weight.item() == 2.0
    assert weight.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_with_the_setting_to_change(bad):
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    parts = [Part(1.0, lambda: Loss(weight.sum() * bad))]
    with pytest.raises(TrainingError, match=r"The toy loss became .*`toy\.learning_rate`.*intact"):
        make_update([weight]).step(parts)
    assert weight.item() == 2.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_never_reach_the_weights(bad):
    weight = torch.nn.Parameter(torch.zeros(2))
    gradient = torch.tensor([3.0, 4.0])
    update = make_update([weight], max_grad_norm=1.0, rate=1.0)

    def pulled():
        return Loss((weight * gradient).sum())

    assert update.step([Part(1.0, pulled)])["grad_norm"] == pytest.approx(5.0)
    assert weight.detach().norm() == pytest.approx(1.0, abs=1e-5)
    before = weight.detach().clone()
    gradient = torch.tensor([bad, 0.0])
    update.name = "ppo"
    with torch.no_grad():
        weight.copy_(before)

    def finite():
        # The loss is finite, its gradient is not.
        return Loss(
            torch.where(weight == weight, weight, weight).pow(2).sum()
            + _Spoilt.apply(weight, gradient)
        )

    with pytest.raises(TrainingError, match="norm of the gradients became"):
        update.step([Part(1.0, finite)])
    assert torch.equal(weight, before)


class _Spoilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, gradient):
        ctx.save_for_backward(gradient)
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return ctx.saved_tensors[0], None


def test_what_calms_numbers_names_the_settings():
    assert how_to_calm("bc", bf16=False) == "Lower `bc.learning_rate`."
    assert "`bc.bf16: false`" in how_to_calm("bc", bf16=True)
