"""The command line: quick help with examples, strict flags, errors in one paragraph."""

import os
import subprocess
import sys

import pytest

from robo_razor.cli import commands as cli
from robo_razor.cli.arguments import parse
from robo_razor.core.errors import ConfigError
from robo_razor.core.run.directory import RunDirectory, TrainingState
from robo_razor.core.settings.config import CompareConfig, EvaluateConfig, FinetuneConfig

DEAR = {
    *("torch", "torchvision", "lerobot", "mujoco", "gymnasium", "robosuite", "transformers", "ray"),
    *("scipy", "matplotlib", "pandas", "pyarrow", "tensorboard", "cv2", "PIL", "imageio", "plotly"),
    *("datasets", "huggingface_hub", "gym_razor", "lerobot_policy_razor", "safetensors"),
}
"""What no help needs, and what takes a tenth of a second or more."""


def finetune(*argv):
    return parse("finetune", FinetuneConfig, argv, "about")


def run(*argv):
    """Run the command line in this process and return the exit status."""
    return cli.main(list(argv))


@pytest.fixture
def called(monkeypatch):
    """Replace what commands call; return the arguments of the calls."""
    calls = []
    monkeypatch.setattr(cli, "_load", lambda target: lambda *a: calls.append((target, *a)))
    return calls


