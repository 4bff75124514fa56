"""An evaluation that is gone on with: the episodes that it had finished."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from fuzz import damage
from fuzz.place import Attempt, Folder, Place, command, copied

UNFINISHED = "x.json.unfinished"


class Evaluation(Place):
    """The file beside the result, which `evaluate --resume` reads."""

    name = "evaluation"
    changes_given = True

    @staticmethod
    def prepare(templates: Path) -> None:
        """Evaluate a tiny policy, and keep half of the episodes."""
        from toy_policy import save_tiny_policy

        save_tiny_policy(templates / "policy")
        with mock.patch("robo_razor.evaluation.episode_log.EpisodeLog.discard"):
            _door(templates, templates)()
        file = templates / UNFINISHED
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Go on with it."""
        copied(self.templates / UNFINISHED, folder.given / UNFINISHED)
        return _door(self.templates, folder.given, "--resume")

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage it."""
        file = copied(self.templates / UNFINISHED, folder.given / UNFINISHED)
        if rng.random() < 0.1:
            words = damage.of_entry(rng, file, folder.linked)
        else:
            data, words = damage.in_lines(rng, file.read_bytes())
            file.write_bytes(data)
        shown = f"robo-razor evaluate --resume --json {folder.given / 'x.json'}"
        return Attempt(words, _door(self.templates, folder.given, "--resume"), shown)


def _door(templates: Path, folder: Path, *more: str) -> Callable[[], None]:
    asked = ["evaluate", "--policy", str(templates / "policy"), "--skills", "toy/ReachRed-v0"]
    asked += ["--episodes", "4", "--json", str(folder / "x.json"), "--torch-threads", "1"]
    asked += ["--env.num-envs", "4", "--env.num-workers", "1", "--env.image-size", "16"]
    return command([*asked, "--env.env-packages", "toy_env", *more])
