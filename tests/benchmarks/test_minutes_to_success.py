"""A run stops at the level, on start states of its own; how many minutes it takes is not tested."""

from __future__ import annotations

import json

import minutes_to_success
import pytest

from robo_razor.core.settings.config import HELD_OUT_SEED, VALIDATION_SEED

pytestmark = [pytest.mark.gl, pytest.mark.lerobot]

SMALL = [
    *("--seeds", "1", "--every", "1", "--episodes", "2", "--prior-episodes", "1"),
    *("--torch-threads", "1", "--env.num-envs", "4", "--env.num-workers", "1"),
    *("--ppo.num-updates", "2", "--ppo.episodes-per-update", "4"),
]


def run(tmp_path, *more):
    file = tmp_path / "minutes.json"
    minutes_to_success.main([*SMALL, "--json", str(file), *more])
    return json.loads(file.read_text())


def test_a_level_that_the_base_has_takes_no_training(tmp_path, capsys):
    document = run(tmp_path, "--level", "0", "--prior-episodes", "0")
    assert document["median_minutes"] == 0.0
    assert [entry["update"] for entry in document["runs"][0]["curve"]] == [0]
    assert "median 0.00" in capsys.readouterr().out


def test_a_level_out_of_reach_is_said_and_the_skills_are_compared(tmp_path, capsys, monkeypatch):
    seeds, evaluate = set(), minutes_to_success.evaluate

    def watched(policy, env, tasks, episodes, seed_offset):
        seeds.add(seed_offset)
        return evaluate(policy, env, tasks, episodes, seed_offset)

    monkeypatch.setattr(minutes_to_success, "evaluate", watched)
    document = run(tmp_path, "--level", "1.1", "--out", str(tmp_path / "runs"))
    assert seeds == {VALIDATION_SEED}
    assert HELD_OUT_SEED + 10_000_000 < VALIDATION_SEED
    assert document["median_minutes"] is None
    assert "not reached by all seeds" in capsys.readouterr().out
    (result,) = document["runs"]
    assert [entry["update"] for entry in result["curve"]] == [0, 1, 2]
    minutes = [entry["minutes"] for entry in result["curve"]]
    assert minutes[0] == 0.0 < minutes[1] < minutes[2]
    assert minutes[2] < result["wall_minutes_with_measuring"]
    assert set(result["prior_successes"]) == set(document["base_prior_successes"])
    assert len(result["prior_successes"]) == 12
    lines = (tmp_path / "runs" / "seed_0" / "metrics.jsonl").read_text().splitlines()
    spent = [json.loads(line) for line in lines]
    expected = sum(u.get("time/rollout_s", 0) + u.get("time/update_s", 0) for u in spent) / 60
    assert minutes[2] == pytest.approx(expected)
