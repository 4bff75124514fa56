"""Behaviour cloning: `robo-razor finetune --method bc` and `lerobot-train`, as users run them.

Both sides have the same policy, weights, LeRobotDataset and batch size, and train all weights. A
unit of `finetune` is an update (10 gradient steps, with its line in the log). A unit of
`lerobot-train` is a gradient step (with its progress bar; a line every 200 steps, its default).
Checkpoints, tracking and evaluation are switched off on both sides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

ENDLESS = 1_000_000
"""So many gradient steps that a run never ends; `Stopped` ends it."""


def parameters(module: Any) -> int:
    """Return the number of a policy's parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def tracking() -> Any:
    """Return settings with which `finetune` tracks almost nothing, and only at its start."""
    from robo_razor.core.settings.config import TrackingConfig

    return TrackingConfig(
        every=1e9,
        episodes_new=1,
        episodes_new_sampled=0,
        episodes_prior=0,
        final_episodes_new=1,
        kl_states=1,
    )


def whole_batches(demonstrations: Any, batch_size: int) -> Any:
    """Cut demonstrations at the end, so that every batch of an epoch is full."""
    frames = len(demonstrations) // batch_size * batch_size
    if frames == 0:
        raise ValueError(f"{len(demonstrations)} frames do not fill a batch of {batch_size}")
    starts = demonstrations.offsets[:-1][demonstrations.offsets[:-1] < frames]
    return dataclasses.replace(
        demonstrations,
        images={name: images[:frames] for name, images in demonstrations.images.items()},
        state=demonstrations.state[:frames],
        actions=demonstrations.actions[:frames],
        offsets=np.append(starts, frames),
        instructions=demonstrations.instructions[: len(starts)],
        rewards=demonstrations.rewards[:frames],
        success=demonstrations.success[:frames],
        landmarks=None,
        landmarks_present=None,
    )


def write_dataset(settings: Any) -> None:
    """Write the demonstrations of the scripted expert as `robo-razor collect` does."""
    from robo_razor.core.settings.config import EnvConfig
    from robo_razor.rollout.actors import ExpertActor
    from robo_razor.rollout.dataset.dataset import save_demonstrations
    from robo_razor.rollout.demonstrations import collect_demonstrations
    from robo_razor.rollout.environments import make_env

    env = make_env(
        settings.task, EnvConfig(num_envs=16, num_workers=settings.workers), chunk_size=1
    )
    try:
        demonstrations = collect_demonstrations(
            env, ExpertActor("a"), settings.task, settings.demonstrations, console=quiet_console()
        )
    finally:
        env.close()
    demonstrations = whole_batches(demonstrations, settings.batch_size)
    save_demonstrations(demonstrations, settings.folder / "dataset")


def clone_ours(settings: Any, meter: Any, freeze_vision: bool = False) -> None:
    """Run `finetune` with BC from the dataset's directory."""
    from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
    from robo_razor.training.imitation import DemonstrationLearner
    from robo_razor.training.methods.bc import BC
    from robo_razor.training.trainer import finetune
    from robo_razor.training.windows import WindowSampler

    config = FinetuneConfig(
        policy=settings.policy,
        task=settings.task,
        prior_tasks="none",
        out=str(settings.folder / f"bc{'-frozen' * freeze_vision}"),
        freeze_vision=freeze_vision,
        device="cpu",
        torch_threads=settings.threads,
        env=EnvConfig(num_envs=1, num_workers=1),
        tracking=tracking(),
        method=BC(
            demonstrations=str(settings.folder / "dataset"),
            episodes=settings.demonstrations,
            epochs=ENDLESS,
            batch_size=settings.batch_size,
        ),
    )
    take_batch = WindowSampler.batch

    def counted(sampler: Any, rows: Any) -> Any:
        meter.add(len(rows))
        return take_batch(sampler, rows)

    with mock.patch.object(WindowSampler, "batch", counted), bounded(DemonstrationLearner, meter):
        finetune(config)


@contextlib.contextmanager
def bounded(learner: Any, meter: Any, count: Callable[[Any], int] | None = None) -> Iterator[None]:
    """Let every update of one of this project's learners be a unit of work.

    Args:
        learner: Class that makes a method's updates.
        meter: The contestant's meter.
        count: Returns the samples of an update from its metrics, if nothing else counts them.
    """
    make_update = learner.update

    def update(self: Any, number: int) -> Any:
        meter.facts["trained_parameters"] = parameters(self.policy.module)
        meter.boundary()
        metrics = make_update(self, number)
        if count is not None:
            meter.add(count(metrics))
        return metrics

    with mock.patch.object(learner, "update", update):
        yield


def clone_lerobot(settings: Any, meter: Any, loader_workers: int = 4) -> None:
    """Run the command `lerobot-train`, measured in its `cycle` over batches."""
    from lerobot.scripts import lerobot_train

    import lerobot_policy_razor  # noqa: F401  # registers the policy
    from robo_razor.policies.load import locate_policy

    flags = {
        "dataset.repo_id": "local/dataset",
        "dataset.root": settings.folder / "dataset",
        "policy.path": locate_policy(settings.policy),
        "policy.device": "cpu",
        "policy.push_to_hub": "false",
        "output_dir": settings.folder / f"lerobot-train-{loader_workers}",
        "batch_size": settings.batch_size,
        "num_workers": loader_workers,
        "steps": ENDLESS,
        "env_eval_freq": 0,
        "save_checkpoint": "false",
    }
    cycle, make_policy = lerobot_train.cycle, lerobot_train.make_policy

    def noted(*arguments: Any, **named: Any) -> Any:
        policy = make_policy(*arguments, **named)
        meter.facts["trained_parameters"] = parameters(policy)
        return policy

    def bounded_cycle(loader: Any) -> Iterator[Any]:
        batches = cycle(loader)
        while True:
            meter.boundary()
            batch = next(batches)
            meter.add(len(batch["action"]))
            yield batch

    command = ["lerobot-train", *(f"--{name}={value}" for name, value in flags.items())]
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.object(lerobot_train, "make_policy", noted),
        mock.patch.object(lerobot_train, "cycle", bounded_cycle),
    ):
        lerobot_train.main()


def quiet_console() -> Any:
    """Return a console without a terminal, which would cost time."""
    from rich.console import Console

    return Console(file=io.StringIO())
