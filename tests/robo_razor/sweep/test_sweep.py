"""Sweeps: files become runs, runs are started in order, and nothing is done twice or lost."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from pathlib import Path

import fake_finetune
import pytest
import yaml
from fake_finetune import LET_GO
from fake_sweep import TWO_ARMS, InProcess
from registries import let_add
from rich.console import Console

from robo_razor.cli import commands as cli
from robo_razor.cli.sweep import run_sweep
from robo_razor.core.errors import (
    ConfigError,
    ReportError,
    RoboRazorError,
    RunDirectoryError,
    SweepError,
)
from robo_razor.core.plugins import LAUNCHERS, load_plugins
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.run.sweep_record import KIND, read_sweep
from robo_razor.core.settings.config import (
    EnvConfig,
    FinetuneConfig,
    SweepConfig,
    load_yaml,
    to_dict,
)
from robo_razor.sweep import run as sweep
from robo_razor.sweep.launchers import local
from robo_razor.sweep.launchers.local import LocalLauncher, machine_limit
from robo_razor.sweep.plan import load_plan
from robo_razor.sweep.processes import start_process
from robo_razor.sweep.schedule import Progress, State
from robo_razor.sweep.table import read_table
from robo_razor.training.methods.bc import BC
from robo_razor.training.resumption import with_task_id

ROOT = Path(__file__).parents[3]
SEEDS = list(range(1000))
PROGRAM = (sys.executable, fake_finetune.__file__)


@pytest.fixture
def plan(write, tmp_path):
    """Return a function that reads an experiment from its text."""
    return lambda text: load_plan(write(text), str(tmp_path / "out"), with_task_id)


# --- The file -------------------------------------------------------------------------------------


def docstring_example():
    return textwrap.dedent(sweep.__doc__.split("::\n", 1)[1].split("\n- An arm's", 1)[0])


def test_the_documented_file(plan):
    """Every arm's first values come first, seed by seed."""
    a_plan = plan(docstring_example())
    runs = a_plan.runs
    assert [run.arm for run in runs] == 3 * ["bc", "ppo", "distilled"] + 3 * ["bc", "ppo"] + 3 * [
        "bc"
    ]
    seeds = [*[0] * 3, *[1] * 3, *[2] * 3, *[0] * 2, *[1] * 2, *[2] * 2, 0, 1, 2]
    assert [run.config.seed for run in runs] == seeds
    bc, distilled = runs[0], runs[8]
    assert bc.id == "bc/learning_rate_0.0001-seed_0"
    assert (bc.config.method.style, bc.config.method.epochs) == ("b", 12)
    assert bc.config.tracking.episodes_new == 100
    assert bc.changed == {"method": "bc", "bc.style": "b", "bc.learning_rate": 1e-4, "seed": 0}
    teacher = next(run for run in runs if run.id == "ppo/learning_rate_8e-05-seed_2")
    assert distilled.needs == (teacher.id,)
    assert distilled.config.method.demonstrations == f"policy:{teacher.path}/checkpoints/best"
    assert bc.path == a_plan.out / "bc" / "learning_rate_0.0001-seed_0"


@pytest.mark.parametrize("file", sorted((ROOT / "configs/experiments").glob("*.yaml")), ids=str)
def test_shipped_experiments_are_valid(file):
    assert load_plan(file).runs


def test_the_files_own_directory_and_name(write, tmp_path):
    file = write("out: here\narms: [{name: a}]")
    assert load_plan(file).out == Path("here")
    assert load_plan(file, "there").out == Path("there")
    assert load_plan(write("arms: [{name: a}]")).out == Path("runs/experiment")
    assert load_plan(file).runs[0].id == "a/seed_0"


def test_keys_may_be_dotted_or_nested(plan):
    dotted = plan("arms: [{name: a, settings: {method: bc, bc.epochs: 3}, grid: {bc.style: [a]}}]")
    nested = plan(
        "arms: [{name: a, settings: {method: bc, bc: {epochs: 3}}, grid: {bc: {style: [a]}}}]"
    )
    assert dotted.runs == nested.runs
    assert dotted.runs[0].config.method.epochs == 3


def test_a_new_task_named_by_its_skill_is_planned_by_its_id(plan):
    """As runs keep it, or a sweep could not go on."""
    text = "base: {task: PressButton}\narms: [{name: a, settings: {method: ppo}}]"
    (run,) = plan(text).runs
    assert run.config.task == "gym_razor/PressButton-v0"


