"""Modules that bring methods and the like, named by the user."""

import sys

import pytest
from registries import let_add

from robo_razor.core.errors import ConfigError
from robo_razor.core.plugins import METHODS, load_plugins


def test_a_plugin_registers_what_it_brings(tmp_path, monkeypatch):
    (tmp_path / "my_plugin_module.py").write_text(
        "from robo_razor.core.plugins import METHODS\nMETHODS.add('mine', object)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    let_add(monkeypatch, METHODS)
    load_plugins(["my_plugin_module"])
    load_plugins(["my_plugin_module"])
    assert METHODS.get("mine") is object
    monkeypatch.delitem(sys.modules, "my_plugin_module")


def test_a_plugin_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="'no_such_plugin' cannot be imported") as caught:
        load_plugins(["no_such_plugin"])
    assert "PYTHONPATH" in str(caught.value)
