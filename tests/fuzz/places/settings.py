"""Settings: files of `finetune`, `evaluate`, `compare`, ..., experiment files, and flags."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from fuzz import damage, values
from fuzz.place import Attempt, Enough, Folder, Place, command
from robo_razor.cli import commands as cli
from robo_razor.core.settings.conversion import describe_fields

CONFIGS = Path(__file__).parents[3] / "configs"
OWN = {
    "finetune": """\
method: ppo
policy: razor-base
task: LiftCan
rename: {observation.images.top: observation.images.front}
prior_tasks: LiftCube,OpenDrawer
out: run
seed: 3
env: {num_envs: 8, num_workers: 1, env_packages: [gym_razor], lerobot: {obs_type: pixels}}
tracking: {every: 0.5, episodes_new: 4, early: 0}
ppo: {learning_rate: 1e-4, num_updates: 4, value_warmup_updates: 1}
regularise: {kl: {weight: 0.1}, l2: {weight: 0.01}}
""",
    "sweep": """\
name: small
out: runs/small
parallel: 2
base: {task: LiftCan, tracking: {episodes_new: 4}, bc: {epochs: 2}}
arms:
  - name: bc
    settings: {method: bc, bc.style: b}
    grid: {bc.learning_rate: [1e-4, 3e-4], seed: [0, 1]}
  - name: ppo
    settings: {method: ppo}
    grid: {ppo.learning_rate: [1e-5, 1e-3], seed: [0, 1]}
  - name: distilled
    settings:
      method: bc
      bc.demonstrations: "policy:${runs.bc.seed, bc.learning_rate=1e-4}/checkpoints/best"
    grid: {seed: [0, 1]}
    needs: [ppo]
""",
    "compare": "runs: [a, b.tar.xz]\nout: report\nmatch: [0.5, 0.8]\nmerge: ['a,b']\nvideos: 0\n",
    "evaluate": "policy: razor-base\nskills: LiftCan\nepisodes: 4\nmode: sample\njson: x.json\n",
    "rollout": "policy: razor-base\ntask: LiftCan\ninstruction: lift it\nvideo: v.mp4\n",
    "collect": "task: LiftCan\npolicy: expert\nepisodes: 3\nout: data\nnoise: 0.1\n",
    "pretrain": "out: runs/base\ntasks: LiftCan,LiftCube\nepochs: 1\nlearning_rate: 1e-3\n",
    "manifest": "skills: LiftCan\nepisodes: 3\nout: states.json\n",
    "archive": "directory: runs/x\nout: x.tar.xz\n",
}


class SettingsFile(Place):
    """Files that say what to do, up to the point where it would be done."""

    name = "settings"

    @staticmethod
    def prepare(templates: Path) -> None:
        """Copy the project's own files, and write some that use what those do not."""
        for file in CONFIGS.glob("*.yaml"):
            shutil.copy(file, templates / f"finetune.{file.name}")
        for file in (CONFIGS / "experiments").glob("*.yaml"):
            shutil.copy(file, templates / f"sweep.{file.name}")
        for name, text in OWN.items():
            (templates / f"{name}.own.yaml").write_text(text)

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Read each command's file once."""
        doors = []
        for file in sorted(self.templates.glob("*.own.yaml")):
            kind = file.name.partition(".")[0]
            if kind not in ("compare", "archive"):  # they ask for directories of runs
                doors.append(self._attempt(_asked(kind, file), "").door)

        def door() -> None:
            for one in doors:
                with contextlib.suppress(Enough):
                    one()

        return door

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage a file, or take flags that were hardly expected."""
        kind = rng.choice((*("finetune", "sweep") * 4, *OWN))
        if rng.random() < 0.12 and kind != "sweep":
            return self._flags(rng, kind)
        template = rng.choice(sorted(self.templates.glob(f"{kind}.*.yaml")))
        file = folder.given / f"{kind}.yaml"
        shutil.copy(template, file)
        words = damage.of_file(rng, file, folder.linked)
        return self._attempt(_asked(kind, file), f"{template.name}: {words}")

    def _flags(self, rng: random.Random, kind: str) -> Attempt:
        keys = describe_fields(cli.COMMANDS[kind].config)
        asked = [kind]
        for _ in range(rng.choice((1, 1, 2))):
            key = rng.choice(keys).replace("_", "-")
            value = rng.choice((*values.TEXTS, *values.RAW_YAML, *map(_digits, values.NUMBERS)))
            asked.append(rng.choice((f"--{key}={value}", f"--{key}", f"--{key}={value}")))
        return self._attempt(asked, f"flags {[word[:60] for word in asked]}")

    def writable(self, folder: Folder) -> list[Path]:
        """Return more than elsewhere: the user's own settings may say `out: ../report`."""
        return [folder.root]

    def _attempt(self, asked: list[str], words: str) -> Attempt:
        run = command(asked)

        def door() -> None:
            from robo_razor.training import trainer

            with mock.patch.object(trainer, "Trainer", _enough):
                if asked[0] in ("finetune", "sweep", "compare", "archive"):
                    run()
                    return
                with mock.patch.object(cli, "_load", return_value=_enough):  # they begin at once
                    run()

        shown = " ".join(["robo-razor", *asked])[:500]
        return Attempt(words, door, shown, may_read_outside=True)


def _asked(kind: str, file: Path) -> list[str]:
    return ["sweep", str(file), "--dry-run"] if kind == "sweep" else [kind, "--config", str(file)]


def _digits(number: float) -> str:
    return str(number) if abs(number) < 1e300 else "1" + "0" * 400


def _enough(*_: object) -> None:
    raise Enough
