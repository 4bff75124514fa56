"""Data sets that are not ours: read as LeRobot reads them, or refused by column and frame."""

from __future__ import annotations

import io
import json
import os
import shutil
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_written import FPS, Folder, png, shade_of, write_video
from PIL import Image
from toy_policy import NEW, save_tiny_policy, tiny_policy
from toy_runs import finetune, own_warnings, quiet, run_config

from robo_razor.core.errors import DemonstrationError
from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
from robo_razor.evaluation.probes import demonstration_probe
from robo_razor.evaluation.tracker import Tracker
from robo_razor.rollout.dataset import memory, tables
from robo_razor.rollout.dataset.dataset import load_demonstrations
from robo_razor.rollout.dataset.metadata import renamable
from robo_razor.rollout.demonstrations import (
    DemonstrationSource,
    check_actions,
    demonstrations_for,
)
from robo_razor.training.methods.bc import BC
from robo_razor.training.windows import WindowSampler


def shades(demos, camera="front"):
    return demos.images[camera].reshape(len(demos), -1).mean(1)


def refused(root, match, **settings):
    with pytest.raises(DemonstrationError, match=match) as caught:
        load_demonstrations(root, **settings)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def changed(path, column, change):
    """Change a column of a written table, a list of Python values."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    change(values)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, [values]), path)


def as_lerobot(root, demos):
    """Check every frame against LeRobot's own loader, whatever the order of its rows."""
    from lerobot.datasets import LeRobotDataset

    places = {tuple(place): i for i, place in enumerate(demos.source_index.tolist())}
    dataset = LeRobotDataset("local/data", root=root, video_backend="pyav", return_uint8=True)
    assert len(dataset) == len(demos)
    for item in (dataset[i] for i in range(len(dataset))):
        i = places.pop((int(item["episode_index"]), int(item["frame_index"])))
        assert demos.words(np.array([i])) == [item["task"]]
        np.testing.assert_array_equal(demos.actions[i], item["action"])
        np.testing.assert_array_equal(demos.state[i], item["observation.state"])
        for name, images in demos.images.items():
            picture = item[f"observation.images.{name}"].permute(1, 2, 0)
            if picture.dtype.is_floating_point:
                picture = (picture * 255).round()
            np.testing.assert_array_equal(images[i], picture)
    assert not places


@pytest.mark.filterwarnings("ignore")  # what LeRobot warns of is not ours to mend
@pytest.mark.parametrize("filmed", [False, True])
def test_a_data_set_in_any_order_is_read_as_lerobot_reads_it(tmp_path, filmed):
    folder = Folder(filmed=filmed)
    folder.rows = [folder.rows[i] for i in np.random.default_rng(1).permutation(15)]
    folder.tasks = {0: "lift the red block", 1: "put it down"}
    for row in folder.rows:  # the words change within an episode, and there is a column more
        row["task_index"] = int(row["frame_index"] >= 4)
        row["note"] = [1.0, 2.0]
    folder.types["note"] = pa.list_(pa.float64())
    folder.info["features"]["note"] = {"dtype": "float64", "shape": [2], "names": None}
    root = folder.write(tmp_path / "data", parts=3)
    demos = load_demonstrations(root)
    assert demos.offsets.tolist() == [0, 4, 10, 15]
    wanted = [shade_of(e, f) for e, n in enumerate((4, 6, 5)) for f in range(n)]
    np.testing.assert_allclose(shades(demos), wanted, atol=2)
    assert demos.instructions == ("lift the red block",) * 3
    assert demos.words(np.arange(15)).count("put it down") == 3
    as_lerobot(root, demos)


@pytest.mark.filterwarnings("ignore")
def test_a_video_longer_than_the_table_is_cut_as_lerobot_cuts_it(tmp_path):
    """Its frames are those at the timestamps, and not one after another."""
    folder = Folder((4, 4), filmed=True)
    folder.film = [shade_of(e, f) for e in range(2) for f in range(6)]
    for e, episode in enumerate(folder.episodes):
        for key in folder.cameras:
            episode[f"videos/{key}/from_timestamp"] = 0.6 * e
    root = folder.write(tmp_path / "data")
    demos = load_demonstrations(root)
    wanted = [shade_of(e, f) for e in range(2) for f in range(4)]
    np.testing.assert_allclose(shades(demos), wanted, atol=2)
    as_lerobot(root, demos)
    last = load_demonstrations(root, 1, cameras=["wrist"])
    assert last.images.keys() == {"wrist"}
    np.testing.assert_allclose(shades(last, "wrist"), wanted[:4], atol=2)


