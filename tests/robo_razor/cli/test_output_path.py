"""Where a result cannot be written, nothing is computed for it."""

import os

import pytest
from toy_env import ToyVectorEnv
from toy_policy import NEW, save_tiny_policy
from toy_runs import finetune, quiet

from robo_razor.cli.archive import run_archive
from robo_razor.cli.collect import run_collect
from robo_razor.cli.evaluate import run_evaluate
from robo_razor.cli.manifest import run_manifest
from robo_razor.cli.rollout import run_rollout
from robo_razor.core.errors import ConfigError, RoboRazorError
from robo_razor.core.files import check_writable
from robo_razor.core.settings.config import (
    ArchiveConfig,
    CollectConfig,
    CompareConfig,
    EnvConfig,
    EvaluateConfig,
    FinetuneConfig,
    ManifestConfig,
    RolloutConfig,
)
from robo_razor.report import build as report

ENV = EnvConfig(num_envs=2, num_workers=1, image_size=16, env_packages=("toy_env",))


def test_nothing_is_left_behind(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.json", "json")
    check_writable(tmp_path / "a" / "b", "out", directory=True)
    (tmp_path / "old.json").write_text("{}")
    check_writable(tmp_path / "old.json", "json")
    assert [file.name for file in tmp_path.iterdir()] == ["old.json"]


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for place, problem in [
        (tmp_path, "is a directory, but a file must be written there"),
        (tmp_path / "pipe", "is not a plain file"),
        ("/dev/null", "is not a plain file"),
        (tmp_path / "file" / "x.json", "cannot be written"),
        (tmp_path / ("x" * 240), "cannot be written"),  # the names that are written on the way
        ("/proc/absent/x.json", "cannot be written"),
        ("/sys/x.json", "cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=f"`json` = .*{problem}"):
            check_writable(place, "json")
    with pytest.raises(
        ConfigError, match="is not a plain file, but a directory must be written there"
    ):
        check_writable(tmp_path / "pipe", "out", directory=True)


@pytest.fixture
def no_work(monkeypatch):
    """Let whatever is long fail the test."""

    def work(*_, **__):
        raise AssertionError("began to work")

    monkeypatch.setattr(ToyVectorEnv, "reset", work)
    monkeypatch.setattr(report, "load_runs", work)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("policy") / "base")


FILES = {
    ".json": lambda base, place: run_evaluate(
        EvaluateConfig(policy=base, skills=NEW, episodes=2, json=place, env=ENV), quiet()
    ),
    ".json.gz": lambda base, place: run_manifest(
        ManifestConfig(skills=NEW, episodes=2, out=place, env=ENV)
    ),
    ".tar.xz": lambda base, place: run_archive(ArchiveConfig(directory=base, out=place)),
    ".gif": lambda base, place: run_rollout(
        RolloutConfig(policy=base, task=NEW, episodes=1, video=place, env=ENV), quiet()
    ),
}
DIRECTORIES = {
    "compare": lambda base, place: report.run_compare(CompareConfig(runs=(base,), out=place)),
    "collect": lambda base, place: run_collect(
        CollectConfig(task=NEW, episodes=1, out=place, env=ENV), quiet()
    ),
    "finetune": lambda base, place: finetune(
        FinetuneConfig(policy=base, task=NEW, prior_tasks="none", out=place, env=ENV), quiet()
    ),
}


@pytest.mark.parametrize("ending", FILES)
def test_a_file_is_tried_first(ending, base, tmp_path, no_work):
    (tmp_path / f"x{ending}").mkdir()
    for place in (tmp_path / f"x{ending}", f"/proc/absent/x{ending}"):
        with pytest.raises(ConfigError, match="written"):
            FILES[ending](base, str(place))


@pytest.mark.parametrize("command", DIRECTORIES)
def test_a_directory_is_tried_first(command, base, tmp_path, no_work):
    (tmp_path / "file").write_text("")
    for place in ("/proc/absent/x", str(tmp_path / "file" / "x"), str(tmp_path / "file")):
        with pytest.raises(RoboRazorError, match="written|is a file"):
            DIRECTORIES[command](base, place)
