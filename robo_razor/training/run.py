"""The Python API of runs: start one, read its table, load the policies of its checkpoints."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from robo_razor.core.errors import RunDirectoryError
from robo_razor.core.fingerprint import policy_hash
from robo_razor.core.metrics import Summary
from robo_razor.core.plugins import METHODS
from robo_razor.core.run.directory import TEMPORARY, RunDirectory, find_pretrained_model
from robo_razor.core.run.display import ProgressBar
from robo_razor.core.run.listener import Listener
from robo_razor.core.run.table import run_table
from robo_razor.core.settings.config import (
    MAIN_TASK,
    EnvConfig,
    FinetuneConfig,
    TrackingConfig,
    from_dict,
    replace,
)
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy
from robo_razor.training.methods import Method
from robo_razor.training.regularisers import Regulariser
from robo_razor.training.trainer import finetune as run_finetune

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


class Run:
    """A run on disk.

    Args:
        path: Its directory.

    Raises:
        RunDirectoryError: The directory does not hold a run.

    Example:
        >>> run = rr.load_run("runs/x")
        >>> run.table()[["step", "new_success_rate", "prior_success_rate"]]
        >>> rr.evaluate(run.best, skills="prior")
    """

    def __init__(self, path: str | Path) -> None:
        self._directory = RunDirectory.open(path)
        self.path: Path = self._directory.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, steps={list(self.steps)})"

    @property
    def config(self) -> FinetuneConfig:
        """The settings that the run was made with."""
        return from_dict(FinetuneConfig, self._directory.config_data(), source=str(self.path))

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps whose policies are on disk, ascending; a step is a number of updates."""
        return tuple(self._directory.steps())

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """What was measured at every checkpoint, in the order of steps."""
        return tuple(self._directory.summaries())

    def table(self) -> pd.DataFrame:
        """Return a row per measured checkpoint; docs/reference/files.md has the columns."""
        return run_table(self.path)

    def checkpoint(self, step: int) -> Policy:
        """Return the policy after `step` updates.

        Raises:
            RunDirectoryError: It is not on disk; the error lists the steps that are.
        """
        if step not in self.steps:
            raise RunDirectoryError(
                f"The run {self.path} has no policy of step {step}",
                allowed=", ".join(map(str, self.steps)) or "no step: nothing was saved",
                remedy="`checkpoint.keep` sets how many policies a run saves.",
            )
        folder = self._directory.pretrained_model(step)
        return load_policy(str(find_pretrained_model(folder)))

    @property
    def best(self) -> Policy:
        """The policy with the highest lower end of the new task's interval.

        Raises:
            RunDirectoryError: Nothing was measured yet.
        """
        step = self._directory.best_step()
        if step is None:
            raise RunDirectoryError(f"The run {self.path} has measured nothing yet")
        return self.checkpoint(step)

    @property
    def last(self) -> Policy:
        """The newest policy.

        Raises:
            RunDirectoryError: Nothing was saved yet.
        """
        return self.checkpoint(max(self.steps, default=0))

    @property
    def base(self) -> Policy:
        """The policy that the run started from."""
        return load_policy(self.config.policy)


def load_run(path: str | Path) -> Run:
    """Return a run on disk.

    Raises:
        RunDirectoryError: `path` is not a run directory.
    """
    return Run(path)


def finetune(
    policy: str | Policy = "razor-base",
    task: str = MAIN_TASK,
    method: Method | str = "ppo",
    *,
    regularisers: Sequence[Regulariser] = (),
    prior: str = "prior",
    seed: int = 0,
    out: str | Path | None = None,
    env: EnvConfig | None = None,
    tracking: TrackingConfig | None = None,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Fine-tune a policy on a new task, and measure at every checkpoint what it forgets.

    Args:
        policy: The base: a policy that `load_policy` returned, or what it takes.
        task: The new task: a skill's name, a Gymnasium id, or LeRobot's `lerobot:TYPE/TASK`.
        method: How to fine-tune, such as `PPO(num_updates=10)`, or a method's name.
        regularisers: Terms that hold the policy near its base, such as `L2(weight=0.1)`.
        prior: Skills that may be forgotten: `prior` (all), `none`, or names with commas.
        seed: Seed of start states, sampling and initialisation (>= 0).
        out: Run directory to create. None: a temporary one, removed with the returned `Run`.
        env: How environments are run in parallel.
        tracking: What is measured at every checkpoint.
        progress: Show a progress bar on standard error.
        **settings: Any other setting of `robo-razor finetune`, such as `freeze_vision=False`.

    Raises:
        RoboRazorError: Something does not fit; nothing was overwritten.
        KeyboardInterrupt: The run was interrupted; with `out` a checkpoint was saved first.
    """
    if out is None:
        settings = {"log": (), **settings}  # no TensorBoard files in a temporary directory
    config = FinetuneConfig(
        policy=policy if isinstance(policy, str) else policy.name,
        task=task,
        method=METHODS.get(method)() if isinstance(method, str) else method,
        regularise=tuple(regularisers),
        prior_tasks=prior,
        seed=seed,
        env=env or EnvConfig(),
        tracking=tracking or TrackingConfig(),
        **settings,
    )
    listener = ProgressBar(Console(stderr=True) if progress else None)
    base_hash = None if isinstance(policy, str) else policy_hash(policy)
    if out is not None:
        return Run(run_finetune(replace(config, out=str(out)), listener, base_hash).run)
    return _temporary_run(config, listener, base_hash)


def _temporary_run(config: FinetuneConfig, listener: Listener, base_hash: str | None) -> Run:
    """Make a run in a directory that is removed with the `Run`, or when Python ends."""
    folder = tempfile.mkdtemp(prefix=TEMPORARY)
    try:
        config = replace(config, out=str(Path(folder) / "run"))
        run = Run(run_finetune(config, listener, base_hash).run)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    return run
