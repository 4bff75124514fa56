"""The throughput benchmark runs and keeps its promise that all contestants do the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "env_throughput.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.gl
@pytest.mark.slow
@pytest.mark.parametrize("ratios", ["ac"])
def test_a_short_run_writes_ratios(tmp_path, ratios):
    out = tmp_path / "b.json"
    sizes = ["--repeats", "1", "--num-envs", "2", "--workers", "1", "--decisions", "2"]
    done = run("--only", ratios, "--json", str(out), *sizes)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert set(document["ratios"]) == set(ratios)
    for result in document["ratios"].values():
        assert result["ratio"] > 0  # how fast is not tested
        assert result["ours"]["simulated_s_per_wall_s"] > 0
    assert document["machine"]["cores"] >= 1


def test_an_unknown_ratio_is_refused():
    done = run("--only", "ax")
    assert done.returncode == 2
    assert "give letters out of abcd" in done.stderr
