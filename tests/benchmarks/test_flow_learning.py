"""The stages of the learning benchmark fit together; how well it learns is not tested here."""

from __future__ import annotations

import json
import os
import sys

import flow_learning
import pytest

SMALL = [
    *("--demonstrations", "2", "--new-demonstrations", "2", "--epochs", "1"),
    *("--updates", "2", "--episodes-per-update", "4", "--test-episodes", "1"),
    *("--kl-states", "8"),
    *("--threads", "1", "--workers", "1", "--num-envs", "4", "--reward-type", "shaped"),
]


@pytest.mark.slow
def test_all_stages_are_measured_and_found_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flow_learning.os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "path", list(sys.path))
    out, file = tmp_path / "out", tmp_path / "found.json"
    arguments = [*SMALL, "--out", str(out), "--json", str(file)]
    assert flow_learning.main(arguments) == 0
    document = json.loads(file.read_text())
    assert set(document["checkpoints"]) == set(document["wall_s"]) == {"base", "ppo", "bc"}
    assert 600_000 < document["parameters"] < 800_000
    for name in ("ppo", "bc"):
        first, *_, last = document["checkpoints"][name]
        assert set(last["prior"]) == {"PressButton", "OpenDrawer"}
        assert first["kl_base_tuned"]["prior"] == 0.0 < last["kl_base_tuned"]["prior"]
    output = capsys.readouterr().out
    assert "ppo, update 2: gym_razor/CloseDrawer-v0 sampled" in output
    measured = {path: path.stat().st_mtime_ns for path in out.glob("*/eval/*/summary.json")}
    assert flow_learning.main(arguments) == 0  # nothing is done again
    assert measured == {path: path.stat().st_mtime_ns for path in measured}
    assert json.loads(file.read_text())["wall_s"] == pytest.approx(document["wall_s"], abs=60.0)
    with pytest.raises(SystemExit, match="holds runs with updates = 2, not 3: give another --out"):
        flow_learning.main([*arguments, "--updates", "3"])
