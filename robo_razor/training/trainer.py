"""The one training loop: update -> log -> checkpoint -> track, for every method.

Everything that can be wrong is checked before anything is written. All random numbers are derived
from (seed, purpose, update), so a checkpoint needs weights, optimizer and counters only, and a
resumed run equals the uninterrupted one bit for bit on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from robo_razor.cli.arguments import with_task_id
from robo_razor.core import metrics as records
from robo_razor.core.device import keep_freed_memory, resolve_device, torch_threads
from robo_razor.core.errors import (
    CheckpointError,
    ConfigError,
    EnvError,
    PolicyError,
    RunDirectoryError,
    TrainingError,
)
from robo_razor.core.files import check_writable, system_refusal
from robo_razor.core.fingerprint import differences, fingerprint
from robo_razor.core.interrupts import Interrupts, interruptible
from robo_razor.core.limits import check_path_length, check_room
from robo_razor.core.ranks import ALONE, Ranks, launched
from robo_razor.core.run.directory import RunDirectory, refuse_used_directory, step_name
from robo_razor.core.run.log import RunLog, format_seconds, summary_table
from robo_razor.core.run.training_state import TrainingState, fits
from robo_razor.core.seeding import derive
from robo_razor.core.settings.config import FinetuneConfig, replace
from robo_razor.core.types import DemonstrationSet, EpisodeBatch, EpisodeRow
from robo_razor.evaluation.tracker import Tracker
from robo_razor.policies.normalisation import check_statistics
from robo_razor.rollout.actors import Mode
from robo_razor.rollout.dataset.metadata import renamable
from robo_razor.rollout.environments import (
    check_tasks,
    import_env_packages,
    make_env,
    named_tasks,
)
from robo_razor.rollout.groups import workers_beside
from robo_razor.rollout.lerobot import simulated
from robo_razor.rollout.shared import run_shared
from robo_razor.training.methods import (
    METHODS,
    Method,
    MethodState,
    Metrics,
    Services,
    bf16_is_fast,
)
from robo_razor.training.resumption import settle_resume, stored_settings

logger = logging.getLogger(__name__)

SNAPSHOT_PARAMETERS = 100_000_000
"""Up to this size an update can be undone from RAM, so Ctrl-C need not wait for its end."""
ENV_RETRIES = 2
"""How often in a row work is done again in fresh environments after a fault of theirs."""
MAX_LISTED = 12
"""A greeting names the steps of at most so many checkpoints."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a run left behind.

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


def finetune(config: FinetuneConfig, console: Console | None = None) -> FinetuneResult:
    """Fine-tune a policy and measure at every checkpoint what it forgets.

    Args:
        config: The run's settings. With `resume`, those stored in the run directory count instead.
        console: Where progress is shown; default: standard output.

    Returns:
        What the run left behind.

    Raises:
        RoboRazorError: Something does not fit; nothing was overwritten.
        KeyboardInterrupt: The run was interrupted; a checkpoint was saved first.
    """
    config = settle_resume(config)
    if config.resume:
        config = stored_config(config)
    config = with_task_id(config)
    prior = validate(config)
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
        trainer = Trainer(config, prior, threads, _console(console, ranks), stack, ranks)
        return trainer.run(interrupts)


def _clears(run: RunDirectory) -> Callable[..., None]:
    """Return what removes a run that failed before its first checkpoint: nothing could resume it.

    It is a context manager's exit.
    """

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and run.last_step() is None:
            with contextlib.suppress(OSError, RunDirectoryError):  # a link, a mount point
                run.discard_unstarted()

    return leave


def _columns(config: FinetuneConfig) -> Collection[str]:
    """Return the columns of the data set that is cloned, which `rename` may name; else none."""
    return renamable(config.bc.demonstrations) if config.method == "bc" else ()


def _console(console: Console | None, ranks: Ranks) -> Console:
    return (console or Console()) if ranks.is_main else Console(file=io.StringIO())


