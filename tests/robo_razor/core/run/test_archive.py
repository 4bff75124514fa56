"""Archives: small files that a report reads like directories, and that sweeps go on from."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from fake_sweep import TWO_ARMS
from made_up_runs import begin_run, make_run, make_sweep

from robo_razor.cli.archive import run_archive
from robo_razor.core.errors import ConfigError, ReportError, RunDirectoryError, SweepError
from robo_razor.core.files import without_nan
from robo_razor.core.run import archive
from robo_razor.core.run.archive import pack, unpacked
from robo_razor.core.settings.config import ArchiveConfig, CompareConfig, FinetuneConfig, replace
from robo_razor.report.build import compare, run_compare
from robo_razor.sweep.schedule import State

ARMS = ["oracle", "ppo"]
NEEDS = """
arms:
  - {name: a, settings: {method: ppo}, grid: {seed: [0, 1]}}
  - name: b
    settings: {method: bc, bc.demonstrations: "policy:${runs.a.seed}"}
    grid: {seed: [0, 1]}
"""


def names(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def texts(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return b"".join(tar.extractfile(m).read() for m in tar.getmembers() if m.isfile())


def archived(source, file):
    run_archive(ArchiveConfig(directory=str(source), out=str(file)))
    return str(file)


def report(paths):
    return without_nan(compare(list(map(str, paths))).report)


def without_paths(report):
    return report | {"runs": [run | {"path": ""} for run in report["runs"]]}


@pytest.mark.slow
def test_an_archived_sweep_is_reported_as_the_sweep_itself(tmp_path):
    sweep = make_sweep(tmp_path / "toy", arms=ARMS, seeds=2)
    file = archived(sweep, tmp_path / "toy.tar.xz")
    direct = report([sweep])
    shutil.rmtree(sweep)
    archived_report = report([file])
    assert [run["path"] for run in archived_report["runs"]] == [
        run["path"].replace(str(sweep), str(file)) for run in direct["runs"]
    ]
    assert without_paths(archived_report) == without_paths(direct)


def test_archived_runs_are_reported_as_the_runs_themselves(tmp_path):
    points = [(0.4, 1.0, 0.0), (0.6, 0.9, 1.0), (0.9, 0.7, 3.0)]
    runs = [make_run(tmp_path / f"run{k}", points, seed=k) for k in (0, 1)]
    files = [archived(run, tmp_path / f"{k}.tar.xz") for k, run in enumerate(runs)]
    archived_report = report(files)
    assert [run["name"] for run in archived_report["runs"]] == ["run0", "run1"]
    assert without_paths(archived_report) == without_paths(report(runs))


def test_archived_runs_that_are_called_alike_are_told_apart_by_their_files(tmp_path):
    points = [(0.4, 1.0, 0.0), (0.6, 0.9, 1.0)]
    runs = [make_run(tmp_path / f"{x}/run", points, seed=k) for k, x in enumerate("xy")]
    files = [archived(run, tmp_path / f"{x}.tar.xz") for run, x in zip(runs, "xy", strict=True)]
    assert [run["name"] for run in report(files)["runs"]] == ["x.tar.xz/run", "y.tar.xz/run"]


def test_weights_and_paths_of_the_machine_stay_out(tmp_path):
    run = make_run(tmp_path / "run", [(0.4, 1.0, 0.0)])
    for name in ("checkpoints/000000/pretrained_model", "tensorboard"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run/checkpoints/000000/pretrained_model/model.safetensors").write_bytes(b"x")
    (tmp_path / "run/checkpoints/best").symlink_to("000000")
    (tmp_path / "run/eval/000000/probes.safetensors").write_bytes(b"x")
    data, count = pack(tmp_path / "run")
    assert count == 1
    assert sorted(names(data)) == [
        "archive.json",
        "run/checkpoints/best",
        "run/config.yaml",
        "run/environment.json",
        "run/eval/000000/episodes.jsonl",
        "run/eval/000000/summary.json",
    ]
    assert run in (tmp_path / "run/config.yaml").read_text()
    assert str(tmp_path).encode() not in texts(data)
    assert b"out: runs/run" in texts(data)


def test_equal_runs_give_equal_bytes(tmp_path):
    points = [(0.4, 1.0, 0.0), (0.6, 0.9, 1.0)]
    for place in ("here", "there"):
        make_run(tmp_path / place / "run", points)
    assert pack(tmp_path / "here/run") == pack(tmp_path / "there/run")


@pytest.mark.slow
def test_a_sweep_goes_on_from_an_archive_in_another_place(fake, tmp_path):
    fake.behave({"b/seed_1": "fail"})
    with pytest.raises(SweepError):
        fake.run()
    file = archived(fake.out, tmp_path / "x.tar.xz")
    shutil.rmtree(fake.out)
    with unpacked([file]) as [directory]:
        shutil.move(directory, fake.out)
    fake.behave({})
    before = len(fake.starts)
    assert {item.state for item in fake.run().values()} == {State.FINISHED}
    assert fake.starts[before:] == ["b/seed_1 new"]


def test_what_needs_archived_weights_says_so(fake, tmp_path):
    fake.behave({"b/seed_1": "fail"})
    with pytest.raises(SweepError):
        fake.run(NEEDS)
    assert str(tmp_path).encode() not in texts(pack(fake.out)[0])  # teachers' paths neither
    file = archived(fake.out, tmp_path / "x.tar.xz")
    shutil.rmtree(fake.out)
    with unpacked([file]) as [directory]:
        shutil.move(directory, fake.out)
    fake.behave({})
    with pytest.raises(SweepError, match=r"1 of 4 runs could not begin.*weights of a/seed_1"):
        fake.run(NEEDS)
    assert fake.states["b/seed_0"] == "finished"  # although the path of its teacher has changed
    shutil.rmtree(fake.out / "a/seed_1")
    assert {item.state for item in fake.run(NEEDS).values()} == {State.FINISHED}


def test_unfinished_runs_are_left_out(fake, tmp_path):
    fake.behave({"b/seed_1": "fail"})
    with pytest.raises(SweepError):
        fake.run()
    data, count = pack(fake.out)
    assert count == 3
    assert not [name for name in names(data) if "b/seed_1" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "No directory to archive"),
        ({"directory": "x", "out": "x.zip"}, r"'x\.zip' is not the name.*NAME\.tar\.xz"),
    ],
)
def test_what_cannot_be_asked_for(settings, message):
    with pytest.raises(ConfigError, match=message):
        run_archive(ArchiveConfig(**settings))


def test_there_must_be_something_to_keep(tmp_path, fake):
    with pytest.raises(RunDirectoryError, match="does not exist"):
        pack(tmp_path / "nothing")
    begin_run(replace(FinetuneConfig(), out=str(tmp_path / "run")))
    with pytest.raises(RunDirectoryError, match="no evaluation yet"):
        pack(tmp_path / "run")
    fake.behave({"*": "fail"})
    with pytest.raises(SweepError):
        fake.run(TWO_ARMS)
    with pytest.raises(RunDirectoryError, match="no finished run yet"):
        pack(fake.out)


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "version"])
def test_a_damaged_archive_is_told(tmp_path, damage, monkeypatch):
    make_run(tmp_path / "run", [(0.4, 1.0, 0.0)])
    if damage == "version":
        monkeypatch.setattr(archive, "VERSION", 2)
    data, _ = pack(tmp_path / "run")
    monkeypatch.undo()
    file = tmp_path / "x.tar.xz"
    file.write_bytes({"cut": data[: len(data) // 2], "text": b"hello"}.get(damage, data))
    if damage == "foreign":
        with tarfile.open(file, "w:xz") as tar:
            tar.add(tmp_path / "run/config.yaml", "config.yaml")
    with pytest.raises(ReportError, match=r"x\.tar\.xz' is not an archive that can be read"):
        run_compare(CompareConfig(runs=(str(file),), out=str(tmp_path / "report")))
    assert not (tmp_path / "report").exists()


def test_a_sweep_called_like_a_part_of_a_task_id_can_be_moved(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake.out = Path("razor")  # as in gym_razor/PlaceCanInBin-v0
    fake.run(NEEDS)
    fake.out.rename(tmp_path / "elsewhere")
    fake.out = tmp_path / "elsewhere"
    before = len(fake.starts)
    assert {item.state for item in fake.run(NEEDS).values()} == {State.FINISHED}
    assert len(fake.starts) == before


def test_neighbours_whose_names_begin_alike_keep_theirs(tmp_path):
    make_run(tmp_path / "run", [(0.4, 1.0, 0.0)])
    file = tmp_path / "run/config.yaml"
    file.write_text(file.read_text() + f"neighbour: {tmp_path}/run-base\n")
    assert f"{tmp_path}/run-base".encode() in texts(pack(tmp_path / "run")[0])
