"""The environments of a run, and the episodes that run in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from robo_razor.core.ranks import Ranks
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import EpisodeBatch, EpisodeRow
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Mode
from robo_razor.rollout.environments import make_fitting_env
from robo_razor.rollout.episodes import Progress
from robo_razor.rollout.groups import VectorEnv, workers_beside
from robo_razor.rollout.shared import run_shared
from robo_razor.training.preflight import cloned_columns


class Simulation:
    """Makes the environments of a run, again after a fault, and runs episodes in them.

    Args:
        config: The run's settings.
        base: The policy that the environments must fit.
        prior: Skill -> task of the skills that the environments can switch to.
        threads: CPU threads of torch for updates; episodes get the threads that the workers leave.
        ranks: This process among the processes of the run.

    Raises:
        PolicyEnvMismatchError: The policy does not fit them.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        base: Policy,
        prior: dict[str, str],
        threads: int,
        ranks: Ranks,
    ) -> None:
        self.config, self.base, self.prior = config, base, prior
        self.ranks = ranks
        self.env = self._make()
        # The workers need the cores while episodes run.
        self._threads = {"update": threads, "episodes": max(1, threads - workers_beside(self.env))}

    def _make(self) -> VectorEnv:
        tasks = (self.config.task, *self.prior.values())
        columns = cloned_columns(self.config)
        return make_fitting_env(self.base, tasks, self.config.env, columns=columns)

    def close(self) -> None:
        """End the workers."""
        self.env.close()

    def restart(self) -> None:
        """Make the environments anew, such as after a worker died."""
        self.env.close()
        self.env = self._make()

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Leave the cores to the environments' workers for a while."""
        torch.set_num_threads(self._threads["episodes"])
        try:
            yield
        finally:
            torch.set_num_threads(self._threads["update"])

    def run(
        self,
        policy: Policy,
        rows: Sequence[EpisodeRow],
        mode: Mode,
        record: bool | Literal["inputs"],
        progress: Progress,
        *,
        sampling_seed: int,
        whole: bool,
    ) -> EpisodeBatch:
        """Run every row once; see `rollout.shared.run_shared`."""
        policy.module.eval()
        with self.threads():
            return run_shared(
                self.ranks,
                self.env,
                policy,
                rows,
                mode,
                record,
                progress,
                sampling_seed=sampling_seed,
                whole=whole,
            )
