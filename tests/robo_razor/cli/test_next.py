"""What a command says at its end: where the result is, and what can be done with it."""

from __future__ import annotations

import io
import logging
import shlex

import pytest
from rich.console import Console
from toy_policy import RED

from robo_razor.cli import commands, training
from robo_razor.cli.collect import run_collect
from robo_razor.core.run.messages import shell, what_next
from robo_razor.core.settings.config import (
    CollectConfig,
    EnvConfig,
    FinetuneConfig,
    PretrainConfig,
)
from robo_razor.training.trainer import FinetuneResult

ENV = EnvConfig(num_envs=4, image_size=16, env_packages=("toy_env",))
LONG = "runs/" + "/".join(["a rather long name"] * 5)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80)


def test_a_run_ends_with_its_directory_and_the_next_commands(console, tmp_path, monkeypatch):
    result = FinetuneResult(tmp_path / "run", 3, 3, {}, 0.1)
    monkeypatch.setattr(training, "finetune", lambda config, listener: result)
    assert training.run_finetune(FinetuneConfig(), console) is result
    shown = " ".join(console.file.getvalue().replace("\n", "").replace("\\", "").split())
    assert "Next: robo-razor compare" in shown
    assert "--out report" in shown
    assert "tensorboard" in shown


def test_only_the_first_rank_says_so(console, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = FinetuneResult(tmp_path / "run", 3, 3, {}, 0.1)
    monkeypatch.setattr(training, "finetune", lambda config, listener: result)
    training.run_finetune(FinetuneConfig(), console)
    assert console.file.getvalue() == ""


def test_a_new_base_is_followed_by_what_can_be_done_with_it(console, monkeypatch):
    monkeypatch.setattr(training, "pretrain", lambda config, console: None)
    training.run_pretrain(PretrainConfig(out="runs/base"), console)
    assert console.file.getvalue().splitlines() == [
        "Run directory: runs/base",
        "Next: robo-razor evaluate --policy runs/base --skills prior",
        "      robo-razor finetune --policy runs/base",
    ]


def test_the_directory_is_named_once():
    assert what_next("runs/x").splitlines() == [
        "Run directory: runs/x",
        "Next: robo-razor compare runs/x --out report",
        "      tensorboard --logdir runs/x",
    ]


@pytest.mark.parametrize("path", ["runs/x", LONG])
def test_a_command_can_be_copied_however_long_it_is(path):
    arguments = ["robo-razor", "finetune", "--method", "bc", "--bc.demonstrations", path]
    text = shell(*arguments)
    assert shlex.split(text.replace("\\\n", " ")) == arguments
    assert ("\n" in text) == (path == LONG)


@pytest.mark.lerobot
def test_collect_says_how_often_the_demonstrator_succeeded_and_what_follows(console, tmp_path):
    out = tmp_path / "demos"
    run_collect(CollectConfig(task=RED, episodes=3, out=str(out), env=ENV), console)
    shown = " ".join(console.file.getvalue().split())
    assert "3 episodes of ReachRed" in shown
    assert "Demonstrated by the expert, style a: " in shown
    assert " episodes succeeded (100%, 95 % interval " in shown
    assert "Next: robo-razor finetune --method bc" in shown
    assert "--bc.demonstrations" in shown


def test_warnings_are_broken_between_words_where_the_width_is_known(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    record = logging.LogRecord("x", logging.WARNING, "", 1, "many words " * 20, (), None)
    lines = commands._Folded("%(levelname)s: %(message)s").format(record).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split() == ["WARNING:", *["many", "words"] * 20]
