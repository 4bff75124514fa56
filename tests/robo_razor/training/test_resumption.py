"""Going on with a run: from any directory, with `auto` whether there is one or not."""

import os
import shutil

import pytest
from toy_policy import NEW, save_tiny_policy
from toy_runs import finetune, interrupt_at, quiet, run_config

from robo_razor.cli.arguments import parse
from robo_razor.core.errors import ConfigError, RunDirectoryError
from robo_razor.core.run.directory import RunDirectory, TrainingState
from robo_razor.core.settings.config import (
    EnvConfig,
    FinetuneConfig,
    TrackingConfig,
    replace,
)
from robo_razor.training import resumption
from robo_razor.training.imitation import DemonstrationLearner
from robo_razor.training.methods.bc import BC
from robo_razor.training.resumption import settle_resume, stored_settings

ENV = EnvConfig(num_envs=4, num_workers=1, image_size=16, env_packages=("toy_env",))
TRACKING = TrackingConfig(
    every=1, early=0, episodes_new=2, episodes_new_sampled=0, kl_states=4, final_episodes_new=2
)
METHODS = {"bc": BC(episodes=2, epochs=2, batch_size=4, warmup_steps=1)}


def toy_config(base, out, **changes):
    common = {"env": ENV, "tracking": TRACKING, "prior_tasks": "none"}
    return run_config(base, out, "bc", METHODS, **(common | changes))


@pytest.fixture
def arguments(tmp_path):
    return ["--out", str(tmp_path / "run"), "--seed", "7"]


def resolved(*arguments):
    return settle_resume(parse("finetune", FinetuneConfig, arguments, ""))


def make_run(arguments, checkpoint=True):
    run = RunDirectory.create(parse("finetune", FinetuneConfig, arguments, ""))
    if checkpoint:
        run.save_checkpoint(lambda directory: None, TrainingState(step=1))
    run.close()
    return run


@pytest.mark.parametrize("flag", [("--resume", "auto"), ("--resume=auto",)])
def test_auto_begins_where_there_is_nothing(arguments, flag):
    assert resolved(*arguments, *flag).resume is False


def test_auto_goes_on_where_there_is_a_checkpoint(arguments):
    make_run(arguments)
    config = resolved(*arguments, "--resume", "auto")
    assert (config.resume, config.seed) == (True, 7)


def test_auto_begins_anew_where_a_run_ended_before_its_first_checkpoint(arguments):
    run = make_run(arguments, checkpoint=False)
    assert resolved(*arguments, "--resume", "auto").resume is False
    assert not run.path.exists()


def test_auto_leaves_removing_to_the_first_rank(arguments, monkeypatch):
    run = make_run(arguments, checkpoint=False)
    monkeypatch.setenv("RANK", "1")
    assert resolved(*arguments, "--resume", "auto").resume is False
    assert run.path.exists()


def test_auto_keeps_away_from_what_is_no_run_or_is_running(arguments, tmp_path):
    run = RunDirectory.create(parse("finetune", FinetuneConfig, arguments, ""))
    with pytest.raises(RunDirectoryError, match="Another process"):
        resolved(*arguments, "--resume", "auto")
    run.close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RunDirectoryError, match="something else"):
        resolved("--out", str(tmp_path / "mine"), "--resume", "auto")


def test_auto_refuses_other_settings_of_flags_file_and_python(arguments, tmp_path):
    make_run(arguments)
    with pytest.raises(ConfigError, match="`seed` = 8 differs from the run that is resumed"):
        resolved(*arguments[:2], "--seed", "8", "--resume", "auto")
    file = tmp_path / "c.yaml"
    file.write_text("resume: auto\nppo: {gamma: 0.5}\n")
    with pytest.raises(ConfigError, match=r"`ppo\.gamma` = 0\.5 differs"):
        resolved(*arguments, "--config", str(file))
    file.write_text("resume: auto\nppo: {gamma: 0.99}\n")
    assert resolved(*arguments, "--config", str(file)).resume is True
    with pytest.raises(ConfigError, match="`seed` = 0 differs"):
        settle_resume(FinetuneConfig(out=arguments[1], resume="auto"))


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (("--resume",), True),
        (("--resume", "true"), True),
        (("--resume", "false"), False),
        (("--no-resume",), False),
        (("--resume", "AUTO"), "auto"),
    ],
)
def test_values_of_resume(arguments, given, value):
    make_run(arguments)
    assert parse("finetune", FinetuneConfig, [*arguments, *given], "").resume == value


