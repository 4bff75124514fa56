"""The one training loop: update -> log -> checkpoint -> track, for every method.

Everything that can be wrong is checked before anything is written. All random numbers are derived
from (seed, purpose, update), so a checkpoint needs weights, optimizer and counters only, and a
resumed run equals the uninterrupted one bit for bit on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from robo_razor.core.errors import (
    CheckpointError,
    EnvError,
    PolicyError,
    TrainingError,
)
from robo_razor.core.files import check_writable
from robo_razor.core.fingerprint import differences, fingerprint, policy_hash
from robo_razor.core.interrupts import Interrupts, interruptible
from robo_razor.core.machine import (
    check_path_length,
    keep_freed_memory,
    resolve_device,
    torch_threads,
)
from robo_razor.core.metrics import (
    ROLLOUT_SUCCESS,
    TRACKING_SHARE,
    TRAIN_KL,
    TRAIN_LOSS,
    Summary,
)
from robo_razor.core.ranks import ALONE, Ranks, launched
from robo_razor.core.run import messages
from robo_razor.core.run.directory import refuse_used_directory
from robo_razor.core.run.display import format_seconds
from robo_razor.core.run.listener import Listener
from robo_razor.core.run.log import RunLog
from robo_razor.core.run.training_state import fits
from robo_razor.core.seeding import derive
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DemonstrationSet, EpisodeBatch, EpisodeRow
from robo_razor.evaluation.tracker import Tracker
from robo_razor.policies.normalisation import check_statistics
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import Mode
from robo_razor.training.checkpoint import (
    Checkpoint,
    check_room_for,
    open_directory,
    trainable,
)
from robo_razor.training.learner import Context, LearnerState
from robo_razor.training.preflight import (
    check_base,
    check_settings,
    method_of,
    regularisers_of,
)
from robo_razor.training.regularisers import Penalties
from robo_razor.training.resumption import settle_resume, stored_config, with_task_id
from robo_razor.training.simulation import Simulation
from robo_razor.training.update import Metrics, bf16_is_fast

logger = logging.getLogger(__name__)

SNAPSHOT_PARAMETERS = 100_000_000
"""Up to this size an update can be undone from RAM, so Ctrl-C need not wait for its end."""
ENV_RETRIES = 2
"""How often in a row work is repeated in new environments after a fault of the environments."""


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a run.

    Attributes:
        run: The run directory.
        step: Updates done.
        best_step: Step of the checkpoint with the best lower bound on the new task.
        summary: The last checkpoint's `summary.json`.
        tracking_share: Share of the wall time that tracking took.
    """

    run: Path
    step: int
    best_step: int | None
    summary: dict[str, Any]
    tracking_share: float


def finetune(
    config: FinetuneConfig, listener: Listener | None = None, base_hash: str | None = None
) -> FinetuneResult:
    """Fine-tune a policy and measure at every checkpoint what it forgets.

    Args:
        config: The run's settings. With `resume`, the settings in the run directory count instead.
        listener: Receives the run's progress, e.g. a `Display`; None: nothing is shown.
        base_hash: The hash that the base must have (`policy_hash`); None: any.

    Returns:
        Where the run is, and what it reached.

    Raises:
        RoboRazorError: Something does not fit; nothing was overwritten.
        KeyboardInterrupt: The run was interrupted; a checkpoint was saved first.
    """
    config = with_task_id(stored_config(settle_resume(config)))
    prior = check_settings(config)
    ranks = launched(config.device)
    if config.out is not None:
        check_path_length(config.out)
    if ranks.is_main and not config.resume and config.out is not None:
        refuse_used_directory(config.out, resumable=True)
    if ranks.is_main:
        check_writable(config.out or "runs", "out", directory=True)
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(torch_threads(config.torch_threads, ranks.size))
        interrupts = stack.enter_context(interruptible())
        if listener is None or not ranks.is_main:
            listener = Listener()
        trainer = Trainer(config, prior, threads, listener, stack, ranks, base_hash)
        return trainer.run(interrupts)


