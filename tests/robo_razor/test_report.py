"""Known runs give known tables, unlike runs are refused, nothing foreign is overwritten."""

import json
import subprocess
import sys

import pytest

from robo_razor.checkpoint import RunDirectory
from robo_razor.config import CompareConfig, FinetuneConfig
from robo_razor.errors import ReportError
from robo_razor.report import load_runs, match, matching_levels, run_compare
from robo_razor.statistics import wilson_interval

BASE = {"LiftCube": 1.0, "OpenDrawer": 0.8}


def entry(rate, n, **more):
    return {
        "success_rate": rate,
        "n": n,
        "interval": list(wilson_interval(round(rate * n), n)),
        **more,
    }


def make_run(path, points, task="gym_razor/PlaceCanInBin-v0", method="ppo", skills=BASE):
    """Write a run whose checkpoints have (new success, retention of every skill, KL)."""
    run = RunDirectory.create(FinetuneConfig(out=str(path), task=task, method=method))
    for i, (new, retention, kl) in enumerate(points):
        prior = {
            skill: entry(rate * retention, 20, retention=retention, base_success_rate=rate)
            for skill, rate in skills.items()
        }
        run.write_summary(
            10 * i,
            {
                "step": 10 * i,
                "new": {"PlaceCanInBin": entry(new, 100)},
                "prior": prior,
                "kl_base_tuned": {"new_base_visited": kl, "new_tuned_visited": kl, "prior": None},
                "kl_tuned_base": {"new_base_visited": kl and 2 * kl, "new_tuned_visited": kl},
            },
        )
        rows = [
            {"task": task, "seed": s, "mode": "greedy", "success": s < 100 * new}
            for s in range(100)
        ]
        run.write_rows(10 * i, rows)
    run.close()
    return str(path)


@pytest.fixture
def ppo(tmp_path):
    return make_run(tmp_path / "ppo", [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0), (0.9, 0.9, 2.0)])


@pytest.fixture
def bc(tmp_path):
    points = [(0.2, 1.0, 0.0), (0.8, 0.6, 4.0), (0.95, 0.4, 8.0)]
    return make_run(tmp_path / "bc", points, method="bc")


def test_a_run_is_read_in_order(ppo):
    (run,) = load_runs([ppo])
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 10, 20]
    assert run.series("new") == [0.2, 0.6, 0.9]
    assert run.series("prior") == pytest.approx([0.9, 0.9, 0.81])
    assert run.series("kl_tuned_base/new_base_visited") == [0.0, 2.0, 4.0]
    assert run.label == "ppo (ppo)"


def test_matched_success_is_interpolated(ppo, bc):
    first, second = load_runs([ppo, bc])
    at = match(first, 0.75)
    assert (at.step, at.retention) == (pytest.approx(15), pytest.approx(0.95))
    assert at.kl["kl_base_tuned/new_base_visited"] == pytest.approx(1.5)
    at = match(second, 0.5)
    assert (at.step, at.retention) == (pytest.approx(5), pytest.approx(0.8))
    assert match(second, 0.96).step is None


def test_levels_are_those_that_all_runs_reach(ppo, bc):
    assert matching_levels(load_runs([ppo, bc])) == (0.3, 0.5, 0.7, 0.8, 0.9)


def test_no_level_when_nothing_was_learnt(tmp_path):
    flat = make_run(tmp_path / "flat", [(0.2, 1.0, 0.0), (0.2, 1.0, 0.1)])
    assert matching_levels(load_runs([flat])) == ()


def test_the_report_is_complete(ppo, bc, tmp_path, capsys):
    out = tmp_path / "report"
    run_compare(CompareConfig(runs=(ppo, bc), out=str(out), match=(0.5,)))
    assert {p.name for p in out.iterdir()} == {
        "report.md",
        "report.json",
        "new_against_prior.png",
        "prior_against_kl.png",
        "new_against_kl.png",
        "along_training.png",
    }
    report = json.loads((out / "report.json").read_text())
    matched = {run["run"]: run for run in report["matched"][0]["runs"]}
    assert matched["ppo"]["retention"] == pytest.approx(1.0)
    assert matched["bc"]["retention"] == pytest.approx(0.8)
    pair = report["paired"][0]["new"]
    assert (pair["only_first"], pair["only_second"], pair["n"]) == (0, 5, 100)
    assert pair["difference"] == pytest.approx(-0.05)
    text = (out / "report.md").read_text()
    for part in ("| 50% | ppo |", "LiftCube", "![new against prior](new_against_prior.png)"):
        assert part in text
    assert "At equal new-task success" in capsys.readouterr().out


def test_a_report_replaces_a_report_but_nothing_else(ppo, tmp_path):
    out = tmp_path / "report"
    for _ in range(2):
        run_compare(CompareConfig(runs=(ppo,), out=str(out)))
    with pytest.raises(ReportError, match="in use"):
        run_compare(CompareConfig(runs=(ppo,), out=ppo))


def test_runs_without_prior_skills_and_kl(tmp_path):
    path = make_run(tmp_path / "a", [(0.2, 1.0, None), (0.7, 1.0, None)], skills={})
    run_compare(CompareConfig(runs=(path,), out=str(tmp_path / "report")))
    assert (tmp_path / "report" / "along_training.png").is_file()
    assert not (tmp_path / "report" / "prior_against_kl.png").exists()


def test_the_same_directory_name_twice(tmp_path):
    paths = [make_run(tmp_path / x / "run", [(0.2, 1.0, 0.0)]) for x in "ab"]
    assert [run.name for run in load_runs(paths)] == ["a/run", "b/run"]
    assert len({run.name for run in load_runs([paths[0], paths[0]])}) == 2


def test_unlike_runs_are_refused(ppo, tmp_path):
    other = make_run(tmp_path / "other", [(0.2, 1.0, 0.0)], task="gym_razor/LiftCan-v0")
    with pytest.raises(ReportError, match="differ in their new task"):
        load_runs([ppo, other])
    fewer = make_run(tmp_path / "fewer", [(0.2, 1.0, 0.0)], skills={"LiftCube": 1.0})
    with pytest.raises(ReportError, match="differ in their prior skills"):
        load_runs([ppo, fewer])


def test_bad_runs(tmp_path):
    with pytest.raises(ReportError, match="No run to compare"):
        load_runs([])
    with pytest.raises(ReportError, match="does not exist"):
        load_runs([str(tmp_path / "absent")])
    RunDirectory.create(FinetuneConfig(out=str(tmp_path / "new"))).close()
    with pytest.raises(ReportError, match="no evaluation yet"):
        load_runs([str(tmp_path / "new")])
    run = RunDirectory.create(FinetuneConfig(out=str(tmp_path / "odd")))
    run.write_summary(0, {"step": 0})
    run.close()
    with pytest.raises(ReportError, match="cannot be read"):
        load_runs([str(tmp_path / "odd")])


def test_comparing_needs_no_torch(ppo, tmp_path):
    code = (
        "import sys; from robo_razor.config import CompareConfig; "
        "from robo_razor.report import run_compare; "
        f"run_compare(CompareConfig(runs=({ppo!r},), out={str(tmp_path / 'r')!r})); "
        "assert not {'torch', 'mujoco', 'lerobot', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