def stored_config(config: FinetuneConfig) -> FinetuneConfig:
    """Return the settings of the run that `config` asks to go on with."""
    assert config.out is not None  # FinetuneConfig checks it
    run = RunDirectory.open(config.out)
    stored = stored_settings(run, config.env.env_packages)
    return replace(stored, out=config.out, resume=True)


def validate(config: FinetuneConfig) -> dict[str, str]:
    """Check names and settings before anything is loaded; return the prior skills' tasks.

    Raises:
        RoboRazorError: A method, task or setting cannot be used.
    """
    method = METHODS.get(config.method)
    import_env_packages(config.env.env_packages)
    check_tasks([config.task])
    prior = _without_new(named_tasks(config.prior_tasks, config.env.env_packages), config)
    method.validate(config)
    return prior


def _without_new(prior: dict[str, str], config: FinetuneConfig) -> dict[str, str]:
    """Return the prior skills' tasks but for those that are the new task, by whatever name.

    Raises:
        ConfigError: One of them was asked for by its name, and not as one of a group.
    """
    settings = config.env.lerobot
    new = simulated(config.task, settings)
    same = {skill: task for skill, task in prior.items() if simulated(task, settings) == new}
    listed = {part.strip() for part in config.prior_tasks.split(",")}
    for skill, task in same.items():
        if {skill, task} & listed:
            raise ConfigError(
                f"`prior_tasks` contains {task!r}, which is the new task {config.task!r}",
                remedy="Remove it there: one does not forget what one is learning.",
            )
        if task != config.task:
            logger.warning("%s is left out of the prior skills: it is the new task", task)
    return {skill: task for skill, task in prior.items() if skill not in same}


