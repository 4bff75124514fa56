"""Known runs give known tables, unlike runs are refused, nothing foreign is overwritten."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made_up_runs import ARMS, BASE_NEW, LAW, SKILLS, make_run, make_sweep
from rich.console import Console

from robo_razor.cli.compare import run as run_command
from robo_razor.core.errors import ReportError
from robo_razor.core.files import read_json, write_json
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.settings.config import CompareConfig, FinetuneConfig
from robo_razor.core.settings.conversion import merged
from robo_razor.report.analysis import frontier_entry
from robo_razor.report.arms import arm_descriptions, comparable_settings, load_runs
from robo_razor.report.build import build_report, compare, run_compare
from robo_razor.report.charts import figures
from robo_razor.report.charts.comparison import frontier_chart, matched_chart
from robo_razor.report.charts.figures import draw_figures
from robo_razor.report.charts.law import law_chart
from robo_razor.report.charts.training import training_charts
from robo_razor.report.comparability import OTHER_BASE, divergence_kinds, noted, unlike
from robo_razor.report.equal_success import (
    compare_pair,
    headline_level,
    match,
    match_arm,
    matching_levels,
    shown_setting,
    top,
)
from robo_razor.report.load import load_run, mean
from robo_razor.report.markdown import to_markdown
from robo_razor.report.tables import last_table, pair_table, predictor_rows
from robo_razor.statistics.intervals import wilson_interval

ALL = {"LiftCube": 1.0, "OpenDrawer": 1.0}


@pytest.fixture
def ppo(tmp_path):
    return make_run(tmp_path / "ppo", [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0), (0.9, 0.9, 2.0)])


@pytest.fixture
def bc(tmp_path):
    points = [(0.2, 1.0, 0.0), (0.8, 0.6, 4.0), (0.95, 0.4, 8.0)]
    return make_run(tmp_path / "bc", points, method="bc")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("quiet") / "sweep", noise=0.0)


# --- Reading --------------------------------------------------------------------------------------


def test_a_run_is_read_in_order(ppo):
    (run,) = load_runs([ppo]).runs
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 10, 20]
    assert run.series("new") == [0.2, 0.6, 0.9]
    assert run.series("prior") == pytest.approx([0.9, 0.9, 0.81])
    assert run.series("kl_tuned_base/new_base_visited") == [0.0, 2.0, 4.0]
    assert run.title == "ppo: seed 0"


def test_environment_steps_come_from_the_rollouts(ppo, bc):
    lines = [
        {"step": s, "rollout/mean_control_steps": 50.0, "rollout/episodes": 4.0}
        for s in range(1, 21)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (Path(ppo) / "metrics.jsonl").write_text(text + '{"step": 21, "rollo')  # killed while writing
    first, second = load_runs([ppo, bc]).runs
    assert first.series("env_steps") == [0, 2000, 4000]
    assert second.last.env_steps != second.last.env_steps  # no rollouts


def test_runs_are_grouped_by_what_they_learn_with(tmp_path):
    points = [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0)]
    paths = [
        make_run(tmp_path / "a0", points),
        make_run(tmp_path / "a1", points, seed=1),
        make_run(tmp_path / "b0", points, section={"ent_coef": 0.1}),
        make_run(tmp_path / "c0", points, method="bc"),
    ]
    arms = load_runs(paths).arms
    assert [arm.name for arm in arms] == ["ppo (ent_coef=0)", "ppo (ent_coef=0.1)", "bc"]
    assert [len(arm.runs) for arm in arms] == [2, 1, 1]


@pytest.mark.slow
def test_a_sweep_is_grouped_by_arm(sweep):
    runs = load_runs([sweep])
    assert [arm.name for arm in runs.arms] == list(ARMS)
    sizes = {arm.name: [len(setting.runs) for setting in arm.settings] for arm in runs.arms}
    assert sizes == {"oracle": [3], "ppo_kl": [3], "ppo": [3, 3], "bc_b": [3, 3]}
    assert runs.arms[2].settings[1].label == "learning_rate=5.4e-4"
    assert runs.skipped == ()


def test_another_run_of_the_sweep_is_no_difference(tmp_path):
    """A distilled arm names another run for each seed, and is one setting all the same."""
    sweep = Path(make_sweep(tmp_path / "sweep", arms=["oracle"], seeds=2))
    for k, config in enumerate(sorted(sweep.glob("*/*/config.yaml"))):
        text = config.read_text().replace(
            "demonstrations: expert", f"demonstrations: policy:elsewhere/{sweep.name}/ppo/seed={k}"
        )
        config.write_text(text)
    (arm,) = load_runs([str(sweep)]).arms
    assert [setting.label for setting in arm.settings] == [""]


@pytest.mark.slow
def test_unfinished_runs_of_a_sweep_are_left_out_and_counted(sweep, tmp_path):
    sweep = shutil.copytree(sweep, tmp_path / "sweep")  # the others read it as it is
    record = read_json(Path(sweep) / "sweep.json")
    record["runs"][0]["state"] = "failed"
    record["runs"][1]["state"] = "running"
    write_json(Path(sweep) / "sweep.json", record)
    runs = load_runs([str(sweep)])
    assert len(runs.runs) == len(record["runs"]) - 2
    assert runs.skipped == ("Of the 18 runs of sweep, 2 are left out: 1 failed, 1 running.",)


@pytest.mark.slow
def test_arms_of_a_sweep_can_be_merged(sweep):
    runs = load_runs([sweep], ["ppo,ppo_kl"])
    arms = {arm.name: arm for arm in runs.arms}
    assert set(arms) == {"oracle", "ppo", "bc_b"}
    labels = [setting.label for setting in arms["ppo"].settings]
    assert labels == [
        "learning_rate=1.8e-4, ent_coef=0",
        "learning_rate=1.8e-4, ent_coef=0.1",
        "learning_rate=5.4e-4, ent_coef=0",
    ]
    with pytest.raises(ReportError, match="no arm 'ppo_k' to merge. Did you mean 'ppo_kl'"):
        load_runs([sweep], ["ppo,ppo_k"])


# --- Matching -------------------------------------------------------------------------------------


def test_matched_success_is_interpolated(ppo, bc):
    first, second = load_runs([ppo, bc]).runs
    at = match(first, 0.75)
    assert (at.step, at.interpolated) == (pytest.approx(15), True)
    assert at.prior == pytest.approx(0.855)
    assert at.retention == pytest.approx(0.95)
    assert at.kl["kl_base_tuned/new_base_visited"] == pytest.approx(1.5)
    assert match(second, 0.96).step is None


def test_levels_are_those_that_two_arms_reach(ppo, bc):
    arms = load_runs([ppo, bc]).arms
    assert matching_levels(arms) == (0.3, 0.5, 0.7, 0.8, 0.9)
    assert headline_level(arms, matching_levels(arms)) == 0.9


def test_no_level_when_nothing_was_learnt(tmp_path):
    flat = make_run(tmp_path / "flat", [(0.2, 1.0, 0.0), (0.2, 1.0, 0.1)])
    assert matching_levels(load_runs([flat]).arms) == ()


def test_the_headline_asks_for_all_arms_unless_that_is_too_low(tmp_path, ppo, bc):
    slow = make_run(
        tmp_path / "slow", [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0)], section={"ent_coef": 1.0}
    )
    slower = make_run(
        tmp_path / "slower", [(0.2, 1.0, 0.0), (0.31, 1.0, 1.0)], section={"ent_coef": 2.0}
    )
    for last, expected in ((slow, 0.6), (slower, 0.9)):
        arms = load_runs([ppo, bc, last]).arms
        assert headline_level(arms, (0.3, 0.5, 0.6, 0.7, 0.9)) == expected


def test_an_arm_counts_only_where_every_seed_gets(tmp_path):
    paths = [
        make_run(tmp_path / "a", [(0.2, 1.0, 0.0), (0.9, 0.8, 2.0)]),
        make_run(tmp_path / "b", [(0.2, 1.0, 0.0), (0.6, 0.6, 2.0)], seed=1),
    ]
    (arm,) = load_runs(paths).arms
    assert match_arm(arm, 0.7).reason == "only 1 of 2 seeds reach it"
    assert match_arm(arm, 0.95).reason == "its best run reaches only 90%"
    assert match_arm(arm, 0.2).reason == "the base already has 20%"
    match = match_arm(arm, 0.6)
    assert match.values("retention") == pytest.approx([1 - 0.2 * 4 / 7, 0.6])
    estimate = match.estimate("retention")
    assert estimate.low < estimate.value < estimate.high


def arm_of_rates(root, retentions, top=None):
    """Load a sweep's arm that keeps so much at 80 % (`top` by rate) by (learning rate, seed)."""
    runs = []
    for (rate, seed), retention in retentions.items():
        name = f"rate={rate:g},seed={seed}"
        points = [(0.2, 1.0, 0.0), ((top or {}).get(rate, 0.8), retention, 1.0)]
        make_run(root / "ppo" / name, points, seed=seed, section={"learning_rate": rate})
        runs.append({"arm": "ppo", "name": name, "path": f"ppo/{name}", "state": "finished"})
    record = {"kind": "robo-razor sweep", "version": 1, "name": "s", "arms": ["ppo"], "runs": runs}
    write_json(root / "sweep.json", record)
    (arm,) = load_runs([str(root)]).arms
    return arm