def test_the_grid_overrides_settings_and_they_the_base(plan):
    runs = plan("""
        base: {seed: 5, ppo: {gamma: 0.5, num_updates: 9}, bc: {epochs: 2}}
        arms:
          - {name: a, settings: {ppo.gamma: 0.6}, grid: {ppo.num_updates: [7, 8]}}
          - {name: b, settings: {method: bc}}
        """).runs
    ppo = [
        (run.config.method.gamma, run.config.method.num_updates) for run in runs if run.arm == "a"
    ]
    assert ppo == [(0.6, 7), (0.6, 8)]
    assert [run.config.method.epochs for run in runs if run.arm == "b"] == [2]
    assert {run.config.seed for run in runs} == {5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "`arms` must be a list with at least one arm"),
        ("arms: [{name: a, about: 3}]", "arm 'a': `about` = 3 does not describe an arm"),
        ("arm: []", r"Unknown key `arm`\. Did you mean 'arms'"),
        ("arms: [{nam: a}]", r"arms\[0\]: Unknown key `nam`\. Did you mean 'name'"),
        ("arms: [{name: a/b}]", "`name` = 'a/b' cannot name a directory"),
        ("arms: [{name: a}, {name: a}]", "two arms are called 'a'"),
        (
            "arms: [{name: a, settings: {ppo: {learning_rat: 1}}}]",
            r"arm 'a': Unknown key `ppo\.learning_rat`\. Did you mean 'learning_rate'",
        ),
        (
            "arms: [{name: a, grid: {ppo.learning_rat: [1]}}]",
            r"arm 'a': Unknown key `ppo\.learning_rat`\. Did you mean 'learning_rate'",
        ),
        (
            "base: {bc: {epoch: 1}}\narms: [{name: a}]",
            r"base: Unknown key `bc\.epoch`\. Did you mean 'epochs'",
        ),
        ("base: {out: x}\narms: [{name: a}]", "the sweep chooses `out`"),
        ("arms: [{name: a, settings: {resume: true}}]", "the sweep chooses `resume`"),
        ("arms: [{name: a, grid: {seed: 3}}]", "grid `seed` = 3 is not a list of values"),
        ("arms: [{name: a, grid: {seed: []}}]", "grid `seed` has no value"),
        ("arms: [{name: a, grid: {seed: [1, 1]}}]", "has a value twice"),
        ("arms: [{name: a, grid: {ppo.gamma: [0.5, 2]}}]", r"`ppo\.gamma` = 2\.0 is out of range"),
        ("arms: [{name: a, settings: {bc.epochs: 3}}]", "the section `bc` has no effect"),
        (
            "arms: [{name: a, settings: {bc.epochs: 3, bc: {epochs: 4}}}]",
            r"the key `bc\.epochs` is given twice",
        ),
        (
            "arms: [{name: a, grid: {ppo.gamma: {low: 0, high: 1}}}]",
            "is a range, but a grid needs single values",
        ),
        ("parallel: 0\narms: [{name: a}]", "`parallel` = 0 is out of range"),
        ("arms: [{name: a, grid: {seed: {low: 1, high: 2}}}]", "is a range.*List the values"),
        ("arms: [{name: a, needs: bb}, {name: b}]", "needs an arm 'bb'.*Did you mean 'b'"),
        (
            "arms: [{name: a, needs: b}, {name: b, needs: a}]",
            "in a circle: a -> b -> a|b -> a -> b",
        ),
        ("arms: [{name: a, settings: {policy: '${run.b}'}}]", "cannot be read"),
        ("base: {policy: '${runs.b}'}\narms: [{name: b}]", "which only an arm may do"),
        (
            "arms: [{name: a, settings: {policy: '${runs.b.7}'}}, {name: b}]",
            "fits 0 runs of the arm 'b' with seed 7, but must fit one. Allowed: seed_0",
        ),
        (
            "arms: [{name: a, settings: {policy: '${runs.b}'}}, "
            "{name: b, grid: {ppo.gamma: [0, 1]}}]",
            "fits 2 runs.*Allowed: gamma_0-seed_0, gamma_1-seed_0. Choose one",
        ),
        (
            "arms: [{name: a, settings: {policy: '${runs.b, ppo.gama=1}'}}, {name: b}]",
            r"asks for `ppo\.gama`.*Did you mean 'ppo\.gamma'",
        ),
        ("arms: [{name: a, settings: {policy: '${runs.b.x}'}}, {name: b}]", "'x' is not a seed"),
        ("arms: [{name: a, settings: {policy: '${runs.b.²}'}}, {name: b}]", "'²' is not a seed"),
        ("arms: [{name: a, needs: 3}]", "`needs` = 3 does not name arms"),
        ("arms: [{name: a, needs: [[a]]}]", r"`needs` = \[\['a'\]\] does not name arms"),
        ("arms: [null]", r"arms\[0\]: `name` = None cannot name"),
        ("arms: [[a]]", r"arms\[0\] must hold keys and values"),
        ("arms: [{name: a, settings: [3]}]", "arm 'a' must hold keys and values"),
        ("arms: [{name: a, settings: {method: [x]}}]", "`method` must be a text"),
        ("arms: [{name: a, settings: {ppo: 3, ppo.gamma: 1}}]", "the key `ppo` is given twice"),
        ("arms: [{name: a}, {name: A}]", "'a' and 'A' would share a directory"),
        ("arms: [{name: -rf}]", "`name` = '-rf' cannot name a directory"),
        ('arms: [{name: "a\\n"}]', "cannot name a directory"),
        ("arms: [{name: nul}]", "cannot name a directory"),
        ("name: ../../../x\narms: [{name: a}]", r"`name` = '\.\./\.\./\.\./x' cannot name"),
        ("name: ..\narms: [{name: a}]", "cannot name a directory"),
        ("name: -x\narms: [{name: a}]", "cannot name a directory"),
        ("base: {ppo: {gamma: {{ g }}}}\narms: [{name: a}]", "template that nobody filled in"),
        (
            f"arms: [{{name: a, grid: {{seed: {SEEDS}, ppo.num_updates: {SEEDS}}}}}]",
            "would have 1000000 runs, but only 2000 are left",
        ),
        (
            f"arms: [{{name: a, grid: {{seed: {SEEDS}}}}}, {{name: b, grid: {{seed: {SEEDS}, "
            "ppo.gamma: [0, 1]}}]",
            "arm 'b' would have 2000 runs, but only 1000 are left",
        ),
    ],
    ids=lambda text: text[:50],
)
def test_bad_files(text, message, plan):
    with pytest.raises(ConfigError, match=message):
        plan(text)