class Trainer:
    """One run of `finetune`: owns the environment, the policy, the method and the log.

    Args:
        config: The run's settings, validated.
        prior: Skill name -> task id of the skills that may be forgotten.
        threads: CPU threads of torch for updates.
        console: Where progress is shown.
        stack: Closes what is opened here.
        ranks: This process among those of the run.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        prior: dict[str, str],
        threads: int,
        console: Console,
        stack: contextlib.ExitStack,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.console, self.threads, self.ranks = config, console, threads, ranks
        device = resolve_device(config.device)
        self.base = self._load(config.policy, device).frozen_copy()
        self.base.check_finetuning(config.flow)
        method = METHODS.get(config.method)
        if method.needs_density and not self.base.has_density:
            raise PolicyError(
                f"The policy {config.policy!r} has no action density, which the method "
                f"{config.method!r} needs",
                remedy="Clone it instead (`--method bc`), or choose a policy with action tokens "
                "such as razor-base, or a flow-matching one (smolvla, pi0, pi05).",
            )
        self.prior = prior
        self.env = self._make_env()
        stack.callback(lambda: self.env.close())
        # The workers need the cores while episodes run.
        self.rollout_threads = max(1, threads - workers_beside(self.env))
        self.base.check_env(
            self.env.single_observation_space, self.env.single_action_space, _columns(config)
        )
        check_statistics(self.base, config)
        self.run_directory = self._open_directory(stack)
        self.policy = self._tuned_policy(device)
        self._check_room()
        self.policy.share_frozen(self.base)
        self.tracker = Tracker(config, self.run_directory, self.env, self.base, prior, ranks)
        self.method: Method = method(config, self.policy, self.base, self._services())
        self.log: RunLog | None = None
        self.step = 0
        self.tracking_s = 0.0
        self.earlier_s = 0.0
        self.began = time.perf_counter()
        self.episodes = 0
        self.shown: dict[str, float] = {}
        self.half_done = False
        self.saved_at = time.monotonic()
        self.unlike: list[str] = []

    # The run ----------------------------------------------------------------------------------

    def run(self, interrupts: Interrupts) -> FinetuneResult:
        """Go through all updates.

        Args:
            interrupts: Signals that ask the run to stop.

        Raises:
            RunDirectoryError: The system refuses to write; what was saved before is intact.
        """
        try:
            self.method.prepare()
            if self.config.resume:
                self._resume()
            total = self.method.num_updates
            with RunLog(
                self.run_directory, total=total, start=self.step, console=self.console
            ) as self.log:
                self._greet(total)
                try:
                    self._loop(total, interrupts)
                except (KeyboardInterrupt, EnvError):
                    self._save_interrupted()
                    raise
                return self._finish(total)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RunDirectoryError:
        """Return what to tell about a disk that is full, a folder that is gone, and so on."""
        last = self.stored.last_step()
        intact = (
            "Nothing was saved yet: mend that and start again."
            if last is None
            else f"The checkpoint of step {last} is intact. Mend that (make room, say), then go on "
            f"with: robo-razor finetune --resume --out {self.run_directory.path}"
        )
        return RunDirectoryError(system_refusal(error), remedy=intact)

    def _computes_slowly(self) -> bool:
        settings = getattr(self.config, self.config.method)
        on_cpu = self.policy.device.type == "cpu"
        return bool(getattr(settings, "bf16", False)) and on_cpu and not bf16_is_fast()

    def _loop(self, total: int, interrupts: Interrupts) -> None:
        checkpoints = self.config.tracking.checkpoints(total)
        if not self.config.resume:
            self._save()
        if self.step > 0 and not self.tracker.is_measured(0):  # lost, or damaged
            self._measure(self.base, 0, total)
        if self.tracker.is_measured(self.step):
            self._conclude()
        elif self.step in {0, *checkpoints}:
            self._track(total)
        if self.step == 0 and self.ranks.is_main:  # only now does the environment know its renderer
            self.run_directory.write_environment(fingerprint(policy=self.base, env=self.env))
        self.method.check_start(self.tracker.sampled_success)
        while self.step < total:
            self._update(interrupts)
            if self.step in checkpoints:
                self._save()
                self._track(total)
            elif self._is_time_to_save():
                self._save()

    def _update(self, interrupts: Interrupts) -> None:
        """Make one update, all of it or nothing."""
        snapshot = self._snapshot() if self.ranks.size == 1 else None
        if snapshot is None:  # nor can ranks be stopped in the middle of what they do together
            interrupts.postponed = True

        def update() -> Metrics:
            self.half_done = True
            try:
                return self.method.update(self.step + 1)
            except BaseException:
                if snapshot is not None:
                    self._restore(*snapshot)
                    self.half_done = False  # not where a second interruption came meanwhile
                raise

        metrics = update() if snapshot is None else self._retried(update)
        self.step += 1
        self.half_done = False
        self._log_update(metrics)
        interrupts.release(also=any(self.ranks.gather(interrupts.pending)))

    def _log_update(self, metrics: Metrics) -> None:
        assert self.log is not None
        self.log.metrics(self.step, metrics)
        shown = {
            "success": metrics.get("rollout/success_rate"),
            "kl": metrics.get("train/kl_base_tuned"),
            "loss": metrics.get("train/loss"),
        }
        self.shown = {key: value for key, value in shown.items() if value is not None}
        self._show_progress()

    def _show_progress(self) -> None:
        assert self.log is not None
        episodes = {"episodes": float(self.episodes)} if self.episodes else {}
        self.log.progress(self.step, **(self.shown | episodes))

    # Checkpoints and tracking -----------------------------------------------------------------

    def _track(self, total: int) -> None:
        """Measure the policy as it is, show the table, and mark the best checkpoint."""
        assert self.log is not None
        summary = self._measure(self.policy, self.step, total)
        self.log.show(summary_table(summary))
        share = self._conclude()
        spent = f"Measured in {format_seconds(summary['tracking_s'])}"
        self.log.note(
            f"{spent}; tracking took {share:.0%} of {format_seconds(summary['elapsed_s'])} so far."
            if self.step
            else f"{spent}."
        )
        if alarm := self.tracker.alarm(summary):
            self.log.warn(alarm)

    def _measure(self, policy: Any, step: int, total: int) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            with self._rollout_threads():
                return self.tracker.measure(
                    policy,
                    step,
                    final=step == total,
                    extra=lambda: {"elapsed_s": self._elapsed(), "updates": total},
                )

        return self._retried(measure)

    def _conclude(self) -> float:
        """Do what follows from the evaluation of this step, as it is on disk.

        A run that is cut off anywhere in here does all of it again when it goes on.

        Returns:
            Share of the wall time that tracking took so far.
        """
        assert self.log is not None
        summary = self.run_directory.summary(self.step)
        self.tracking_s += float(summary["tracking_s"])
        share = self.tracking_s / max(float(summary["elapsed_s"]), 1e-9)
        self.log.evaluation(summary, {"time/tracking_share": share})
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
        state = self.method.state()
        tensors = {f"method/{name}": tensor for name, tensor in state.tensors.items()}
        if self._has_lora():  # the saved policy has them merged
            tensors |= {f"parameter/{name}": p.detach() for name, p in self._trainable()}
        extra = {
            "method": state.extra,
            "tracking_s": self.tracking_s,
            "elapsed_s": self._elapsed(),
        }
        assert self.log is not None
        self.log.flush()  # the metrics up to here are on disk before the checkpoint that needs them
        self.run_directory.save_checkpoint(
            self.policy.save,
            TrainingState(self.step, state.optimizers, tensors, extra=extra),
            keep=self.config.checkpoint.keep,
        )
        self.saved_at = time.monotonic()

    def _check_weights(self) -> None:
        """Check that no weight that is trained became NaN or infinite: such are never saved."""
        for name, parameter in self._trainable():
            if not torch.isfinite(parameter).all():
                raise TrainingError(
                    f"The weights {name} are not finite after update {self.step}",
                    remedy=f"Lower `{self.config.method}.learning_rate`. The last checkpoint is "
                    "intact.",
                )

    def _save_interrupted(self) -> None:
        """Save after Ctrl-C or a fault of the environment, unless this very step is on disk."""
        assert self.log is not None
        go_on = f"Go on with: robo-razor finetune --resume --out {self.run_directory.path}"
        if self.half_done:  # these weights are of no step
            last = self.stored.last_step()
            self.log.note(f"Interrupted within update {self.step + 1}; saved is {last}. {go_on}")
            return
        if self.step != self.stored.last_step():
            self._save()
        self.log.note(f"Interrupted after update {self.step}, which is saved. {go_on}")

    def _resume(self) -> None:
        """Take over counters and the method's state from the last checkpoint."""
        state = self.stored.load_state()
        self.run_directory.drop_evaluations_after(state.step)  # they are made again
        prefix = "method/"
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.tensors.items()
            if name.startswith(prefix)
        }
        with fits(self.stored.checkpoints / step_name(state.step)):
            self.method.load_state(MethodState(state.optimizers, tensors, state.extra["method"]))
            for key in ("tracking_s", "elapsed_s"):
                records.number(0.0, records.MAX_ELAPSED_S)(state.extra[key], key)
            self.tracking_s, self.earlier_s = state.extra["tracking_s"], state.extra["elapsed_s"]
        self.step = state.step
        if self.tracker.is_measured(self.step):  # which took time after the checkpoint was saved
            summary = self.stored.summary(self.step)
            self.earlier_s = max(self.earlier_s, float(summary["elapsed_s"]))
        self.began = time.perf_counter()
        now = fingerprint(policy=self.base, env=self.env)
        before = self.stored.environment()
        self._refuse_other_base(before.get("policy_hash"), now.get("policy_hash"))
        self.unlike = differences(before, now)
        if self.tracker.is_measured(0):
            self.tracker.load_base()

    def _refuse_other_base(self, before: str | None, now: str | None) -> None:
        if before is not None and now is not None and before != now:
            raise CheckpointError(
                f"The policy {self.config.policy!r} is not the one that this run began with: its "
                f"weights have the hash {now[:12]}, which was {before[:12]}",
                remedy="Bring the old weights back to go on (a run's newest or best checkpoint "
                "changes while it trains), or begin another run.",
            )

    def _finish(self, total: int) -> FinetuneResult:
        assert self.log is not None
        share = self.tracking_s / max(self._elapsed(), 1e-9)
        best = self.stored.best_step()
        if share > self.config.tracking.max_share:
            self.log.warn(
                f"tracking took {share:.0%} of the wall time, more than `tracking.max_share` = "
                f"{self.config.tracking.max_share:.0%}: raise `tracking.every` or lower "
                "`tracking.episodes_prior`."
            )
        self.log.note(
            f"Done: {total} updates in {format_seconds(self._elapsed())}, tracking {share:.0%} of "
            f"it. Best checkpoint: step {best}. Run directory: {self.run_directory.path}"
        )
        summary = self.run_directory.summary(self.step)
        path = self.ranks.gather(self.run_directory.path)[0]
        return FinetuneResult(path, self.step, best, summary, share)

    # What the run is made of ------------------------------------------------------------------

    def _tuned_policy(self, device: str) -> Any:
        """Return the policy to tune, at a resumed run as it was at the last checkpoint."""
        rank = int(getattr(self.config.method_config, "lora_rank", 0))
        source = self.config.policy
        if self.config.resume and not rank:
            step = self.stored.last_step()
            source = str(self.stored.pretrained_model(int(step or 0)))
        policy = self._load(source, device)
        policy.name = self.config.policy
        if self.config.freeze_vision:
            policy.freeze_vision()
        if rank:
            torch.manual_seed(derive(self.config.seed, "lora"))
            policy.add_lora(rank)  # leaves out what is frozen
            if self.config.resume:
                tensors = self.stored.load_state().tensors
                with torch.no_grad():
                    for name, parameter in policy.module.named_parameters():
                        if parameter.requires_grad:
                            parameter.copy_(tensors[f"parameter/{name}"])
        return policy

    def _load(self, source: str, device: str) -> Any:
        """Return a policy that is sampled and trained as the settings say."""
        from robo_razor.policies.load import load_policy

        policy = load_policy(source, device, may_lack_statistics=True)
        policy.rename(self.config.rename)
        policy.configure(self.config.flow)
        return policy

    def _open_directory(self, stack: contextlib.ExitStack) -> RunDirectory:
        """Return where this rank writes, and know (as `stored`) where the run's state is.

        Other ranks than the first keep what they measure in a folder that is thrown away.
        """
        config = self.config
        if self.ranks.is_main:
            resume, out = config.resume, str(config.out)
            run = RunDirectory.resume(out) if resume else RunDirectory.create(config)
            if not resume:
                stack.push(_clears(run))
            stack.callback(run.close)
            self.stored = run
            self.ranks.gather(None)  # the others look at what is whole only now
            return run
        self.ranks.gather(None)
        own = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        run = RunDirectory.create(replace(config, out=str(own), resume=False))
        stack.callback(run.close)
        self.stored = run
        if config.resume:
            self.stored = RunDirectory.open(str(config.out))
            shutil.copytree(self.stored.path / "eval", own / "eval", dirs_exist_ok=True)
        return run

    def _check_room(self) -> None:
        """Check that the checkpoints will fit: weights, and the two moments of AdamW."""
        if not self.ranks.is_main:
            return
        size = sum(p.numel() * p.element_size() for p in self.policy.module.parameters())
        size += 8 * sum(p.numel() for _, p in self._trainable())
        there = len(self.run_directory.steps())
        kept = self.config.checkpoint.keep + 2  # the best, and the one being written
        check_room(self.run_directory.path, size, max(1, kept - there))

    def _make_env(self) -> Any:
        return make_env(
            self.config.task,
            self.config.env,
            chunk_size=self.base.chunk_size,
            tasks=tuple(self.prior.values()),
            image_shape=self.base.wanted_image_shape,
        )

    def _retried[T](self, work: Callable[[], T]) -> T:
        """Do work; after a fault of the environment, such as a dead worker, again in a fresh one.

        Episodes depend on their seeds only, so the result is that of a run without the fault.
        """
        # Ranks that are done with theirs wait for the others: they cannot begin again.
        for _ in range(ENV_RETRIES if self.ranks.size == 1 else 0):
            try:
                return work()
            except EnvError as error:
                assert self.log is not None
                self.log.warn(f"{error} They are started anew, and the work is done again.")
                self.env.close()
                self.env = self.tracker.env = self._make_env()
        return work()

    def _services(self) -> Services:
        return Services(
            rollout=self._rollout,
            demonstrations=self._demonstrations,
            on_gradient_steps=self._on_gradient_steps,
            ranks=self.ranks,
        )

    def _rollout(
        self, rows: Sequence[EpisodeRow], *, mode: Mode, record: bool, sampling_seed: int
    ) -> EpisodeBatch:
        self.policy.module.eval()
        with self._rollout_threads():
            batch = run_shared(
                self.ranks,
                self.env,
                self.policy,
                rows,
                mode,
                record,
                self._on_episodes,
                sampling_seed=sampling_seed,
            )
        self.episodes += len(batch)
        return batch

    def _on_episodes(self, finished: int, total: int, successes: int) -> None:
        """Show how far the episodes of an update are."""
        if self.log is not None:
            # Not their success so far: the first to finish are the successful ones.
            now = {"episode": float(finished), "episodes": float(self.episodes + finished)}
            self.log.progress(self.step, **(self.shown | now))

    def _on_gradient_steps(self, done: int, total: int) -> None:
        """Show how far the gradient steps of an update are."""
        if self.log is not None:
            self.log.progress(self.step, **(self.shown | {"gradient_step": float(done)}))

    def _demonstrations(self) -> DemonstrationSet:
        from robo_razor.rollout.demonstrations import demonstrations_for
        from robo_razor.training.methods.bc import demonstration_source

        with self._rollout_threads():
            seen = self.env if self.ranks.is_main else None  # warnings are said once
            source = demonstration_source(self.config)
            found = demonstrations_for(source, self.base, self.console, seen)
        self.tracker.see_demonstrations(found)
        return found

    @contextlib.contextmanager
    def _rollout_threads(self) -> Iterator[None]:
        torch.set_num_threads(self.rollout_threads)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in self.policy.module.named_parameters() if p.requires_grad]

    def _has_lora(self) -> bool:
        return int(getattr(self.config.method_config, "lora_rank", 0)) > 0

    def _snapshot(self) -> tuple[dict[str, torch.Tensor], MethodState] | None:
        """Copy weights and optimizer, unless they are too large to keep twice."""
        trainable = self._trainable()
        if sum(p.numel() for _, p in trainable) > SNAPSHOT_PARAMETERS:
            return None
        weights = {name: p.detach().clone() for name, p in trainable}
        return weights, copy.deepcopy(self.method.state())

    def _restore(self, weights: dict[str, torch.Tensor], state: MethodState) -> None:
        with torch.no_grad():
            for name, parameter in self._trainable():
                parameter.copy_(weights[name])
        self.method.load_state(state)

    def _elapsed(self) -> float:
        return self.earlier_s + time.perf_counter() - self.began

    def _greet(self, total: int) -> None:
        assert self.log is not None
        what = "Going on with" if self.config.resume else "Run directory:"
        self.log.note(f"{what} {self.run_directory.path}")
        skills = ", ".join(self.tracker.prior) or "none"
        steps = self.config.tracking.checkpoints(total)
        listed = ", ".join(map(str, steps)) if len(steps) <= MAX_LISTED else f"{len(steps)} of them"
        self.log.note(
            f"{self.config.method} on {self.config.task} from {self.config.policy}: {total} "
            f"updates, checkpoints after {listed}. Prior skills: {skills}."
        )
        if self._computes_slowly():
            self.log.warn(
                f"{self.config.method}.bf16 is set, but this processor has no instructions for "
                "bfloat16 and emulates them: expect several times the time it takes without."
            )
        if self.unlike:
            self.log.warn(
                f"since this run began, something changed that its results depend on: "
                f"{'; '.join(self.unlike)}. What is measured from now on may not be comparable."
            )