@pytest.mark.filterwarnings("ignore")
def test_pictures_are_turned_as_their_exif_data_say(tmp_path):
    folder = Folder((2,), cameras=("front",))
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:4] = 200
    for k, row in enumerate(folder.rows):
        data, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = (3, 6)[k]
        Image.fromarray(picture).save(data, "PNG", exif=exif)
        row["observation.images.front"] = {"bytes": data.getvalue(), "path": None}
    root = folder.write(tmp_path / "data")
    demos = load_demonstrations(root)
    assert demos.images["front"][0, -1].min() == 200
    as_lerobot(root, demos)


def test_episodes_are_those_that_exist(tmp_path, caplog):
    folder = Folder((3, 3, 3, 3))
    folder.rows = [row for row in folder.rows if row["episode_index"] in (1, 3)]
    root = folder.write(tmp_path / "data")
    demos = load_demonstrations(root)
    assert demos.num_episodes == 2
    assert demos.offsets.tolist() == [0, 3, 6]
    assert demos.place(4) == "episode 3, frame 1"
    assert "lists 4 episodes, but the tables hold 2" in caplog.text
    one = load_demonstrations(root, 1)
    assert one.num_episodes == 1
    assert one.place(0) == "episode 1, frame 0"
    np.testing.assert_allclose(shades(one), [shade_of(1, f) for f in range(3)])


def test_every_sample_has_the_words_of_its_frame(tmp_path):
    folder = Folder((4, 2))
    folder.tasks = {0: "lift the red block", 1: "lift the green block"}
    folder.row(0, 2)["task_index"] = folder.row(0, 3)["task_index"] = 1
    demos = load_demonstrations(folder.write(tmp_path / "data"))
    policy, prepared = tiny_policy(), []
    prepare = policy.prepare

    def recorded(observation, instructions):
        prepared.append(list(instructions))
        return prepare(observation, instructions)

    policy.prepare = recorded
    WindowSampler(demos, policy).batch(np.arange(6))
    demonstration_probe(demos, policy, 6)
    red, green = folder.tasks.values()
    assert prepared == [[red, red, green, green, red, red]] * 2


def of_row(key, value, episode=1, frame=3):
    def change(folder):
        folder.row(episode, frame)[key] = value

    return change


def entry(key, i, value):
    def change(folder):
        folder.row(1, 3)[key][i] = value

    return change


def typed(key, kind, make):
    def change(folder):
        folder.types[key] = kind
        for row in folder.rows:
            row[key] = make(row[key])

    return change


def without(number):
    def change(folder):
        folder.rows = [row for i, row in enumerate(folder.rows) if i != number]

    return change


def twice(folder):
    folder.rows.append(dict(folder.row(1, 3)))


def widened(folder):
    folder.types["next.reward"] = pa.float32()
    folder.info["features"]["next.reward"] = {"dtype": "float32", "shape": [1]}
    for row in folder.rows:
        row["next.reward"] = 0.0
    folder.row(1, 3)["next.reward"] = float("nan")