def test_references_choose_by_seed_and_setting(plan):
    text = """
        arms:
          - name: second
            settings: {policy: "${runs.first.seed, ppo.gamma=0.9}", task: "gym_razor/LiftCube-v0"}
            grid: {seed: [0, 1]}
          - {name: fixed, settings: {policy: "${runs.first.1, ppo.gamma=1}/checkpoints/best"}}
          - {name: first, grid: {ppo.gamma: [0.9, 1.0], seed: [0, 1]}}
        """
    runs = {run.id: run for run in plan(text).runs}
    for seed in (0, 1):
        first = runs[f"first/gamma_0.9-seed_{seed}"]
        second = runs[f"second/seed_{seed}"]
        assert (second.config.policy, second.needs) == (str(first.path), (first.id,))
    assert runs["fixed/seed_0"].config.policy.endswith("first/gamma_1-seed_1/checkpoints/best")


def test_needs_waits_for_the_same_seed_or_for_all(plan):
    text = """
        arms:
          - {name: a, grid: {ppo.gamma: [0.9, 1], seed: [0, 1]}}
          - {name: b, needs: a, grid: {seed: [1]}}
          - {name: c, needs: [b], settings: {seed: 4}}
        """
    runs = {run.id: run for run in plan(text).runs}
    assert runs["b/seed_1"].needs == ("a/gamma_0.9-seed_1", "a/gamma_1-seed_1")
    assert runs["c/seed_4"].needs == ("b/seed_1",)


def test_chosen_arms_bring_what_they_need(plan):
    a_plan = plan(TWO_ARMS + "  - {name: c}\n")
    assert a_plan.with_needed(["b"]) == {"a/seed_0", "a/seed_1", "b/seed_0", "b/seed_1"}
    with pytest.raises(ConfigError, match="has no arm 'bb'. Did you mean 'b'"):
        a_plan.with_needed(["bb"])


@pytest.mark.parametrize("line", ["search: random", "search: grid", "num_samples: 3", "seed: 1"])
def test_random_search_is_refused(plan, line):
    with pytest.raises(ConfigError, match=r"random search.*all combinations.*list the values"):
        plan(f"{line}\narms: [{{name: a}}]")


def test_runs_that_differ_by_case_only_get_their_own_directories(plan):
    runs = plan("arms: [{name: a, grid: {method: [bc], bc.style: [a, A]}}]").runs
    assert len({run.name.lower() for run in runs}) == 2


