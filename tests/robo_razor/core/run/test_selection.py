from __future__ import annotations

import pytest

from robo_razor.core.metrics import EpisodeEntry
from robo_razor.core.run.selection import best_step, kept_steps, planned_steps, score, wilson_low
from robo_razor.core.settings.config import TrackingConfig
from robo_razor.core.settings.conversion import to_dict
from robo_razor.statistics.intervals import wilson_interval


def rows(*successes, task="new", mode="greedy"):
    return [
        EpisodeEntry(task=task, seed=seed, mode=mode, success=success)
        for seed, success in enumerate(successes)
    ]


@pytest.mark.parametrize("n", [1, 7, 50, 1000])
def test_the_score_is_the_lower_end_of_wilsons_interval(n):
    for successes in range(n + 1):
        assert wilson_low(successes, n) == wilson_interval(successes, n)[0]


def test_the_plan_is_that_of_the_settings():
    tracking = TrackingConfig(every=0.5, early=1)
    assert planned_steps(to_dict(tracking), 8) == {0, *tracking.checkpoints(8)}
    assert planned_steps(to_dict(tracking), None) is None
    assert planned_steps(None, 8) is None


def test_only_greedy_episodes_that_every_checkpoint_runs_are_scored():
    same = rows(True, False)
    assert score(same, "new", 2) == score([*same, *rows(True, True)], "new", 2)
    assert score(same, "new", 2) == score([*rows(True, task="old"), *same], "new", 2)
    assert score(same, "new", 2) == score([*rows(True, mode="sample"), *same], "new", 2)
    assert score([], "new", 2) == 0.0


def test_of_equal_steps_the_earliest_is_the_best():
    assert best_step({2: 0.5, 1: 0.5, 3: 0.4}) == 1
    assert best_step({}) is None


def test_checkpoints_between_those_of_the_plan_push_out_none_of_them():
    plan = frozenset({0, 4, 8})
    assert kept_steps([0, 4, 5, 6, 7], 2, None, plan) == {0, 4, 7}
    assert kept_steps([0, 4, 7, 8], 1, 0, plan) == {0, 8}
    assert kept_steps([0, 4, 5, 6], 2, 4, None) == {4, 5, 6}
