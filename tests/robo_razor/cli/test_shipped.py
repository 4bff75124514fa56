"""Settings files that ship: found by name, listed, and part of the wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from robo_razor.cli import commands as cli
from robo_razor.cli.arguments import parse
from robo_razor.core.settings import shipped
from robo_razor.core.settings.config import FinetuneConfig, load_yaml

ROOT = Path(__file__).parents[3]


def finetune(*argv):
    return parse("finetune", FinetuneConfig, argv, "about")


@pytest.mark.parametrize("name", shipped.shipped_files())
def test_a_bare_name_means_the_file_that_ships(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = finetune("--config", name)
    assert config == load_yaml(FinetuneConfig, ROOT / "configs" / f"{name}.yaml")
    assert config.tracking.max_share == 1.0  # these mostly measure


def test_a_file_of_ones_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debug_ppo").write_text("seed: 7\n")
    assert finetune("--config", "debug_ppo").seed == 7


def test_an_unknown_name_lists_what_ships(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["finetune", "--config", "debug_pp"]) == 2
    assert "ships with robo-razor: debug_bc, debug_grpo, debug_ppo." in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["sweep", "absent.yaml"], ["sweep"]])
def test_a_sweep_of_nothing_lists_the_experiments_that_ship(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert "ships with robo-razor: razor, razor_smoke." in message
    assert "--config" not in message


def test_a_sweep_takes_the_name_of_an_experiment_that_ships(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "razor_smoke", "--dry-run"]) == 0
    assert "4 runs in runs/razor_smoke" in capsys.readouterr().out


def test_list_shows_the_files_with_their_first_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["list", "configs"]) == 0
    shown = capsys.readouterr().out
    for part in ("finetune --config debug_ppo", "sweep razor_smoke", "A complete PPO run"):
        assert part in shown


def test_without_a_checkout_the_files_of_the_package_are_found(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "robo_razor"
    (package / "configs").mkdir(parents=True)
    (package / "configs" / "a.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    assert shipped.shipped_files() == {"a": package / "configs" / "a.yaml"}
    assert shipped.shipped_files(shipped.EXPERIMENTS) == {}
    assert shipped.about_file(package / "configs" / "a.yaml") == ""


def test_the_wheel_takes_the_files_along():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert settings["targets"]["wheel"]["force-include"] == {"configs": "robo_razor/configs"}
