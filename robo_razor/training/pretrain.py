"""Make the base policy from scratch: demonstrations, perception, cloning, corrections.

1. The scripted experts of the prior skills act, with disturbances, and label every state they
   visit.
2. The image encoder learns where the landmarks are (simulation gives those labels for free).
3. The policy is cloned, with the landmark loss as an auxiliary.
4. Rounds of corrections: the policy acts, the experts label the states it visits, and cloning
   continues with all data. From the second round on, skills that failed more often get more
   episodes.

The saved weights are an exponential moving average over the gradient steps. The data never contain
new tasks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from robo_razor.core.errors import EnvError
from robo_razor.core.files import check_writable, write_json
from robo_razor.core.fingerprint import fingerprint
from robo_razor.core.machine import cpu_count, keep_freed_memory
from robo_razor.core.plain_text import skill_name
from robo_razor.core.run.directory import RunDirectory, refuse_used_directory
from robo_razor.core.run.display import Display
from robo_razor.core.run.log import RunLog
from robo_razor.core.run.training_state import TrainingState
from robo_razor.core.seeding import derive, generator, training_seeds
from robo_razor.core.settings.config import PretrainConfig, to_dict
from robo_razor.core.types import EpisodeRow
from robo_razor.policies.load import create_policy
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Actor, Disturbance, ExpertActor, NoisyActor, PolicyActor
from robo_razor.rollout.environments import make_env, resolve_tasks
from robo_razor.rollout.expert_labels import LabelledDecisions, collect_labelled, join
from robo_razor.rollout.groups import VectorEnv, has_expert
from robo_razor.training.schedules import cosine, warm_up
from robo_razor.training.step import Loss
from robo_razor.training.update import Part, Update, autocast, bf16_is_fast

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 25
KEPT_CHECKPOINTS = 10
PRESENCE_WEIGHT = 0.3
EVEN_SHARE = 0.25
"""Weight of every skill in later corrections, in addition to its failure rate."""


class MovingAverage:
    """Exponential moving average of a module's parameters, with a warm-up of the decay.

    Args:
        module: What to average.
        decay: Weight of the past per step, in [0, 1).
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.shadow = {name: value.detach().clone() for name, value in module.named_parameters()}

    def update(self, module: torch.nn.Module) -> None:
        """Move towards the module's current parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, value in module.named_parameters():
                self.shadow[name].lerp_(value, 1 - decay)

    def copy_to(self, module: torch.nn.Module) -> None:
        """Write the average into a module."""
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(self.shadow[name])


class Pretraining:
    """One run of `robo-razor pretrain`.

    Args:
        config: Settings.
        console: Where to report.
    """

    def __init__(self, config: PretrainConfig, console: Console) -> None:
        self.config, self.console = config, console
        self.tasks = resolve_tasks(config.tasks, config.env.env_packages)
        self.step = 0
        self.began = time.monotonic()
        self.policy: Policy
        self.updater: Update
        self.average: MovingAverage
        self.history: list[dict[str, Any]] = []
        self.bf16 = bf16_is_fast() if config.bf16 is None else config.bf16

    # ---- data ----------------------------------------------------------------------------------

    def rows(self, episodes: int, round_: int) -> list[EpisodeRow]:
        """Return the start states of a round: `episodes` a task on average, tasks interleaved."""
        counts = self._episodes_of_task(episodes)
        seeds = {
            task: training_seeds(count, self.config.seed, "pretrain", "round", round_, task)
            for task, count in counts.items()
        }
        return [
            EpisodeRow(task, int(seeds[task][i]))
            for i in range(max(counts.values()))
            for task in self.tasks
            if i < counts[task]
        ]

    def _episodes_of_task(self, episodes: int) -> dict[str, int]:
        """Divide a round's episodes by how often each skill failed in the policy's last round."""
        rounds = [entry for entry in self.history if entry.get("round")]
        if not rounds:
            return dict.fromkeys(self.tasks, episodes)
        success = rounds[-1]["success"]
        weights = {task: EVEN_SHARE + 1.0 - success[skill_name(task)] for task in self.tasks}
        mean = sum(weights.values()) / len(weights)
        return {task: max(1, round(episodes * weight / mean)) for task, weight in weights.items()}

    def collect(self, env: VectorEnv, episodes: int, round_: int) -> LabelledDecisions:
        """Collect one round of labelled decisions: 0 by the experts, later ones by the policy."""
        config, rows = self.config, self.rows(episodes, round_)
        start = time.monotonic()
        torch.set_num_threads(1)  # the workers need the cores
        with self._display(len(rows), "episode") as display:
            data = collect_labelled(
                env,
                self.policy,
                self._actor(round_),
                rows,
                style=config.style,
                progress=lambda done, *_: display.progress(done, episodes=done),
            )
        self._set_threads()
        seconds = time.monotonic() - start
        actors = "policy" if round_ else "experts"
        rates = ", ".join(f"{name} {rate:.0%}" for name, rate in data.success.items())
        self.console.print(
            f"round {round_}: {len(data)} decisions of {len(rows)} episodes by the {actors} "
            f"in {seconds:.0f} s ({rates})"
        )
        self.history.append(
            {"round": round_, "decisions": len(data), "success": data.success, "seconds": seconds}
        )
        return data

    def _actor(self, round_: int) -> Actor:
        config = self.config
        seed = derive(config.seed, "pretrain actions", round_)
        if round_:
            return PolicyActor(self.averaged(), "sample", sampling_seed=seed, record="inputs")
        disturbance = Disturbance(config.disturbance, config.noise, seed)
        return NoisyActor(ExpertActor(config.style), disturbance)

    def averaged(self) -> Policy:
        """Return a frozen copy of the policy with the averaged weights."""
        copy_ = self.policy.frozen_copy()
        self.average.copy_to(copy_.module)
        return copy_

    @contextlib.contextmanager
    def _display(self, total: int, unit: str) -> Iterator[Display]:
        display = Display(self.console)
        display.begin(total, unit=unit)
        try:
            yield display
        finally:
            display.end()

    def _set_threads(self) -> None:
        torch.set_num_threads(self.config.torch_threads or cpu_count())

    # ---- training ------------------------------------------------------------------------------

    def normalise_state(self, data: LabelledDecisions) -> None:
        """Rebuild the policy with the data's state statistics, and normalise the data."""
        state = data.inputs["observation.state"]
        mean, std = state.mean(0), state.std(0).clamp_min(0.02)
        self.policy = self._create(mean, std)
        data.inputs["observation.state"] = (state - mean) / std

    def _create(self, mean: Tensor, std: Tensor) -> Policy:
        torch.manual_seed(derive(self.config.seed, "pretrain weights") % 2**31)
        names = self.landmark_names
        return create_policy(
            mean.tolist(),
            std.tolist(),
            num_landmarks=len(names),
            landmark_names=list(names),
            chunk_size=self.config.chunk_size,
            n_action_steps=self.config.chunk_size,
            image_size=self.config.env.image_size,
            presence_weight=PRESENCE_WEIGHT,
            label_smoothing_bins=self.config.label_smoothing_bins,
        )

    def train(
        self,
        data: LabelledDecisions,
        epochs: float,
        phase: str,
        *,
        perception_only: bool,
        last: bool,
    ) -> None:
        """Make gradient steps for `epochs` passes over the data."""
        config, module = self.config, self.policy.module
        per_epoch = math.ceil(len(data) / config.batch_size)
        total = max(1, round(per_epoch * epochs))
        peak = config.perception_learning_rate if perception_only else config.learning_rate
        module.train()
        sums: dict[str, float] = {}
        start = time.monotonic()
        last_info: dict[str, float] = {}
        with self._display(total, f"{phase} step") as display:
            for index in range(total):
                epoch, batch = divmod(index, per_epoch)
                if batch == 0:
                    order = generator(config.seed, "pretrain order", phase, epoch).permutation(
                        len(data)
                    )
                rows = torch.from_numpy(
                    order[batch * config.batch_size : (batch + 1) * config.batch_size]
                )
                self._set_rate(peak, index, total, last)
                loss = partial(self._loss, data.batch(rows), perception_only)
                metrics = self.updater.step([Part(1.0, loss)])
                del metrics["grad_norm"]
                self.average.update(module)
                self.step += 1
                for key, value in metrics.items():
                    sums[key] = sums.get(key, 0.0) + value / LOG_EVERY_STEPS
                if (index + 1) % LOG_EVERY_STEPS == 0:
                    self.log.metrics(
                        self.step, {f"train/{key}": value for key, value in sums.items()}
                    )
                    last_info, sums = sums, {}
                display.progress(index + 1)
        module.eval()
        seconds = time.monotonic() - start
        shown = ", ".join(f"{key} {value:.4f}" for key, value in last_info.items())
        self.console.print(f"{phase}: {total} steps in {seconds:.0f} s ({shown})")
        self.history.append({"phase": phase, "steps": total, "seconds": seconds, **last_info})

    def _loss(self, batch: dict[str, Tensor], perception_only: bool) -> Loss:
        module: Any = self.policy.module  # razor's, with functions that torch's modules lack
        with autocast(module.config.device, self.bf16):
            loss, info = module.landmark_loss(batch) if perception_only else module(batch)
        return Loss(loss, info)

    def _set_rate(self, peak: float, index: int, total: int, last: bool) -> None:
        rate = peak * warm_up(self.step + 1, self.config.warmup_steps)
        if last:
            rate *= cosine(index, total) * 0.98 + 0.02
        self.updater.set_rates(rate)

    # ---- the run -------------------------------------------------------------------------------

    def run(self, run: RunDirectory) -> None:
        """Do all phases and save the policy."""
        config = self.config
        self._set_threads()
        env = make_env(self.tasks[0], config.env, chunk_size=config.chunk_size)
        if not has_expert(env):
            raise EnvError(
                f"The environment of {self.tasks[0]!r} has no scripted expert to clone",
                remedy="Choose tasks of gym_razor, or give your environment a method "
                "`expert_actions(style, length)` (docs/how-to/environments.md).",
            )
        try:
            self.landmark_names = env.metadata["landmark_names"]
            with RunLog(run) as self.log:
                self._phases(env, run)
        finally:
            env.close()

    def _phases(self, env: VectorEnv, run: RunDirectory) -> None:
        config = self.config
        self.policy = self._create(
            torch.zeros(self._state_size(env)), torch.ones(self._state_size(env))
        )
        data = self.collect(env, config.episodes, 0)
        self.normalise_state(data)
        module: Any = self.policy.module  # razor's, with functions that torch's modules lack
        self.updater = Update(
            torch.optim.AdamW(
                module.get_optim_params(),
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
            ),
            [list(module.parameters())],
            max_grad_norm=config.max_grad_norm,
            name="pretraining",
            remedy="Lower `learning_rate`, or set `bf16: false`.",
        )
        self.average = MovingAverage(module, config.ema_decay)
        if config.perception_epochs:
            self.train(
                data, config.perception_epochs, "perception", perception_only=True, last=False
            )
        rounds = config.correction_rounds
        self.train(data, config.epochs, "cloning", perception_only=False, last=rounds == 0)
        self.save(run)
        for round_ in range(1, rounds + 1):
            data = join([data, self.collect(env, config.correction_episodes, round_)])
            last = round_ == rounds
            epochs = config.final_epochs if last else config.correction_epochs
            self.train(data, epochs, f"corrections {round_}", perception_only=False, last=last)
            self.save(run)
        minutes = (time.monotonic() - self.began) / 60
        self.console.print(f"saved {run.pretrained_model(self.step)} after {minutes:.1f} minutes")

    @staticmethod
    def _state_size(env: VectorEnv) -> int:
        return int((env.single_observation_space["agent_pos"].shape or (0,))[0])

    def save(self, run: RunDirectory) -> None:
        """Write a checkpoint with the averaged weights, the settings and the history."""
        state = TrainingState(
            step=self.step, optimizers={"adamw": self.updater.optimizer.state_dict()}
        )
        folder = run.save_checkpoint(self.averaged().save, state, keep=KEPT_CHECKPOINTS)
        record = {
            "config": to_dict(self.config),
            "history": self.history,
            "minutes": (time.monotonic() - self.began) / 60,
            "fingerprint": fingerprint(),
        }
        write_json(folder / "pretraining.json", record)


def pretrain(config: PretrainConfig, console: Console) -> None:
    """Make a base policy as the settings say.

    Args:
        config: Settings of `robo-razor pretrain`.
        console: Where progress is shown.

    Raises:
        UnknownNameError: A task is not registered.
        EnvError: The tasks have no scripted expert.
    """
    refuse_used_directory(config.out)
    check_writable(config.out, "out", directory=True)
    keep_freed_memory()
    pretraining = Pretraining(config, console)
    skills = ", ".join(skill_name(task) for task in pretraining.tasks)
    console.print(f"pretraining on {len(pretraining.tasks)} skills: {skills}")
    run = RunDirectory.create(config)
    try:
        pretraining.run(run)
    finally:
        run.close()
