"""The state of a run on disk, from which it can be resumed: its directory and checkpoints."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from robo_razor.core import records
from robo_razor.core.errors import RunDirectoryError
from robo_razor.core.machine import check_room
from robo_razor.core.ranks import Ranks
from robo_razor.core.run.directory import RunDirectory, step_name
from robo_razor.core.run.training_state import TrainingState, fits
from robo_razor.core.settings.config import FinetuneConfig, replace
from robo_razor.policies.policy import Policy
from robo_razor.training.learner import LearnerState

LEARNER, PARAMETER, REGULARISER = "method/", "parameter/", "regulariser/"
"""Prefixes of the state's tensors: of the learner, of trained parameters, of regularisers."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an update.

    Attributes:
        step: Updates done.
        learner: Optimizer and counters.
        penalties: Tensors of the regularisers.
        parameters: Low-rank updates by name: the saved policy has them merged.
        tracking_s: Seconds that tracking took so far.
        elapsed_s: Seconds that the run took so far.
        folder: Its folder, once it is saved.
    """

    step: int
    learner: LearnerState
    penalties: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    tracking_s: float = 0.0
    elapsed_s: float = 0.0
    folder: Path = Path()

    @classmethod
    def load(cls, run: RunDirectory) -> Checkpoint:
        """Read the newest checkpoint of a run.

        Raises:
            CheckpointError: There is no checkpoint, or it is incomplete.
        """
        state = run.load_state()
        folder = run.checkpoints / step_name(state.step)
        with fits(folder):
            for key in ("tracking_s", "elapsed_s"):
                records.number(0.0, records.MAX_ELAPSED_S)(state.extra[key], key)
            return cls(
                step=state.step,
                learner=LearnerState(
                    state.optimizers, _of(state.tensors, LEARNER), dict(state.extra["method"])
                ),
                penalties=_of(state.tensors, REGULARISER),
                parameters=_of(state.tensors, PARAMETER),
                tracking_s=state.extra["tracking_s"],
                elapsed_s=state.extra["elapsed_s"],
                folder=folder,
            )

    def state(self) -> TrainingState:
        """Return the state to write."""
        groups = {
            LEARNER: self.learner.tensors,
            REGULARISER: self.penalties,
            PARAMETER: self.parameters,
        }
        return TrainingState(
            self.step,
            self.learner.optimizers,
            {f"{prefix}{name}": t for prefix, group in groups.items() for name, t in group.items()},
            extra={
                "method": self.learner.extra,
                "tracking_s": self.tracking_s,
                "elapsed_s": self.elapsed_s,
            },
        )

    def restore_parameters(self, policy: Policy) -> None:
        """Copy the checkpoint's low-rank updates into a policy."""
        with torch.no_grad():
            for name, parameter in trainable(policy):
                parameter.copy_(self.parameters[name])


def trainable(policy: Policy) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters of a policy that are trained, by name."""
    return [(n, p) for n, p in policy.module.named_parameters() if p.requires_grad]


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def open_directory(
    config: FinetuneConfig, ranks: Ranks, stack: contextlib.ExitStack
) -> tuple[RunDirectory, RunDirectory]:
    """Return the directory in which this rank writes, and that of the run's state.

    All ranks but the first write into a temporary folder.

    Args:
        config: The run's settings.
        ranks: This process among those of the run.
        stack: Closes the directory, and removes one in which nothing was saved.
    """
    if ranks.is_main:
        resume, out = config.resume, str(config.out)
        run = RunDirectory.resume(out) if resume else RunDirectory.create(config)
        if not resume:
            stack.push(_removes_unstarted(run))
        stack.callback(run.close)
        ranks.gather(None)  # the other ranks read the directory from here on
        return run, run
    ranks.gather(None)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
    run = RunDirectory.create(replace(config, out=str(folder), resume=False))
    stack.callback(run.close)
    if not config.resume:
        return run, run
    stored = RunDirectory.open(str(config.out))
    shutil.copytree(stored.path / "eval", folder / "eval", dirs_exist_ok=True)
    return run, stored


def _removes_unstarted(run: RunDirectory) -> Callable[..., None]:
    """Return a context manager's exit that removes a run which failed before its first checkpoint.

    Such a run cannot be resumed.
    """

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and run.last_step() is None:
            with contextlib.suppress(OSError, RunDirectoryError):  # a link, a mount point
                run.discard_unstarted()

    return leave


def check_room_for(policy: Policy, run: RunDirectory, keep: int) -> None:
    """Check that a run's checkpoints will fit: weights, and the two moments of AdamW.

    Args:
        policy: The policy that is tuned.
        run: Its directory.
        keep: Checkpoints that stay, besides the best and the newest.

    Raises:
        RoboRazorError: The disk is too full.
    """
    size = sum(p.numel() * p.element_size() for p in policy.module.parameters())
    size += 8 * sum(p.numel() for _, p in trainable(policy))
    check_room(run.path, size, max(1, keep + 2 - len(run.steps())))
