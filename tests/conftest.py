"""What every test may rely on: headless rendering, its own core, and a fast set that is fast.

`pytest --fast` (`make fast`) leaves out tests that need OpenGL (`gl`), LeRobot's policies, which
import transformers (`lerobot`; `vla` where a test needs these itself), a GPU (`gpu`) or much time
(`slow`). A file that imports them, itself or through tests/toys, is marked as a whole and not even
imported; else a test carries its marker itself. One that forgot it fails: OpenGL and transformers
are switched off.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import pytest

TOYS = Path(__file__).parent / "toys"
sys.path.insert(0, str(TOYS))  # here and in processes that tests start

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's; other workers need the cores

NEEDS = {
    "transformers": "vla",
    "tiny_vla": "vla",
    "lerobot": "lerobot",
    "lerobot_policy_razor": "lerobot",
    "robo_razor.policies.load": "lerobot",
    "toy_policy.tiny_policy": "lerobot",
    "toy_policy.save_tiny_policy": "lerobot",
    "gym_razor": "gl",
    "robosuite": "gl",
    "playwright": "slow",
}
"""The marker that follows from importing a package, a module or a name of one."""
LEFT_OUT = ("slow", "gl", "lerobot", "vla", "gpu")
"""Markers of tests that are not in the fast set."""
ADVICE = (
    "In `make fast` there is no OpenGL and no transformers (LeRobot's policies import it). A test "
    "that needs one of them carries the marker `gl` or `lerobot`."
)


@functools.cache
def needs(file: Path) -> dict[str, frozenset[str]]:
    """Return the markers that follow from what a file imports.

    Returns:
        By test function for what only that one imports, under "" for the file as a whole. What a
        function of a toy imports counts where `NEEDS` names the function.
    """
    markers: dict[str, frozenset[str]] = {"": frozenset()}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        function = node.name if isinstance(node, ast.FunctionDef) else ""
        if function and file.parent == TOYS:
            continue
        key = function if function.startswith("test_") else ""
        markers[key] = markers.get(key, frozenset()).union(*map(_markers, _imported(node)))
    return markers


def _markers(name: str) -> frozenset[str]:
    """Return the markers that follow from importing a dotted name."""
    toy = TOYS / f"{name}.py"
    own = {marker for module, marker in NEEDS.items() if f"{name}.".startswith(f"{module}.")}
    return frozenset(own) | (needs(toy)[""] if toy.exists() else frozenset())


def _imported(tree: ast.AST) -> set[str]:
    """Return the dotted names that are imported anywhere in a tree."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="no OpenGL, no transformers, nothing slow")


def pytest_configure(config: pytest.Config) -> None:
    fast = config.getoption("fast")
    if fast:
        sys.meta_path.insert(0, _NoTransformers())
    if fast or sys.platform.startswith("linux"):  # mujoco reads it once, when it is imported
        os.environ["MUJOCO_GL"] = "disable" if fast else os.environ.get("MUJOCO_GL", "egl")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("fast"):
        return None
    folder = collection_path / "conftest.py"  # it is imported before any file of its folder
    file = folder if collection_path.is_dir() else collection_path
    own = file.name.startswith("test_") or (file == folder and folder.exists())
    return True if own and file.suffix == ".py" and needs(file)[""] else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        by_function = needs(item.path)
        function = getattr(item, "originalname", item.name)
        for marker in by_function[""] | by_function.get(function, frozenset()):
            item.add_marker(marker)
    _slow_files_first(items)
    if config.getoption("fast"):
        slow = {item for item in items if any(map(item.get_closest_marker, LEFT_OUT))}
        config.hook.pytest_deselected(items=[item for item in items if item in slow])
        items[:] = [item for item in items if item not in slow]


def _slow_files_first(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that no process is left with one at the end."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, LEFT_OUT))}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and item.config.getoption("fast"):
        report.sections.append(("make fast", ADVICE))
    return report


class _NoTransformers(importlib.machinery.PathFinder):
    """Lets transformers be looked for but not imported: LeRobot asks whether it is there."""

    def find_spec(self, name, path=None, target=None):
        if name != "transformers":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        return spec and importlib.machinery.ModuleSpec(name, self, origin=spec.origin)

    def create_module(self, spec):
        raise ImportError(ADVICE)

    def exec_module(self, module):
        raise ImportError(ADVICE)
