"""Success of the scripted experts, every task and style.

Usage: `python benchmarks/expert_success.py --episodes 200`.

Prints success with a Wilson interval and the mean length, and writes JSON with `--json FILE`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from gym_razor import NEW_TASKS, PRIOR_TASKS
from robo_razor.statistics.intervals import wilson_interval

STYLES = ("a", "b")


def play(job: tuple[str, str, int]) -> dict[str, Any]:
    """Play `episodes` start states of one task in one style; no rendering."""
    from gym_razor.suite.episode import Episode
    from gym_razor.suite.world import World

    task, style, episodes = job
    worlds: dict[tuple[str, str], World] = {}

    def take_world(pair: tuple[str, str]) -> World:
        return worlds.setdefault(pair, World(pair))

    episode, lengths = Episode(take_world), []
    for seed in range(episodes):
        episode.reset(task, seed)
        while episode.elapsed_steps < episode.max_episode_steps and not episode.is_success:
            episode.step(episode.task.expert_action(episode.world, style)[None])
        if episode.is_success:
            lengths.append(episode.elapsed_steps)
    low, high = wilson_interval(len(lengths), episodes)
    return {
        "task": task,
        "style": style,
        "n": episodes,
        "success_rate": len(lengths) / episodes,
        "interval": [low, high],
        "mean_control_steps": float(np.mean(lengths)) if lengths else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    jobs = [
        (task, style, arguments.episodes) for task in PRIOR_TASKS + NEW_TASKS for style in STYLES
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        results = pool.map(play, jobs, chunksize=1)
    for row in results:
        low, high = row["interval"]
        steps = row["mean_control_steps"]
        print(
            f"{row['task']:36s} {row['style']}  {row['success_rate']:6.1%} [{low:.1%}, {high:.1%}]"
            f"  {steps:5.1f} control steps"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