def test_the_setting_is_chosen_on_the_other_seeds(tmp_path):
    """Setting x is better on seed 0, y on seed 1: each seed gets what the other one prefers."""
    retentions = {(1e-4, 0): 0.9, (1e-4, 1): 0.5, (3e-4, 0): 0.6, (3e-4, 1): 0.7}
    arm = arm_of_rates(tmp_path / "sweep", retentions)
    match = match_arm(arm, 0.8)
    assert match.values("retention") == pytest.approx([0.6, 0.5])
    assert "chosen on the other seeds" in match.choice
    assert shown_setting(arm, 0.8).label == "learning_rate=1e-4"


def test_a_setting_under_way_stands_for_no_arm(tmp_path):
    """One seed of a rate that keeps more is no comparison yet, in words and tables neither."""
    retentions = {(3e-4, 0): 0.4, (3e-4, 1): 0.5, (1e-4, 0): 0.9}
    arm = arm_of_rates(tmp_path / "sweep", retentions)
    match = match_arm(arm, 0.8)
    assert match.values("retention") == pytest.approx([0.4, 0.5])
    assert match.choice == "only setting with 2 seeds"
    assert shown_setting(arm, 0.8).label == "learning_rate=3e-4"


def test_a_setting_under_way_sets_no_level(tmp_path):
    """The best of its few seeds gets further than the worst of three: that is no reach."""
    retentions = {(3e-4, 0): 0.4, (3e-4, 1): 0.5, (1e-4, 0): 0.9}
    arm = arm_of_rates(tmp_path / "sweep", retentions, top={1e-4: 0.95})
    assert match_arm(arm, 0.9).reason == "its best run reaches only 80%"
    assert shown_setting(arm, 0.9).label == "learning_rate=3e-4"
    assert matching_levels([arm]) == (0.3, 0.5, 0.7, 0.8)
    (pair,) = compare_pair(arm, arm, (0.8, 0.9)).levels
    assert pair[0].level == 0.8


def test_the_frontiers_area_is_of_settings_that_every_seed_has(tmp_path):
    retentions = {(3e-4, 0): 0.5, (3e-4, 1): 0.5, (1e-4, 0): 1.0}
    arm = arm_of_rates(tmp_path / "sweep", retentions)
    entry = frontier_entry(arm)
    one, two = entry["hypervolume"]["values"]
    assert one == two  # but for the one more setting they are the same
    # The base is no point of an arm, nor is what one seed more would have to confirm.
    assert {point["step"] for point in entry["points"]} == {10}
    assert [point["prior"] for point in entry["points"]] == pytest.approx([0.45, 0.45])


