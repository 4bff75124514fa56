"""A run that is gone on with: `finetune --resume` on a directory that something has damaged."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from fuzz import damage
from fuzz.place import Attempt, Enough, Folder, Place, command, copied, some
from fuzz.places import checkpoint
from fuzz.places.dataset import SIZE, write_dataset
from robo_razor.core.run.checksums import CHECKSUMS, write_checksums

CUT = 2
"""The update after which the valid run was cut."""
SUFFIXES = (".json", ".jsonl", ".yaml", ".safetensors")


class Resume(Place):
    """A run's directory, up to where the next update would begin, or to the end."""

    name = "resume"
    changes_given = True

    @staticmethod
    def prepare(templates: Path) -> None:
        """Make a run that clones a few frames, and stop it."""
        from toy_policy import NEW, RED, save_tiny_policy

        from robo_razor.core.settings.config import EnvConfig, FinetuneConfig, TrackingConfig
        from robo_razor.training.imitation import DemonstrationLearner
        from robo_razor.training.methods.bc import BC
        from robo_razor.training.trainer import finetune

        write_dataset(templates / "data", videos=False)
        save_tiny_policy(templates / "policy")
        config = FinetuneConfig(
            policy=str(templates / "policy"),
            task=NEW,
            prior_tasks=RED,
            out=str(templates / "run"),
            torch_threads=1,
            env=EnvConfig(num_envs=4, num_workers=1, image_size=SIZE, env_packages=("toy_env",)),
            tracking=TrackingConfig(
                every=1,
                early=0,
                episodes_new=2,
                episodes_new_sampled=2,
                episodes_prior=2,
                kl_states=4,
                final_episodes_new=2,
                max_share=1.0,
            ),
            method=BC(
                demonstrations=str(templates / "data"),
                epochs=10,
                batch_size=8,
                warmup_steps=1,
                learning_rate=1e-3,
            ),
        )
        original = DemonstrationLearner.update

        def stop(self: DemonstrationLearner, update: int) -> object:
            if update == CUT + 1:
                raise KeyboardInterrupt
            return original(self, update)

        with mock.patch.object(DemonstrationLearner, "update", stop):
            try:
                finetune(config)
            except KeyboardInterrupt:
                shutil.rmtree(templates / "run" / "tensorboard", ignore_errors=True)
                return
        raise AssertionError("the run was to be cut")

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Go on to the end."""
        run = copied(self.templates / "run", folder.given / "run")
        return command(["finetune", "--resume", "--out", str(run)])

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage a run's directory."""
        run = copied(self.templates / "run", folder.given / "run")
        words = [_spoil(rng, run, folder) for _ in range(some(rng))]
        words += _sums(rng, run / "checkpoints")
        if rng.random() < 0.15:
            words.append(_links(rng, run / "checkpoints"))
        settings = any("config.yaml" in word for word in words)
        whole = not settings and rng.random() < 0.3
        resume = command(["finetune", "--resume", "--out", str(run)])

        def door() -> None:
            if whole:
                resume()
                return
            with mock.patch("robo_razor.training.trainer.Trainer._greet", _enough):
                resume()

        shown = f"robo-razor finetune --resume --out {run}"
        return Attempt(", ".join(words), door, shown, may_read_outside=settings)


def _spoil(rng: random.Random, run: Path, folder: Folder) -> str:
    if rng.random() < 0.2:
        policies = sorted(run.glob("checkpoints/0*/pretrained_model"))
        return checkpoint.spoil(rng, rng.choice(policies), folder) if policies else "as it was"
    files = [f for f in sorted(run.rglob("*")) if f.suffix in SUFFIXES and not f.is_symlink()]
    files = [f for f in files if f.is_file()]
    if not files:
        return "as it was"
    name = rng.choice(sorted({file.name for file in files}))
    file = rng.choice([file for file in files if file.name == name])
    return f"{file.relative_to(run).parent}/{damage.of_file(rng, file, folder.linked)}"


def _sums(rng: random.Random, checkpoints: Path) -> list[str]:
    """Let the checksums be those of the damaged files, or nobody's."""
    act = rng.randrange(4)
    if any(file.stat().st_size > 2**30 for file in checkpoints.glob("0*/**/*") if file.is_file()):
        return []
    for file in sorted(checkpoints.glob(f"0*/{CHECKSUMS}")) if act else []:
        damage.remove(file)
        if act > 1:
            with contextlib.suppress(OSError):
                write_checksums(file.parent)
    return [f"{CHECKSUMS} {'removed' if act == 1 else 'written again'}"] if act else []


def _links(rng: random.Random, checkpoints: Path) -> str:
    """Lose, turn or copy the links, and leave what a killed process leaves."""
    steps = sorted(path.name for path in checkpoints.glob("0*"))
    name = rng.choice(("last", "best"))
    link = checkpoints / name
    act = rng.randrange(8)
    if act <= 4:
        damage.remove(link)
    if act == 0:
        link.symlink_to(steps[0])
    elif act == 1:
        link.write_text(steps[-1])
    elif act == 2:
        copied(checkpoints / steps[0], link)
    elif act == 3:
        link.symlink_to(rng.choice(("nowhere", name, "../../..", "/etc")))
    elif act == 5:
        copied(checkpoints / steps[-1], checkpoints / f".{steps[-1]}.123.tmp")
    elif act == 6:
        (checkpoints / "999999").mkdir()
    elif act == 7:
        (checkpoints / steps[-1]).rename(checkpoints / rng.choice(("7" * 30, "000077", "x")))
    return f"{name}: {act}"


def _enough(*_: object) -> None:
    raise Enough
