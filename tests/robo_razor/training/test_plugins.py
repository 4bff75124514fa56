"""A method and a regulariser of a package outside the repository, by the command line."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import yaml
from registries import let_add
from toy_policy import NEW, save_tiny_policy
from toy_runs import metrics

from robo_razor.cli.arguments import parse
from robo_razor.cli.commands import main
from robo_razor.core.errors import ConfigError
from robo_razor.core.plugins import METHODS, REGULARISERS
from robo_razor.core.settings.config import FinetuneConfig, to_dict
from robo_razor.report.load import load_run

PLUGIN = '''
"""Somebody's own."""

from dataclasses import dataclass

from robo_razor.core.settings.conversion import setting
from robo_razor.training.methods import METHODS
from robo_razor.training.on_policy import OnPolicy
from robo_razor.training.regularisers import REGULARISERS, Regulariser
from robo_razor.training.step import Loss, Targets


@METHODS.register("winners")
@dataclass(frozen=True, kw_only=True)
class Winners(OnPolicy):
    """Raise the probability of what ended well."""

    episodes_per_update: int = setting(16, low=2)
    """Complete episodes collected before each update (>= 2)."""
    boost: float = setting(1.0, above=0.0)
    """Weight of the loss (> 0)."""

    def targets(self, batch):
        import torch

        return Targets(torch.from_numpy(batch.success[batch.record.episode]).float())

    def loss(self, step):
        loss = -self.boost * (step.targets.advantages * step.log_prob).mean()
        return Loss(loss, {"winners_loss": loss.detach()})


@REGULARISERS.register("entropy")
@dataclass(frozen=True, kw_only=True)
class Entropy(Regulariser):
    """Squared distance of the entropy to the base's."""

    is_of_batch = True

    def penalty(self, step, kept):
        return (step.distribution.entropy() - step.base_distribution.entropy()).square().mean()
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "somebodys_own.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    let_add(monkeypatch, METHODS, REGULARISERS)
    yield "somebodys_own"
    sys.modules.pop("somebodys_own", None)


def test_two_updates_by_the_command_line(plugin, tmp_path, capsys):
    base = save_tiny_policy(tmp_path / "base")
    out = tmp_path / "run"
    arguments = [
        "finetune", "--plugins", plugin, "--method", "winners", "--policy", str(base),
        "--task", NEW, "--out", str(out), "--torch-threads", "1", "--winners.boost", "2",
        "--winners.num-updates", "2", "--regularise.entropy.weight", "0.1",
        "--env.num-envs", "8", "--env.num-workers", "1", "--env.image-size", "16",
        "--env.env-packages", "toy_env", "--prior-tasks", "none", "--tracking.every", "1",
        "--tracking.episodes-new", "4", "--tracking.final-episodes-new", "4",
        "--tracking.episodes-new-sampled", "4", "--tracking.kl-states", "8",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    lines = [line for line in metrics(out) if "train/winners_loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all("regulariser/entropy" in line for line in lines)
    data = yaml.safe_load((out / "config.yaml").read_text())
    assert (data["method"], data["winners"]["boost"], data["plugins"]) == ("winners", 2.0, [plugin])
    assert data["regularise"] == {"entropy": {"weight": 0.1}}
    assert main(["finetune", "--resume", "--out", str(out)]) == 0
    assert main(["finetune", "--resume", "--out", str(out), "--winners.boost", "3"]) == 2
    assert "`winners.boost` = 3.0 differs" in capsys.readouterr().err
    assert load_run(out, "run").config["winners"]["boost"] == 2.0


def test_its_settings_are_in_yaml_flags_and_help(plugin, tmp_path, capsys):
    file = tmp_path / "settings" / "c.yaml"
    file.parent.mkdir()
    file.write_text(f"plugins: [{plugin}]\nmethod: winners\nwinners: {{boost: 3}}\n")
    config = parse("finetune", FinetuneConfig, ["--config", str(file)], "")
    assert (config.method.name, config.method.boost) == ("winners", 3.0)
    assert to_dict(config)["winners"]["boost"] == 3.0
    assert dataclasses.replace(config, seed=1).method == config.method
    with pytest.raises(ConfigError, match=r"`winners\.boost` = 0\.0 is out of range"):
        parse("finetune", FinetuneConfig, ["--config", str(file), "--winners.boost=0"], "")
    arguments = ["--plugins", plugin, "--method", "winners", "--help-all"]
    with pytest.raises(SystemExit):
        parse("finetune", FinetuneConfig, arguments, "")
    help_text = capsys.readouterr().out
    for text in ("--winners.boost", "--regularise.entropy.weight", "--regularise.kl.weight"):
        assert text in help_text
    assert "Weight of the loss (> 0)" in " ".join(help_text.replace("│", " ").split())


def test_a_plugin_may_not_lie_beside_the_file_that_names_it(plugin, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    file = tmp_path / "elsewhere" / "c.yaml"
    file.write_text(f"plugins: [{plugin}]\nmethod: winners\n")
    with pytest.raises(
        ConfigError, match=r"'somebodys_own' \(`plugins`\).*may not bring code"
    ) as e:
        parse("finetune", FinetuneConfig, ["--config", str(file)], "")
    assert "`--plugins somebodys_own`" in str(e.value)
    assert plugin not in sys.modules, "it was not run"
    arguments = ["--config", str(file), "--plugins", plugin]
    assert parse("finetune", FinetuneConfig, arguments, "").method.name == "winners"
