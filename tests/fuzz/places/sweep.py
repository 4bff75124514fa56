"""A sweep that is gone on with: its record and the settings of its runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from fuzz import damage
from fuzz.place import Attempt, Enough, Folder, Place, command, copied, some
from fuzz.places import run

EXPERIMENT = """\
name: small
base: {task: LiftCan, prior_tasks: LiftCube, tracking: {episodes_new: 4}}
arms:
  - name: bc
    settings: {method: bc}
    grid: {bc.learning_rate: [1e-4, 3e-4], seed: [0]}
  - name: ppo
    settings: {method: ppo}
    grid: {seed: [0, 1]}
    needs: bc
"""
SCHEDULER = "robo_razor.sweep.schedule.Scheduler.run"


class Sweep(Place):
    """A sweep's directory, up to where its next run would start."""

    name = "sweep"
    changes_given = True

    @staticmethod
    def prepare(templates: Path) -> None:
        """Let a sweep of four runs write down where it stands."""
        from made_up_runs import begin_run, write_checkpoint

        from robo_razor.sweep.plan import load_plan
        from robo_razor.training.resumption import with_task_id

        file, out = templates / "small.yaml", templates / "small"
        file.write_text(EXPERIMENT)
        for planned in load_plan(file, str(out), with_task_id).runs[:2]:
            path = begin_run(planned.config)
            write_checkpoint(path, planned.config, 0, 0.4, {"LiftCube": 1.0}, [1.0], 0.0)
        with (
            mock.patch(SCHEDULER, lambda self: self._on_change()),
            mock.patch("robo_razor.sweep.run.refuse_used_directory"),
        ):
            command(["sweep", str(file), "--out", str(out)])()

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Go on with it."""
        return self._door(copied(self.templates / "small", folder.given / "small"))

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage its record, or a run of it."""
        out = copied(self.templates / "small", folder.given / "small")
        words = []
        for _ in range(some(rng)):
            if rng.random() < 0.6:
                words.append(damage.of_file(rng, out / "sweep.json", folder.linked))
            else:
                words.append(run.spoil(rng, out, folder))
        shown = f"robo-razor sweep {self.templates / 'small.yaml'} --out {out}"
        return Attempt(", ".join(words), self._door(out), shown)

    def _door(self, out: Path) -> Callable[[], None]:
        go_on = command(["sweep", str(self.templates / "small.yaml"), "--out", str(out)])

        def door() -> None:
            with mock.patch(SCHEDULER, _enough):
                go_on()

        return door


def _enough(*_: object) -> None:
    raise Enough
