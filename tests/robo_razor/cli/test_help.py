"""Help: the main settings first, all of them on request, within 80 columns."""

from __future__ import annotations

import re

import pytest
from registries import let_add

from robo_razor.cli import commands as cli
from robo_razor.core.plugins import METHODS

FOREIGN = """
from dataclasses import dataclass
from robo_razor.core.settings.conversion import setting
from robo_razor.training.methods import METHODS, Method

@METHODS.register("{name}")
@dataclass(frozen=True, kw_only=True)
class Foreign(Method):
    '''A method of somebody else.'''

    speed: float = setting(1.0{main})
    '''How fast.'''
    colour: str = "red"
    '''Of what colour.'''
"""


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def helped(capsys):
    """Return a function that returns what a command prints."""

    def printed(*argv):
        assert cli.main(list(argv)) == 0
        return capsys.readouterr().out

    return printed


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Return a function that writes a plugin with a method; the registry forgets it afterwards."""
    let_add(monkeypatch, METHODS)
    monkeypatch.syspath_prepend(tmp_path)

    def written(name, main=""):
        (tmp_path / f"plugin_{name}.py").write_text(FOREIGN.format(name=name, main=main))
        return ("finetune", "--plugins", f"plugin_{name}", "--method", name)

    return written


def flags(text):
    """Return the options that a help explains."""
    return set(re.findall(r"^[│ ] ?(--[a-z][\w.-]*)", text, re.MULTILINE))


def test_help_of_finetune_has_the_main_settings_and_fits_a_screen(helped):
    text = helped("finetune", "--help")
    general = {"--method", "--policy", "--task", "--prior-tasks", "--out", "--resume", "--seed"}
    rates = {"learning-rate", "episodes-per-update", "num-updates", "lora-rank", "minibatch-size"}
    assert flags(text) == general | {f"--ppo.{name}" for name in rates}
    assert "`robo-razor finetune --help-all` shows all" in text
    assert "--config FILE" in text
    assert len(text.splitlines()) < 60


def test_the_long_help_has_every_setting_and_the_regularisers(helped):
    text = helped("finetune", "--help-all")
    wanted = {"--env.num-envs", "--tracking.every", "--ppo.gamma", "--regularise.l2.weight"}
    assert wanted <= flags(text)
    assert "add the penalty to the loss" in " ".join(text.replace("│", " ").split())
    assert "shows all" not in text


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_main_settings_are_few(helped, method):
    own = {flag for flag in flags(helped("finetune", "--method", method, "--help")) if "." in flag}
    assert 4 <= len(own) <= 7
    assert all(flag.startswith(f"--{method}.") for flag in own)


def test_a_regulariser_that_is_named_is_not_in_the_way(helped):
    assert "--ppo.lora-rank" in helped("finetune", "--regularise.l2.weight", "1", "--help")


@pytest.mark.parametrize(("main", "shown"), [("", {"speed", "colour"}), (", main=True", {"speed"})])
def test_a_foreign_method_shows_what_it_marks_or_everything(helped, foreign, main, shown):
    name = f"foreign{len(shown)}"
    argv = foreign(name, main)
    assert {flag for flag in flags(helped(*argv, "--help")) if "." in flag} == {
        f"--{name}.{key}" for key in shown
    }
    assert f"--{name}.colour" in flags(helped(*argv, "--help-all"))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_fits_80_columns(helped, name):
    short, every = helped(name, "--help"), helped(name, "--help-all")
    assert helped(name, "-h") == short
    assert max(map(len, (short + every).splitlines())) <= 80
    assert len(short.splitlines()) < 60


def test_the_overview_fits_80_columns(helped):
    assert max(map(len, helped("--help").splitlines())) <= 80


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train", "finetune"),
        ("tune", "finetune"),
        ("eval", "evaluate"),
        ("test", "evaluate"),
        ("run", "rollout"),
        ("play", "rollout"),
        ("record", "collect"),
        ("fintune", "finetune"),
    ],
)
def test_what_people_type_for_a_command_is_understood(capsys, typed, meant):
    assert cli.main([typed]) == 2
    assert f"Unknown command '{typed}'. Did you mean '{meant}'?" in capsys.readouterr().err
    assert typed not in cli.COMMANDS
