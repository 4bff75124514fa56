"""What `make same` sees, and what it leaves out. Nothing is trained here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import same
from cases import CASES, HERE, Case, Outcome, Side, case_key, run_case
from differences import Expected, UsageError, compare, read_expected
from safetensors.numpy import save_file

LINES = [
    {"step": 1, "time/elapsed_s": 1.5, "train/loss": 0.25, "train/kl": 0.0},
    {"step": 2, "time/elapsed_s": 2.5, "train/loss": 0.125, "train/kl": 1e-3},
]
SUMMARY = {"step": 2, "new": {"Reach": {"interval": [0.25, 0.75]}}, "elapsed_s": 3.0}
WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}


def write_run(folder, lines=LINES, summary=SUMMARY, weights=WEIGHTS):
    """Write what is compared of a run; return the folder of its case."""
    for name in ("eval/000002", "checkpoints/000002"):
        (folder / "run" / name).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "run/metrics.jsonl").write_text(text)
    (folder / "run/eval/000002/summary.json").write_text(json.dumps(summary))
    save_file(weights, folder / "run/checkpoints/000002/model.safetensors")
    return folder


@pytest.fixture
def old(tmp_path):
    return write_run(tmp_path / "old")


@pytest.fixture
def new(tmp_path):
    return write_run(tmp_path / "new")


def differences(old, new, *expected):
    return [str(difference) for difference in compare("ppo", old, new, expected)]


def changed(line, **values):
    """Return the lines of metrics with other values in one of them."""
    return [entry | values if i == line else entry for i, entry in enumerate(LINES, 1)]


def test_equal_runs_do_not_differ(old, new):
    assert differences(old, new) == []


def test_times_are_left_out(old, new):
    lines = changed(1, **{"time/elapsed_s": 9.0, "time/update_s": 1.0})
    write_run(new, lines=lines, summary=SUMMARY | {"elapsed_s": 9.0})
    assert differences(old, new) == []


def test_the_times_in_a_report_are_those_of_its_runs(old, new):
    for folder, seconds in ((old, 1.0), (new, 2.0)):
        (folder / "report.json").write_text(json.dumps({"runs": [{"wall_s": seconds}]}))
    assert differences(old, new) == ["ppo: report.json: runs.0.wall_s: 1.0 -> 2.0 (relative 0.5)"]


def test_the_place_of_a_case_is_left_out(old, new):
    for folder in (old, new):
        (folder / "report.json").write_text(json.dumps({"path": f"{folder}/razor.tar.xz/a"}))
    assert differences(old, new) == []


def test_a_changed_number_is_seen_with_its_relative_size(old, new):
    write_run(new, lines=changed(2, **{"train/loss": 0.12500000000000003}))
    assert differences(old, new) == [
        "ppo: run/metrics.jsonl:2: train/loss: 0.125 -> 0.12500000000000003 (relative 2.22e-16)"
    ]


def test_a_number_in_a_list_of_a_summary_is_seen(old, new):
    write_run(new, summary=SUMMARY | {"new": {"Reach": {"interval": [0.25, 0.5]}}})
    (line,) = differences(old, new)
    assert line.startswith("ppo: run/eval/000002/summary.json: new.Reach.interval.1: 0.75 -> 0.5")


@pytest.mark.parametrize(("one", "two"), [(0.0, -0.0), (1, 1.0), (0.5, None), (True, 1)])
def test_values_that_only_look_equal_differ(old, new, one, two):
    write_run(old, lines=changed(1, **{"train/kl": one}))
    write_run(new, lines=changed(1, **{"train/kl": two}))
    assert len(differences(old, new)) == 1


def test_keys_that_come_and_go_are_seen(old, new):
    lines = [{k: v for k, v in line.items() if k != "train/kl"} | {"extra": 7} for line in LINES]
    write_run(new, lines=lines)
    assert differences(old, new) == [
        "ppo: run/metrics.jsonl:1: extra is new (7)",
        "ppo: run/metrics.jsonl:1: train/kl is gone (was 0.0)",
        "ppo: run/metrics.jsonl:2: extra is new (7)",
        "ppo: run/metrics.jsonl:2: train/kl is gone (was 0.001)",
    ]


def test_a_missing_line_is_seen(old, new):
    write_run(new, lines=LINES[:1])
    assert {line.split(": ")[1] for line in differences(old, new)} == {"run/metrics.jsonl:2"}


def test_files_that_come_and_go_are_seen(old, new):
    (new / "run/eval/000002/summary.json").rename(new / "run/eval/000002/episodes.jsonl")
    assert differences(old, new) == [
        "ppo: run/eval/000002/episodes.jsonl is new",
        "ppo: run/eval/000002/summary.json is gone",
    ]


def test_where_a_link_leads_is_seen(old, new):
    for folder, goal in ((old, "000002"), (new, "000001")):
        (folder / "run/checkpoints/best").symlink_to(goal)
    assert differences(old, new) == ['ppo: run/checkpoints/best: link: "000002" -> "000001"']


def test_one_bit_of_a_tensor_is_seen(old, new):
    weights = {name: tensor.copy() for name, tensor in WEIGHTS.items()}
    weights["a.weight"].view(np.uint32)[1, 2] ^= 1
    write_run(new, weights=weights)
    (line,) = differences(old, new)
    assert "run/checkpoints/000002/model.safetensors: a.weight: F32[2, 3] -> F32[2, 3]" in line
    assert "1 of 6 values, largest difference 4.77e-07 at [1, 2]" in line


@pytest.mark.parametrize("change", ["type", "shape", "sign of zero"])
def test_a_tensor_of_another_kind_is_seen(old, new, change):
    tensor = WEIGHTS["a.weight"]
    other = {
        "type": tensor.astype(np.float64),
        "shape": tensor.reshape(3, 2),
        "sign of zero": np.where(tensor == 0, np.float32(-0.0), tensor),
    }[change]
    write_run(new, weights=WEIGHTS | {"a.weight": other})
    assert len(differences(old, new)) == 1


def test_a_tensor_of_half_precision_is_read(old, new):
    entry = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}
    for folder, data in ((old, b"\x80\x3f\x00\x40"), (new, b"\x80\x3f\x80\x40")):  # 1, 2 and 1, 4
        header = json.dumps({"h": entry}).encode()
        file = folder / "run/checkpoints/000002/model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    (line,) = differences(old, new)
    assert "(relative 0.5); 1 of 2 values, largest difference 2 at [1]: 2.0 -> 4.0" in line


def test_a_change_within_its_bound_is_expected(old, new):
    write_run(new, lines=changed(2, **{"train/loss": 0.125 * (1 + 1e-9)}))
    entry = {"change": "value", "key": "train/*", "reason": "another library"}
    wide, narrow = (Expected(**entry, within=bound) for bound in (1e-8, 1e-10))
    assert differences(old, new, wide) == []
    assert wide.uses == 1
    assert wide.largest == pytest.approx(1e-9)
    assert len(differences(old, new, narrow)) == 1
    assert narrow.uses == 0


def test_a_text_that_reads_otherwise_is_expected_and_a_number_is_not(old, new):
    write_run(old, lines=changed(2, note="old words", other=1))
    write_run(new, lines=changed(2, note="new words", other=2))
    entry = Expected("text", "plain words", key="*")
    (line,) = differences(old, new, entry)
    assert "other: 1 -> 2" in line
    assert entry.uses == 1


def test_a_renamed_key_is_compared_under_its_new_name(old, new):
    lines = [{k.replace("train/", "learning/"): v for k, v in line.items()} for line in LINES]
    lines[1]["learning/loss"] = 0.5
    write_run(new, lines=lines)
    entry = Expected("renamed", "a better word", key="train/*", to="learning/*")
    (line,) = differences(old, new, entry)
    assert "metrics.jsonl:2: learning/loss: 0.125 -> 0.5" in line
    assert entry.uses == 4


def test_a_renamed_file_is_compared_under_its_new_name(old, new):
    place = "run/checkpoints/000002"
    (new / place / "model.safetensors").rename(new / place / "weights.safetensors")
    entry = Expected("renamed", "?", file="*/model.safetensors", to="*/weights.safetensors")
    assert differences(old, new, entry) == []
    assert entry.uses == 1


def test_a_renaming_hides_no_key_that_is_gone(old, new):
    write_run(new, lines=changed(1, **{"train/kl": 1.0}))
    entry = Expected("renamed", "?", key="train/kl", to="train/loss")
    assert len(differences(old, new, entry)) == 1
    assert entry.uses == 0


def test_keys_and_files_that_are_meant_to_come_and_go(old, new):
    write_run(new, lines=[line | {"extra": 1} for line in LINES])
    (new / "run/eval/000002/summary.json").unlink()
    fresh = Expected("new", "?", file="*/metrics.jsonl", key="extra")
    gone = Expected("gone", "?", file="*/summary.json")
    other = Expected("gone", "?", case="bc", file="*/summary.json")
    assert differences(old, new, other, fresh, gone) == []
    assert (fresh.uses, gone.uses, other.uses) == (2, 1, 0)


def test_entries_that_are_not_needed_are_reported(old, new, capsys):
    results = {"ppo": (Outcome(old, 1.0, cached=True), Outcome(new, 2.0))}
    expected = [
        Expected("gone", "it was never read", key="x"),
        Expected("gone", "of a case that is not run", case="bc", key="x"),
    ]
    assert same.report(results, expected) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ppo: the same (kept and 2 s)",
        "NOT USED: gone * * x: it was never read",
    ]


def test_a_case_that_fails_counts_as_a_difference(old, new, capsys):
    results = {"ppo": (Outcome(old, 1.0), Outcome(new, 2.0, "ends with 2, not 0:\nerror: no"))}
    assert same.report(results, []) == 1
    assert "ppo: the new side ends with 2, not 0:\nerror: no" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1", "not a list"),
        ("- {change: gone, key: x}", "reason"),
        ("- {change: lost, key: x, reason: y}", "'lost', not one of renamed"),
        ("- {change: gone, reason: y}", "neither a `file` nor a `key`"),
        ("- {change: value, key: x, reason: y}", "`within`"),
        ("- {change: renamed, key: x, reason: y}", "`to`"),
        ("- {change: gone, key: x, reason: y, colour: red}", "colour"),
    ],
)
def test_a_wrong_list_of_changes_is_refused(tmp_path, text, problem):
    (tmp_path / "expected.yaml").write_text(text)
    with pytest.raises(UsageError, match=problem):
        read_expected(tmp_path / "expected.yaml")


def test_the_list_of_changes_can_be_read():
    read_expected(HERE / "expected.yaml")


@pytest.mark.parametrize("words", [["no-such-revision"], ["HEAD", "--only", "nothing"]])
def test_wrong_use_has_a_status_of_its_own(words, capsys):
    assert same.main(words) == 2
    assert "error: " in capsys.readouterr().err


def test_settings_belong_to_the_tree_of_a_side(tmp_path):
    case = Case("x", (), (("robo_razor/training", "vla.yaml"), (".", "ranks.yaml")))
    assert case.settings_file(tmp_path).name == "ranks.yaml"
    before = case_key(case, Side("old", tmp_path), tmp_path)
    (tmp_path / "robo_razor/training").mkdir(parents=True)
    assert case.settings_file(tmp_path).name == "vla.yaml"
    assert case_key(case, Side("old", tmp_path), tmp_path) != before


def test_every_case_has_its_files():
    root = HERE.parents[1]
    for case in CASES:
        assert not case.settings or case.settings_file(root).is_file()
        for word in case.words:
            assert not word.startswith("SIDE/") or (root / word[5:]).is_file()


def tree(folder, text):
    """Write a tree whose command line is this text."""
    for name in ("robo_razor", "envs/gym_razor", "policies/lerobot_policy_razor"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    (folder / "robo_razor/cli.py").write_text(text)
    return Side("new", folder)


def test_a_side_runs_its_own_code(tmp_path):
    text = "import pathlib, sys; pathlib.Path('made').write_text(' '.join(sys.argv[1:]))"
    side = tree(tmp_path / "side", text)
    side.check(tmp_path)
    case = Case("x", ("-m", "robo_razor.cli", "go", "SIDE/file"))
    outcome = run_case(case, side, tmp_path / "case", tmp_path)
    assert outcome.problem == ""
    assert (tmp_path / "case/made").read_text() == f"go {tmp_path}/side/file"


def test_a_side_without_its_own_code_is_refused(tmp_path):
    side = tree(tmp_path / "side", "")
    shutil.rmtree(tmp_path / "side/envs")
    with pytest.raises(UsageError, match="gym_razor of the new side comes from"):
        side.check(tmp_path)


def test_the_output_of_a_failed_case_is_shown(tmp_path):
    side = tree(tmp_path / "side", "import sys; print('it broke'); sys.exit(3)")
    outcome = run_case(Case("x", ("-m", "robo_razor.cli")), side, tmp_path / "case", tmp_path)
    assert outcome.problem == "ends with 3, not 0:\nit broke\n"


INTERRUPTED = """
import pathlib, signal, sys
file = pathlib.Path("run/metrics.jsonl")
if "--resume" not in sys.argv:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    file.parent.mkdir()
    file.write_text('{"step": 1}\\n')
    sys.exit(128 + signal.sigwait({signal.SIGTERM}))
