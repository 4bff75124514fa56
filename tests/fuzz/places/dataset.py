"""Demonstrations of somebody else: a LeRobotDataset v3 with pictures or videos."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import damage
from fuzz.place import Attempt, Fault, Folder, Place, copied, some

LENGTHS = (8, 9, 7)
SIZE = 16
FPS = 10
CAMERAS = ("front", "wrist")


class Dataset(Place):
    """A folder of demonstrations, made ready for cloning up to its first batches."""

    name = "dataset"

    @staticmethod
    def prepare(templates: Path) -> None:
        """Write two folders by hand, as LeRobot lays them out."""
        write_dataset(templates / "pictures", videos=False)
        write_dataset(templates / "videos", videos=True)

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Read both."""
        return lambda: [clone(self.templates / name) for name in ("pictures", "videos")] and None

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage some files of a data set."""
        kind = rng.choice(("pictures", "pictures", "videos"))
        data = copied(self.templates / kind, folder.given / "data")
        words = [kind, *(_spoil(rng, data, folder) for _ in range(some(rng)))]
        shown = f"robo-razor finetune --method bc --bc.demonstrations {data}"
        return Attempt(", ".join(words), lambda: clone(data), shown)


def _spoil(rng: random.Random, data: Path, folder: Folder) -> str:
    files = sorted(f for f in data.rglob("*") if f.is_file() and not f.is_symlink())
    if not files:
        return "as it was"
    file = rng.choice([*files, *(f for f in files if "data" in f.parts), data / "meta/info.json"])
    return f"{file.relative_to(data).parent}/{damage.of_file(rng, file, folder.linked)}"


def write_dataset(root: Path, *, videos: bool) -> None:
    """Write three episodes of random pictures, states and actions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    n = sum(LENGTHS)
    episodes = np.repeat(np.arange(3), LENGTHS)
    frames = np.concatenate([np.arange(length) for length in LENGTHS])
    pictures = {name: rng.integers(0, 255, (n, SIZE, SIZE, 3), dtype=np.uint8) for name in CAMERAS}
    columns: dict[str, Any] = {
        "observation.state": pa.array(rng.normal(size=(n, 7)).tolist(), pa.list_(pa.float32())),
        "action": pa.array(rng.uniform(-0.5, 0.5, (n, 5)).tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array((frames / FPS).tolist(), pa.float32()),
        "frame_index": pa.array(frames),
        "episode_index": pa.array(episodes),
        "index": pa.array(np.arange(n)),
        "task_index": pa.array(np.zeros(n, dtype=np.int64)),
    }
    rows = [_episode(i) for i in range(3)]
    for name, images in pictures.items():
        key = f"observation.images.{name}"
        if videos:
            _film(root / "videos" / key / "chunk-000" / "file-000.mp4", images)
            for i, row in enumerate(rows):
                start = float(sum(LENGTHS[:i])) / FPS
                row |= {
                    f"videos/{key}/chunk_index": 0,
                    f"videos/{key}/file_index": 0,
                    f"videos/{key}/from_timestamp": start,
                    f"videos/{key}/to_timestamp": start + LENGTHS[i] / FPS,
                }
        else:
            columns[key] = pa.array([{"bytes": _png(x), "path": None} for x in images])
    _write(root / "data" / "chunk-000" / "file-000.parquet", pa.table(columns), pq)
    _write(
        root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", pa.table(_turned(rows)), pq
    )
    tasks = pa.table({"task_index": [0], "task": ["lift the red block"]})
    _write(root / "meta" / "tasks.parquet", tasks, pq)
    (root / "meta" / "info.json").write_text(json.dumps(_info(videos=videos), indent=1))
    (root / "meta" / "stats.json").write_text(json.dumps({"action": {"mean": [0.0] * 5}}))


def _episode(i: int) -> dict[str, Any]:
    start = sum(LENGTHS[:i])
    return {
        "episode_index": i,
        "tasks": ["lift the red block"],
        "length": LENGTHS[i],
        "dataset_from_index": start,
        "dataset_to_index": start + LENGTHS[i],
        "data/chunk_index": 0,
        "data/file_index": 0,
    }


def _turned(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def _info(*, videos: bool) -> dict[str, Any]:
    picture = {
        "dtype": "video" if videos else "image",
        "shape": [SIZE, SIZE, 3],
        "names": ["height", "width", "channels"],
    }
    index = {"dtype": "int64", "shape": [1], "names": None}
    features: dict[str, Any] = {f"observation.images.{name}": picture for name in CAMERAS}
    features |= {
        "observation.state": {"dtype": "float32", "shape": [7], "names": None},
        "action": {"dtype": "float32", "shape": [5], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{key: index for key in ("frame_index", "episode_index", "index", "task_index")},
    }
    return {
        "codebase_version": "v3.0",
        "robot_type": "sim",
        "total_episodes": 3,
        "total_frames": sum(LENGTHS),
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }


def _write(path: Path, table: Any, pq: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _png(image: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _film(path: Path, images: Any) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def clone(data: Path) -> None:
    """Load demonstrations for a tiny policy and make batches; numbers that are none are a fault."""
    from toy_policy import NEW, tiny_policy

    from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
    from robo_razor.rollout.demonstrations import demonstrations_for
    from robo_razor.training.methods.bc import BC, demonstration_source
    from robo_razor.training.preflight import check_settings as validate
    from robo_razor.training.windows import WindowSampler

    config = FinetuneConfig(
        task=NEW,
        prior_tasks="none",
        method=BC(demonstrations=str(data), epochs=1, batch_size=8),
        env=EnvConfig(num_envs=1, num_workers=1, image_size=SIZE, env_packages=("toy_env",)),
    )
    validate(config)
    policy = tiny_policy()
    demonstrations = demonstrations_for(demonstration_source(config), policy)
    if len(demonstrations) == 0:
        raise Fault("demonstrations without a frame were accepted")
    for numbers in (demonstrations.actions, demonstrations.state):
        if not np.isfinite(numbers).all():
            raise Fault("actions or states that are not finite were accepted")
    sampler = WindowSampler(demonstrations, policy)
    loss, _ = policy.bc_loss(sampler.batch(np.arange(min(8, len(sampler)))))
    if not bool(loss.isfinite()):
        raise Fault(f"the loss is {float(loss)}")
