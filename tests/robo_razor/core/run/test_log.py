"""Metrics are always on disk, once per step; a display shows how far the run is."""

import io
import json
import sys
from dataclasses import replace

import pytest
from registries import let_add
from rich.console import Console

from robo_razor.core.errors import UnknownNameError
from robo_razor.core.metrics import Summary, summary_metrics
from robo_razor.core.plugins import SINKS, load_plugins
from robo_razor.core.run import display
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.run.display import Display, ProgressBar, format_seconds, summary_table
from robo_razor.core.run.listener import Listener
from robo_razor.core.run.log import RunLog
from robo_razor.core.settings.config import FinetuneConfig

DATA = {
    "step": 20,
    "new": {
        "PlaceCanInBin": {
            "success_rate": 0.8,
            "n": 50,
            "interval": [0.67, 0.89],
            "sampled": {"success_rate": 0.75, "n": 20, "interval": [0.53, 0.89]},
        }
    },
    "prior": {
        "LiftCube": {
            "success_rate": 0.45,
            "n": 20,
            "interval": [0.26, 0.66],
            "base_success_rate": 0.9,
            "retention": 0.5,
        }
    },
    "kl_base_tuned": {"new_base_visited": 1.25, "new_tuned_visited": 0.75, "prior": 0.5},
    "kl_tuned_base": {"new_base_visited": 1.5, "new_tuned_visited": 1.0, "prior": None},
    "prior_mean": {"success_rate": 0.45, "retention": 0.5, "forgetting": None},
    "entropy": 21.5,
    "distances": {"greedy_disagreement/prior": 0.25},
}
SUMMARY = Summary.from_json(DATA)


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(FinetuneConfig(out=str(tmp_path / "run")))
    yield run
    run.close()


def text_console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=140)


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_metrics_are_json_lines_and_tensorboard(run):
    with RunLog(run) as log:
        log.metrics(1, {"train/loss": 0.5})
        log.metrics(2, {"train/loss": float("nan")})
    assert [(line["step"], line["train/loss"]) for line in lines(run)] == [(1, 0.5), (2, None)]
    assert list(run.tensorboard.glob("events.out.*"))