PLACE = r"of episode 1, frame 3 in .*file-000.parquet "


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (entry("action", 2, float("nan")), rf"'action' {PLACE}is nan \(entry 2\)"),
        (entry("action", 2, float("-inf")), rf"'action' {PLACE}is -inf \(entry 2\)"),
        (entry("action", 4, None), rf"'action' {PLACE}holds an empty entry \(null\)"),
        (entry("observation.state", 0, float("nan")), rf"'observation.state' {PLACE}is nan"),
        (widened, rf"'next.reward' {PLACE}is nan"),
        (of_row("timestamp", float("nan")), rf"'timestamp' {PLACE}is nan"),
        (of_row("timestamp", None), rf"'timestamp' {PLACE}is empty"),
        (of_row("action", None), rf"'action' {PLACE}is empty \(null\)"),
        (of_row("action", [0.0] * 4), rf"'action' {PLACE}holds 4 numbers instead of 5"),
        (of_row("observation.state", []), r"holds 0 numbers instead of 7"),
        (of_row("episode_index", None, 1, 5), r"'episode_index' is empty \(null\) in 1 rows"),
        (of_row("frame_index", -3), r"'frame_index' is -3 .*negative"),
        (of_row("task_index", 7), r"'task_index' of episode 1, frame 3 is 7.*Allowed: 0"),
        (without(6), r"'frame_index': episode 1, frame 3 .*comes right after frame 1.*missing"),
        (twice, r"'frame_index': episode 1, frame 3 occurs twice.*row 7.*row 15"),
        (
            typed("action", pa.list_(pa.string()), lambda x: list(map(str, x))),
            r"'action' of .* holds 'list<.*string>', not numbers",
        ),
        (
            typed("action", pa.list_(pa.bool_()), lambda x: [True] * 5),
            r"'action' of .* holds .*bool>', not numbers",
        ),
        (typed("action", pa.float32(), lambda x: x[0]), r"single numbers, .* lists of 5"),
        (
            typed("action", pa.list_(pa.float64()), lambda x: [1e300] * 5),
            r"'action' of episode 0, frame 0 .*is 1e\+300",
        ),
        (
            typed("episode_index", pa.float64(), float),
            r"'episode_index' of .* holds 'double', not whole numbers",
        ),
        (
            typed("observation.images.front", pa.string(), lambda x: "a.png"),
            r"'observation.images.front' of .* holds string, not encoded pictures",
        ),
        (
            of_row("observation.images.wrist", {"bytes": None, "path": "a.png"}),
            r"'observation.images.wrist' of episode 1, frame 3, .*holds no picture, at most the "
            r"path.*other files are not read",
        ),
        (of_row("observation.images.wrist", None), r"episode 1, frame 3, .*holds no picture"),
        (
            of_row("observation.images.wrist", {"bytes": b"\x89PNG no", "path": None}),
            r"'observation.images.wrist' of episode 1, frame 3, .*cannot be decoded",
        ),
        (
            of_row("observation.images.wrist", {"bytes": png(9)[:-30], "path": None}),
            r"episode 1, frame 3, .*cannot be decoded",
        ),
        (
            of_row("observation.images.wrist", {"bytes": png(9, (16, 8)), "path": None}),
            r"episode 1, frame 3, .* is 16x8 px, but meta/info.json says 16x16 px",
        ),
        (
            of_row("observation.images.wrist", {"bytes": png(9, mode="I;16"), "path": None}),
            r"episode 1, frame 3, .*of kind 'I;16'.*8 bits",
        ),
        (
            of_row("observation.images.wrist", {"bytes": b"%!PS-Adobe-3.0 EPSF", "path": None}),
            r"cannot be decoded.*PNG, JPEG",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_with_column_episode_and_frame(tmp_path, change, match):
    folder = Folder()
    change(folder)
    refused(folder.write(tmp_path / "data"), match)


def test_rows_that_are_not_asked_for_may_be_anything(tmp_path):
    folder = Folder()
    folder.row(2, 0)["action"] = None
    assert load_demonstrations(folder.write(tmp_path / "data"), 2).num_episodes == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fps": None}, r"info.json says `fps` = None.*Allowed: the frames per second"),
        ({"fps": 0}, r"`fps` = 0"),
        ({"fps": -10}, r"`fps` = -10"),
        ({"fps": "10"}, r"`fps` = '10'"),
        ({"fps": True}, r"`fps` = True"),
        ({"features": []}, r"has no `features`"),
        ({"features": {"action": 3}}, r"describes the column 'action' as 3"),
        ({"features": {"action": {"dtype": "float32"}}}, r"'action' the shape None"),
        ({"features": {"action": {"dtype": "float32", "shape": [5, 1]}}}, r"shape \[5, 1\]"),
        ({"features": {"action": {"dtype": "float32", "shape": [4]}}}, r"5 numbers instead of 4"),
        ({"features": {"x": {"dtype": "image", "shape": [0, 2, 3]}}}, r"no column 'action'"),
        ({"codebase_version": "v2.1"}, r"has format 'v2.1', not v3"),
        ({"codebase_version": ["v3" * 10**6]}, r"not v3"),
    ],
)
def test_metadata_that_cannot_be_right_are_refused(tmp_path, change, match):
    folder = Folder((2,))
    folder.info |= change
    refused(folder.write(tmp_path / "data"), match)


