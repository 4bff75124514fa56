"""The meter measures others' loops in turns, and refuses to compare unlike work."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import loops
import pytest
from contestants.meter import Comparison, Contestant, check_same_work, compare, summarise

STOPPED = "T"


def comparison(**contestants):
    return Comparison("t", "samples", 1.5, "ours", {"ours": (loops.steady, 2), **contestants})


def test_everybody_is_asked_for_the_same_units(tmp_path):
    peer = functools.partial(loops.steady, samples=2)
    result = compare(comparison(peer=(peer, 3)), loops.Settings(0.01), tmp_path)
    ours, other = result["contestants"]["ours"], result["contestants"]["peer"]
    assert (ours["samples"], other["samples"]) == (6, 6)
    assert ours["notes"] == {"asked": 2 * 3}  # a warm-up and two repetitions
    assert other["notes"] == {"asked": 3 * 3}
    assert result["against"] == "peer"
    assert set(result["ratios"]) == {"peer"}


def test_unlike_work_is_no_ratio(tmp_path):
    fewer = functools.partial(loops.steady, samples=1)
    with pytest.raises(RuntimeError, match=r"unequal numbers of samples: \{'ours': 6, 'peer': 2\}"):
        compare(comparison(peer=(fewer, 2)), loops.Settings(0.0), tmp_path)
    smaller = functools.partial(loops.steady, trained_parameters=5)
    with pytest.raises(RuntimeError, match="differ in trained_parameters"):
        compare(comparison(peer=(smaller, 2)), loops.Settings(0.0), tmp_path)


def test_a_contestant_that_fails_shows_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended early; .*\n(.*\n)*ValueError: no such"):
        compare(comparison(peer=(loops.broken, 1)), loops.Settings(0.0), tmp_path)


def test_processes_of_a_contestant_stand_still_while_others_are_measured(tmp_path):
    contestant = Contestant("one", loops.with_child, 1, None, tmp_path)
    try:
        for _ in range(2):  # the child ticks on while its parent is measured, or this never ends
            child = contestant.measure()["notes"]["child"]
            while state(child) != STOPPED:  # the signal is on its way
                time.sleep(0.01)
    finally:
        contestant.close()


def state(pid):
    """Return the state of a process as the kernel tells it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def measured(**seconds):
    return {
        name: {"samples": 10, "wall_s": s, "cpu_s": 2 * s, "notes": {}}
        for name, s in seconds.items()
    }


def test_the_headline_is_the_median_ratio_to_the_fastest_peer():
    ours = comparison(slow=(None, 1), fast=(None, 1), less=(None, 1))
    ours = Comparison(**{**vars(ours), "extra": ("less",)})
    facts = {name: {"trained_parameters": 1} for name in ("ours", "slow", "fast", "less")}
    rounds = [
        measured(ours=1.0, slow=9.0, fast=2.0, less=0.5),
        measured(ours=1.0, slow=9.0, fast=3.0, less=0.5),
        measured(ours=2.0, slow=9.0, fast=2.0, less=0.5),
    ]
    facts["less"]["trained_parameters"] = 0  # not compared
    check_same_work(ours, facts, rounds)
    summary = summarise(ours, facts, rounds)
    assert summary["against"] == "fast"
    assert summary["ratio"] == pytest.approx(2.0)
    assert summary["ratio_range"] == pytest.approx([1.0, 3.0])
    assert summary["ratios"]["slow"]["ratio"] == pytest.approx(9.0)
    assert summary["extra"]["less"]["ratio"] == pytest.approx(4.0)
    assert summary["reached"]


def test_the_aim_is_not_about_peers_that_are_helped():
    ours = comparison(plain=(None, 1), helped=(None, 1))
    ours = Comparison(**{**vars(ours), "relieved": ("helped",)})
    facts = {name: {"trained_parameters": 1} for name in ("ours", "plain", "helped")}
    summary = summarise(ours, facts, [measured(ours=1.0, plain=6.0, helped=2.0)])
    assert (summary["against"], summary["ratio"]) == ("plain", pytest.approx(6.0))
    assert summary["ratios"]["helped"]["ratio"] == pytest.approx(2.0)