def test_another_value_of_resume_is_refused(arguments):
    with pytest.raises(ConfigError, match="maybe"):
        parse("finetune", FinetuneConfig, [*arguments, "--resume", "maybe"], "")


def test_a_run_keeps_its_settings_as_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FinetuneConfig(out="run", policy="base", method="bc", resume="auto")
    run = RunDirectory.create(settle_resume(config))
    run.close()
    data = run.config_data()
    assert (data["policy"], data["out"], data["resume"]) == ("base", "run", False)
    assert not [file for file in run.measured() if tmp_path.name.encode() in file.read_bytes()]


def test_paths_of_a_run_are_looked_for_where_it_was_begun(tmp_path, monkeypatch):
    (tmp_path / "begun" / "base").mkdir(parents=True)
    (tmp_path / "begun" / "data").mkdir()
    (tmp_path / "begun" / "razor-base").mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    for policy, demonstrations, wanted in [
        ("base", "data", (f"{tmp_path}/begun/base", f"{tmp_path}/begun/data")),
        ("razor-base", "policy:base", ("razor-base", f"policy:{tmp_path}/begun/base")),
        ("user/model", "expert", ("user/model", "expert")),
    ]:
        shutil.rmtree("run", ignore_errors=True)
        bc = BC(demonstrations=demonstrations)
        RunDirectory.create(FinetuneConfig(policy=policy, method=bc, out="run")).close()
        in_place = stored_settings(RunDirectory("run"))
        assert (in_place.policy, in_place.method.demonstrations) == (policy, demonstrations)
        monkeypatch.chdir(tmp_path)
        from_parent = stored_settings(RunDirectory("begun/run"))
        assert (from_parent.policy, from_parent.method.demonstrations) == wanted
        monkeypatch.chdir(tmp_path / "begun")


def test_a_run_that_was_moved_with_its_data_is_read_from_here(tmp_path, monkeypatch):
    (tmp_path / "old" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    RunDirectory.create(FinetuneConfig(policy="base", out="run")).close()
    monkeypatch.chdir(tmp_path)
    os.rename("old", "new")
    monkeypatch.chdir("new")
    assert stored_settings(RunDirectory("run")).policy == "base"


def test_a_run_is_resumed_from_another_directory(tmp_path, monkeypatch):
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    begun.mkdir()
    elsewhere.mkdir()
    save_tiny_policy(begun / "base")
    monkeypatch.chdir(begun)
    interrupt_at(monkeypatch, DemonstrationLearner, 2, toy_config("base", "run"))
    monkeypatch.chdir(elsewhere)
    config = parse("finetune", FinetuneConfig, ["--resume", "--out", "../begun/run"], "")
    finetune(config, quiet())
    assert RunDirectory("../begun/run").is_finished()
    arguments = ["--resume", "--out", "../begun/run", "--policy", "../begun/base", "--task", NEW]
    assert parse("finetune", FinetuneConfig, arguments, "").resume


def test_auto_makes_the_run_whatever_there_is(tmp_path, monkeypatch):
    base = save_tiny_policy(tmp_path / "base")
    config = replace(toy_config(base, tmp_path / "run"), resume="auto")
    interrupt_at(monkeypatch, DemonstrationLearner, 2, config)
    assert RunDirectory(tmp_path / "run").last_step() == 1
    finetune(config, quiet())
    assert RunDirectory(tmp_path / "run").is_finished()
    assert RunDirectory(tmp_path / "run").config_data()["resume"] is False
    finetune(config, quiet())  # a finished run has nothing left to do


def test_a_run_may_not_bring_its_own_code(tmp_path, monkeypatch):
    config = FinetuneConfig(out=str(tmp_path / "run"), env=EnvConfig(env_packages=("in_the_run",)))
    RunDirectory.create(config).close()
    (tmp_path / "run" / "in_the_run.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path / "run"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigError, match="may not bring code"):
        stored_settings(run)
    assert stored_settings(run, ("in_the_run",)) == config


def test_where_a_run_was_begun_may_be_gone_or_nonsense(tmp_path):
    config = FinetuneConfig(out=str(tmp_path / "run"))
    RunDirectory.create(config).close()
    run = RunDirectory(tmp_path / "run")
    for nonsense in (b"\xff", b"relative", b"/absent/folder", b"x" * 2**15, b"\0"):
        (run.path / ".begun_in").write_bytes(nonsense)
        assert run.begun_in() is None
    assert resumption.stored_settings(run) == config
