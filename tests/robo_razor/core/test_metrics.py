"""What runs left is checked when it is read: right, or one paragraph that names file and place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_runs import entry, make_run

from robo_razor.core.errors import CheckpointError, ReportError, SweepError
from robo_razor.core.files import write_json
from robo_razor.core.metrics import (
    FORWARD_KL,
    KL_DIRECTIONS,
    MAX_SKILLS,
    NEW_BASE,
    NEW_TUNED,
    PRIOR,
    EpisodeEntry,
    PriorMeans,
    SampledSuccess,
    SkillSummary,
    Summary,
    checkpoint_row,
    read_episodes,
    read_metrics,
    read_summary,
    rollout_steps,
)
from robo_razor.core.records import keys_of
from robo_razor.core.run.provenance import read_environment
from robo_razor.core.run.sweep_record import read_sweep
from robo_razor.core.run.table import run_table
from robo_razor.report.arms import load_runs

POINTS = [(0.4, 1.0, 0.0), (0.6, 0.9, 1.0)]
SUMMARY = {"step": 0, "new": {"New": entry(0.5, 10)}, "prior": {"Old": entry(0.5, 10)}}
WITHOUT = object()


def changed(data, path, value):
    """Return a deep copy of a JSON value with another value at a dotted path."""
    copy = json.loads(json.dumps(data))
    *parents, last = path.split(".")
    inner = copy
    for key in parents:
        inner = inner[key]
    if value is WITHOUT:
        del inner[last]
    else:
        inner[last] = value
    return copy


@pytest.fixture
def run(tmp_path):
    return Path(make_run(tmp_path / "run", POINTS))


def refusal(run):
    with pytest.raises(ReportError) as caught:
        load_runs([str(run)])
    return str(caught.value)


# --- Summaries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "fragment"),
    [
        ("step", "0", "`step` is '0', where a whole number"),
        ("step", True, "`step` is True"),
        ("step", 10**30, "`step` is 10000"),
        ("step", WITHOUT, "`step` is missing"),
        ("new", {}, "`new` has 0 entries; 1 to 10 are expected"),
        ("new", [], r"`new` is \[\], where an object"),
        ("new.New", 3, "`new.New` is 3, where an object"),
        ("new.New.n", -3, "`new.New.n` is -3"),
        ("new.New.n", 0, "`new.New.n` is 0"),
        ("new.New.n", 10.5, "`new.New.n` is 10.5"),
        ("new.New.success_rate", 1.5, r"`new.New.success_rate` is 1.5, where a number in \[0, 1\]"),
        ("new.New.success_rate", "half", "`new.New.success_rate` is 'half'"),
        ("new.New.success_rate", None, "`new.New.success_rate` is None"),
        ("new.New.interval", [0.9, 0.1], r"\[low, high\] with low <= high"),
        ("new.New.interval", [0.1], r"`new.New.interval` is \[0.1\]"),
        ("new.New.sampled", {"success_rate": 0.5}, "`new.New.sampled.n` is missing"),
        ("prior.Old.retention", -1.0, "`prior.Old.retention` is -1.0"),
        ("prior.Old.retention_interval", [2, 1], "`prior.Old.retention_interval`"),
        ("prior", {"": entry(0.5, 10)}, "`prior, a key` is '', where a printable name"),
        ("prior", {"x" * 10**6: entry(0.5, 10)}, "a printable name of at most 200 characters"),
        ("prior", {"a\x1b[2J": entry(0.5, 10)}, "where a printable name"),
        ("prior", {"\ud800": entry(0.5, 10)}, "where a printable name"),
        (
            "prior",
            {f"s{i}": entry(0.5, 10) for i in range(MAX_SKILLS + 1)},
            f"`prior` has {MAX_SKILLS + 1} entries",
        ),
        ("kl_base_tuned", {"new_base_visited": "far"}, "`kl_base_tuned.new_base_visited` is 'far'"),
        ("kl_base_tuned", {"new_base_visited": 1e300}, "where a number"),
        ("distances", 3, "`distances` is 3"),
        ("distances", {f"d{i}": 1.0 for i in range(300)}, "`distances` has 300 names"),
        ("elapsed_s", -1.0, "`elapsed_s` is -1.0"),
        ("updates", "many", "`updates` is 'many'"),
    ],
)
def test_a_summary_of_what_nobody_measured_is_refused(tmp_path, path, value, fragment):
    file = tmp_path / "summary.json"
    write_json(file, SUMMARY)
    assert read_summary(file, 0).to_json() == json.loads(json.dumps(SUMMARY))
    write_json(file, changed(SUMMARY, path, value))
    with pytest.raises(CheckpointError, match=rf"summary\.json is damaged: .*{fragment}") as caught:
        read_summary(file, 0)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("1", "it holds 1, where an object is expected"),
        ("[]", "it holds []"),
        ('{"step": 0, "kl": Infinity}', "Infinity is not a number of JSON"),
        ('{"step": 0, "new": {"a": {"success_rate": NaN}}}', "NaN is not a number of JSON"),
        ('{"step": 1e999}', "too large a number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"step": 0, "new": {"New": {"succ', "damaged or not JSON"),
        ("", "damaged or not JSON"),
        ('{"step": ' + "9" * 5000 + "}", "damaged or not JSON"),
    ],
)
def test_a_summary_that_is_no_json_is_told(run, text, fragment):
    (run / "eval/000010/summary.json").write_text(text)
    message = refusal(run)
    assert "eval/000010/summary.json" in message
    assert fragment in message


def test_a_summary_of_bytes_is_told(run):
    (run / "eval/000010/summary.json").write_bytes(b'{"step": 10, "\xff": 1}')
    assert "not UTF-8: byte 0xff" in refusal(run)


def test_a_summary_of_another_step_or_other_skills_is_refused(run, tmp_path):
    (run / "eval/000010").rename(run / "eval/000020")
    assert "is the summary of step 10, but its directory says step 20" in refusal(run)
    other = make_run(tmp_path / "other", POINTS, skills={"LiftCan": 1.0})
    (run / "eval/000020").rename(run / "eval/000010")
    file = run / "eval/000010/summary.json"
    file.write_text(Path(other, "eval/000010/summary.json").read_text())
    assert "steps 0 and 10" in refusal(run)
    assert "have different prior skills" in refusal(run)


# --- Metrics --------------------------------------------------------------------------------------

LINE = '{"step": 1, "rollout/mean_control_steps": 50.0, "rollout/episodes": 4.0}\n'


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        (b"1", "it holds 1, where an object"),
        (b"\xff", "not UTF-8: byte 0xff at 0"),
        (b'{"step": "x"}', "`step` is 'x'"),
        (b'{"step": -1}', "`step` is -1"),
        (b'{"rollout/episodes": 1}', "`step` is missing"),
        (b'{"step": 1, "rollout/episodes": "many"}', "`rollout/episodes` is 'many'"),
        (b'{"step": 1, "rollout/episodes": NaN}', "NaN is not a number"),
        (b"[" * 5000, "nested too deeply"),
        (b'{"step": 1, "rollo', "damaged"),
    ],
)
def test_a_damaged_line_of_metrics_is_told_with_its_number(tmp_path, line, fragment):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(LINE.encode() + line + b"\n" + LINE.encode())
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl cannot be read: line 2 is"
    ) as caught:
        list(read_metrics(file))
    assert fragment in str(caught.value)


def test_only_a_last_line_that_was_cut_off_is_left_out(tmp_path, run):
    file = tmp_path / "metrics.jsonl"
    assert rollout_steps(file) == {}
    for rest in ('{"step": 2, "rollo', "", "\n", "\0\0\0"):
        file.write_text(LINE + rest)
        assert rollout_steps(file) == {1: 200.0}
    for rest in ('{"step": 2, "rollo\n', "1", '{"step": "2"}'):
        file.write_text(LINE + rest)
        with pytest.raises(CheckpointError, match="line 2 is damaged"):
            rollout_steps(file)
    (run / "metrics.jsonl").write_text("1\n" + LINE)
    assert "metrics.jsonl cannot be read: line 1 is damaged" in refusal(run)


def test_separators_of_unicode_do_not_end_a_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "note": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert [line["step"] for line in read_metrics(file)] == [1]


# --- Episodes -------------------------------------------------------------------------------------

ROW = {"task": "a/B-v0", "seed": 3, "mode": "greedy", "success": True}


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        ({**ROW, "success": "false"}, "`success` is 'false', where true or false"),
        ({**ROW, "success": 1}, "`success` is 1"),
        ({**ROW, "seed": "3"}, "`seed` is '3'"),
        ({**ROW, "seed": -3}, "`seed` is -3"),
        ({**ROW, "task": ["a"]}, "`task` is ['a']"),
        ({**ROW, "mode": "best"}, "`mode` is 'best', where one of greedy, sample"),
        ({**ROW, "role": "both"}, "`role` is 'both'"),
        ({**ROW, "start_state": 7}, "`start_state` is 7"),
        ({"task": "a", "seed": 3}, "`success` is missing"),
        ({**ROW, "seed": 1}, "repeats the episode of 'a/B-v0' with seed 1"),
    ],
)
def test_a_damaged_episode_is_told_with_its_line(tmp_path, row, fragment):
    file = tmp_path / "episodes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in ({**ROW, "seed": 1}, row)))
    with pytest.raises(
        CheckpointError, match=r"The episodes in .*episodes\.jsonl .*line 2"
    ) as caught:
        read_episodes(file)
    assert fragment in str(caught.value)


# --- Fingerprints, settings, sweeps ---------------------------------------------------------------


def test_a_fingerprint_must_be_plain_values(tmp_path):
    file = tmp_path / "environment.json"
    assert read_environment(file) == {}
    deep = {"a": 1}
    for _ in range(20):
        deep = {"a": deep}
    for data, fragment in (
        ([], "it holds []"),
        ({"policy_hash": 3}, "`policy_hash` is 3"),
        (deep, "nested too deeply"),
        ({"packages": list(range(6000))}, "more than 5000 values"),
        ({"n": 10**40}, "`n` is 1000"),
    ):
        write_json(file, data)
        with pytest.raises(CheckpointError) as caught:
            read_environment(file)
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("seed: many", "`seed` is 'many'"),
        ("task: [a]", "`task` is ['a']"),
        ("method: {a: b}", "`method` is {'a': 'b'}"),
        ("tracking: 3", "`tracking` is 3"),
    ],
)
def test_settings_of_other_types_are_told(run, line, fragment):
    key = line.split(":")[0]
    lines = (run / "config.yaml").read_text().split("\n")
    lines_left, skip = [], False
    for text in lines:
        if not text.startswith((" ", "-")):
            skip = text.startswith(f"{key}:")
        if not skip:
            lines_left.append(text)
    (run / "config.yaml").write_text("\n".join([*lines_left, line, ""]))
    message = refusal(run)
    assert "config.yaml is damaged" in message
    assert fragment in message


@pytest.mark.parametrize(
    ("key", "value", "fragment"),
    [
        ("every", 1e-12, "tracking.every"),
        ("every", "often", "tracking.every"),
        ("every", 1.0, "100000000 updates with a checkpoint every 1"),
        ("early", 10**9, "tracking.early"),
    ],
)
def test_a_plan_of_endless_checkpoints_is_refused(run, key, value, fragment):
    for file in run.glob("eval/*/summary.json"):
        write_json(file, {**json.loads(file.read_text()), "updates": 10**8})
    text = (run / "config.yaml").read_text()
    begin = text.index(f"  {key}:")
    text = f"{text[:begin]}  {key}: {value}{text[text.index(chr(10), begin) :]}"
    (run / "config.yaml").write_text(text)
    message = refusal(run)
    assert "cannot be read" in message
    assert fragment in message


SWEEP = {
    "kind": "robo-razor sweep",
    "version": 1,
    "name": "s",
    "arms": ["a"],
    "runs": [{"arm": "a", "name": "r", "path": "a/r", "state": "finished"}],
}


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"runs": 3}, "`runs` is 3"),
        ({"runs": [3]}, "`runs[0]` is 3"),
        ({"arms": "a"}, "`arms` is 'a'"),
        ({"arms": ["b"]}, "`runs[0].arm` = 'a' is not one of `arms`"),
        ({"runs": [{"arm": "a"}]}, "`runs[0].name` is missing"),
        ({"runs": SWEEP["runs"] * 2}, "`runs[1].path` = 'a/r' occurs twice"),
        ({"version": [1]}, "has version [1]"),
        *(
            ({"runs": [{**SWEEP["runs"][0], "path": path}]}, "a path below the sweep's directory")
            for path in ("../r", "/etc", "a/../../r", "", ".", "C:/x", "a\\..\\r", "a\0b", 3)
        ),
        ({"runs": [{**SWEEP["runs"][0], "state": "over"}]}, "`runs[0].state` is 'over'"),
    ],
)
def test_a_sweep_that_is_damaged_or_leads_elsewhere_is_refused(tmp_path, change, fragment):
    write_json(tmp_path / "sweep.json", SWEEP)
    assert read_sweep(tmp_path)["name"] == "s"
    write_json(tmp_path / "sweep.json", {**SWEEP, **change})
    with pytest.raises(SweepError) as caught:
        read_sweep(tmp_path)
    assert fragment in str(caught.value)
    with pytest.raises(ReportError):
        load_runs([str(tmp_path)])


# --- Records --------------------------------------------------------------------------------------


def whole_summary():
    """Return a summary with every key, as plain values."""
    skill = entry(
        0.5,
        10,
        task="a/B-v0",
        role="prior",
        mean_control_steps=12.5,
        base_success_rate=0.8,
        retention=0.625,
        retention_interval=[0.4, 0.9],
        forgetting=0.3,
        forgetting_interval=[0.1, 0.5],
        p_value=0.25,
    )
    new = {**skill, "role": "new", "sampled": entry(0.5, 10)}
    on_states = {NEW_BASE: 0.5, NEW_TUNED: 1.5, PRIOR: None}
    keys = (*KL_DIRECTIONS, "surrogate")
    return {
        "step": 2,
        "method": "ppo",
        "task": "a/C-v0",
        "seed": 3,
        "policy": "razor-base",
        "new": {"C": new},
        "prior": {"B": skill},
        "prior_mean": {"success_rate": 0.5, "base_success_rate": 0.8, "retention": 0.625}
        | {"forgetting": None},
        **{name: on_states for key in keys for name in (key, f"{key}_standard_error")},
        "kl_kind": None,
        "surrogate_kind": "a distance",
        "entropy": 21.5,
        "distances": {"weight_l1": 3, f"total_variation/{PRIOR}": 0.25},
        "tracking_s": 2.0,
        "elapsed_s": 9.0,
        "updates": 2,
    }


def test_a_summary_comes_back_as_it_was_written(tmp_path):
    data = whole_summary()
    write_json(tmp_path / "summary.json", data)
    summary = read_summary(tmp_path / "summary.json", 2)
    assert summary.to_json() == data
    assert data.keys() == {key.name for key in keys_of(Summary).values()}
    assert data["new"]["C"].keys() == {key.name for key in keys_of(SkillSummary).values()}
    assert summary.is_last
    assert summary.kl() == {
        f"{direction}/{states}": x
        for direction in KL_DIRECTIONS
        for states, x in ((NEW_BASE, 0.5), (NEW_TUNED, 1.5))
    }


def test_only_keys_that_are_to_be_null_are_written_without_a_value():
    assert "kl_kind" not in Summary.from_json(SUMMARY).to_json()
    assert Summary.from_json({**SUMMARY, "kl_kind": None}).to_json()["kl_kind"] is None


def test_a_summary_of_a_later_version_is_refused(tmp_path):
    file = tmp_path / "summary.json"
    write_json(file, {**SUMMARY, "version": 1})
    assert read_summary(file, 0).step == 0
    write_json(file, {**SUMMARY, "version": 2})
    with pytest.raises(CheckpointError, match=r"has version 2\. Allowed: 1"):
        read_summary(file, 0)


def test_an_episode_comes_back_as_it_was_written():
    row = {
        **{"row": 4, "skill": "B", "role": "prior", "task": "a/B-v0", "seed": 3, "sample": 0},
        **{"mode": "sample", "instruction": "lift it", "start_state": None, "success": True},
        **{"return": 1.0, "decisions": 5, "control_steps": 20},
        **{"terminated": True, "truncated": False},
    }
    episode = EpisodeEntry.from_json(row)
    assert list(episode.to_json().items()) == list(row.items())
    assert (episode.episode_return, episode.start_state) == (1.0, None)


def test_a_checkpoint_is_one_row():
    row = checkpoint_row(Summary.from_json(whole_summary()), 400)
    expected = {
        **{"step": 2, "updates": 2, "final": True, "new_success_rate": 0.5, "new_n": 10},
        **{"new_sampled_n": 10, "prior_retention": 0.625, "prior_forgetting": None, "prior_n": 10},
        **{"prior/B/retention": 0.625, FORWARD_KL: 0.5, f"total_variation/{PRIOR}": 0.25},
        **{"entropy": 21.5, "wall_s": 9.0, "tracking_s": 2.0, "env_steps": 400},
    }
    assert {key: row[key] for key in expected} == expected
    assert (row["new_low"], row["new_high"]) == Summary.from_json(whole_summary()).new["C"].interval


def test_means_over_prior_skills_are_computed_where_a_file_has_none():
    data = {**SUMMARY, "prior": {"A": entry(0.5, 10, retention=0.5), "B": entry(1.0, 10)}}
    means = Summary.from_json(data).prior_means()
    assert (means.success_rate, means.retention, means.forgetting) == (0.75, 0.5, None)


def test_the_checkpoints_of_a_run_are_a_table(run):
    table = run_table(run)
    assert list(table["step"]) == [0, 10]
    assert list(table["new_success_rate"]) == [0.4, 0.6]
    assert list(table[FORWARD_KL]) == [0.0, 1.0]
    assert set(table["method"]) == {"ppo"}


FILES = Path(__file__).parents[3] / "docs/reference/files.md"


@pytest.mark.parametrize(
    "record", [Summary, SkillSummary, SampledSuccess, PriorMeans, EpisodeEntry]
)
def test_every_key_is_documented(record):
    text = FILES.read_text(encoding="utf-8")
    missing = [key.name for key in keys_of(record).values() if f"`{key.name}`" not in text]
    assert not missing, f"docs/reference/files.md does not say what {missing} of {record} are"


def test_every_column_of_a_checkpoint_is_documented():
    text = FILES.read_text(encoding="utf-8")
    columns = [column for column in checkpoint_row(Summary.from_json(SUMMARY)) if "/" not in column]
    assert not [column for column in columns if f"`{column}`" not in text]