def test_a_resumed_run_has_every_step_once(run):
    with RunLog(run) as log:
        for step in (1, 2, 3):
            log.metrics(step, {"train/loss": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "tra')  # killed while writing
    with RunLog(run, start=2) as log:
        log.metrics(3, {"train/loss": 30})
    assert [(line["step"], line["train/loss"]) for line in lines(run)] == [(1, 1), (2, 2), (3, 30)]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_success_kl_rate_and_eta(terminal, monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    console = text_console(terminal)
    screen = Display(console)
    screen.begin(10)
    screen.progress(5, success=0.41, kl=0.8123, episodes=100)
    screen.end()
    output = console.file.getvalue()
    for part in ("update 5/10", "success 41%", "KL 0.812", "episodes/s", "ETA"):
        assert part in output


def test_without_a_terminal_lines_are_rare(monkeypatch):
    clock = iter([0.0] * 3 + [x * 0.1 for x in range(1000)])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    console = text_console()
    screen = Display(console)
    screen.begin(1000)
    for step in range(100):
        screen.progress(step, success=0.1)
    screen.end()
    assert console.file.getvalue().count("\n") <= 3


def test_summary_table_shows_what_was_forgotten():
    console = text_console()
    console.print(summary_table(SUMMARY))
    output = console.file.getvalue()
    for part in ("Step 20", "80.0%", "67.0% - 89.0%", "LiftCube", "90.0%", "0.50", "1.25"):
        assert part in output
    assert "KL(base||tuned), nats per decision: " in output
    assert "1.25 on the new task where the base goes, 0.75 on the new" in " ".join(output.split())
    console.print(summary_table(replace(SUMMARY, kl_kind="upper bound")))
    assert "KL(base||tuned), nats per decision (upper bound): " in console.file.getvalue()
    sampled, mean = (line for line in output.splitlines() if "sampled" in line or "mean" in line)
    assert "75.0%" in sampled
    assert "45.0%" in mean
    assert "0.50" in mean


def test_summary_table_fits_a_log_of_80_columns():
    console = Console(file=io.StringIO(), width=80)
    name = "PlaceBottleOnShelf"
    console.print(summary_table(replace(SUMMARY, prior={name: SUMMARY.prior["LiftCube"]})))
    assert name in console.file.getvalue()


def test_a_skill_with_a_long_name_is_folded_and_not_cut():
    console = Console(file=io.StringIO(), width=80)
    name = "lerobot:" + "x" * 60 + "end"
    console.print(summary_table(replace(SUMMARY, prior={name: SUMMARY.prior["LiftCube"]})))
    shown = console.file.getvalue()
    assert "…" not in shown
    first_column = "".join(line.split("│")[1].strip() for line in shown.splitlines() if "│" in line)
    assert name in first_column
    assert max(map(len, shown.splitlines())) <= 80
    assert "67.0% - 89.0%" in shown


def test_summary_becomes_metrics(run):
    with RunLog(run) as log:
        log.evaluation(SUMMARY, {})
    line = lines(run)[0]
    assert line["step"] == 20
    assert line["eval/new/success_rate"] == 0.8
    assert line["eval/prior/LiftCube/success_rate"] == 0.45
    assert line["forgetting/LiftCube/retention"] == 0.5
    assert line["forgetting/kl_base_tuned/new_base_visited"] == 1.25
    assert line["forgetting/retention"] == 0.5
    assert line["eval/new/PlaceCanInBin/sampled_success_rate"] == 0.75
    assert line["eval/entropy"] == 21.5
    assert line["distances/greedy_disagreement/prior"] == 0.25
    absent = {"forgetting/kl_tuned_base/prior", "forgetting/forgetting", "forgetting/success_rate"}
    assert not absent & set(summary_metrics(SUMMARY))


MY_SINK = """
from robo_razor.core.plugins import SINKS

@SINKS.register("mine")
class Mine:
    title = "My sink"
    calls = []

    def start(self, directory, config, step):
        self.calls.append(("start", directory.name, config["method"], step))

    def log(self, step, metrics):
        if step == 3:
            raise ConnectionError("no network")
        self.calls.append(("log", step, dict(metrics)))

    def summary(self, step, metrics):
        self.calls.append(("summary", step, metrics["eval/new/success_rate"]))

    def close(self):
        self.calls.append(("close",))
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Return the calls of a sink from a module outside the repository."""
    (tmp_path / "my_sink.py").write_text(MY_SINK)
    monkeypatch.syspath_prepend(tmp_path)
    let_add(monkeypatch, SINKS)
    load_plugins(["my_sink"])
    yield sys.modules["my_sink"].Mine.calls
    del sys.modules["my_sink"]


def test_a_sink_of_somebody_else_gets_all_numbers(run, calls):
    with RunLog(run, start=1, sinks=("mine",)) as log:
        log.metrics(2, {"train/loss": 0.5})
        log.evaluation(replace(SUMMARY, step=2), {"time/tracking_share": 0.1})
    assert calls == [
        ("start", "run", "ppo", 1),
        ("log", 2, {"train/loss": 0.5}),
        ("summary", 2, 0.8),
        ("log", 2, {"time/tracking_share": 0.1}),
        ("close",),
    ]
    assert [line["step"] for line in lines(run)] == [2, 2, 2]
    assert not run.tensorboard.exists()


def test_a_sink_that_fails_is_left_out_and_the_run_goes_on(run, calls):
    warnings = []
    with RunLog(run, sinks=("mine", "tensorboard"), warn=warnings.append) as log:
        for step in (2, 3, 4):
            log.metrics(step, {"train/loss": 0.5})
    assert warnings == ["My sink cannot be written (no network); metrics.jsonl goes on."]
    assert [call[0] for call in calls] == ["start", "log", "close"]
    assert [line["step"] for line in lines(run)] == [2, 3, 4]
    assert list(run.tensorboard.glob("events.out.*"))


def test_an_unknown_sink_is_named(run):
    with pytest.raises(UnknownNameError, match=r"metric sink 'tensorbord'.*'tensorboard'"):
        RunLog(run, sinks=("tensorbord",))


def test_a_checkpoint_that_is_measured_again_has_its_numbers_once(run):
    with RunLog(run, sinks=()) as log:
        log.metrics(20, {"train/loss": 0.5})
        log.evaluation(SUMMARY, {"time/tracking_share": 0.1})
    with RunLog(run, start=20, sinks=()) as log:
        log.evaluation(SUMMARY, {"time/tracking_share": 0.2})
    assert [len(line) for line in lines(run)] == [3, len(summary_metrics(SUMMARY)) + 2, 3]
    assert lines(run)[-1]["time/tracking_share"] == 0.2


def test_notes_are_printed_as_they_are():
    console = text_console()
    screen = Display(console)
    screen.note("saved [bold]runs/x")
    screen.warn("tracking took 30 %")
    assert "saved [bold]runs/x" in console.file.getvalue()
    assert "Warning: tracking took 30 %" in console.file.getvalue()


def test_a_display_prints_the_table_of_a_checkpoint():
    console = text_console()
    Display(console).measured(SUMMARY)
    assert "Step 20" in console.file.getvalue()


def test_a_bar_shows_progress_only_and_logs_warnings(caplog):
    console = text_console()
    bar = ProgressBar(console)
    bar.begin(2, start=1)
    bar.note("saved runs/x")
    bar.measured(SUMMARY)
    bar.warn("tracking took 30 %")
    bar.progress(2, success=0.5)
    bar.end()
    assert console.file.getvalue().splitlines() == ["update 2/2  success 50%  ETA 0 s"]
    assert [record.getMessage() for record in caplog.records] == ["tracking took 30 %"]


@pytest.mark.parametrize("listener", [Listener(), ProgressBar(None), Display(None)])
def test_a_listener_without_a_console_shows_nothing(listener, capsys):
    listener.begin(2)
    listener.progress(2, success=0.5)
    listener.note("saved runs/x")
    listener.measured(SUMMARY)
    listener.end()
    assert listener.console is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "5 s"), (65, "1:05"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