def test_arms_that_do_not_overlap_are_refused(tmp_path, ppo):
    stuck = make_run(tmp_path / "stuck", [(0.2, 1.0, 0.0), (0.2, 0.9, 1.0)], method="bc")
    first, second = load_runs([ppo, stuck]).arms
    pair = compare_pair(first, second, (0.5, 0.9))
    assert pair.levels == ()
    assert pair.reason.startswith("their ranges of success on the new task do not overlap above")
    wide = compare_pair(first, first, (0.95,))
    assert wide.reason == "none of the requested levels is above 20% and at most 90%"


# --- The report -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a comparison of two runs, its directory, and what the terminal showed."""
    root = tmp_path_factory.mktemp("saved")
    runs = (
        make_run(root / "ppo", [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0), (0.9, 0.9, 2.0)]),
        make_run(root / "bc", [(0.2, 1.0, 0.0), (0.8, 0.6, 4.0), (0.95, 0.4, 8.0)], method="bc"),
    )
    console = Console(file=io.StringIO(), width=80)
    config = CompareConfig(runs=runs, out=str(root / "report"), match=(0.5,))
    comparison = run_command(config, console)
    return comparison, root / "report", console.file.getvalue()


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out the figures, which take seconds."""
    monkeypatch.setattr(figures, "draw_figures", lambda *_: [])


@pytest.mark.slow
def test_the_report_is_complete(saved):
    _, out, shown = saved
    names = ("matched", "new_against_prior", "prior_against_kl", "new_against_kl", "skills")
    assert {p.name for p in out.iterdir()} == {
        "index.html",
        "report.md",
        "report.json",
        "checkpoints.csv",
        "matched.csv",
        "predictors.csv",
        *(f"{name}{suffix}" for name in (*names, "along_training") for suffix in (".png", ".svg")),
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
    assert "At 50% success on PlaceCanInBin, ppo keeps 100%" in shown


def test_the_page_is_small_and_explains_its_words(saved):
    page = (saved[1] / "index.html").read_text()
    assert len(page.encode()) < 3e6
    links = set(re.findall(r'href="#(term-\w+|words)"', page))
    assert {"term-arm", "term-kept", "term-interval", "term-checkpoint"} <= links
    assert links <= set(re.findall(r'id="([\w-]+)"', page))
    assert re.search(r"Made on \d{4}-\d\d-\d\d by robo-razor \S+ with", page)
    assert re.search(r"<code>robo-razor compare \S+ppo \S+bc --out \S+ --match 0.5</code>", page)
    assert "To cite it: The robo-razor authors" in page


def test_a_comparison_is_a_value(saved, ppo, bc, tmp_path, capsys):
    comparison = compare([ppo, bc])
    assert comparison.headline.startswith("At 90% success on PlaceCanInBin, ppo keeps 90%")
    assert comparison.sentences[0].startswith("That is a difference of 43 points")
    assert comparison.levels == (0.3, 0.5, 0.7, 0.8, 0.9)
    assert comparison.headline_level == 0.9
    assert comparison.law["predictor"] == "kl_base_tuned/new_base_visited"
    at = comparison.at(0.5)
    assert at["ppo"].values("retention") == pytest.approx([1.0])
    assert at["bc"].values("retention") == pytest.approx([0.8])
    assert capsys.readouterr().out == ""
    assert saved[0].levels == (0.5,)
    assert saved[0].at(0.99)["ppo"].reason == "its best run reaches only 90%"


@pytest.mark.slow
def test_arms_say_what_they_are(tmp_path):
    sweep = Path(make_sweep(tmp_path / "sweep", seeds=1))
    lines = arm_descriptions(load_runs([str(sweep)]))
    assert lines["ppo_kl"] == "method ppo, ent coef 0.1"
    assert re.fullmatch(r"method ppo, learning rate \S+ or \S+", lines["ppo"])
    record = read_json(sweep / "sweep.json")
    write_json(sweep / "sweep.json", {**record, "about": {"ppo": "PPO as in the paper."}})
    assert arm_descriptions(load_runs([str(sweep)]))["ppo"] == "PPO as in the paper."


@pytest.fixture(scope="module")
def sweep_report(tmp_path_factory):
    """Return the report of a sweep with noise."""
    return build_report(load_runs([make_sweep(tmp_path_factory.mktemp("noisy") / "sweep")]))


@pytest.mark.slow
def test_the_report_of_a_sweep_has_intervals_over_seeds(sweep_report):
    report = sweep_report
    level = report["headline_level"]
    assert BASE_NEW < level < 0.95
    block = next(block for block in report["matched"] if block["level"] == level)
    for arm in block["arms"]:
        assert arm["n"] == 3
        low, high = arm["retention"]["interval"]
        assert low < arm["retention"]["value"] < high
        assert len(arm["retention"]["values"]) == 3
    pairs = {(pair["first"], pair["second"]): pair for pair in report["comparisons"]}
    assert len(pairs) == 6
    difference = pairs["oracle", "bc_b"]["levels"][-1]["difference"]["retention"]
    assert 0 < difference["interval"][0] < difference["value"] < difference["interval"][1]
    assert report["law"]["r2"] > 0.9
    assert report["law"]["predictor"] == "kl_base_tuned/new_base_visited"
    r2 = [entry["r2"] for entry in report["predictors"]]
    assert r2 == sorted(r2, reverse=True)
    assert {"weight_l2", "total_variation/new_base_visited"} <= {
        entry["predictor"] for entry in report["predictors"]
    }
    json.dumps(report, allow_nan=False)


@pytest.mark.slow
def test_the_law_behind_made_up_runs_is_found(tmp_path):
    runs = load_runs([make_sweep(tmp_path / "sweep", arms=["oracle", "ppo"], noise=0.0)])
    law = build_report(runs)["law"]
    base = mean(list(SKILLS.values()))
    assert law["r2"] == pytest.approx(1.0, abs=1e-3)
    expected = [base, base * LAW[0], base * LAW[1]]
    assert law["coefficients"] == pytest.approx(expected, rel=0.05)


def test_the_statement_names_the_better_arm_first(ppo, bc):
    statement = build_report(load_runs([bc, ppo]))["statement"]
    assert statement["headline"].startswith(
        "At 90% success on PlaceCanInBin, **ppo** keeps **90%**"
    )
    assert re.search(
        r"difference of \*\*43 points\*\* \[\d+,\s\d+\] over episodes between single runs",
        statement["sentences"][0],
    )
    assert any("No law of forgetting is fitted: too few" in s for s in statement["sentences"])


def test_an_arm_with_one_seed_beside_one_with_two_is_named(tmp_path, bc):
    points = [(0.2, 1.0, 0.0), (0.9, 0.9, 1.0)]
    pair = [make_run(tmp_path / f"p{k}", points, seed=k) for k in range(2)]
    statement = build_report(load_runs([*pair, bc]))["statement"]
    assert "(**bc** is a single run, its interval is over episodes)" in statement["headline"]
    assert "**bc** has one seed" in statement["sentences"][0]
    assert not any("between single runs" in sentence for sentence in statement["sentences"])


def test_the_statement_of_one_run(ppo):
    headline = build_report(load_runs([ppo]))["statement"]["headline"]
    assert headline.startswith("**ppo** brings PlaceCanInBin from 20% to **90%")
    assert re.search(r"keeps \*\*90%\*\* \[\d+,\s\d+\] of the prior skills, both over", headline)


def test_the_statement_when_nothing_can_be_compared(tmp_path, ppo):
    stuck = make_run(tmp_path / "stuck", [(0.2, 1.0, 0.0), (0.2, 0.9, 1.0)], method="bc")
    report = build_report(load_runs([ppo, stuck]))
    assert report["statement"]["headline"] == (
        "At the last checkpoint **ppo** keeps **90%** of the prior skills and **bc** **90%**."
    )
    assert report["statement"]["sentences"][0] == (
        "No matched comparison: only **ppo** improved on the base on PlaceCanInBin (20% → 90%); "
        "**bc** ended at 20%."
    )
    assert report["comparisons"][0]["refused"]


def test_a_report_replaces_a_report_but_nothing_else(saved, ppo, tmp_path, no_figures):
    out = tmp_path / "report"
    for _ in range(2):
        run_compare(CompareConfig(runs=(ppo,), out=str(out)))
    with pytest.raises(ReportError, match="in use"):
        run_compare(CompareConfig(runs=(ppo,), out=ppo))


@pytest.mark.slow
def test_figures_are_the_same_every_time(saved, tmp_path):
    comparison, out, _ = saved
    for name in draw_figures(comparison.runs, comparison.report, tmp_path):
        if name.endswith(".svg"):
            assert (tmp_path / name).read_text() == (out / name).read_text(), name


@pytest.mark.slow
def test_runs_without_prior_skills_and_kl(tmp_path):
    path = make_run(tmp_path / "a", [(0.2, 1.0, None), (0.7, 1.0, None)], skills={})
    run_compare(CompareConfig(runs=(path,), out=str(tmp_path / "report")))
    assert (tmp_path / "report" / "along_training.png").is_file()
    assert not (tmp_path / "report" / "prior_against_kl.png").exists()


def test_the_same_directory_name_twice(tmp_path):
    paths = [make_run(tmp_path / x / "run", [(0.2, 1.0, 0.0)], seed=k) for k, x in enumerate("ab")]
    runs = load_runs(paths).runs
    assert [run.name for run in runs] == ["a/run", "b/run"]
    assert [run.title for run in runs] == ["ppo: seed 0", "ppo: seed 1"]


@pytest.mark.parametrize(
    ("folder", "title"),
    [
        ("first_try", "first_try: seed 3"),
        ("first_try_seed_3", "first_try: seed 3"),
        ("first_try-seed7", "first_try-seed7: seed 3"),
        ("seed_3", "ppo: seed 3"),
        ("robo-razor-abc/run", "ppo: seed 3"),
    ],
)
def test_a_run_is_titled_by_its_folder_or_method(tmp_path, folder, title):
    path = make_run(tmp_path / folder, [(0.2, 1.0, 0.0)], seed=3)
    assert load_runs([path]).runs[0].title == title


def test_runs_of_one_title_are_told_apart_by_their_folders(tmp_path):
    points = [(0.2, 1.0, 0.0)]
    paths = [
        make_run(tmp_path / place / "run", points, section={"learning_rate": rate})
        for place, rate in (("a", 1e-4), ("b", 2e-4))
    ]
    titles = [run.title for run in load_runs(paths).runs]
    assert titles == ["ppo: seed 0 (a/run)", "ppo: seed 0 (b/run)"]


def test_two_sweeps_whose_runs_are_called_alike(tmp_path):
    """Runs are told apart by name: in the law, which leaves one out at a time, and in charts."""
    sweeps = [
        make_sweep(tmp_path / x, arms=["oracle"], seeds=1, rates=(rate,))
        for x, rate in (("one", 1), ("two", 1))
    ]
    for file in (tmp_path / "two").rglob("config.yaml"):
        file.write_text(file.read_text().replace("seed: 0", "seed: 1", 1))
    runs = load_runs(sweeps).runs
    assert len({run.title for run in runs}) == 2
    names = [run.name for run in runs]
    assert names == ["one/oracle/rate=1,seed=0", "two/oracle/rate=1,seed=0"]


def test_a_run_beside_a_sweep_is_no_part_of_its_arm(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", arms=["ppo"], seeds=1, rates=(1,))
    single = make_run(tmp_path / "mine", [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0)], skills=dict(SKILLS))
    arms = load_runs([sweep, single]).arms
    assert [arm.name for arm in arms] == ["ppo", "ppo (mine)"]


def test_runs_that_were_cut_are_named(tmp_path, ppo):
    report = build_report(load_runs([ppo]))
    assert "Not finished" not in " ".join(report["notes"])
    for summary in Path(ppo).glob("eval/*/summary.json"):
        write_json(summary, {**read_json(summary), "updates": 40})
    run = RunDirectory.open(ppo).path / "config.yaml"
    run.write_text(run.read_text().replace("every: ", "every: 0.25 # "))
    cut = " ".join(build_report(load_runs([ppo]))["notes"])
    assert "Not finished: ppo: seed 0 (update 20 of 40)" in cut


def test_a_run_given_twice_is_refused(tmp_path):
    points = [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0)]
    first = make_run(tmp_path / "a", points)
    with pytest.raises(ReportError, match=r"a is given twice, as a#1 and a#2"):
        load_runs([first, str(tmp_path / "a" / ".." / "a")])
    copy = make_run(tmp_path / "copy", points)
    with pytest.raises(ReportError, match=r"a and .*copy have the same seed 0 .* one setting"):
        load_runs([first, copy])
    other = make_run(tmp_path / "other", points, section={"ent_coef": 0.5})
    assert len(load_runs([first, other]).runs) == 2


# --- What a number is worth -----------------------------------------------------------------------


def test_seeds_that_keep_everything_are_not_certain_to(tmp_path):
    """Three runs without a single failure: 20 episodes of each of two skills know no better."""
    points = [(0.2, 1.0, 0.0), (0.9, 1.0, 2.0)]
    paths = [make_run(tmp_path / f"s{k}", points, seed=k, skills=ALL) for k in range(3)]
    bc = [(0.2, 1.0, 0.0), (0.9, 0.5, 9.0)]
    others = [make_run(tmp_path / f"b{k}", bc, seed=k, skills=ALL, method="bc") for k in range(3)]
    report = build_report(load_runs([*paths, *others]))
    ppo = report["matched"][-1]["arms"][0]
    assert ppo["retention"]["values"] == [1.0, 1.0, 1.0]
    low, high = ppo["retention"]["interval"]
    assert 0.8 < low < 0.97
    assert high > 1.0  # the base may have been lucky
    assert ppo["prior"]["interval"][1] == 1.0
    difference = report["comparisons"][0]["levels"][-1]["difference"]["retention"]
    assert difference["interval"][0] < difference["value"] < difference["interval"][1]
    skill = report["skills"][0]["skills"][0]
    assert skill["interval_over"] == "seeds"


def test_single_runs_say_what_their_episodes_leave_open(ppo, bc):
    report = build_report(load_runs([ppo, bc]))
    difference = report["comparisons"][0]["levels"][-1]["difference"]["retention"]
    assert difference["interval"] is None
    low, high = difference["over_episodes"]
    assert low < difference["value"] < high
    assert re.fullmatch(r"\+43 \[\+\d+,\s\+\d+\] \(episodes\)", pair_table(report).rows[0][3])
    arm = report["matched"][-1]["arms"][0]["retention"]
    assert arm["interval"] is None
    assert arm["over_episodes"][0] < arm["value"] < arm["over_episodes"][1]


def test_one_high_evaluation_reaches_no_level(tmp_path):
    """45 of 50 once, 88 % in the end: 90 % was never held."""
    points = [(0.5, 1.0, 0.0), (0.8, 1.0, 1.0), (0.9, 1.0, 2.0), (0.86, 0.9, 3.0)]
    (run,) = load_runs([make_run(tmp_path / "a", points)]).runs
    assert max(run.series("new")) == 0.9
    assert top(run) == pytest.approx(0.88)
    assert match(run, 0.9).step is None
    assert matching_levels(load_runs([str(tmp_path / "a")]).arms)[-1] == 0.85
    at = match(run, 0.85)
    assert (at.new, at.new_n) == (0.9, 100)
    assert at.new_interval == pytest.approx(wilson_interval(90, 100))


def test_checkpoints_of_an_interruption_are_left_out(tmp_path):
    root = Path(make_sweep(tmp_path / "sweep", arms=["oracle"], seeds=1))
    (run,) = load_runs([str(root)]).runs
    assert run.unplanned == ()
    extra = root / "oracle/rate=1,seed=0/eval/000007"
    shutil.copytree(extra.parent / "000010", extra)
    summary = read_json(extra / "summary.json")
    write_json(extra / "summary.json", {**summary, "step": 7})
    (again,) = load_runs([str(root)]).runs
    assert again.unplanned == (7,)
    assert again.checkpoints == run.checkpoints
    assert "a run was interrupted" in " ".join(build_report(load_runs([str(root)]))["notes"])


def test_episodes_pair_only_where_they_began_alike(ppo, bc):
    file = Path(bc) / "eval/000020/episodes.jsonl"
    file.write_text(file.read_text().replace('"start_state": "', '"start_state": "f'))
    runs = load_runs([ppo, bc])
    assert unlike(runs.runs) == [
        "the start states or instructions of 100 of 140 episodes of equal task and seed "
        "(ppo: seed 0 / bc: seed 0)"
    ]
    with pytest.raises(ReportError, match="100 of 140 episodes"):
        run_compare(CompareConfig(runs=(ppo, bc), out=f"{bc}-report"))
    entry = build_report(runs)["paired"][0]
    assert "new" not in entry  # nothing left to pair
    assert entry["prior"]["n"] == 40


def test_damaged_episodes_are_an_error_to_act_on(ppo):
    file = Path(ppo) / "eval/000020/episodes.jsonl"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(ReportError, match=r"000020/episodes.jsonl cannot be read: line 140"):
        load_runs([ppo])


def test_the_last_checkpoints_have_intervals_over_episodes(ppo):
    run = load_runs([ppo]).runs[0]
    assert run.last.prior_interval[0] < run.last.prior < run.last.prior_interval[1]
    assert run.last.retention_interval[0] < run.last.retention < run.last.retention_interval[1]
    entry = build_report(load_runs([ppo]))["runs"][0]["nbt"]
    assert entry["value"] == pytest.approx(0.075)  # 20 -> 18 and 16 -> 15 of 20 episodes
    assert entry["interval"][0] < 0.075 < entry["interval"][1]
    (row,) = last_table([run]).rows
    assert re.match(r"90% → 8\d%\s\[\d+,\s\d+\]", row[5])


def test_success_with_sampled_actions_is_shown(ppo):
    file = Path(ppo) / "eval/000020/summary.json"
    summary = read_json(file)
    summary["new"]["PlaceCanInBin"]["sampled"] = {"success_rate": 0.6, "n": 25}
    write_json(file, summary)
    runs = load_runs([ppo])
    assert last_table(runs.runs).rows[0][4] == "60%\xa0[41,\xa077], n = 25"
    chart = next(c for c in training_charts(runs, None) if c.id == "training-new")
    assert [series.dash for series in chart.views[0].panels[0].series][-1] == "dot"


def test_levels_may_be_asked_for_in_any_order(ppo, bc):
    report = build_report(load_runs([ppo, bc]), (0.8, 0.5))
    assert report["headline_level"] == 0.8
    assert pair_table(report).rows[0][1] == "80%"


def test_a_base_without_prior_success_is_reported(tmp_path):
    """Nothing can be kept then, which has nothing to do with what the arms reach."""
    runs = []
    for name in ("ppo", "bc"):
        points = [(0.2, 1.0, 0.0), (0.9, 1.0, 1.0)]
        path = make_run(tmp_path / name, points, method=name, skills={"LiftCube": 0.0})
        for file in Path(path).glob("eval/*/summary.json"):
            summary = read_json(file)
            summary["prior"]["LiftCube"]["retention"] = None
            write_json(file, summary)
        runs.append(path)
    for levels in ((), (0.8,)):
        headline = build_report(load_runs(runs), levels)["statement"]["headline"]
        assert headline.startswith("The base succeeds at none of the prior skills")


def test_a_level_that_was_asked_for_in_vain_is_explained(ppo, bc):
    statement = build_report(load_runs([ppo, bc]), (0.95,))["statement"]
    assert statement["headline"] == (
        "Nothing can be compared at 95% success on PlaceCanInBin: ppo and bc can be compared above "
        "20% and up to 90%."
    )


def test_skills_that_are_lost_entirely_are_counted(ppo, tmp_path):
    points = [(0.2, 1.0, 0.0), (0.9, 0.0, 5.0)]
    bc = make_run(tmp_path / "gone", points, method="bc")
    sentences = build_report(load_runs([ppo, bc]))["statement"]["sentences"]
    assert "After **bc** 2 of 2 prior skills are lost entirely: LiftCube and OpenDrawer." in (
        sentences
    )


def test_predictors_are_compared_on_the_same_runs(sweep_report):
    report = sweep_report
    law = " ".join(report["statement"]["sentences"])
    assert "Their intervals overlap" not in law
    paired = report["best_predictor_minus_kl"]
    if paired is None:
        assert report["predictors"][0]["predictor"] == report["law"]["predictor"]
    elif paired["interval"][0] <= 0:
        assert "Its R² is not clearly higher than that of KL" in law
    assert report["law"]["within_r2"] is not None
    assert report["law"]["leave_one_arm_out_rmse"] is not None


@pytest.mark.slow
def test_a_better_predictor_than_the_papers_has_a_figure_of_its_own(tmp_path):
    runs = load_runs([make_sweep(tmp_path / "sweep", arms=["oracle", "ppo"])])
    report = build_report(runs)
    reverse = {**report["law"], "predictor": "kl_tuned_base/new_base_visited"}
    better = draw_figures(runs, {**report, "predictors": [reverse, report["law"]]}, tmp_path)
    assert "prior_against_best.png" in better
    text = (tmp_path / "prior_against_best.svg").read_text()
    assert "KL(tuned || base), new task, base's states, nats per decision" in text
    other = {**reverse, "n_points": 3}
    for predictors in ([report["law"], reverse], [other, report["law"]]):
        names = [f.name for f in figures.figures_of(runs, {**report, "predictors": predictors})]
        assert "prior_against_kl" in names
        assert "prior_against_best" not in names


def test_a_distance_that_one_run_did_not_measure_is_unknown_there(ppo):
    (run,) = load_runs([ppo]).runs
    assert all(math.isnan(value) for value in run.series("cknna"))


def test_a_run_from_before_a_setting_existed_is_a_seed_of_the_same_arm(tmp_path):
    points = [(0.2, 1.0, 0.0), (0.9, 0.9, 1.0)]
    paths = [make_run(tmp_path / f"s{k}", points, seed=k) for k in range(2)]
    file = Path(paths[0]) / "config.yaml"
    older = yaml.safe_load(file.read_text())
    del older["flow"], older["ppo"]["ratio"]
    file.write_text(yaml.safe_dump(older))
    (arm,) = load_runs(paths).arms
    assert arm.name == "ppo"
    assert [len(setting.runs) for setting in arm.settings] == [2]


def dashes(chart):
    """Return how the lines of a chart's first panel are dashed."""
    return [one.dash for one in chart.views[0].panels[0].series if one.mark == "line"]


def test_two_clusters_are_reported_as_two_clusters(tmp_path):
    near = [(0.2, 1.0, 0.0), (0.6, 1.0, 0.5), (0.9, 0.95, 1.5)]
    far = [(0.2, 1.0, 0.0), (0.8, 0.4, 60.0), (0.9, 0.3, 66.0)]
    further = [(0.2, 1.0, 0.0), (0.8, 0.3, 65.0), (0.9, 0.3, 71.0)]
    paths = [make_run(tmp_path / f"p{k}", near, seed=k) for k in range(2)]
    paths += [
        make_run(tmp_path / f"b{k}", points, seed=k, method="bc")
        for k, points in enumerate((far, further))
    ]
    runs = load_runs(paths)
    report = build_report(runs)
    (sentence,) = [s for s in report["statement"]["sentences"] if "law" in s]
    assert sentence.startswith(
        "These runs show no law of forgetting: no checkpoint lies between 1.50 and 60.0"
    )
    assert "merely separates two clusters" in sentence
    assert "explains **" not in sentence
    assert "Within arms it explains" in sentence
    assert report["law"]["gap"] == [1.5, 60.0]
    assert predictor_rows(report).rows[0][1].endswith("*")
    assert dashes(law_chart(runs, report)) == ["", "dot", ""]