@pytest.mark.parametrize("argv", [["--help"], ["finetune", "--help"], ["--version"]])
def test_help_imports_little(argv):
    """What takes seconds is importing; a clock would tell more of the machine than of the code."""
    code = (
        "import sys; from robo_razor.cli import main; main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in done.stderr.split()}
    assert imported.isdisjoint(DEAR)
    assert len(done.stderr.split()) < (600 if argv[0] == "finetune" else 300)
    if argv == ["--help"]:
        assert all(f"  {name}" in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommands_help_has_an_example(name, capsys):
    assert run(name, "--help") == 0
    output = capsys.readouterr().out
    for example in cli.COMMANDS[name].examples:
        assert f"  {example}\n" in output


@pytest.mark.parametrize("name", [n for n, c in cli.COMMANDS.items() if c.config])
def test_examples_in_help_are_valid(name, called, tmp_path, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "debug_ppo.yaml").write_text("method: ppo\n")
    (tmp_path / "my_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    previous = RunDirectory.create(FinetuneConfig(out="runs/x"))
    previous.save_checkpoint(lambda directory: None, TrainingState(step=0))
    previous.close()
    for example in cli.COMMANDS[name].examples:
        assert run(*shlex.split(example)[1:]) == 0
    assert len(called) == len(cli.COMMANDS[name].examples)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_calls_something_that_exists(name):
    assert callable(cli._load(cli.COMMANDS[name].target))


def test_every_command_is_called_through_the_command_line():
    """Which parses, calls the library and shows what it returns."""
    assert all(command.target.startswith("robo_razor.cli.") for command in cli.COMMANDS.values())


def test_help_shows_the_chosen_method_only(capsys):
    run("finetune", "--method", "bc", "--help")
    output = capsys.readouterr().out
    assert "--bc.epochs" in output
    assert "--ppo." not in output
    assert "Passes over the demonstrations" in output


def test_flags_reach_the_settings():
    config = finetune("--method", "bc", "--bc.learning-rate", "1e-4", "--env.num_envs=8")
    assert (config.method.name, config.method.learning_rate, config.env.num_envs) == ("bc", 1e-4, 8)
    config = finetune("--ppo.no-detach-value", "--ppo.target-kl", "None")
    assert (config.method.detach_value, config.method.target_kl) == (False, None)


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("method: bc\nseed: 3\nbc: {epochs: 7, batch_size: 8}\n")
    config = finetune("--config", str(file), "--bc.epochs", "2")
    assert (config.seed, config.method.epochs, config.method.batch_size) == (3, 2, 8)


def test_another_method_than_the_files_drops_its_section(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("method: bc\nseed: 3\nbc: {epochs: 7}\n")
    config = finetune(f"--config={file}", "--method=ppo")
    assert (config.method.name, config.seed) == ("ppo", 3)
    file.write_text("method: bc\nbc: {epochs: 7}\nppo: {num_updates: 5}\n")
    assert finetune(f"--config={file}", "--method=ppo").method.num_updates == 5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--learning-rate", "3"), "Did you mean '--ppo.learning-rate'"),
        (("--sed", "3"), "Unknown option `--sed` of `robo-razor finetune`. Did you mean '--seed'"),
        (("--bc.epochs", "3"), "belongs to the method 'bc'.*choose `--method bc`"),
        (("--method", "pppo"), "Unknown method 'pppo'. Did you mean 'ppo'"),
        (("--seed", "x"), "Error parsing --seed: invalid literal"),
        (("--seed",), "Missing value for argument '--seed'"),
        (("--ppo.gamma", "2"), "`ppo.gamma` = 2.0 is out of range"),
        (("stray",), "Unrecognized options: stray"),
        (("--config",), "`--config` needs a value"),
        (("--config", "absent.yaml"), "'absent.yaml' does not exist"),
        (("--resume",), "`resume` is set but `out` is not"),
        (("--resume", "auto"), "`resume` is set but `out` is not"),
        (("--lr", "3"), r"Did you mean '--ppo.learning-rate'\?"),
        (("--method", "bc", "--lr", "3"), r"Did you mean '--bc.learning-rate'\?"),
        (("--steps", "3"), "Did you mean '--env.max-episode-steps' or '--flow.num-steps'"),
        (("--envs", "3"), "Did you mean '--env.num-envs'"),
        (("--seed", "1", "--seed=2"), "`--seed` is given twice"),
        (("--ppo.bf16", "--ppo.no-bf16"), "`--ppo.bf16` is given twice"),
        (("--config", "a", "--config", "b"), "`--config` is given twice"),
        (("--config", "/dev/zero"), "is not a plain file"),
        (("--seed", "9" * 5000), "Error parsing --seed"),
        (("--ppo.learning-rate", "inf"), "`ppo.learning_rate` = inf is out of range"),
        (("--task", "\udcff"), "`task` = .* holds the unprintable character"),
        (("--rename", "{a: {{ b }}}"), "template that nobody filled in"),
        (("--out", "x" * 300), "`out` = .* longer than a path may be"),
        (("--env.env-packages", "os"), "'os', which is a part of Python"),
    ],
    ids=lambda argv: str(argv)[:50].encode("unicode_escape").decode(),
)
def test_bad_words(argv, message):
    with pytest.raises(ConfigError, match=message):
        finetune(*argv)


def test_an_error_is_one_line_on_stderr_with_status_2(capsys):
    assert run("finetune", "--sed", "3") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("robo-razor: error: Unknown option `--sed`")
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback():
    with pytest.raises(ConfigError):
        run("finetune", "--sed", "3", "--debug")


def test_an_unknown_command_is_answered(capsys):
    assert run("fintune") == 2
    assert "Did you mean 'finetune'" in capsys.readouterr().err


def test_commands_without_settings_refuse_words(capsys):
    assert run("doctor", "--fast") == 2
    assert run("list", "tasks", "more") == 2
    assert capsys.readouterr().err.count("does not take") == 2


def test_interrupting_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", lambda target: interrupted)
    assert run("list") == 130
    assert capsys.readouterr().err == "robo-razor: interrupted\n"


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("robo-razor ")


def test_compare_takes_runs_by_position():
    config = parse("compare", CompareConfig, ["a", "b", "--out", "c"], "about")
    assert (config.runs, config.out) == (("a", "b"), "c")


def test_evaluate_takes_a_config_too(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("episodes: 5\nenv: {num_envs: 3}\n")
    config = parse("evaluate", EvaluateConfig, ["--config", str(file), "--mode", "sample"], "about")
    assert (config.episodes, config.mode, config.env.num_envs) == (5, "sample", 3)


@pytest.fixture
def interrupted_run(tmp_path):
    path = tmp_path / "run"
    run = RunDirectory.create(finetune("--out", str(path), "--seed", "7", "--ppo.gamma", "0.9"))
    run.close()
    return path


def test_resume_uses_the_runs_own_settings(interrupted_run):
    config = finetune("--resume", "--out", str(interrupted_run))
    assert (config.resume, config.seed, config.method.gamma) == (True, 7, 0.9)


def test_resume_knows_the_task_by_its_skills_name(interrupted_run):
    argv = ("--resume", "--out", str(interrupted_run), "--task")
    assert finetune(*argv, "PlaceCanInBin").resume
    with pytest.raises(ConfigError, match=r"`task` = 'gym_razor/LiftCan-v0' differs"):
        finetune(*argv, "LiftCan")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--seed", "8"), "`seed` = 8 differs from the run that is resumed, which has 7"),
        (("--ppo.gamma", "0.5"), "`ppo.gamma` = 0.5 differs"),
        (("--method", "bc"), "`method` = 'bc' differs"),
        (("--config", "c.yaml"), "exclude each other"),
    ],
)
def test_resume_is_the_same_run(interrupted_run, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("seed: 7\n")
    with pytest.raises(ConfigError, match=message):
        finetune("--resume", "--out", str(interrupted_run), *argv)


def test_resuming_nothing_says_so(capsys):
    assert run("finetune", "--resume", "--out", "runs/absent") == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_wait_asleep_unless_the_user_chose(monkeypatch, chosen, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back whatever the command sets
        monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert run("--version") == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected
