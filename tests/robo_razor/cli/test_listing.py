"""`robo-razor list`: everything there is to choose from, packages of one's own too."""

from __future__ import annotations

import pytest

from robo_razor.cli import commands as cli
from robo_razor.core.plugins import METHODS, PREDICTORS, REGULARISERS


@pytest.fixture
def listed(capsys, monkeypatch):
    """Return a function that returns what `list` prints."""
    monkeypatch.setenv("COLUMNS", "80")

    def printed(*kinds):
        assert cli.main(["list", *kinds]) == 0
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(
    ("kind", "registry"),
    [("methods", METHODS), ("regularisers", REGULARISERS), ("predictors", PREDICTORS)],
)
def test_what_is_registered_is_listed(listed, kind, registry):
    text = listed(kind)
    assert all(f" {name} " in text for name in registry)


def test_who_looks_for_group_advantages_finds_grpo(listed):
    text = " ".join(listed("methods").split())
    assert "`grpo` is PPO with advantages within groups, without a critic" in text


def test_tasks_of_packages_that_are_named_are_listed(listed):
    assert "toy/ReachRed-v0" in listed("tasks", "--env.env-packages", "gym_razor", "toy_env")


def test_plugins_are_imported_first(listed, tmp_path, monkeypatch):
    (tmp_path / "listed_plugin.py").write_text("print('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert listed("methods", "--plugins", "listed_plugin").startswith("imported\n")


def test_several_lists_come_in_the_order_asked_for(listed):
    text = listed("policies", "methods")
    assert text.index("Policies") < text.index("Methods")


def test_without_a_word_the_main_lists_are_shown_within_80_columns(listed):
    text = listed()
    titles = ("Tasks", "Methods", "Regularisers", "Policies")
    assert all(f"{title} " in text for title in titles)
    assert max(map(len, text.splitlines())) <= 80


def test_a_long_name_is_folded_and_not_cut(listed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "x" * 70 + "end"
    (tmp_path / "runs" / name / "checkpoints" / "last").mkdir(parents=True)
    (tmp_path / "runs" / name / "config.yaml").write_text("")
    text = listed("policies")
    assert "…" not in text
    assert "end" in text
