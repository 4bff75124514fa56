"""The files that docs/extend/ shows, as a reader has them: in a folder outside the repository."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.metadata
import io
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_finetune import __file__ as FAKE_PROGRAM
from fake_sweep import FakeSweep
from linear_policy import saved_linear_policy
from registries import let_add
from rich.console import Console
from toy_env import ToyVectorEnv
from toy_policy import NEW, save_tiny_policy
from toy_runs import metrics, summary

from robo_razor.cli.commands import main
from robo_razor.cli.sweep import run_sweep
from robo_razor.core import plugins
from robo_razor.core.quantities import QUANTITIES
from robo_razor.core.settings.config import SweepConfig
from robo_razor.core.types import make_rows
from robo_razor.policies.load import load_policy
from robo_razor.rollout.episodes import run_episodes
from robo_razor.sweep.schedule import State

ROOT = Path(__file__).parents[2]
EXTEND = ROOT / "docs" / "extend"
KINDS = {
    "method": plugins.METHODS,
    "regulariser": plugins.REGULARISERS,
    "predictor": plugins.PREDICTORS,
    "policy_family": plugins.FAMILIES,
    "launcher": plugins.LAUNCHERS,
    "sink": plugins.SINKS,
}
SMALL = (
    "--torch-threads", "1", "--my-method.num-updates", "2", "--my-method.episodes-per-update", "8",
    "--env.num-envs", "8", "--env.num-workers", "1", "--env.image-size", "16",
    "--prior-tasks", "none", "--tracking.every", "1", "--tracking.episodes-new", "4",
    "--tracking.final-episodes-new", "4", "--tracking.episodes-new-sampled", "4",
    "--tracking.kl-states", "8",
)  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder outside the repository with copies of the files, found as in PYTHONPATH."""
    let_add(monkeypatch, *KINDS.values())
    monkeypatch.setitem(QUANTITIES, "my_predictor", None)  # removed afterwards
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for file in EXTEND.glob("my_*.py"):
        shutil.copy(file, folder)
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for file in EXTEND.glob("my_*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.gl
def test_a_method_a_regulariser_a_predictor_a_sink_and_a_task_make_two_updates(
    elsewhere, tmp_path, capsys
):
    base, out = save_tiny_policy(tmp_path / "base"), tmp_path / "run"
    words = [
        "finetune", "--policy", base, "--out", str(out), *SMALL,
        "--plugins", "my_method", "my_regulariser", "my_predictor", "my_sink",
        "--method", "my_method", "--my-method.entropy-bonus", "0.01",
        "--regularise.my-regulariser.weight", "0.2", "--log", "my_sink",
        "--task", "HoverOverButton", "--env.env-packages", "gym_razor", "my_tasks",
        "--env.reward-type", "shaped",
    ]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    for name in ("my_method", "my_regulariser", "my_predictor", "my_sink"):
        assert Path(sys.modules[name].__file__).parent == elsewhere
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["method"] == "my_method"
    assert settings["my_method"]["entropy_bonus"] == 0.01
    assert settings["task"] == "my_tasks/HoverOverButton-v0"
    assert settings["regularise"] == {"my_regulariser": {"weight": 0.2}}
    updates = [line for line in metrics(out) if "train/policy_loss" in line]
    assert [line["step"] for line in updates] == [1, 2]
    assert all(line["regulariser/my_regulariser"] >= 0.0 for line in updates)
    distances = [summary(out, step)["distances"]["my_predictor"] for step in (0, 1, 2)]
    assert distances[0] == 0.0
    assert 0.0 < distances[1] < distances[2]
    with (out / "metrics.csv").open(newline="") as file:
        rows = {(row["step"], row["key"]): float(row["value"]) for row in csv.DictReader(file)}
    for line in updates:
        assert rows[str(line["step"]), "train/policy_loss"] == line["train/policy_loss"]
    assert main(["compare", str(out), "--out", str(tmp_path / "report"), "--videos", "0"]) == 0


def test_the_method_gives_each_episode_its_lead_over_the_others(elsewhere):
    kind = importlib.import_module("my_method").MyMethod
    returns = np.array([1.0, 0.0, 0.0])
    record = dataclasses.make_dataclass("Record", ["episode"])(np.array([0, 0, 1, 2]))
    batch = dataclasses.make_dataclass("Batch", ["episode_return", "record"])(returns, record)
    assert kind().targets(batch).advantages.tolist() == [1.0, 1.0, -0.5, -0.5]


def test_the_sink_goes_on_after_an_interruption(elsewhere, tmp_path):
    kind = importlib.import_module("my_sink").MySink
    for start, steps in ((0, (1, 2)), (1, (2, 3))):
        sink = kind()
        sink.start(tmp_path, {}, start)
        for step in steps:
            sink.log(step, {"loss": 10.0 * start + step})
        sink.close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,key,value", "1,loss,1.0", "2,loss,12.0", "3,loss,13.0"]


def test_the_launcher_runs_a_sweep_one_run_after_another(elsewhere, tmp_path, monkeypatch):
    fake = FakeSweep(tmp_path, None, monkeypatch)
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("arms: [{name: a, settings: {method: bc}, grid: {seed: [0, 1]}}]")
    config = SweepConfig(
        file=str(experiment),
        out=str(fake.out),
        plugins=("my_launcher",),
        backend="my_launcher",
    )
    launcher = sys.modules["my_launcher"]
    monkeypatch.setattr(launcher, "PROGRAM", (sys.executable, FAKE_PROGRAM))
    console = Console(file=io.StringIO(), width=200)
    assert {progress.state for progress in run_sweep(config, console)} == {State.FINISHED}
    assert fake.starts == ["a/seed_0 new", "a/seed_1 new"]
    assert "1 at a time" in console.file.getvalue()


def test_the_launcher_interrupts_and_kills(elsewhere, tmp_path, monkeypatch):
    launcher = importlib.import_module("my_launcher")
    monkeypatch.setattr(launcher, "PROGRAM", (sys.executable, "-c"))
    waits = "import time; print('begun', flush=True); time.sleep(3600)"
    for stop, status in (("interrupt", -15), ("kill", -9)):
        log = tmp_path / f"{stop}.log"
        run = launcher.MyLauncher(None, ()).start([waits], log)
        while "\nbegun" not in log.read_text():
            assert run.poll() is None
        getattr(run, stop)()
        assert run.process.wait() == run.poll() == status


def test_the_policy_family_gives_a_policy_of_its_type_a_density(elsewhere, tmp_path):
    (tmp_path / "package").mkdir()
    with saved_linear_policy(tmp_path / "package") as folder:
        plugins.load_plugins(["my_policy_family"])
        policy = load_policy(folder)
        assert type(policy).__name__ == "NoisyPolicy"
        image = np.full((3, 16, 16, 3), 100, np.uint8)
        seen = {"pixels": {"front": image}, "agent_pos": np.ones((3, 7), np.float32)}
        batch = policy.prepare(seen, ["go"] * 3)
        with torch.no_grad():
            distribution = policy.distribution(batch)
            assert distribution.kl(policy.distribution(batch)).tolist() == [0.0] * 3
        rows = make_rows(NEW, range(3))
        env = ToyVectorEnv(2, 1, chunk_size=policy.chunk_size, image_size=16, task=NEW)
        record = run_episodes(env, policy, rows, "sample", record=True).record
        assert torch.isfinite(record.log_prob).all()
        assert not record.value.any()
        policy.freeze_vision()
        trained = {name for name, p in policy.module.named_parameters() if p.requires_grad}
        assert trained == {"head.weight", "head.bias"}
        assert policy.loss_weight(np.array([[False, True]])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_has_a_page_that_shows_it_and_how_to_use_it(kind):
    page = (EXTEND / f"{kind}.md").read_text()
    package = KINDS[kind].package.replace(".", "/")
    assert f'--8<-- "extend/my_{kind}.py"' in page
    assert f"`{package}/{registered_name(kind)}.py`" in page
    assert f"--plugins my_{kind}" in page
    assert f"extend/{kind}.md" in (ROOT / "mkdocs.yml").read_text()
    assert f"({kind}.md)" in (EXTEND / "index.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_an_installed_package_offers_it_as_its_page_says(kind, elsewhere, monkeypatch):
    text = (EXTEND / f"{kind}.md").read_text().split("```toml\n")[1].split("```")[0]
    [(group, offers)] = tomllib.loads(text)["project"]["entry-points"].items()
    points = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value.removeprefix("my_package."), group)
        for name, value in offers.items()
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", points.select)
    monkeypatch.setattr(KINDS[kind], "_entry_points_loaded", False)
    item = KINDS[kind].get(registered_name(kind))
    assert getattr(item, "measure", item).__module__ == f"my_{kind}"


def registered_name(kind):
    """Return the name under which a file of docs/extend/ registers what it brings."""
    return "linear" if kind == "policy_family" else f"my_{kind}"