def test_a_camera_without_a_size_is_refused_before_anything_is_loaded(tmp_path):
    folder = Folder((2,))
    folder.info["features"]["observation.images.front"]["shape"] = [16, "x", 3]
    root = folder.write(tmp_path / "data")
    config = FinetuneConfig(method=BC(demonstrations=str(root)))
    with pytest.raises(DemonstrationError, match=r"'observation.images.front' the shape \[16, 'x'"):
        config.method.validate(config)
    folder.info["features"]["observation.images.front"]["shape"] = [10**6, 10**6, 3]
    (root / "meta" / "info.json").write_text(json.dumps(folder.info))
    refused(root, "1000000x1000000 px")


def test_info_may_be_missing_hostile_or_no_file(tmp_path):
    root = Folder((2,)).write(tmp_path / "data")
    info = root / "meta" / "info.json"
    for text, match in (
        ("{", "holds no JSON"),
        ("[" * 10**5, "holds no JSON"),
        ('{"fps": NaN}', "holds no JSON"),
        ("5", "has no `features`"),
    ):
        info.write_text(text)
        refused(root, match)
        assert renamable(root) == ()
    info.write_bytes(b"\xff\xfe{\x00}\x00")
    refused(root, "not UTF-8")
    info.unlink()
    refused(root, "does not exist.*robo-razor collect")
    os.mkfifo(info)  # reading it would wait for ever
    refused(root, "is not a file")
    name = "x" * 300
    refused(name, "cannot be read|does not exist")
    with pytest.raises(DemonstrationError, match="robo-razor collect"):
        BC(demonstrations=f"/{'x' * 200}").validate(FinetuneConfig())


def test_tables_that_are_cut_damaged_or_empty_are_refused(tmp_path):
    root = Folder().write(tmp_path / "data", parts=2)
    last = root / "data" / "chunk-000" / "file-001.parquet"
    content = last.read_bytes()
    last.write_bytes(content[:-200])
    refused(root, r"file-001.parquet is incomplete: its end is missing.*finalize")
    last.write_bytes(content[: len(content) // 2] + b"PAR1")
    refused(root, r"file-001.parquet cannot be read \(.*damaged")
    last.write_bytes(b"")
    refused(root, r"file-001.parquet cannot be read")
    last.write_bytes(content)
    load_demonstrations(root)
    for file in (root / "data" / "chunk-000").iterdir():
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    refused(root, "holds no frames")
    shutil.rmtree(root / "data")
    refused(root, "holds no data")


def test_flipped_bytes_are_read_or_refused(tmp_path):
    """Nothing but our own error comes out of a damaged file."""
    root = Folder((2, 2)).write(tmp_path / "data")
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    random = np.random.default_rng(0)
    for _ in range(60):
        file = files[random.integers(len(files))]
        content = file.read_bytes()
        damaged = bytearray(content)
        for place in random.integers(len(content), size=3):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        try:
            load_demonstrations(root)
        except DemonstrationError as error:
            assert len(str(error)) < 3000  # noqa: PT017 - any of them, or none, is right
        file.write_bytes(content)


def test_a_table_that_claims_more_than_there_is_memory_is_refused(tmp_path, monkeypatch):
    root = Folder((2,)).write(tmp_path / "data")
    file = root / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    more = {n: pa.repeat(table[n][0], 10**5) for n in table.column_names if "images" not in n}
    pictures = {
        n: pa.nulls(10**5, table.schema.field(n).type) for n in table.column_names if "images" in n
    }
    pq.write_table(pa.table(more | pictures), file)
    assert file.stat().st_size < 2**20
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**18)
    refused(root, r"does not fit in memory: by its footer, .*100000 rows take 0.0 GiB")


def test_instructions_that_are_missing_or_doubtful_are_refused(tmp_path):
    folder = Folder((2,))
    root = folder.write(tmp_path / "data")
    tasks = root / "meta" / "tasks.parquet"

    def written(table):
        pq.write_table(pa.table(table), tasks)

    written(
        {"text": ["lift"], "task_index": [0], "weight": [1.0]}
    )  # as pandas would name it, or not
    assert load_demonstrations(root).instructions == ("lift",)
    written({"task": ["put", "lift"], "task_index": [1, 0]})
    refused(root, r"task_index' 0 \(episode 0, frame 0\) in row 1: LeRobot goes by the row")
    written({"task": ["put", "lift"], "task_index": [0, 0]})
    refused(root, "has a 'task_index' twice")
    written({"task": ["put", None], "task_index": [0, 1]})
    refused(root, "'task' is empty")
    written({"task": [3], "task_index": [0]})
    refused(root, "no column with the instructions.*task, task_index")
    written({"task": ["put"]})
    refused(root, r"tasks.parquet has no column 'task_index'")
    tasks.write_bytes(b"PAR1PAR1PAR1")
    refused(root, r"tasks.parquet cannot be read")
    tasks.unlink()
    refused(root, r"tasks.parquet does not exist.*copy or record")
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "put"}\n')
    refused(root, r"tasks.jsonl is that of format v2.1.*converter")


