"""Videos show base and tuned on the same start states, picked where outcomes differ."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import TASK, make_run

from robo_razor.cli.films import film, side_by_side
from robo_razor.core.files import read_json
from robo_razor.core.settings.config import CompareConfig
from robo_razor.report.arms import load_runs
from robo_razor.report.build import run_compare
from robo_razor.report.videos import (
    Video,
    filmable,
    make_videos,
    pick_states,
    surprise_note,
)

POINTS = [(0.2, 1.0, 0.0), (0.6, 0.5, 1.0)]


@pytest.fixture
def runs(tmp_path):
    paths = [
        make_run(tmp_path / "ppo", POINTS),
        make_run(tmp_path / "bc", [POINTS[0], (0.5, 0.2, 2.0)], method="bc"),
    ]
    return load_runs(paths)


def test_start_states_are_those_where_most_policies_differ_from_the_base(runs):
    """Made-up runs solve the first start states: the base 20, of 100, the tuned ones 60 and 50."""
    states = pick_states(runs.runs, TASK, 3)
    assert [task for task, _ in states[::2]] == [TASK, TASK]
    assert all(20 <= seed < 50 for _, seed in states[::2])  # both learnt these
    task, seed = states[1]
    assert task == "gym_razor/LiftCube-v0"
    assert 10 <= seed < 20  # both lost these
    assert pick_states(runs.runs, TASK, 0) == []


def test_without_checkpoints_there_is_no_video(runs, tmp_path):
    assert filmable(runs, 0.5) == []
    assert make_videos(runs, 0.5, tmp_path / "videos", 2, film) == []
    assert not (tmp_path / "videos").exists()


def test_parts_stand_side_by_side_and_wait_for_each_other():
    def part(value, length):
        return [np.full((4, 6, 3), value + t, dtype=np.uint8) for t in range(length)]

    frames = list(side_by_side([part(10, 1), part(100, 3), part(50, 2), part(70, 1)]))
    assert [frame.shape for frame in frames] == [(8, 18, 3)] * 3
    assert [int(frames[t][0, 0, 0]) for t in range(3)] == [10, 10, 10]
    assert [int(frames[t][0, 6, 0]) for t in range(3)] == [100, 101, 102]
    assert int(frames[2][7, 0, 0]) == 70  # the second row


def test_an_outcome_unlike_the_measured_one_is_reported(tmp_path):
    video = Video(tmp_path / "v.mp4", "", b"", surprises=1)
    assert surprise_note([Video(tmp_path / "v.mp4", "", b"")]) is None
    assert surprise_note([video, video]).startswith("2 filmed episodes ended otherwise than")


@pytest.mark.slow
def test_a_video_that_cannot_be_made_is_a_note(tmp_path):
    path = Path(make_run(tmp_path / "ppo", POINTS))
    model = path / "checkpoints" / "000010" / "pretrained_model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"no weights")
    out = tmp_path / "report"
    run_compare(CompareConfig(runs=(str(path),), out=str(out)), film=film)
    report = read_json(out / "report.json")
    assert report["videos"] == []
    assert any(note.startswith("There are no videos: ") for note in report["notes"])


@pytest.mark.slow
def test_the_shipped_base_is_filmed_beside_itself(tmp_path):
    from robo_razor.policies.load import locate_policy

    path = Path(make_run(tmp_path / "ppo", POINTS))
    model = path / "checkpoints" / "000010" / "pretrained_model"
    shutil.copytree(locate_policy("razor-base"), model)
    out = tmp_path / "report"
    run_compare(CompareConfig(runs=(str(path),), out=str(out), videos=1), film=film)
    (entry,) = read_json(out / "report.json")["videos"]
    assert entry["shows"].startswith("PlaceCanInBin, ")
    assert (out / entry["file"]).stat().st_size > 1000
    page = (out / "index.html").read_text()
    assert page.count("<video ") == 1
    assert 'poster="data:image/jpeg;base64,' in page
