from __future__ import annotations

from robo_razor.core.run.selection import best_step, kept_steps, planned_steps, score
from robo_razor.core.settings.config import TrackingConfig
from robo_razor.core.settings.conversion import to_dict


def rows(*successes, task="new", mode="greedy"):
    return [{"task": task, "mode": mode, "success": success} for success in successes]


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