def test_other_names_of_columns_are_listed(tmp_path):
    folder = Folder((2,))
    folder.rename("action", "actions")
    message = refused(folder.write(tmp_path / "data"), "lists no column 'action'")
    assert "observation.state" in message
    assert "actions" in message
    assert "--rename" in message
    folder = Folder((2,))
    root = folder.write(tmp_path / "other")
    file = root / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["task_index"]), file)
    refused(root, r"file-000.parquet has no column 'task_index'. Its columns are .*frame_index")


def source_of(root):
    return DemonstrationSource(str(root), episodes=700, task=NEW, env=EnvConfig())


def test_cameras_and_states_of_other_names_are_renamed_or_listed(tmp_path):
    folder = Folder((2,))
    names = {"images.front": "image", "images.wrist": "wrist_image", "state": "state"}
    for old, new in names.items():
        folder.rename(f"observation.{old}", new)
    root = folder.write(tmp_path / "data")
    policy = tiny_policy()
    with pytest.raises(DemonstrationError) as caught:
        demonstrations_for(source_of(root), policy)
    for text in ("observation.images.image 16x16 px", "state 0", "wrist_image, state", "--rename"):
        assert text in str(caught.value)
    policy.rename("{image: front, wrist_image: wrist, state: observation.state}")
    assert set(policy.renamed) <= set(renamable(root))
    demos = demonstrations_for(source_of(root), policy)
    assert demos.state.shape == (2, 7)
    WindowSampler(demos, policy).batch(np.arange(2))


def test_depth_is_no_camera(tmp_path):
    folder = Folder((2,))
    folder.info["features"]["observation.images.wrist"]["info"] = {"is_depth_map": True}
    demos = load_demonstrations(folder.write(tmp_path / "data"))
    assert demos.images.keys() == {"front"}


# --- Videos ---------------------------------------------------------------------------------------

FRONT = "observation.images.front"


def film(tmp_path, lengths=(3, 3), **episode):
    folder = Folder(lengths, cameras=("front",), filmed=True)
    for name, value in episode.items():
        folder.episodes[1][f"videos/{FRONT}/{name}"] = value
    return folder, tmp_path / "data"


