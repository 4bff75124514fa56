"""Behaviour cloning: supervised fine-tuning on demonstrations.

Axis letters as in `types`: F frames, W windows, B batch, H chunk, A action dimensions.

A window starts at a decision of the demonstrator (any frame of a reactive expert) and holds the
next H actions of its episode; beyond the end the last action is repeated and marked as padding.
The loss is the policy's own: razor's, ACT's and SmolVLA's leave padding out, pi0's, pi0.5's and,
unless its `do_mask_loss_for_padding` is set, Diffusion's learn the repeated action like any other.

Several ranks divide each batch and weigh their parts by what that loss is a mean of (see
`loss_weight`), so the gradients add up to that of one process. What is drawn in a step (a flow's
noise and times, dropout, augmentation) is seeded per rank, so there it is equal on average only.

With `bc.statistics: demonstrations` the policy changes its normalisation before its first gradient
step: step 0 measures the base as it is.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.errors import ConfigError, DemonstrationError, TrainingError, shown
from robo_razor.core.run.training_state import restore_optimizer
from robo_razor.core.seeding import derive, generator
from robo_razor.core.settings.config import POLICY_PREFIX, BCConfig, FinetuneConfig
from robo_razor.core.types import DemonstrationSet
from robo_razor.policies.normalisation import Statistics, demonstration_statistics
from robo_razor.rollout.dataset.metadata import describe
from robo_razor.rollout.demonstrations import DemonstrationSource
from robo_razor.training.methods import (
    METHODS,
    Method,
    MethodState,
    Metrics,
    Services,
    autocast,
    clip_gradients,
    trained_parameters,
)

logger = logging.getLogger(__name__)

STEPS_PER_UPDATE = 10
"""Gradient steps between two lines of the log."""
ENCODING_BATCH = 512


def demonstration_source(config: FinetuneConfig) -> DemonstrationSource:
    """Return what a run with `method: bc` learns from."""
    bc = config.bc
    return DemonstrationSource(
        source=bc.demonstrations,
        episodes=bc.episodes,
        task=config.task,
        env=config.env,
        seed=config.seed,
        style=bc.style,
        noise=bc.noise,
        temperature=bc.temperature,
        device=config.device,
        rename=config.rename,
    )


def chunk_windows(
    offsets: NDArray[np.int64], chunk_size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the frames of every window, int64 [F, H], and where they are padding, bool [F, H].

    Args:
        offsets: int64 [E + 1]; episode e owns frames offsets[e]:offsets[e + 1].
        chunk_size: Actions that the policy predicts at once (it may execute fewer).
    """
    frames = np.arange(int(offsets[-1]))
    ends = np.repeat(offsets[1:], np.diff(offsets))
    window = frames[:, None] + np.arange(chunk_size)
    return np.minimum(window, ends[:, None] - 1), window >= ends[:, None]


def predicted_actions(policy: Any) -> int:
    """Return how many actions a policy predicts at once, of which it may execute fewer."""
    times = getattr(policy.config, "action_delta_indices", None)  # as LeRobot's own training does
    return len(times) if times else int(getattr(policy.config, "chunk_size", policy.chunk_size))


