"""The environment of a run, and its episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from robo_razor.core.ranks import Ranks
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import EpisodeBatch, EpisodeRow
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Mode
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.episodes import Progress
from robo_razor.rollout.groups import workers_beside
from robo_razor.rollout.shared import run_shared


class Simulation:
    """Makes the environment of a run, again after a fault of it, and runs episodes there.

    Args:
        config: The run's settings.
        base: The policy whose chunks and images it must fit.
        prior: Skill -> task of the skills that it must switch to.
        threads: CPU threads of torch for updates; episodes get those that its workers leave.
        ranks: This process among those of the run.
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
        self.env = self._made()
        # The workers need the cores while episodes run.
        self._threads = {"update": threads, "episodes": max(1, threads - workers_beside(self.env))}

    def _made(self) -> Any:
        return make_env(
            self.config.task,
            self.config.env,
            chunk_size=self.base.chunk_size,
            tasks=tuple(self.prior.values()),
            image_shape=self.base.wanted_image_shape,
        )

    def close(self) -> None:
        """End the workers."""
        self.env.close()

    def restart(self) -> None:
        """Make the environment anew, such as after a worker died."""
        self.env.close()
        self.env = self._made()

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Leave the cores to the environment's workers for a while."""
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