@pytest.mark.slow
def test_an_experiment_may_not_name_a_package_that_came_with_it(write, tmp_path, monkeypatch):
    (tmp_path / "came_along.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    file = write("arms: [{name: a, grid: {env.env_packages: [[came_along]]}}]")
    with pytest.raises(ConfigError, match="'came_along'.*may not bring code"):
        load_plan(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "base: {plugins: [came_along]}\narms: [{name: a}]",
        "arms: [{name: a, settings: {plugins: came_along}}]",
        "arms: [{name: a, grid: {plugins: [[came_along]]}}]",
    ],
)
def test_an_experiment_may_not_name_a_plugin_that_came_with_it(write, tmp_path, monkeypatch, text):
    (tmp_path / "came_along.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ConfigError, match="'came_along'.*may not bring code"):
        load_plan(write(text))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"path": "../../etc"}, "path` is '../../etc', where a path below the sweep's directory"),
        ({"path": "/etc"}, "path` is '/etc', where a path below the sweep's directory"),
        ({"path": ""}, "path` is '', where a path below the sweep's directory"),
        ({"starts": "x"}, "starts` is 'x', where a whole number"),
        ({"wall_s": None}, "wall_s` is None, where a number"),
        ({"state": 3}, "state` is 3, where one of pending"),
        ({"changed": []}, r"changed` is \[\], where an object"),
    ],
)
def test_a_damaged_record_is_told(fake, change, problem):
    fake.run()
    record = json.loads((fake.out / "sweep.json").read_text())
    record["runs"][1] |= change
    (fake.out / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(SweepError, match=rf"`runs\[1\]\.{problem}"):
        read_sweep(fake.out)
    record["runs"] = 3
    (fake.out / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(SweepError, match="is damaged"):
        read_sweep(fake.out)


def test_what_an_arm_is_reaches_the_record(fake):
    text = "{name: a, about: Cloning, settings: {method: bc}, grid: {seed: [0, 1]}}"
    fake.run(text=TWO_ARMS.replace("{name: a, settings: {method: bc}, grid: {seed: [0, 1]}}", text))
    assert read_sweep(fake.out)["about"] == {"a": "Cloning"}
    record = json.loads((fake.out / "sweep.json").read_text())
    (fake.out / "sweep.json").write_text(json.dumps(record | {"about": 3}))
    with pytest.raises(SweepError, match="`about` is 3, where an object"):
        read_sweep(fake.out)


def test_names_are_safe_and_short(plan):
    text = "arms: [{name: a, grid: {policy: ['x/y z', 'x/y:z'], seed: [0]}}]"
    names = [run.name for run in plan(text).runs]
    assert len(set(names)) == 2
    assert not any(set(name) & set("/ :=") for name in names)
    text = f"arms: [{{name: a, grid: {{policy: [{'p' * 300}]}}}}]"
    assert len(plan(text).runs[0].name) < 120


# --- Running --------------------------------------------------------------------------------------


ONE_ARM = "arms: [{name: a, grid: {seed: [0, 1]}}]"


def test_all_runs_finish_and_are_not_run_again(fake):
    assert {p.state for p in fake.run().values()} == {State.FINISHED}
    assert sorted(fake.starts) == [f"{arm}/seed_{s} new" for arm in "ab" for s in (0, 1)]
    assert set(fake.states.values()) == {"finished"}
    assert (fake.out / "experiment.yaml").read_text() == textwrap.dedent(TWO_ARMS)
    fake.run()
    assert len(fake.starts) == 4


def test_every_run_gets_its_settings_and_a_log(fake):
    fake.run()
    config = load_yaml(FinetuneConfig, fake.out / "a/seed_1.yaml")
    assert (config.method.name, config.seed, config.tracking.episodes_new) == ("bc", 1, 7)
    assert config.torch_threads == InProcess.threads  # two at a time share the cores
    assert RunDirectory.open(fake.out / "a/seed_1").config_data()["seed"] == 1


def test_a_run_alone_keeps_the_choice_of_threads(fake):
    fake.run(ONE_ARM, InProcess(1))
    assert load_yaml(FinetuneConfig, fake.out / "a/seed_1.yaml").torch_threads is None


def test_the_table_holds_every_checkpoint(fake):
    fake.run()
    rows = read_table(fake.out).to_pylist()
    assert len(rows) == 4 * 3
    row = next(r for r in rows if (r["arm"], r["seed"], r["step"]) == ("b", 1, 2))
    expected = {
        "run": "seed_1",
        "path": "b/seed_1",
        "state": "finished",
        "method": "ppo",
        "learning_rate": FinetuneConfig().method.learning_rate,
        "updates": 2,
        "final": True,
        "new_success_rate": 0.75,
        "new_n": 10,
        "new_sampled_success_rate": 0.125,
        "new_sampled_n": 8,
        "prior_success_rate": 0.5,
        "prior_retention": 0.75,
        "prior_n": 10,
        "prior/Old/success_rate": 0.5,
        "kl_base_tuned/new_base_visited": 1.0,
        "kl_base_tuned/prior": None,
        "weight_l1": 6.0,
        "entropy": 9.0,
        "env_steps": 200,
        "wall_s": 120.0,
    }
    assert {key: row[key] for key in expected} == expected
    assert read_table(fake.out / "checkpoints.parquet").num_rows == 12


def test_changed_settings_have_columns(fake):
    fake.run("""
        arms:
          - {name: a, settings: {method: bc}, grid: {bc.epochs: [1, 2]}}
          - {name: b, settings: {bc: {style: a}, method: bc}}
        """)
    rows = {row["run"] + row["arm"]: row for row in read_table(fake.out).to_pylist()}
    assert rows["epochs_1-seed_0a"]["setting/bc.epochs"] == 1
    assert rows["seed_0b"]["setting/bc.epochs"] == BC().epochs
    assert rows["seed_0b"]["setting/bc.style"] == "a"


def test_there_must_be_a_table(tmp_path):
    with pytest.raises(ReportError, match="There is no table"):
        read_table(tmp_path)
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(ReportError, match="is not a Parquet file"):
        read_table(tmp_path / "x.parquet")
    with pytest.raises(SweepError, match="is not a sweep"):
        read_sweep(tmp_path)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint(fake):
    fake.behave({"a/seed_0": "die"})
    progress = fake.run(ONE_ARM, LocalLauncher(2, program=PROGRAM))
    assert {p.state for p in progress.values()} == {State.FINISHED}
    assert fake.starts.count("a/seed_0 new") == fake.starts.count("a/seed_0 resumed") == 1
    assert (fake.out / "a/seed_0.log").read_text().count(f"$ {sys.executable}") == 2
    assert "a/seed_0 was stopped (exit status -9) and is started again" in fake.shown
    assert "resuming a/seed_0 from step 1" in fake.shown


def test_a_run_killed_before_its_first_checkpoint_starts_anew(fake):
    fake.behave({"a/seed_0": "die unborn"})
    assert {p.state for p in fake.run(ONE_ARM).values()} == {State.FINISHED}
    assert fake.starts.count("a/seed_0 new") == 2


def test_a_run_that_is_always_killed_fails_in_the_end(fake):
    fake.behave({"a/seed_0": "always die"})
    with pytest.raises(SweepError, match=r"1 of 2 runs failed; first a/seed_0"):
        fake.run(ONE_ARM, attempts=2)
    assert fake.states == {"a/seed_0": "failed", "a/seed_1": "finished"}
    assert sum(line.startswith("a/seed_0") for line in fake.starts) == 2


def test_a_failure_is_recorded_and_the_others_go_on(fake):
    fake.behave({"a/seed_0": "fail"})
    message = (
        r"1 of 4 runs failed, 1 more could not begin without others; "
        r"first a/seed_0 .*error: it cannot work"
    )
    with pytest.raises(SweepError, match=message):
        fake.run()
    assert fake.states == {
        "a/seed_0": "failed",
        "b/seed_0": "blocked",
        "a/seed_1": "finished",
        "b/seed_1": "finished",
    }
    entry = read_sweep(fake.out)["runs"][0]
    assert (entry["exit_status"], entry["starts"]) == (2, 1)
    assert entry["error"].endswith("it cannot work")
    with pytest.raises(SweepError):
        fake.run(retry_failed=False)
    assert len(fake.starts) == 3
    fake.behave({})
    assert {p.state for p in fake.run().values()} == {State.FINISHED}
    assert sorted(fake.starts[3:]) == ["a/seed_0 new", "b/seed_0 new"]


def when(*steps):
    """Do something as soon as a condition holds, then the next: pairs of condition and action."""

    def wait():
        for condition, action in steps:
            while not condition():
                time.sleep(0.02)
            action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_lets_runs_save_and_the_sweep_goes_on_later(fake):
    fake.behave({"*": "hang"})
    steps = [fake.out / f"a/seed_{s}/eval/000001/summary.json" for s in (0, 1)]
    thread = when((lambda: all(step.exists() for step in steps), interrupt))
    with pytest.raises(KeyboardInterrupt):
        fake.run(launcher=LocalLauncher(2, program=PROGRAM))
    thread.join()
    assert fake.states == {
        "a/seed_0": "interrupted",
        "b/seed_0": "pending",
        "a/seed_1": "interrupted",
        "b/seed_1": "pending",
    }
    assert "Stopping 2 run(s)" in fake.shown
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read_table(fake.out).num_rows == 4
    fake.behave({})
    assert {p.state for p in fake.run().values()} == {State.FINISHED}
    assert fake.starts.count("a/seed_0 resumed") == 1


@pytest.mark.slow
def test_a_second_ctrl_c_kills(fake):
    fake.behave({"*": "stubborn"})
    step = fake.out / "a/seed_0/eval/000001/summary.json"
    thread = when((step.exists, interrupt), (lambda: "Stopping 1 run" in fake.shown, interrupt))
    with pytest.raises(KeyboardInterrupt):
        fake.run("arms: [{name: a}]", LocalLauncher(1, program=PROGRAM))
    thread.join()
    assert fake.states == {"a/seed_0": "interrupted"}
    assert not RunDirectory(fake.out / "a/seed_0").is_running()


@pytest.mark.slow
def test_two_ctrl_c_at_once_kill_too(fake):
    """On a busy machine both may come before the sweep looks."""
    fake.behave({"*": "stubborn"})
    step = fake.out / "a/seed_0/eval/000001/summary.json"

    class Interrupting(LocalLauncher):
        def start(self, arguments, log):
            handle = super().start(arguments, log)
            while not step.exists():
                time.sleep(0.02)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return handle

    with pytest.raises(KeyboardInterrupt):
        fake.run("arms: [{name: a}]", Interrupting(1, program=PROGRAM))
    assert fake.states == {"a/seed_0": "interrupted"}


@pytest.mark.slow
def test_a_run_that_outlived_its_sweep_is_waited_for(fake):
    """As after `kill -9` of the sweep: its run goes on, and is not started twice."""
    fake.run("arms: [{name: a}]", dry_run=True)
    fake.behave({"*": "linger"})
    file = fake.out / "a/seed_0.yaml"
    file.parent.mkdir(parents=True)
    (fake.out / "sweep.json").write_text(
        json.dumps({"kind": KIND, "version": 1, "name": "experiment", "arms": [], "runs": []})
    )
    file.write_text(f"out: {fake.out}/a/seed_0\n")
    arguments = ["finetune", "--config", str(file), "--out", str(fake.out / "a/seed_0")]
    process = start_process([*PROGRAM, *arguments], fake.out / "a/seed_0.log")
    with pytest.raises(SweepError, match="still writing"):
        start_process([*PROGRAM, *arguments], fake.out / "a/seed_0.log")
    note = "waiting for a/seed_0, which another process is running"
    thread = when((lambda: note in fake.shown, (fake.tmp / LET_GO).touch))
    progress = fake.run("arms: [{name: a}]")
    thread.join()
    process.wait()
    assert progress["a/seed_0"].state is State.FINISHED
    assert fake.starts == ["a/seed_0 new"]
    assert note in fake.shown


def test_another_experiment_is_not_mixed_in(fake):
    fake.run(ONE_ARM)
    changed = "base: {tracking: {episodes_new: 9}}\n" + ONE_ARM
    with pytest.raises(RunDirectoryError, match=r"`tracking\.episodes_new` = 50, but .* has 9:"):
        fake.run(changed)
    assert (fake.out / "experiment.yaml").read_text() == ONE_ARM  # what its runs were made with
    fake.run("base: {env.num_workers: 1, device: cpu}\n" + ONE_ARM)  # says how, not what
    with pytest.raises(RunDirectoryError, match="holds the sweep 'experiment', not 'other'"):
        fake.run("name: other\n" + ONE_ARM)


def test_runs_can_be_added(fake):
    fake.run("arms: [{name: a, grid: {seed: [0]}}]")
    fake.run(ONE_ARM)
    assert fake.starts == ["a/seed_0 new", "a/seed_1 new"]


def test_only_chosen_arms_run(fake):
    fake.run(arms="a")
    assert fake.states["b/seed_0"] == "pending"
    assert sorted(fake.starts) == ["a/seed_0 new", "a/seed_1 new"]
    fake.run(arms="b")
    assert set(fake.states.values()) == {"finished"}


def test_a_sweep_that_ended_before_its_first_record_can_begin_again(fake):
    fake.out.mkdir()
    (fake.out / ".lock").touch()
    (fake.out / "experiment.yaml").touch()
    (fake.out / ".lock").rename(fake.out / "lock")
    with pytest.raises(RunDirectoryError, match="in use"):
        fake.run(ONE_ARM)
    (fake.out / "lock").rename(fake.out / ".lock")
    fake.run(ONE_ARM)
    assert set(fake.states.values()) == {"finished"}


def test_directories_in_use_are_refused(fake):
    fake.out.mkdir()
    (fake.out / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="in use"):
        fake.run()
    assert not fake.starts


def test_a_run_directory_with_something_else_is_left_alone(fake):
    fake.run("arms: [{name: b}]")
    (fake.out / "a/seed_0").mkdir(parents=True)
    (fake.out / "a/seed_0/thesis.tex").touch()
    with pytest.raises(SweepError, match="something else than a run"):
        fake.run(ONE_ARM)
    assert (fake.out / "a/seed_0/thesis.tex").exists()
    assert fake.states["a/seed_1"] == "finished"


def test_one_sweep_per_directory(fake):
    messages = []

    class Nested(InProcess):
        def start(self, arguments, log):
            try:
                fake.run(ONE_ARM)
            except RunDirectoryError as error:
                messages.append(str(error))
            raise SweepError("not started")

    with pytest.raises(SweepError):
        fake.run(ONE_ARM, launcher=Nested())
    assert messages
    assert "Another sweep is running" in messages[0]


def test_a_dry_run_starts_nothing(fake):
    assert fake.run(dry_run=True) == {}
    assert "b/seed_1 after a/seed_1\n" in fake.shown
    assert not fake.out.exists()


def test_the_time_that_is_left_is_guessed_from_the_same_arm(plan):
    a, b = (Progress(run) for run in plan(TWO_ARMS).runs[:2])
    items = [a, b, *(Progress(run) for run in plan(TWO_ARMS).runs[2:])]
    assert sweep.seconds_left(items, 1) is None
    a.state, a.wall_s = State.FINISHED, 10.0
    assert sweep.seconds_left(items, 1) == 30.0
    b.state, b.wall_s = State.FINISHED, 50.0
    assert sweep.seconds_left(items, 2) == 30.0
    items[2].wall_s = 4.0  # of an attempt that was interrupted
    assert sweep.seconds_left(items, 2) == 28.0


@pytest.mark.parametrize("parallel", [1, 3])
def test_no_more_runs_at_a_time_than_allowed(fake, parallel):
    launcher = InProcess(parallel)
    fake.run("arms: [{name: a, grid: {seed: [0, 1, 2, 3, 4, 5]}}]", launcher)
    assert launcher.most == parallel
    assert set(fake.states.values()) == {"finished"}


def test_what_is_needed_comes_first(fake):
    """Arms that wait stand first in the file."""
    fake.run("""
        arms:
          - {name: c, needs: b, grid: {seed: [0, 1]}}
          - {name: b, needs: a, grid: {seed: [0, 1]}}
          - {name: a, grid: {seed: [0, 1]}}
        """)
    for seed in (0, 1):
        names = [f"{arm}/seed_{seed} new" for arm in "abc"]
        assert [line for line in fake.starts if line in names] == names


def test_the_machine_limits_runs(monkeypatch):
    configs = [FinetuneConfig()]
    monkeypatch.setattr(local, "cpu_count", lambda: 16)
    for gib, runs in ((100.0, 8), (7.0, 2), (0.5, 1)):
        monkeypatch.setattr(local, "available_bytes", lambda gib=gib: int(gib * 2**30))
        assert machine_limit(configs) == runs
    assert LocalLauncher(None, configs).parallel == 1


def test_unknown_tasks_are_told_before_anything_starts(write, tmp_path):
    file = write("arms: [{name: a, settings: {task: gym_razor/LiftCup-v0}}]")
    config = SweepConfig(file=str(file), out=str(tmp_path / "out"))
    with pytest.raises(Exception, match="LiftCup"):
        run_sweep(config, launcher=LocalLauncher(1, program=PROGRAM))
    assert not (tmp_path / "out").exists()


def configs(workers):
    return [FinetuneConfig(env=EnvConfig(num_workers=workers))]


MINE = """
from robo_razor.core.plugins import LAUNCHERS
from robo_razor.sweep.launchers.local import LocalLauncher

@LAUNCHERS.register("mine")
class Mine(LocalLauncher):
    def __init__(self, parallel, configs):
        import sys, fake_finetune
        assert all(config.method.name in ("bc", "ppo") for config in configs)
        super().__init__(parallel, configs, (sys.executable, fake_finetune.__file__))
"""


@pytest.mark.slow
def test_a_launcher_of_somebody_else_runs_a_sweep(fake, monkeypatch):
    (fake.tmp / "my_launcher.py").write_text(MINE)
    monkeypatch.syspath_prepend(fake.tmp)
    let_add(monkeypatch, LAUNCHERS)
    load_plugins(["my_launcher"])
    config = SweepConfig(
        file=str(fake.write(ONE_ARM)), out=str(fake.out), backend="mine", parallel=2
    )
    assert {p.state for p in run_sweep(config, Console(file=io.StringIO()))} == {State.FINISHED}
    assert sorted(fake.starts) == ["a/seed_0 new", "a/seed_1 new"]
    del sys.modules["my_launcher"]


def test_an_unknown_backend_is_told_before_anything_starts(fake):
    config = SweepConfig(file=str(fake.write(ONE_ARM)), out=str(fake.out), backend="rai")
    with pytest.raises(RoboRazorError, match=r"launcher 'rai'.*Did you mean 'ray'"):
        run_sweep(config, Console(file=io.StringIO()))
    assert not fake.out.exists()


@pytest.mark.slow
def test_the_same_file_runs_on_ray(fake, monkeypatch):
    """Two workers of a local Ray; Ctrl-C, going on, and a killed run as without Ray."""
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    from robo_razor.sweep.launchers import ray as sweep_ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        sweep_ray.connect(ray, cores=2)
    except SweepError as error:
        pytest.skip(f"Ray gives itself 30 s to start: {error}")
    try:
        launcher = sweep_ray.RayLauncher(None, configs(1), program=PROGRAM)
        assert launcher.parallel == 2
        fake.behave({"*": "hang"})
        steps = [fake.out / f"a/seed_{s}/eval/000001/summary.json" for s in (0, 1)]
        thread = when((lambda: all(step.exists() for step in steps), interrupt))
        with pytest.raises(KeyboardInterrupt):
            fake.run(launcher=launcher)
        thread.join()
        assert [fake.states[f"a/seed_{s}"] for s in (0, 1)] == ["interrupted"] * 2
        assert not any(RunDirectory(fake.out / f"a/seed_{s}").is_running() for s in (0, 1))

        fake.behave({"b/seed_0": "die", "b/seed_1": "fail"})
        with pytest.raises(SweepError, match="1 of 4 runs failed; first b/seed_1 .*cannot work"):
            fake.run(launcher=launcher)
        assert fake.states == {
            "a/seed_0": "finished",
            "b/seed_0": "finished",
            "a/seed_1": "finished",
            "b/seed_1": "failed",
        }
        assert fake.starts.count("b/seed_0 resumed") == 1
        with pytest.raises(SweepError, match="A run keeps 64 cores busy, but Ray has 2"):
            sweep_ray.RayLauncher(None, configs(64))
    finally:
        ray.shutdown()


def test_ray_is_an_extra(monkeypatch):
    from robo_razor.sweep.launchers import ray as sweep_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SweepError, match=r"needs Ray.*uv pip install --editable '\.\[ray\]'"):
        sweep_ray.RayLauncher(None)


@pytest.mark.slow
def test_real_runs_make_a_table(write, tmp_path, monkeypatch, capsys):
    """The command as people type it, with a real run of the toy task."""
    from toy_policy import NEW, RED, save_tiny_policy

    here = str(ROOT / "tests" / "toys")
    monkeypatch.setenv("PYTHONPATH", here)
    base = save_tiny_policy(tmp_path / "base")
    file = write(f"""
        base:
          policy: {base}
          task: {NEW}
          prior_tasks: {RED}
          device: cpu
          torch_threads: 1
          env: {{num_envs: 8, num_workers: 1, image_size: 16, env_packages: [toy_env]}}
          tracking: {{every: 0.5, episodes_new: 4, episodes_new_sampled: 4, episodes_prior: 2,
            kl_states: 8, final_episodes_new: 4, max_share: 1}}
        arms:
          - name: bc
            settings: {{method: bc, bc: {{episodes: 4, epochs: 2, batch_size: 16}}}}
        """)
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "out"), "--parallel", "1"]) == 0
    shown = capsys.readouterr().out
    assert "finished bc/seed_0" in shown
    table = read_table(tmp_path / "out").to_pylist()
    assert [row["step"] for row in table] == [0, 1]
    assert all(row["kl_base_tuned/new_base_visited"] is not None for row in table)
    assert all(row["wall_s"] > 0 for row in table)


