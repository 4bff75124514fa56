"""LeRobotDatasets v3 written by hand, so that anything may be wrong with them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TYPES: dict[str, Any] = {
    "observation.state": pa.list_(pa.float32()),
    "action": pa.list_(pa.float32()),
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}


def png(shade: int, size: tuple[int, int] = (16, 16), kind="PNG", mode="RGB", **more) -> bytes:
    """Return a picture of one shade, width x height."""
    data = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).convert(mode).save(
        data, kind, **more
    )
    return data.getvalue()


def shade_of(episode: int, frame: int) -> int:
    """Return the shade that every picture of a frame has."""
    return 60 * episode + 6 * frame


class Folder:
    """A data set before it is written: change what you like.

    Args:
        lengths: Frames of each episode.
        cameras: Their names; stored in the tables unless `filmed`.
        filmed: Keep the pictures in videos.
    """

    def __init__(
        self, lengths: tuple[int, ...] = (4, 6, 5), cameras=("front", "wrist"), filmed: bool = False
    ) -> None:
        self.cameras = [f"observation.images.{name}" for name in cameras]
        self.filmed = filmed
        self.types = dict(TYPES)
        if not filmed:
            self.types |= dict.fromkeys(self.cameras, PICTURE)
        random = np.random.default_rng(0)
        self.rows = [
            {
                **self.pictures(episode, frame),
                "observation.state": random.normal(size=7).astype(np.float32).tolist(),
                "action": random.uniform(-0.5, 0.5, 5).astype(np.float32).tolist(),
                "timestamp": frame / FPS,
                "frame_index": frame,
                "episode_index": episode,
                "index": sum(lengths[:episode]) + frame,
                "task_index": 0,
            }
            for episode, length in enumerate(lengths)
            for frame in range(length)
        ]
        kind = "video" if filmed else "image"
        features = {
            **{key: {"dtype": kind, "shape": [16, 16, 3]} for key in self.cameras},
            "observation.state": {"dtype": "float32", "shape": [7]},
            "action": {"dtype": "float32", "shape": [5]},
            "timestamp": {"dtype": "float32", "shape": [1]},
            **{
                key: {"dtype": "int64", "shape": [1]}
                for key in ("frame_index", "episode_index", "index", "task_index")
            },
        }
        for feature in features.values():
            feature["names"] = None
        self.info: dict[str, Any] = {
            "codebase_version": "v3.0",
            "fps": FPS,
            "features": features,
            "total_episodes": len(lengths),
            "total_frames": len(self.rows),
            "total_tasks": 1,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }
        self.tasks: dict[int, str] = {0: "lift the red block"}
        starts = np.cumsum([0, *lengths])
        self.episodes = [
            {
                "episode_index": e,
                "length": length,
                "tasks": [self.tasks[0]],
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": int(starts[e]),
                "dataset_to_index": int(starts[e + 1]),
                **{
                    f"videos/{key}/{name}": value
                    for key in (self.cameras if filmed else ())
                    for name, value in (
                        ("chunk_index", 0),
                        ("file_index", 0),
                        ("from_timestamp", starts[e] / FPS),
                        ("to_timestamp", starts[e + 1] / FPS),
                    )
                },
            }
            for e, length in enumerate(lengths)
        ]
        self.film = [shade_of(e, f) for e, length in enumerate(lengths) for f in range(length)]
        """The shades of a video's frames."""
        self.film_fps = FPS

    def pictures(self, episode: int, frame: int) -> dict[str, Any]:
        if self.filmed:
            return {}
        cell = {"bytes": png(shade_of(episode, frame)), "path": f"frame-{frame:06d}.png"}
        return {key: cell for key in self.cameras}

    def row(self, episode: int, frame: int) -> dict[str, Any]:
        """Return one row, to change it."""
        wanted = (episode, frame)
        return next(r for r in self.rows if (r["episode_index"], r["frame_index"]) == wanted)

    def rename(self, old: str, new: str) -> None:
        """Give a column another name, in tables and metadata."""
        self.types[new] = self.types.pop(old)
        self.info["features"][new] = self.info["features"].pop(old)
        for row in self.rows:
            row[new] = row.pop(old)

    def write(self, root: Path, *, parts: int = 1) -> Path:
        """Write the folder, the rows in `parts` tables one after another."""
        (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        (root / "data" / "chunk-000").mkdir(parents=True)
        (root / "meta" / "info.json").write_text(json.dumps(self.info))
        words = pd.Index(list(self.tasks.values()), name="task")
        tasks = pd.DataFrame({"task_index": list(self.tasks)}, index=words)
        tasks.to_parquet(root / "meta" / "tasks.parquet")
        episodes = pa.Table.from_pylist(self.episodes)
        pq.write_table(episodes, root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
        for number, some in enumerate(np.array_split(np.arange(len(self.rows)), parts)):
            rows = [self.rows[i] for i in some]
            found = pa.table(
                {
                    name: pa.array([row.get(name) for row in rows], kind)
                    for name, kind in self.types.items()
                }
            )
            pq.write_table(found, root / "data" / "chunk-000" / f"file-{number:03d}.parquet")
        if self.filmed:
            for key in self.cameras:
                folder = root / "videos" / key / "chunk-000"
                folder.mkdir(parents=True)
                write_video(folder / "file-000.mp4", self.film, self.film_fps)
        return root


def write_video(path: Path, shades: list[int], fps: int, size: int = 16) -> None:
    """Write a video of single shades."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "1"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv444p"
        for shade in shades:
            picture = np.full((size, size, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