with file.open("a") as lines:
    lines.write('{"step": 2}\\n')
"""


def test_a_run_is_interrupted_at_its_step_and_resumed(tmp_path):
    side = tree(tmp_path / "side", INTERRUPTED)
    words = ("-m", "robo_razor.cli")
    case = Case("x", words, interrupt_at=1, resume=(*words, "--resume"))
    assert run_case(case, side, tmp_path / "case", tmp_path).problem == ""
    text = (tmp_path / "case/run/metrics.jsonl").read_text()
    assert text == '{"step": 1}\n{"step": 2}\n'


def test_a_run_that_ends_before_its_interruption_is_a_failure(tmp_path):
    side = tree(tmp_path / "side", "")
    case = Case("x", ("-m", "robo_razor.cli"), interrupt_at=1)
    outcome = run_case(case, side, tmp_path / "case", tmp_path)
    assert outcome.problem.startswith("ended before the line of step 1 was seen")


COUNTS = """
import json, pathlib, sys
root = pathlib.Path(sys.argv[1])
pathlib.Path("run").mkdir()
numbers = {name.stem: name.read_text() for name in root.glob("*.txt")}
pathlib.Path("run/metrics.jsonl").write_text(json.dumps({"step": 1} | numbers) + "\\n")
"""


def commit(folder):
    """Commit all files."""
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(["git", *who, "commit", "-q", "-m", "x"], cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Make a repository of one commit whose command line writes what lies in its tree."""
    folder = tmp_path / "repository"
    tree(folder, COUNTS)
    (folder / "tests").mkdir()
    (folder / "a.txt").write_text("1")
    (folder / ".gitignore").write_text("ignored.txt")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    commit(folder)
    monkeypatch.setattr(same, "ROOT", folder)
    monkeypatch.setattr(same, "CASES", (Case("x", ("-m", "robo_razor.cli", "SIDE")),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder


@pytest.mark.slow
def test_a_commit_is_compared_with_the_files_as_they_are(repository, tmp_path, capsys):
    words = ["HEAD", "--cache", str(tmp_path / "cache")]
    (repository / "ignored.txt").write_text("1")
    assert same.main(words) == 0
    assert "x: the same" in capsys.readouterr().out
    (repository / "a.txt").write_text("2")
    (repository / "untracked.txt").write_text("3")
    assert same.main(words) == 1
    output = capsys.readouterr()
    assert "old x: kept from before" in output.err  # a commit is run once
    assert output.out.splitlines()[:2] == [
        'x: run/metrics.jsonl:1: a: "1" -> "2"',
        'x: run/metrics.jsonl:1: untracked is new ("3")',
    ]


@pytest.mark.slow
def test_a_failed_run_of_a_commit_is_not_kept(repository, tmp_path, capsys):
    (repository / "a.txt").write_bytes(b"\xff")
    commit(repository)
    for _ in range(2):
        assert same.main(["HEAD", "--cache", str(tmp_path / "cache")]) == 1
        assert "old x: FAILED" in capsys.readouterr().err


def test_nothing_of_this_repository_is_imported():
    text = "import same, sys; print([n for n in sys.modules if 'razor' in n or n == 'torch'])"
    words = [sys.executable, "-c", text]
    done = subprocess.run(words, cwd=Path(same.__file__).parent, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
