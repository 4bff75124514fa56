"""The scripts in examples/ run as a reader runs them, only smaller."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"UPDATES": "1", "EPISODES": "8", "REPORT": "report"}

pytestmark = pytest.mark.slow


def output_of(name, folder):
    """Run an example in a folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        env=os.environ | SMALL,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in EXAMPLES.glob("*.py")} <= tested


def test_finetune_and_compare(tmp_path):
    printed = output_of("finetune_and_compare", tmp_path)
    tables = re.findall(r"^ +step +new_success_rate +prior_success_rate .*\n +0 ", printed, re.M)
    assert len(tables) == 2
    assert re.search(r"^At the last checkpoint|^At .* success", printed, re.M)
    assert "Page: report/index.html" in printed
    assert "robo-razor" in (tmp_path / "report" / "index.html").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report"], "runs are temporary"


def test_add_a_method(tmp_path):
    printed = output_of("add_a_method", tmp_path)
    rows = [line.split() for line in printed.splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["0", "1"]
    assert [float(row[-1]) > 0.0 for row in rows] == [False, True]
    assert float(printed.splitlines()[-1].removeprefix("Weights moved by (L2): ")) > 0.0
    assert not list(tmp_path.iterdir())


def test_compare_two_policies(tmp_path):
    printed = output_of("compare_two_policies", tmp_path)
    skill = r"^{}: \d+% -> \d+% of 8 episodes, \d lost, \d gained$"
    for name in ("OpenDrawer", "LiftCube", "PlaceCanInBin"):
        assert re.search(skill.format(name), printed, re.M)
    divergence = r"^KL\(base \|\| tuned\) on {}: (\d+\.\d+) nats per decision \(exact\)$"
    for states in ("PlaceCanInBin", "OpenDrawer,LiftCube"):
        assert float(re.search(divergence.format(states), printed, re.M)[1]) > 0.0
    assert re.search(r"^Weights moved by \(L2\): \d", printed, re.M)
