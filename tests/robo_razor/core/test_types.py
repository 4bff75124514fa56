from __future__ import annotations

import numpy as np
import pytest
import torch

from robo_razor.core.types import DecisionRecord, EpisodeBatch, make_rows


def batch(lengths, first=0, *, recorded=True):
    """Return a batch whose decisions are numbered, from 100 times the episode's number on."""
    n, numbers = len(lengths), np.arange(first, first + len(lengths))
    decisions = np.concatenate(
        [100 * e + np.arange(k) for e, k in zip(numbers, lengths, strict=True)]
    )
    value = torch.from_numpy(decisions).float()
    record = DecisionRecord(
        inputs={"state": value[:, None].clone()},
        actions=value[:, None, None].clone(),
        log_prob=-value,
        value=None,
        reward=value + 0.5,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        final_value=torch.from_numpy(numbers).float(),
    )
    return EpisodeBatch(
        rows=tuple(make_rows("t", numbers.tolist(), first_row_id=first)),
        instructions=tuple(f"do {e}" for e in numbers),
        success=numbers % 2 == 0,
        decisions=np.array(lengths),
        control_steps=10 * np.array(lengths),
        episode_return=numbers / 10,
        terminated=np.ones(n, bool),
        truncated=np.zeros(n, bool),
        record=record if recorded else None,
        wall_s=1.0 + first,
        start_states=tuple(f"s{e}" for e in numbers),
    )


def same(one, two):
    for name in ("rows", "instructions", "start_states"):
        assert getattr(one, name) == getattr(two, name)
    for name in ("success", "decisions", "control_steps", "episode_return", "terminated"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert torch.equal(one.record.log_prob, two.record.log_prob)
    assert torch.equal(one.record.reward, two.record.reward)
    assert torch.equal(one.record.final_value, two.record.final_value)
    assert one.record.value is two.record.value is None
    np.testing.assert_array_equal(one.record.offsets, two.record.offsets)


def test_parts_of_a_batch_join_to_the_whole():
    whole = batch([2, 3, 1, 4, 2])
    joined = EpisodeBatch.concatenate([batch([2, 3]), batch([1, 4, 2], first=2)])
    same(joined, whole)
    assert torch.equal(joined.record.inputs["state"], whole.record.inputs["state"])
    assert torch.equal(joined.record.actions, whole.record.actions)
    assert joined.wall_s == 3.0  # they ran at the same time


def test_episodes_are_taken_in_any_order_with_their_decisions():
    whole = batch([2, 3, 1, 4, 2])
    taken = whole.take(np.array([3, 0]))
    assert [row.seed for row in taken.rows] == [3, 0]
    assert taken.record.reward.tolist() == [300.5, 301.5, 302.5, 303.5, 0.5, 1.5]
    assert taken.record.actions.flatten().tolist() == [300, 301, 302, 303, 0, 1]
    same(taken.take(np.array([1, 0])).take(np.array([1])), whole.take(np.array([3])))


@pytest.mark.parametrize("rank", [0, 1])
def test_decisions_that_are_elsewhere_keep_their_place(rank):
    """As ranks do: every second episode ran here, the inputs of the others stay where they are."""
    whole = batch([2, 3, 1, 4, 2])
    shares = [np.arange(5)[r::2] for r in range(2)]
    parts = [whole.take(share) for share in shares]
    sent = [
        part if r == rank else EpisodeBatch(**{**vars(part), "record": part.record.elsewhere()})
        for r, part in enumerate(parts)
    ]
    joined = EpisodeBatch.concatenate(sent).take(np.argsort(np.concatenate(shares)))
    same(joined, whole)
    everything = np.arange(len(whole.record))
    held = joined.record.held(everything)
    assert set(joined.record.episode[held]) == set(shares[rank])
    assert torch.equal(joined.record.select(held)["state"], whole.record.select(held)["state"])
    assert torch.equal(joined.record.select_actions(held), whole.record.select_actions(held))
    nothing = parts[1 - rank].record.elsewhere()
    assert nothing.inputs["state"].shape == (0, 1)
    assert not len(nothing.held(np.arange(len(nothing))))


def test_batches_without_records_join_as_well():
    parts = [batch([2], recorded=False), batch([1], first=1, recorded=False)]
    assert EpisodeBatch.concatenate(parts).record is None