class Trainer:
    """One run of `finetune`, with its environments, policies, learner and log.

    Args:
        config: The run's settings, validated.
        prior: Skill name -> task id of the skills that may be forgotten.
        threads: CPU threads of torch for updates.
        listener: Receives the run's progress.
        stack: Closes what is opened here.
        ranks: This process among the processes of the run.
        base_hash: The hash that the base must have; None: any.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        prior: dict[str, str],
        threads: int,
        listener: Listener,
        stack: contextlib.ExitStack,
        ranks: Ranks = ALONE,
        base_hash: str | None = None,
    ) -> None:
        self.config, self.listener, self.ranks = config, listener, ranks
        self.prior = prior
        device = resolve_device(config.device)
        self.base = self._load(config.policy, device, base_hash).frozen_copy()
        check_base(self.base, config, prior)
        self.simulation = Simulation(config, self.base, prior, threads, ranks)
        stack.callback(self.simulation.close)
        env = self.simulation.env
        check_statistics(self.base, config)
        self.run_directory, self.stored = open_directory(config, ranks, stack)
        self.checkpoint = Checkpoint.load(self.stored) if config.resume else None
        self.policy = self._tuned_policy(device)
        if ranks.is_main:
            check_room_for(self.policy, self.run_directory, config.checkpoint.keep)
        self.policy.share_frozen(self.base)
        self.tracker = Tracker(config, self.run_directory, env, self.base, prior, ranks)
        self.penalties = Penalties(regularisers_of(config))
        self.context = self._context()
        self.learner = method_of(config).learner(self.context)
        self._log: RunLog | None = None
        self.step = 0
        self.tracking_s = 0.0
        self.earlier_s = 0.0
        self.began = time.perf_counter()
        self.episodes = 0
        self.shown: dict[str, float] = {}
        self.half_done = False
        self.saved_at = time.monotonic()
        self.unlike: list[str] = []

    @property
    def log(self) -> RunLog:
        """Return the log of the run; `run` opens and closes it."""
        if self._log is None:
            raise RuntimeError("the log is opened by `Trainer.run`")
        return self._log

    # The run ----------------------------------------------------------------------------------

    def run(self, interrupts: Interrupts) -> FinetuneResult:
        """Go through all updates.

        Args:
            interrupts: Signals that ask the run to stop.

        Raises:
            RunDirectoryError: The system refuses to write; saved checkpoints are intact.
        """
        try:
            self.learner.prepare()
            if self.checkpoint is not None:
                self._resume(self.checkpoint)
            else:
                self.penalties.prepare(self.context)
            total = self.learner.num_updates
            with self._logged(total):
                self._greet(total)
                try:
                    self._loop(total, interrupts)
                except (KeyboardInterrupt, EnvError):
                    self._save_interrupted()
                    raise
                return self._finish(total)
        except OSError as error:
            last = self.stored.last_step()
            raise messages.refused(error, last, self.run_directory.path) from error

    @contextlib.contextmanager
    def _logged(self, total: int) -> Iterator[None]:
        """Write the numbers of the updates to the log, and show how far they are."""
        log = RunLog(
            self.run_directory, start=self.step, sinks=self.config.log, warn=self.listener.warn
        )
        with log as self._log:
            self.listener.begin(total, start=self.step)
            try:
                yield
            finally:
                self.listener.end()

    def _computes_slowly(self) -> bool:
        return self.config.method.bf16 and self.policy.device.type == "cpu" and not bf16_is_fast()

    def _loop(self, total: int, interrupts: Interrupts) -> None:
        checkpoints = self.config.tracking.checkpoints(total)
        if not self.config.resume:
            self._save()
        if self.step > 0 and not self.tracker.is_measured(0):  # its files are lost or damaged
            self._measure(self.base, 0, total)
        if self.tracker.is_measured(self.step):
            self._conclude()
        elif self.step in {0, *checkpoints}:
            self._track(total)
        if self.step == 0 and self.ranks.is_main:  # the first episodes reveal the renderer
            self.run_directory.write_environment(
                fingerprint(policy=self.base, env=self.simulation.env)
            )
        self.learner.check_start(self.tracker.sampled_success)
        while self.step < total:
            self._update(interrupts)
            if self.step in checkpoints:
                self._save()
                self._track(total)
            elif self._is_time_to_save():
                self._save()

    def _update(self, interrupts: Interrupts) -> None:
        """Make one update, completely or not at all."""
        snapshot = self._snapshot() if self.ranks.size == 1 else None
        if snapshot is None:  # then it must end; several ranks cannot stop in the middle either
            interrupts.postponed = True

        def update() -> Metrics:
            self.half_done = True
            try:
                return self.learner.update(self.step + 1)
            except BaseException:
                if snapshot is not None:
                    self._restore(*snapshot)
                    self.half_done = False  # stays true if a second interruption comes before this
                raise

        metrics = update() if snapshot is None else self._retried(update)
        self.step += 1
        self.half_done = False
        self._log_update(metrics)
        interrupts.release(also=any(self.ranks.gather(interrupts.pending)))

    def _log_update(self, metrics: Metrics) -> None:
        self.log.metrics(self.step, metrics)
        shown = {
            "success": metrics.get(ROLLOUT_SUCCESS),
            "kl": metrics.get(TRAIN_KL),
            "loss": metrics.get(TRAIN_LOSS),
        }
        self.shown = {key: value for key, value in shown.items() if value is not None}
        self._show_progress()

    def _show_progress(self) -> None:
        episodes = {"episodes": float(self.episodes)} if self.episodes else {}
        self.listener.progress(self.step, **(self.shown | episodes))

    # Checkpoints and tracking -----------------------------------------------------------------

    def _track(self, total: int) -> None:
        """Measure the policy as it is, show the table, and mark the best checkpoint."""
        summary = self._measure(self.policy, self.step, total)
        self.listener.measured(summary)
        share = self._conclude()
        elapsed_s = summary.elapsed_s or 0.0
        note = f"Measured in {format_seconds(summary.tracking_s or 0.0)}"
        if self.step:
            note += f"; tracking took {share:.0%} of {format_seconds(elapsed_s)} so far"
        self.listener.note(f"{note}.")
        if alarm := self.tracker.alarm(summary):
            self.listener.warn(alarm)

    def _measure(self, policy: Policy, step: int, total: int) -> Summary:
        def measure() -> Summary:
            with self.simulation.threads():
                return self.tracker.measure(
                    policy,
                    step,
                    final=step == total,
                    extra=lambda: {"elapsed_s": self._elapsed(), "updates": total},
                )

        return self._retried(measure)

    def _conclude(self) -> float:
        """Log this step's evaluation, mark the best checkpoint, and delete old checkpoints.

        It reads the evaluation from disk: a run that is interrupted here repeats it when resumed.

        Returns:
            Share of the wall time that tracking took so far.
        """
        summary = self.run_directory.summary(self.step)
        self.tracking_s += summary.tracking_s or 0.0
        share = self.tracking_s / max(summary.elapsed_s or 0.0, 1e-9)
        self.log.evaluation(summary, {TRACKING_SHARE: share})
        if self.ranks.is_main:
            best = self.run_directory.best_step()
            if best in self.run_directory.steps():
                self.run_directory.mark_best(best)
            self.run_directory.prune(self.config.checkpoint.keep, best)
        return share

    def _is_time_to_save(self) -> bool:
        minutes = self.config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60.0 * minutes

    def _save(self) -> None:
        self._check_weights()
        if not self.ranks.is_main:
            return
        lora = dict(trainable(self.policy)) if self.config.method.lora_rank else {}
        checkpoint = Checkpoint(
            self.step,
            self.learner.state(),
            self.penalties.state(),
            {name: parameter.detach() for name, parameter in lora.items()},
            self.tracking_s,
            self._elapsed(),
        )
        self.log.flush()  # metrics must be on disk before the checkpoint of their step
        self.run_directory.save_checkpoint(
            self.policy.save, checkpoint.state(), keep=self.config.checkpoint.keep
        )
        self.saved_at = time.monotonic()

    def _check_weights(self) -> None:
        """Check that no trained weight is NaN or infinite: such weights are never saved."""
        for name, parameter in trainable(self.policy):
            if not torch.isfinite(parameter).all():
                raise TrainingError(
                    f"The weights {name} are not finite after update {self.step}",
                    remedy=f"Lower `{self.config.method.name}.learning_rate`. "
                    "The last checkpoint is intact.",
                )

    def _save_interrupted(self) -> None:
        """Save after Ctrl-C or a fault of the environments, unless this step is on disk."""
        go_on = f"Go on with: {messages.how_to_go_on(self.run_directory.path)}"
        if self.half_done:  # the weights are in the middle of an update
            last = self.stored.last_step()
            self.listener.note(
                f"Interrupted within update {self.step + 1}; saved is {last}. {go_on}"
            )
            return
        if self.step != self.stored.last_step():
            self._save()
        self.listener.note(f"Interrupted after update {self.step}, which is saved. {go_on}")

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Restore the counters and the state of learner and regularisers."""
        self.run_directory.drop_evaluations_after(checkpoint.step)  # they are repeated
        with fits(checkpoint.folder):
            self.learner.load_state(checkpoint.learner)
            self.penalties.load_state(checkpoint.penalties)
        self.checkpoint = None  # its tensors are large
        self.tracking_s, self.earlier_s = checkpoint.tracking_s, checkpoint.elapsed_s
        self.step = checkpoint.step
        if self.tracker.is_measured(self.step):  # measured after the checkpoint was saved
            summary = self.stored.summary(self.step)
            self.earlier_s = max(self.earlier_s, summary.elapsed_s or 0.0)
        self.began = time.perf_counter()
        now = fingerprint(policy=self.base, env=self.simulation.env)
        before = self.stored.environment()
        self._refuse_other_base(before.get("policy_hash"), now.get("policy_hash"))
        self.unlike = differences(before, now)
        if self.tracker.is_measured(0):
            self.tracker.load_base()

    def _refuse_other_base(self, before: str | None, now: str | None) -> None:
        if before is not None and now is not None and before != now:
            raise CheckpointError(
                f"The policy {self.config.policy!r} is not the one that this run began with: its "
                f"weights have the hash {now[:12]}, and had {before[:12]}",
                remedy="Restore the old weights to resume (a run's newest or best checkpoint "
                "changes while it trains), or start another run.",
            )

    def _finish(self, total: int) -> FinetuneResult:
        share = self.tracking_s / max(self._elapsed(), 1e-9)
        best = self.stored.best_step()
        if warning := messages.expensive_tracking(share, self.config):
            self.listener.warn(warning)
        self.listener.note(messages.done(total, self._elapsed(), share, best))
        summary = self.run_directory.summary(self.step)
        path = self.ranks.gather(self.run_directory.path)[0]
        return FinetuneResult(path, self.step, best, summary.to_json(), share)

    # Parts of the run -------------------------------------------------------------------------

    def _tuned_policy(self, device: str) -> Policy:
        """Return the policy to tune; of a resumed run, that of the last checkpoint."""
        rank, source = self.config.method.lora_rank, self.config.policy
        if self.checkpoint is not None and not rank:
            source = str(self.stored.pretrained_model(self.checkpoint.step))
        policy = self._load(source, device)
        policy.name = self.config.policy
        if self.config.freeze_vision:
            policy.freeze_vision()
        if rank:
            torch.manual_seed(derive(self.config.seed, "lora"))
            policy.add_lora(rank)  # leaves frozen layers out
            if self.checkpoint is not None:
                with fits(self.checkpoint.folder):
                    self.checkpoint.restore_parameters(policy)
        return policy

    def _load(self, source: str, device: str, expected_hash: str | None = None) -> Policy:
        """Return a policy that is sampled and trained as the settings say.

        Raises:
            PolicyError: It has another hash than the expected one.
        """
        from robo_razor.policies.load import load_policy

        policy = load_policy(source, device, may_lack_statistics=True)
        if expected_hash is not None and policy_hash(policy) != expected_hash:
            raise PolicyError(
                f"The policy {source!r} differs from the one that loads under this name: it was "
                "changed or made in this process",
                remedy="Save it, `policy.save(DIRECTORY)`, and start from "
                "`load_policy(DIRECTORY)`.",
            )
        policy.rename(self.config.rename)
        policy.configure(self.config.flow)
        return policy

    def _retried[T](self, work: Callable[[], T]) -> T:
        """Do work; after a fault of the environments, such as a dead worker, repeat it in new ones.

        Episodes depend on their seeds only, so the result is that of a run without the fault.
        """
        # Several ranks cannot repeat it: those without a fault wait for the others.
        for _ in range(ENV_RETRIES if self.ranks.size == 1 else 0):
            try:
                return work()
            except EnvError as error:
                self.listener.warn(
                    f"{error} The environments are restarted, and the work is repeated."
                )
                self.simulation.restart()
                self.tracker.env = self.simulation.env
        return work()

    def _context(self) -> Context:
        return Context(
            config=self.config,
            policy=self.policy,
            base=self.base,
            rollout=self._rollout,
            demonstrations=self._demonstrations,
            prior=self.prior,
            ranks=self.ranks,
            penalties=self.penalties,
            on_gradient_steps=self._on_gradient_steps,
        )

    def _rollout(
        self,
        rows: Sequence[EpisodeRow],
        *,
        mode: Mode,
        record: bool | Literal["inputs"],
        sampling_seed: int,
        whole: bool = False,
    ) -> EpisodeBatch:
        batch = self.simulation.run(
            self.policy,
            rows,
            mode,
            record,
            self._on_episodes,
            sampling_seed=sampling_seed,
            whole=whole,
        )
        self.episodes += len(batch)
        return batch

    def _on_episodes(self, finished: int, total: int, successes: int) -> None:
        """Show how many episodes of an update are done."""
        if self._log is not None:
            # Without their success so far: successful episodes finish first.
            now = {"episode": float(finished), "episodes": float(self.episodes + finished)}
            self.listener.progress(self.step, **(self.shown | now))

    def _on_gradient_steps(self, done: int, total: int) -> None:
        """Show how many gradient steps of an update are done."""
        self.listener.progress(self.step, **(self.shown | {"gradient_step": float(done)}))

    def _demonstrations(self) -> DemonstrationSet:
        from robo_razor.rollout.demonstrations import demonstrations_for
        from robo_razor.training.methods.bc import demonstration_source

        with self.simulation.threads():
            env = self.simulation.env if self.ranks.is_main else None  # one rank warns
            source = demonstration_source(self.config)
            demonstrations = demonstrations_for(source, self.base, self.listener.console, env)
        self.tracker.see_demonstrations(demonstrations)
        return demonstrations

    def _snapshot(self) -> tuple[dict[str, torch.Tensor], LearnerState] | None:
        """Return a copy of weights and optimizer, unless they are too large for two."""
        parameters = trainable(self.policy)
        if sum(p.numel() for _, p in parameters) > SNAPSHOT_PARAMETERS:
            return None
        weights = {name: p.detach().clone() for name, p in parameters}
        return weights, copy.deepcopy(self.learner.state())

    def _restore(self, weights: dict[str, torch.Tensor], state: LearnerState) -> None:
        with torch.no_grad():
            for name, parameter in trainable(self.policy):
                parameter.copy_(weights[name])
        self.learner.load_state(state)

    def _elapsed(self) -> float:
        return self.earlier_s + time.perf_counter() - self.began

    def _greet(self, total: int) -> None:
        if self.config.resume:
            self.listener.note(f"Going on after update {self.step} of {total}.")
        self.listener.note(messages.plan(self.config, total, self.tracker.prior))
        if self._computes_slowly():
            self.listener.warn(messages.slow_bf16(self.config.method.name))
        if self.unlike:
            self.listener.warn(messages.changed_since(self.unlike))
