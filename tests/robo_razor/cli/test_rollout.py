from __future__ import annotations

import io

import pytest
from rich.console import Console
from toy_policy import RED

from robo_razor.cli import rollout
from robo_razor.core.settings.config import EnvConfig, RolloutConfig

ENV = EnvConfig(num_envs=4, image_size=16, env_packages=("toy_env",))


def test_it_says_what_it_does_while_it_does_it_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(rollout, "REPORT_EVERY_S", 0.0)
    config = RolloutConfig(policy="expert", task=RED, episodes=9, env=ENV)
    rollout.run_rollout(config)
    shown = capsys.readouterr()
    first, *lines, last = shown.err.splitlines()
    assert first == f"Rolling out 9 episodes of expert on {RED} ..."
    assert last == "9 of 9 episodes, success 100%"
    assert all(" of 9 episodes, success " in line for line in lines)
    assert f"expert on {RED}: 9 of 9 episodes succeeded" in " ".join(shown.out.split())


def test_lines_of_progress_come_now_and_then(capsys):
    progress = rollout.progress_lines()
    for finished in range(1, 5):
        progress(finished, 4, 1)
    assert capsys.readouterr().err == "4 of 4 episodes, success 25%\n"


@pytest.mark.parametrize("video", [None, "film.gif"])
def test_what_it_prints_ends_with_the_result(tmp_path, video):
    console = Console(file=io.StringIO(), width=200)
    path = None if video is None else str(tmp_path / video)
    config = RolloutConfig(policy="expert", task=RED, episodes=2, video=path, env=ENV)
    batch = rollout.run_rollout(config, console)
    assert batch.success.all()
    lines = console.file.getvalue().splitlines()
    assert lines[1].startswith(f"expert on {RED}: 2 of 2 episodes succeeded (100%, 95 % interval")
    assert lines[2:] == ([] if path is None else [f"Video: {path}"])