@pytest.mark.slow
def test_half_gone_is_reported_where_success_is_level_and_then_falls(tmp_path):
    def prior(kl):
        return 0.95 / (1 + (kl / 20) ** 4)

    def run(name, furthest, **given):
        kls = [furthest * k / 6 for k in range(7)]
        points = [(0.2 + 0.1 * k, prior(kl), kl) for k, kl in enumerate(kls)]
        return make_run(tmp_path / name, points, **given)

    steep = load_runs([run(f"b{k}", 30 + 5 * k, seed=k, method="bc") for k in range(4)])
    report = build_report(steep)
    assert report["falloff"]["half"] == pytest.approx(20, rel=0.1)
    low, high = report["falloff"]["half_interval"]
    assert low < report["falloff"]["half"] < high
    assert report["falloff"]["minus_parabola"]["value"] > 0
    (sentence,) = [s for s in report["statement"]["sentences"] if s.startswith("A Hill curve")]
    assert f"{report['falloff']['half']:.1f} nats [" in sentence
    assert dashes(law_chart(steep, report)) == ["", "dash"]

    mild = load_runs([run(f"p{k}", 8 + k, seed=k, method="ppo") for k in range(4)])
    report = build_report(mild)
    assert report["falloff"]["half"] is None
    assert "no checkpoint has lost half" in report["falloff"]["reason"]
    assert not [s for s in report["statement"]["sentences"] if s.startswith("A Hill curve")]