@pytest.mark.parametrize(
    ("episode", "match"),
    [
        ({"from_timestamp": 0.35}, r"episode 1, frame 0 has no frame in .*at 0.3500 s"),
        ({"from_timestamp": 9.0}, r"episode 1, frame 0 has no frame .*last one read is at 0.5000"),
        ({"from_timestamp": 0.2}, r"episode 0, frame 2 would be at 0.2000 s .*another episode"),
        ({"from_timestamp": float("nan")}, r"from_timestamp' of episode 1 in .* is nan"),
        ({"from_timestamp": None}, r"from_timestamp' of episode 1 in .* is empty"),
        ({"file_index": 4}, r"file-004.mp4 does not exist"),
        ({"file_index": -4}, r"file_index' is -4"),
        ({"chunk_index": "../../x"}, r"cannot be read|not whole numbers"),
    ],
)
def test_a_video_that_does_not_belong_to_the_table_is_refused(tmp_path, episode, match):
    folder, path = film(tmp_path, **episode)
    if "chunk_index" in episode:
        folder.episodes[0][f"videos/{FRONT}/chunk_index"] = "0"
    refused(folder.write(path), match)


def test_videos_that_are_short_large_missing_or_no_videos_are_refused(tmp_path):
    folder, path = film(tmp_path)
    root = folder.write(path)
    file = root / "videos" / FRONT / "chunk-000" / "file-000.mp4"
    content = file.read_bytes()
    shutil.copy(file, tmp_path / "secret.mp4")
    write_video(file, folder.film[:5], FPS)
    refused(root, r"'observation.images.front' of episode 1, frame 2 has no frame")
    write_video(file, folder.film, FPS, size=32)
    refused(root, r"the frame at 0.0000 s of .* is 32x32 px, but meta/info.json says 16x16 px")
    file.write_bytes(content[: len(content) // 2])
    refused(root, r"file-000.mp4 cannot be decoded as an MP4 video")
    for playlist in (
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
        f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.mp4\n",
    ):
        file.write_text(playlist)
        refused(root, r"cannot be decoded as an MP4 video")
    file.unlink()
    refused(root, r"file-000.mp4 does not exist")
    shutil.rmtree(root / "meta" / "episodes")
    refused(root, r"no meta/episodes with the start of each episode")


def test_rows_of_meta_episodes_may_stand_in_any_order_but_not_twice(tmp_path):
    folder, path = film(tmp_path)
    folder.episodes.reverse()
    demos = load_demonstrations(folder.write(path))
    np.testing.assert_allclose(shades(demos), folder.film, atol=2)
    folder.episodes = [folder.episodes[0]] * 2
    refused(folder.write(tmp_path / "twice"), "says nothing|two rows of episode 1")
    folder.episodes.pop()
    refused(folder.write(tmp_path / "less"), "does not list the video of episode 0, frame 0")


# --- Nothing outside of the folder ----------------------------------------------------------------


def test_no_name_in_the_metadata_leads_out_of_the_folder(tmp_path):
    folder, path = film(tmp_path)
    folder.write(tmp_path / "other")
    folder.info["video_path"] = "../other/videos/{video_key}/chunk-000/file-000.mp4"
    root = folder.write(path)
    refused(root, r"`video_path` = '../other.*no other is read")
    outside = "../../other/videos/" + FRONT
    folder.info["video_path"] = None
    folder.info["data_path"] = "/etc/{chunk_index}"  # is not read at all
    folder.info["features"][outside] = folder.info["features"].pop(FRONT)
    for episode in folder.episodes:
        for key in [key for key in episode if FRONT in key]:
            episode[key.replace(FRONT, outside)] = episode.pop(key)
    shutil.rmtree(root)
    folder.cameras = []
    refused(folder.write(path), "leads out of the data set")


def test_links_may_lead_into_a_cache_but_not_elsewhere(tmp_path):
    plain = Folder((2,)).write(tmp_path / "plain")
    cache = tmp_path / "datasets--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    for k, file in enumerate(p for p in sorted(plain.rglob("*")) if p.is_file()):
        link = snapshot / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, cache / "blobs" / str(k))
        link.symlink_to(os.path.relpath(cache / "blobs" / str(k), link.parent))
    assert load_demonstrations(snapshot).num_episodes == 1
    (tmp_path / "link").symlink_to(snapshot)  # the user's own
    assert load_demonstrations(tmp_path / "link").num_episodes == 1
    table = snapshot / "data" / "chunk-000" / "file-000.parquet"
    table.unlink()
    table.symlink_to(plain / "data" / "chunk-000" / "file-000.parquet")
    refused(snapshot, r"file-000.parquet leads out of the data set")
    table.unlink()
    table.symlink_to(table)
    refused(snapshot, r"file-000.parquet.* is not a file|does not exist")
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(DemonstrationError, match="is not a file|does not exist"):
            tables.inside(snapshot, snapshot / name)


# --- Rates and ranges -----------------------------------------------------------------------------


def env_of(**metadata):
    from gymnasium import spaces

    space = spaces.Box(-1.0, 1.0, (5,), np.float32)
    return types.SimpleNamespace(metadata=metadata, single_action_space=space)


def test_another_rate_than_the_environments_is_told(tmp_path, caplog):
    folder = Folder((3,))
    root = folder.write(tmp_path / "data")
    for rate in (10, None, "fast", float("nan")):
        demonstrations_for(source_of(root), tiny_policy(), env=env_of(render_fps=rate))
    demonstrations_for(source_of(root), tiny_policy(), env=env_of())
    assert not own_warnings(caplog)
    folder.info["fps"] = 30
    (root / "meta" / "info.json").write_text(json.dumps(folder.info))
    demonstrations_for(source_of(root), tiny_policy(), env=env_of(render_fps=10))
    assert "says 30 frames per second" in caplog.text
    assert "0.1 s apart, which is 10 frames per second" in caplog.text
    assert "has 30 frames per second, but the environment has 10 control steps" in caplog.text
    assert "last 3 times as long" in caplog.text


def test_actions_that_tokens_cannot_express_are_refused(tmp_path, caplog):
    folder = Folder()
    folder.row(1, 3)["action"][2] = 1.002  # next to what there is
    root = folder.write(tmp_path / "data")
    policy = tiny_policy()
    demos = demonstrations_for(source_of(root), policy, env=env_of())
    folder.row(2, 1)["action"][4] = -1.5
    root = folder.write(tmp_path / "more")
    with pytest.raises(
        DemonstrationError,
        match=r"'action'\) of episode 2, frame 1 is -1.5 \(entry 4; 1 of 15 frames are outside\) "
        r".*can only express \[-1, 1\].*Scale the actions",
    ):
        demonstrations_for(source_of(root), policy)
    assert not own_warnings(caplog)
    normalised = types.SimpleNamespace(module=object(), name="act")
    check_actions(demos, normalised, "data")
    policy.module = types.SimpleNamespace(config=policy.config)  # no tokens: nothing to refuse
    demonstrations_for(source_of(root), policy, env=env_of())
    assert "is -1.5" in caplog.text
    assert "the environment's action space is [-1, 1]" in caplog.text


# --- Runs -----------------------------------------------------------------------------------------


def test_a_run_on_a_wrong_data_set_ends_before_anything_is_measured(tmp_path, monkeypatch, caplog):
    measured = []

    def measure(self, policy, step, **settings):
        measured.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "measure", measure)
    env = EnvConfig(num_envs=2, num_workers=1, image_size=16, env_packages=("toy_env",))
    base = save_tiny_policy(tmp_path / "base")
    folder = Folder()
    folder.row(1, 3)["action"][2] = float("nan")

    def run(name):
        root = folder.write(tmp_path / f"{name}_data")
        bc = {"bc": BC(demonstrations=str(root), epochs=1, batch_size=4)}
        out = tmp_path / name
        changes = {"env": env, "prior_tasks": "none"}
        finetune(run_config(base, out, "bc", bc, **changes), quiet())

    with pytest.raises(DemonstrationError, match=r"'action' of episode 1, frame 3 .* is nan"):
        run("wrong")
    assert not measured
    assert not (tmp_path / "wrong").exists()
    folder.row(1, 3)["action"][2] = 0.0
    folder.info["fps"] = 30
    with pytest.raises(KeyboardInterrupt):
        run("right")
    assert measured == [0]
    assert "has 30 frames per second, but the environment has 10" in caplog.text