def test_a_file_must_be_named(capsys):
    assert cli.main(["sweep"]) == 2
    assert "No experiment file" in capsys.readouterr().err
    assert cli.main(["sweep", "absent.yaml"]) == 2
    assert "'absent.yaml' does not exist" in capsys.readouterr().err


def test_importing_is_cheap():
    code = "import sys, robo_razor.sweep.run; print({'torch', 'pyarrow', 'ray'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


def test_the_first_experiment_keeps_the_settings_of_its_runs():
    """Defaults may change; the protocol of a published result may not."""
    plan = load_plan(ROOT / "configs" / "experiments" / "razor.yaml")
    stored = {}
    with tarfile.open(ROOT / "docs" / "results" / "razor.tar.xz") as archive:
        for member in archive:
            if member.name.endswith("config.yaml"):
                file = archive.extractfile(member)
                stored[str(Path(member.name).parent)] = yaml.safe_load(file.read())
    assert len(plan.runs) == len(stored) == 42
    settings = ("learning_rate", "warmup_updates", "episodes_per_update", "num_updates", "gamma")
    settings += ("gae_lambda", "clip_low", "clip_high", "update_epochs", "minibatch_size")
    settings += ("target_kl", "temperature", "epochs", "episodes", "batch_size", "num_minibatches")
    for run in plan.runs:
        then = stored[f"razor/{run.id}"]
        now, before = to_dict(run.config.method), then[then["method"]]
        shared = [name for name in settings if name in now]
        assert {name: now[name] for name in shared} == {name: before[name] for name in shared}
        assert run.config.env.reward_type == then["env"]["reward_type"]
        if run.config.method.name == "ppo":
            assert run.config.method.ratio == "chunk"