def test_every_figure_shows_how_sure_it_is(ppo, bc):
    runs = load_runs([ppo, bc])
    series = frontier_chart(runs, 0.9).views[0].panels[0].series
    points = [one for one in series if one.y_ends]
    assert len(points) == 2  # the filled ones of each arm
    assert all(max(high - low for low, high in one.y_ends) > 0.01 for one in points)
    bars = matched_chart(runs, [0.9], 0.9).views[0].panels[0].series
    assert all(bar.end_width == 1 and bar.x[0] - bar.x_ends[0][0] > 0.01 for bar in bars)
    for chart in training_charts(runs, 0.9):
        every = [one for view in chart.views for panel in view.panels for one in panel.series]
        known = any(one.y_ends for one in every)
        assert known == (chart.id in ("training-new", "training-prior"))


def test_the_text_says_what_the_page_says(ppo, bc):
    runs = load_runs([ppo, bc])
    text = to_markdown(runs, build_report(runs), [])
    for part in (
        "### Every seed at 90%",
        "## Area under the frontier",
        "## Success on every skill after every run",
        "## Fingerprints",
        "| skill | base | ppo: seed 0 | bc: seed 0 |",
        "mujoco",
    ):
        assert part in text, part


# --- Refusals -------------------------------------------------------------------------------------


