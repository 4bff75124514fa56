"""`make fast` has tests of every room, and what it must not have fails in it."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ROOMS = sorted(folder.name for folder in (TESTS / "robo_razor").iterdir() if folder.is_dir())


@pytest.fixture(scope="module")
def conftest():
    spec = importlib.util.spec_from_file_location("tests_conftest", TESTS / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fast_tests(conftest, folder):
    """Return the test functions of a folder that need nothing and carry no marker."""
    functions = []
    for file in folder.rglob("test_*.py"):
        markers = conftest.needs(file)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marked = any(f"mark.{m}" in ast.unparse(node) for m in conftest.LEFT_OUT)
                if not (marked or markers[""] or markers.get(node.name)):
                    functions.append(node.name)
    return functions


def test_make_runs_the_fast_set():
    recipe = re.search(r"^fast:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "pytest --fast" in recipe[1]


def test_what_is_left_out_has_a_marker(conftest):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {line.partition(":")[0] for line in settings["ini_options"]["markers"]}
    assert {*conftest.LEFT_OUT, *conftest.NEEDS.values()} == markers


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_fast_tests(room, conftest):
    assert len(fast_tests(conftest, TESTS / "robo_razor" / room)) >= 3


def test_markers_follow_from_imports(conftest, tmp_path):
    file = tmp_path / "test_x.py"
    file.write_text(
        "from toy_policy import NEW\n"
        "def test_a():\n    from toy_policy import tiny_policy\n"
        "def test_b():\n    import transformers.models\n"
    )
    assert conftest.needs(file) == {"": set(), "test_a": {"lerobot"}, "test_b": {"vla"}}
    for text in ("import flow_bandit", "def helper():\n    import lerobot.policies"):
        other = tmp_path / f"test_{len(text)}.py"
        other.write_text(text)
        assert conftest.needs(other)[""]


@pytest.mark.slow
def test_a_test_that_forgot_its_marker_fails(tmp_path):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_fast.py").write_text(
        "import importlib, importlib.util, pytest\n"
        "def test_vla():\n    importlib.import_module('transformers')\n"
        "def test_gl():\n    importlib.import_module('mujoco').GLContext(8, 8)\n"
        "def test_looking_is_free():\n    assert importlib.util.find_spec('transformers')\n"
        "@pytest.mark.slow\ndef test_slow():\n    assert False\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-m", "pytest", "--fast", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "2 failed, 1 passed, 1 deselected" in result.stdout
    assert result.stdout.count("In `make fast` there is no OpenGL and no transformers") >= 2