def learning_rate_factor(step: int, total: int, config: BCConfig) -> float:
    """Return the factor on the peak learning rate at gradient step `step` (from 0)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class WindowSampler:
    """Prepared policy inputs and targets of all windows, in RAM.

    Args:
        demonstrations: Demonstrations with frames at control rate.
        policy: `Policy` that prepares the inputs.
    """

    def __init__(self, demonstrations: DemonstrationSet, policy: Any) -> None:
        windows, is_pad = chunk_windows(demonstrations.offsets, predicted_actions(policy))
        lengths = np.diff(demonstrations.offsets)
        position = np.arange(len(windows)) - np.repeat(demonstrations.offsets[:-1], lengths)
        self.frames = np.flatnonzero(position % demonstrations.decision_stride == 0)
        self.windows, self.is_pad = windows[self.frames], is_pad[self.frames]
        self.actions = demonstrations.actions
        self.demonstrations = demonstrations
        self.policy = policy
        self.encoded: dict[str, Tensor] | None = None
        if getattr(policy, "vision_frozen", False):
            self.encoded = self._encode()
            self.demonstrations = replace(demonstrations, images={})  # a gigabyte by default

    def __len__(self) -> int:
        return len(self.windows)

    def weight(self, rows: NDArray[np.int64]) -> int:
        """Return the weight that the policy's loss gives to some windows."""
        return int(self.policy.loss_weight(self.is_pad[rows]))

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the training batch of the windows `rows`, int64 [B]."""
        demos, policy, frames = self.demonstrations, self.policy, self.frames[rows]
        if self.encoded is None:
            batch = self._prepare(rows)
        else:
            batch = {key: value[torch.from_numpy(rows)] for key, value in self.encoded.items()}
        batch["action"] = torch.from_numpy(self.actions[self.windows[rows]]).to(policy.device)
        batch["action_is_pad"] = torch.from_numpy(self.is_pad[rows]).to(policy.device)
        if demos.landmarks is not None and demos.landmarks_present is not None:
            batch["observation.landmarks"] = torch.from_numpy(demos.landmarks[frames]).to(
                policy.device
            )
            batch["observation.landmarks_present"] = torch.from_numpy(
                demos.landmarks_present[frames]
            ).to(policy.device)
        return batch

    def _prepare(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        demos, frames = self.demonstrations, self.frames[rows]
        observation = {
            "pixels": {name: images[frames] for name, images in demos.images.items()},
            "agent_pos": demos.state[frames],
        }
        return dict(self.policy.prepare(observation, demos.words(frames)))

    def _encode(self) -> dict[str, Tensor]:
        """Run the frozen image encoder once over all frames."""
        parts = np.array_split(np.arange(len(self)), max(1, len(self) // ENCODING_BATCH))
        encoded = [self.policy.encode(self._prepare(rows)) for rows in parts]
        return {key: torch.cat([part[key] for part in encoded]) for key in encoded[0]}


@METHODS.register("bc")
class BC(Method):
    """Cloning with AdamW, warm-up, and a cosine or constant rate."""

    needs_density = False

    def __init__(self, config: FinetuneConfig, policy: Any, base: Any, services: Services) -> None:
        super().__init__(config, policy, base, services)
        self.bc = config.bc
        # Not the value head: it has no part in the loss, and weight decay would still shrink it.
        self.parameters = trained_parameters(policy)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.bc.learning_rate, weight_decay=self.bc.weight_decay
        )
        self.sampler: WindowSampler | None = None
        self.demonstrations: DemonstrationSet | None = None
        self.statistics: Statistics = {}
        self.has_adopted = False

    @classmethod
    def validate(cls, config: FinetuneConfig) -> None:
        """Refuse a directory that holds no dataset, and a policy that is not there.

        Raises:
            DemonstrationError: There is no dataset, or its metadata cannot be right.
            RoboRazorError: There is no such policy.
        """
        source = config.bc.demonstrations
        if source == "expert":
            return
        if source.startswith(POLICY_PREFIX):
            from robo_razor.policies.load import locate_policy

            locate_policy(source.removeprefix(POLICY_PREFIX))  # refuses what is not there
            return
        try:
            missing = not (Path(source) / "meta" / "info.json").exists()
        except (OSError, ValueError):  # no path at all, such as one of 300 letters
            missing = True
        if missing:
            raise DemonstrationError(
                f"There are no demonstrations in {shown(source)} (`bc.demonstrations`)",
                allowed="`expert`, `policy:NAME`, or the directory of a LeRobotDataset v3",
                remedy=f"Make one: `robo-razor collect --task {config.task} --out DIR`.",
            )
        describe(source)

    def prepare(self) -> None:
        """Load or make the demonstrations.

        Raises:
            DemonstrationError: There are none.
        """
        demonstrations = self.services.demonstrations()
        if len(demonstrations) == 0:
            raise DemonstrationError(
                f"`bc.demonstrations` = {self.bc.demonstrations!r} holds no frames",
                remedy="Make some: `robo-razor collect --task TASK --out DIR`.",
            )
        self.sampler = WindowSampler(demonstrations, self.policy)
        if self.bc.statistics == "demonstrations":
            self.demonstrations = demonstrations  # what a frozen encoder saw is prepared anew
            self.statistics = demonstration_statistics(demonstrations, self.policy)
            self._warn()
        rows = min(self.bc.batch_size, len(self.sampler))
        if rows < self.ranks.size:
            raise ConfigError(
                f"`bc.batch_size` = {self.bc.batch_size} gives {rows} decisions per gradient step, "
                f"which {self.ranks.size} ranks cannot divide",
                remedy="Raise it, give more demonstrations, or start fewer ranks.",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of gradient steps in one pass over the windows."""
        assert self.sampler is not None
        return max(1, len(self.sampler) // self.bc.batch_size)

    @property
    def num_steps(self) -> int:
        """Return the number of gradient steps in the run."""
        return self.steps_per_epoch * self.bc.epochs

    @property
    def num_updates(self) -> int:
        """Return the number of updates, each of `STEPS_PER_UPDATE` gradient steps."""
        return math.ceil(self.num_steps / STEPS_PER_UPDATE)

    def update(self, update: int) -> Metrics:
        """Make the next few gradient steps and return their mean metrics."""
        start = time.perf_counter()
        if self.statistics and not self.has_adopted:
            self._adopt()
        first = (update - 1) * STEPS_PER_UPDATE
        steps = range(first, min(first + STEPS_PER_UPDATE, self.num_steps))
        history = [self._gradient_step(step) for step in steps]
        elapsed = time.perf_counter() - start
        metrics = {f"train/{key}": float(np.mean([h[key] for h in history])) for key in history[0]}
        metrics["train/epoch"] = (steps[-1] + 1) / self.steps_per_epoch
        metrics["time/update_s"] = elapsed
        metrics["time/samples_per_s"] = len(steps) * self.bc.batch_size / elapsed
        return metrics

    def state(self) -> MethodState:
        """Return the optimizer's state, and statistics that are not the base's."""
        tensors = {
            f"{key}/{name}": tensor
            for key, found in self.statistics.items()
            for name, tensor in found.items()
        }
        optimizers = {"bc": self.optimizer.state_dict()}
        return MethodState(optimizers, tensors, {"has_adopted": self.has_adopted})

    def load_state(self, state: MethodState) -> None:
        """Take over what `state` returned; these statistics count, whatever the data now has."""
        restore_optimizer(self.optimizer, state.optimizers["bc"])
        if not state.tensors:
            return
        self.statistics = {}
        for full, tensor in state.tensors.items():
            key, _, name = full.rpartition("/")
            self.statistics.setdefault(key, {})[name] = tensor
        if state.extra["has_adopted"] and not self.has_adopted:
            self._adopt()

    def _adopt(self) -> None:
        """Normalise with the statistics of the demonstrations from now on."""
        assert self.demonstrations is not None
        self.policy.use_statistics(self.statistics)
        self.sampler = WindowSampler(self.demonstrations, self.policy)
        self.has_adopted = True

    def _warn(self) -> None:
        """Say what other statistics do to a comparison with the base."""
        if self.ranks.is_main:
            logger.warning(
                "`bc.statistics: demonstrations` replaces the statistics with which %s normalises "
                "%s. With others the same weights are another policy. Step 0 measures the base "
                "with its own; from the first update on, success, retention and forgetting mix "
                "the change of statistics with what was learnt. KL divergences and surrogates feed "
                "both networks the same normalised numbers, so they do not see the change of "
                "statistics and are no distance between what the two policies do.",
                self.config.policy,
                " and ".join(self.statistics),
            )

    def _rows(self, step: int) -> NDArray[np.int64]:
        assert self.sampler is not None
        epoch, position = divmod(step, self.steps_per_epoch)
        order = generator(self.config.seed, "bc order", epoch).permutation(len(self.sampler))
        rows: NDArray[np.int64] = order[position :: self.steps_per_epoch]
        return rows

    def _gradient_step(self, step: int) -> Metrics:
        assert self.sampler is not None
        # Noise, augmentation and dropout draw from torch's global stream.
        apart = (self.ranks.rank,) if self.ranks.size > 1 else ()
        torch.manual_seed(derive(self.config.seed, "bc step", step, *apart))
        factor = learning_rate_factor(step, self.num_steps, self.bc)
        for group in self.optimizer.param_groups:
            group["lr"] = self.bc.learning_rate * factor
        self.policy.module.train()
        rows = self._rows(step)
        mine = rows[self.ranks.share]
        # The parts of a mean, so that their sum over the ranks is the mean over all rows.
        share = self.sampler.weight(mine) / self.sampler.weight(rows)
        with autocast(self.policy.device, self.bc.bf16):
            loss, found = self.policy.bc_loss(self.sampler.batch(mine))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The cloning loss became {float(loss)} at gradient step {step + 1}",
                remedy="Lower `bc.learning_rate`, or set `bc.bf16: false`. The last checkpoint is "
                "intact.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        (loss * share).backward()
        self.ranks.sum_gradients(self.parameters)
        norm = clip_gradients(self.parameters, self.bc.max_grad_norm)
        self.optimizer.step()
        self.policy.module.eval()
        found = {**found, "loss": loss.detach()}
        numbers = {
            k: share * float(x) for k, x in found.items() if isinstance(x, int | float | Tensor)
        }
        return {
            **self.ranks.totals(numbers),
            "grad_norm": norm,
            "learning_rate": self.bc.learning_rate * factor,
        }
