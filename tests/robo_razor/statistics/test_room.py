"""What the room offers is documented, found, and costs nothing until it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from robo_razor import statistics

ROOM = Path(statistics.__file__).parent


@pytest.mark.parametrize("name", statistics.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name):
    assert getattr(statistics, name).__doc__
    assert name in dir(statistics)


def test_every_public_function_is_in_the_table():
    functions = {name for name in statistics.__all__ if name[0].islower()}
    missing = [name for name in functions if f"`{name}`" not in statistics.__doc__]
    assert not missing


def test_what_type_checkers_see_is_what_there_is():
    tree = ast.parse((ROOM / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        for alias in node.names:
            assert getattr(statistics, alias.name).__module__ == node.module
    assert sorted(a.name for node in block.body for a in node.names) == sorted(statistics.__all__)
    assert {f"{ROOM.name}.{module}" for module in statistics.MODULES} == {
        f"{ROOM.name}.{file.stem}" for file in ROOM.glob("[a-z]*.py")
    }


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'median_interval'"):
        statistics.median_interval  # noqa: B018


def test_the_room_needs_errors_and_nothing_else_of_the_package():
    for file in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("robo_razor"):
                room = node.module.startswith("robo_razor.statistics")
                assert room or node.module == "robo_razor.core.errors", file


def test_importing_everything_imports_no_scipy():
    code = (
        "import sys, robo_razor.statistics as s\n"
        "assert 'numpy' not in sys.modules\n"
        "for name in s.__all__: getattr(s, name)\n"
        "assert 'scipy' not in sys.modules\n"
        "s.seed_interval([0.1, 0.2])\n"
        "assert 'scipy.special' in sys.modules and 'scipy.optimize' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