def test_runs_on_other_tasks_are_refused(ppo, tmp_path):
    other = make_run(tmp_path / "other", [(0.2, 1.0, 0.0)], task="gym_razor/LiftCan-v0")
    with pytest.raises(ReportError, match="differ in their new task"):
        load_runs([ppo, other])
    fewer = make_run(tmp_path / "fewer", [(0.2, 1.0, 0.0)], skills={"LiftCube": 1.0})
    with pytest.raises(ReportError, match="differ in their prior skills"):
        load_runs([ppo, fewer])


def test_unlike_fingerprints_are_refused_unless_allowed(ppo, bc, tmp_path, no_figures):
    file = Path(bc) / "environment.json"
    environment = read_json(file)
    environment["packages"]["mujoco"] = "3.0.0"
    write_json(file, environment)
    out = tmp_path / "report"
    with pytest.raises(
        ReportError, match=r"version of mujoco: .* against 3\.0\.0 \(ppo: seed 0 / bc: seed 0\)"
    ):
        run_compare(CompareConfig(runs=(ppo, bc), out=str(out)))
    assert not out.exists()
    run_compare(CompareConfig(runs=(ppo, bc), out=str(out), allow_unlike=True))
    report = read_json(out / "report.json")
    assert "version of mujoco" in report["unlike"][0]
    assert "version of mujoco" in report["notes"][0]
    assert len(report["fingerprints"]) == 2


def test_another_base_of_the_same_name_is_noticed(ppo, tmp_path):
    other = make_run(tmp_path / "other", [(0.45, 1.0, 0.0), (0.9, 0.5, 1.0)], method="bc")
    runs = load_runs([ppo, other]).runs
    assert unlike(runs) == [f"{OTHER_BASE} (ppo: seed 0 / other: seed 0)"]
    nearly = make_run(tmp_path / "nearly", [(0.22, 1.0, 0.0), (0.9, 0.5, 1.0)], method="bc")
    assert unlike(load_runs([ppo, nearly]).runs) == []


