"""The scripts in examples/ run as a reader runs them, only smaller."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from registries import let_add

from robo_razor.core.plugins import METHODS

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"UPDATES": "1", "EPISODES": "4", "REPORT": "report"}

pytestmark = [pytest.mark.slow, pytest.mark.gl, pytest.mark.lerobot]


@pytest.fixture
def output_of(tmp_path, monkeypatch, capsys):
    """Run an example in a folder of its own and return what it printed.

    In this process: three scripts would import LeRobot three times. That a script needs no main
    guard is tested with the README's lines.
    """
    let_add(monkeypatch, METHODS)
    monkeypatch.chdir(tmp_path)
    for key, value in SMALL.items():
        monkeypatch.setenv(key, value)

    def run(name):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in EXAMPLES.glob("*.py")} <= tested


def test_finetune_and_compare(output_of, tmp_path):
    printed = output_of("finetune_and_compare")
    tables = re.findall(r"^ +step +new_success_rate +prior_success_rate .*\n +0 ", printed, re.M)
    assert len(tables) == 2
    assert re.search(r"^At the last checkpoint|^At .* success", printed, re.M)
    assert "Page: report/index.html" in printed
    assert "robo-razor" in (tmp_path / "report" / "index.html").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report"], "runs are temporary"


def test_add_a_method(output_of, tmp_path):
    printed = output_of("add_a_method")
    rows = [line.split() for line in printed.splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["0", "1"]
    assert [float(row[-1]) > 0.0 for row in rows] == [False, True]
    assert float(printed.splitlines()[-1].removeprefix("Weights moved by (L2): ")) > 0.0
    assert not list(tmp_path.iterdir())


def test_compare_two_policies(output_of, tmp_path):
    printed = output_of("compare_two_policies")
    skill = r"^{}: \d+% -> \d+% of 4 episodes, \d lost, \d gained$"
    for name in ("OpenDrawer", "LiftCube", "PlaceCanInBin"):
        assert re.search(skill.format(name), printed, re.M)
    divergence = r"^KL\(base \|\| tuned\) on {}: (\d+\.\d+) nats per decision \(exact\)$"
    for states in ("PlaceCanInBin", "OpenDrawer,LiftCube"):
        assert float(re.search(divergence.format(states), printed, re.M)[1]) > 0.0
    assert re.search(r"^Weights moved by \(L2\): \d", printed, re.M)
