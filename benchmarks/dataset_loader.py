"""Measure how much faster demonstrations come from RAM than through LeRobot's data loader.

Example: `python benchmarks/dataset_loader.py --json loader.json`

Both read the same LeRobotDataset (two cameras, image mode) in random order, in batches, with the
action chunks that follow each frame. LeRobot's loader decodes PNGs again for every batch.
robo-razor decodes them once (`decode_s`, which counts in `ratio_first_epoch`) and then copies rows
of arrays.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robo_razor.core.types import DemonstrationSet
from robo_razor.rollout.dataset.dataset import load_demonstrations, save_demonstrations
from robo_razor.training.windows import chunk_windows

CHUNK = 4


def make_dataset(directory: Path, episodes: int, length: int, size: int) -> None:
    """Write a dataset of smooth pictures, as of a camera: PNG is slow with noise."""
    rng = np.random.default_rng(0)
    frames = episodes * length
    y, x = np.mgrid[0:size, 0:size] / size
    phase = rng.uniform(0, 6, (frames, 1, 1, 3))
    waves = np.sin(6 * x[..., None] + phase) + np.cos(5 * y[..., None] - phase)
    images = (63 * (waves + 2)).astype(np.uint8)
    success = np.zeros(frames, dtype=bool)
    success[length - 1 :: length] = True
    demonstrations = DemonstrationSet(
        images={"front": images, "wrist": images[:, ::-1].copy()},
        state=rng.normal(size=(frames, 7)).astype(np.float32),
        actions=rng.uniform(-1, 1, (frames, 5)).astype(np.float32),
        offsets=np.arange(0, frames + 1, length),
        instructions=("put the can into the bin",) * episodes,
        rewards=success.astype(np.float32),
        success=success,
    )
    save_demonstrations(demonstrations, directory)


def stock_frames_per_s(directory: Path, batch_size: int, batches: int, workers: int) -> float:
    """Return the rate of LeRobot's dataset behind torch's DataLoader."""
    from lerobot.datasets import LeRobotDataset

    deltas = {"action": [i / 10 for i in range(CHUNK)]}
    dataset = LeRobotDataset("local/benchmark", root=directory, delta_timestamps=deltas)
    loader: Any = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True
    )
    iterator = iter(loader)
    next(iterator)  # the start of the workers does not count
    start, frames = time.perf_counter(), 0
    for _ in range(batches):
        batch = next(iterator, None)
        if batch is None:
            iterator = iter(loader)
            batch = next(iterator)
        frames += len(batch["action"])
    return frames / (time.perf_counter() - start)


def ram_frames_per_s(
    directory: Path, batch_size: int, batches: int
) -> tuple[float, float, DemonstrationSet]:
    """Return the rate of batches from RAM and the seconds it took to decode all frames."""
    start = time.perf_counter()
    demonstrations = load_demonstrations(directory)
    decode_s = time.perf_counter() - start
    windows, is_pad = chunk_windows(demonstrations.offsets, CHUNK)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(batches):
        rows = rng.permutation(len(windows))[:batch_size]
        batch = {name: torch.from_numpy(x[rows]) for name, x in demonstrations.images.items()}
        batch["state"] = torch.from_numpy(demonstrations.state[rows])
        batch["action"] = torch.from_numpy(demonstrations.actions[windows[rows]])
        batch["is_pad"] = torch.from_numpy(is_pad[rows])
    return batches * batch_size / (time.perf_counter() - start), decode_s, demonstrations


def main() -> None:
    """Run the benchmark and print its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="of the stock loader")
    arguments = parser.parse_args()
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "data"
        make_dataset(directory, arguments.episodes, arguments.length, arguments.size)
        ram, decode_s, demonstrations = ram_frames_per_s(
            directory, arguments.batch_size, arguments.batches * 10
        )
        stock = stock_frames_per_s(
            directory, arguments.batch_size, arguments.batches, arguments.workers
        )
    frames = len(demonstrations)
    result = {
        "frames": frames,
        "batch_size": arguments.batch_size,
        "stock_workers": arguments.workers,
        "stock_frames_per_s": stock,
        "ram_frames_per_s": ram,
        "decode_s": decode_s,
        "ratio": ram / stock,
        "ratio_first_epoch": (frames / stock) / (decode_s + frames / ram),
    }
    text = json.dumps(result, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