def test_other_weights_of_the_base_are_refused_and_other_code_is_noted(ppo, bc, tmp_path):
    for run, weights, commit in ((ppo, "a" * 64, "1" * 40), (bc, "b" * 64, "2" * 40)):
        file = Path(run) / "environment.json"
        write_json(file, read_json(file) | {"policy_hash": weights, "git": {"commit": commit}})
    runs = load_runs([ppo, bc]).runs
    assert unlike(runs) == [
        "weights of the base: hash aaaaaaaaaaaa against bbbbbbbbbbbb (ppo: seed 0 / bc: seed 0)"
    ]
    assert [note for note in noted(runs) if "git commit: 1111" in note]
    third = make_run(tmp_path / "third", [(0.2, 1.0, 0.0), (0.6, 1.0, 1.0)], seed=1)
    file = Path(third) / "environment.json"
    write_json(file, read_json(file) | {"git": {"commit": "3" * 40}})
    (note,) = [note for note in noted(load_runs([ppo, bc, third]).runs) if "commit" in note]
    assert note.startswith("Differences between runs (harmless): git commit")
    others = f"{'3' * 8} (third: seed 1); {'2' * 8} (bc: seed 0)."
    assert note.endswith(f"{'1' * 8} (ppo: seed 0) against {others}")
    (Path(bc) / "environment.json").unlink()
    assert unlike(load_runs([ppo, bc]).runs) == [
        "fingerprint: one of them has none (ppo: seed 0 / bc: seed 0)"
    ]


def test_divergences_that_are_bounds_are_noted_and_other_noise_is_refused(ppo, bc):
    assert divergence_kinds(load_runs([ppo, bc]).runs) == []
    for summary in Path(bc).glob("eval/*/summary.json"):
        write_json(summary, read_json(summary) | {"kl_kind": "upper bound"})
    (note,) = divergence_kinds(load_runs([ppo, bc]).runs)
    assert note.startswith("KL divergences of bc: seed 0 are not exact: upper bound.")
    file = Path(bc) / "config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(merged(config, {"flow": {"noise": 0.7}})))
    assert unlike(load_runs([ppo, bc]).runs) == [
        "setting flow.noise: 0.5 against 0.7 (ppo: seed 0 / bc: seed 0)"
    ]


def test_bad_runs(tmp_path):
    with pytest.raises(ReportError, match="No run to compare"):
        load_runs([])
    with pytest.raises(ReportError, match="does not exist"):
        load_runs([str(tmp_path / "absent")])
    RunDirectory.create(FinetuneConfig(out=str(tmp_path / "new"))).close()
    with pytest.raises(ReportError, match="no evaluation yet"):
        load_runs([str(tmp_path / "new")])
    run = RunDirectory.create(FinetuneConfig(out=str(tmp_path / "odd")))
    write_json(run.evaluation(0) / "summary.json", {"step": 0})
    run.close()
    with pytest.raises(ReportError, match="`new` is missing"):
        load_runs([str(tmp_path / "odd")])


@pytest.mark.slow
def test_comparing_needs_no_torch(ppo, tmp_path):
    code = (
        "import sys; from robo_razor.core.settings.config import CompareConfig; "
        "from robo_razor.report.build import run_compare; "
        f"run_compare(CompareConfig(runs=({ppo!r},), out={str(tmp_path / 'r')!r})); "
        "assert not {'torch', 'mujoco', 'lerobot', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_the_terminal_names_every_run_in_full(tmp_path, capsys, no_figures):
    sweep = make_sweep(tmp_path / "sweep", arms=["oracle", "ppo"], seeds=2)
    run_command(CompareConfig(runs=(sweep,), out=str(tmp_path / "report"), videos=0))
    shown = capsys.readouterr().out
    assert "\u2026" not in shown
    assert shown.count("rate=1,seed=1") == 2  # of each arm
    assert max(map(len, shown.splitlines()[:-3])) <= 80  # the last ones name files
    for line in ("Reading 6 runs ...", "Comparing 2 arms ...", "Drawing figures ..."):
        assert line in shown
    assert re.search(r"Page: .*index\.html\nText: .*report\.md\nBeside them: \d+ figures, 3", shown)


def test_runs_of_a_renamed_sweep_that_clone_siblings_are_one_setting(tmp_path):
    """A teacher differs from seed to seed; where the sweep lay when it ran must not matter."""
    for seed in (0, 1):
        teacher = f"policy:{tmp_path}/old/ppo/seed_{seed}"
        make_run(
            tmp_path / f"old/distilled/seed_{seed}",
            [(0.4, 1.0, 0.0)],
            method="bc",
            seed=seed,
            section={"demonstrations": teacher},
        )
    (tmp_path / "old").rename(tmp_path / "new")
    runs = [
        load_run(tmp_path / f"new/distilled/seed_{k}", f"seed_{k}", "distilled") for k in (0, 1)
    ]
    assert comparable_settings(runs[0])["bc.demonstrations"] == "run of ppo"
    assert comparable_settings(runs[0]) == comparable_settings(runs[1])


@pytest.mark.parametrize(
    ("value", "described"),
    [
        ("policy:runs/s/ppo/learning_rate_0.0001-seed_0", "run of ppo (learning_rate_0.0001)"),
        ("policy:runs/s/ppo/seed_2-learning_rate_0.0001", "run of ppo (learning_rate_0.0001)"),
        ("policy:runs/s/ppo/seed_3/checkpoints/best", "run of ppo (checkpoints/best)"),
        ("policy:/s/runs/s/s/seed_3/checkpoints/best", "run of s (checkpoints/best)"),
        ("policy:runs/s/ppo/a_very_long_name-seed~-0123abcd", "run of ppo"),
        ("policy:runs/t/ppo/seed_3", "policy:runs/t/ppo/seed_3"),
    ],
)
def test_what_a_run_cloned_is_described_without_the_seed(tmp_path, value, described):
    """Teachers of several settings make several settings."""
    path = tmp_path / "s/distilled/seed_0"
    make_run(path, [(0.4, 1.0, 0.0)], method="bc", section={"demonstrations": value})
    run = load_run(path, "seed_0", "distilled")
    assert comparable_settings(run)["bc.demonstrations"] == described
