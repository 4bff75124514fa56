from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal

import pytest
import torch
from toy_env import ToyVectorEnv
from toy_policy import GREEN, RED, save_tiny_policy
from toy_runs import assert_same_weights, finetune, metrics, quiet, run_config, summary, weights

from robo_razor.core.errors import (
    CheckpointError,
    ConfigError,
    DemonstrationError,
    EnvError,
    PolicyEnvMismatchError,
    PolicyError,
    RunDirectoryError,
    TrainingError,
    UnknownNameError,
)
from robo_razor.core.interrupts import Interrupted
from robo_razor.core.settings.config import (
    CheckpointConfig,
    EnvConfig,
    FinetuneConfig,
    TrackingConfig,
)
from robo_razor.evaluation.tracker import Tracker
from robo_razor.training import trainer
from robo_razor.training.imitation import DemonstrationLearner
from robo_razor.training.learner import OnPolicyLearner
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.ppo import PPO

ENV = EnvConfig(num_envs=32, num_workers=1, image_size=16, env_packages=("toy_env",))
TRACKING = TrackingConfig(
    every=2,
    episodes_new=8,
    episodes_new_sampled=6,
    episodes_prior=4,
    kl_states=16,
    final_episodes_new=12,
    max_share=1.0,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("base"))


def settings(base, out, method="ppo", **changes):
    ppo = PPO(
        num_updates=4,
        episodes_per_update=24,
        minibatch_size=64,
        learning_rate=1e-3,
        update_epochs=3,
        value_warmup_updates=1,
    )
    bc = BC(episodes=20, epochs=4, batch_size=16, learning_rate=1e-3)
    changes = {"env": ENV, "tracking": TRACKING} | changes
    return run_config(base, out, method, {"ppo": ppo, "bc": bc}, **changes)


def test_the_new_task_may_be_named_by_its_skill(base, tmp_path):
    with pytest.raises(UnknownNameError, match=r"'ReachBlu'.*Did you mean 'toy/ReachBlue-v0'"):
        finetune(settings(base, tmp_path / "run", task="ReachBlu"), quiet())
    with pytest.raises(ConfigError, match="which is the new task 'toy/ReachBlue-v0'"):
        changes = {"task": "ReachBlue", "prior_tasks": "ReachRed,ReachBlue"}
        finetune(settings(base, tmp_path / "run", **changes), quiet())


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    console = quiet()
    result = finetune(settings(base, out), console)
    return out, result, console.file.getvalue()


def test_every_checkpoint_is_measured_as_the_issue_asks(finished):
    run, _, _ = finished
    for step in (0, 2, 4):
        entry = summary(run, step)
        assert entry["step"] == step
        new = entry["new"]["ReachBlue"]
        assert new["n"] == (12 if step in (0, 4) else 8)
        assert new["interval"][0] <= new["success_rate"] <= new["interval"][1]
        assert new["sampled"]["n"] == 6
        assert set(entry["prior"]) == {"ReachRed", "ReachGreen"}
        for skill in entry["prior"].values():
            assert skill["n"] == 4
            assert "retention" in skill
        for direction in ("kl_base_tuned", "kl_tuned_base"):
            assert set(entry[direction]) == {"new_base_visited", "new_tuned_visited", "prior"}
        assert entry["kl_kind"] == "exact"
        rows = (run / "eval" / f"{step:06d}" / "episodes.jsonl").read_text().splitlines()
        assert len(rows) == new["n"] + 6 + 2 * 4
        kl = json.loads((run / "eval" / f"{step:06d}" / "action_kl.json").read_text())
        assert kl["prior"]["kl_base_tuned"]["n"] == 16


def test_at_step_zero_nothing_is_forgotten_and_the_kl_is_zero(finished):
    entry = summary(finished[0], 0)
    assert set(entry["kl_base_tuned"].values()) == {0.0}
    assert set(entry["kl_tuned_base"].values()) == {0.0}
    assert all(skill["forgetting"] == 0.0 for skill in entry["prior"].values())
    assert all(skill["retention"] in (1.0, None) for skill in entry["prior"].values())


def test_kl_is_measured_without_a_penalty(finished):
    assert finished[1].summary["kl_base_tuned"]["new_base_visited"] > 0.0


def test_the_run_directory_is_complete(finished):
    run, result, output = finished
    assert (run / "checkpoints" / "last").resolve().name == "000004"
    assert (run / "checkpoints" / "best").resolve().name == f"{result.best_step:06d}"
    assert (run / "checkpoints" / "000004" / "pretrained_model" / "model.safetensors").is_file()
    updates = [line for line in metrics(run) if "rollout/success_rate" in line]
    assert [line["step"] for line in updates] == [1, 2, 3, 4]
    for key in (
        "rollout/mean_control_steps",
        "train/approx_kl",
        "train/clip_fraction",
        "train/entropy",
        "train/explained_variance",
        "train/grad_norm",
        "train/kl_base_tuned",
        "time/rollout_s",
        "time/update_s",
    ):
        assert key in updates[-1]
    assert "ReachGreen" in output
    assert "tracking took" in output


def test_the_warm_up_leaves_the_policy_alone(finished):
    lines = metrics(finished[0])
    kl = {line["step"]: line["train/kl_base_tuned"] for line in lines if "train/entropy" in line}
    assert kl[1] == 0.0
    assert kl[2] > 0.0


def test_training_episodes_start_where_no_evaluation_does(finished, base, tmp_path, monkeypatch):
    seeds = []
    collect = OnPolicyLearner._collect

    def watch(self, update):
        batch = collect(self, update)
        seeds.extend(row.seed for row in batch.rows)
        return batch

    monkeypatch.setattr(OnPolicyLearner, "_collect", watch)
    finetune(settings(base, tmp_path / "run"), quiet())
    assert len(set(seeds)) > 90
    assert max(seeds) < 1_000_000


def test_the_same_seed_gives_the_same_run(finished, base, tmp_path):
    other = dataclasses.replace(ENV, num_envs=5, num_workers=3)
    finetune(settings(base, tmp_path / "run", env=other), quiet())
    assert_same_weights(weights(finished[0], 4), weights(tmp_path / "run", 4))


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_that_the_processor_lacks_is_told_before_the_wait(
    base, tmp_path, monkeypatch, fast
):
    monkeypatch.setattr("robo_razor.training.trainer.bf16_is_fast", lambda: fast)
    config = settings(base, tmp_path / "run", "bc")
    console = quiet()
    console.width = 1000
    one_epoch = dataclasses.replace(config.method, epochs=1, bf16=True)
    finetune(dataclasses.replace(config, method=one_epoch), console)
    assert ("bc.bf16 is set, but" in console.file.getvalue()) is not fast


class StopAt:
    """Presses Ctrl-C in the middle of an update."""

    def __init__(self, monkeypatch, method, name, update):
        original = getattr(method, name)
        self.calls = 0

        def stop(instance, *arguments):
            result = original(instance, *arguments)
            self.calls += 1
            if self.calls == update:
                os.kill(os.getpid(), signal.SIGINT)
            return result

        monkeypatch.setattr(method, name, stop)


@pytest.mark.parametrize("method", ["ppo", "bc"])
def test_a_resumed_run_equals_the_uninterrupted_one(base, tmp_path, monkeypatch, method):
    uninterrupted, parted = tmp_path / "whole", tmp_path / "parted"
    tracking = dataclasses.replace(TRACKING, every=0.5)
    expected = finetune(settings(base, uninterrupted, method, tracking=tracking), quiet())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # In the middle of a gradient loop: nothing of that update may stay.
        StopAt(
            patch,
            OnPolicyLearner if method == "ppo" else DemonstrationLearner,
            "_gradient_step",
            25,
        )
        finetune(settings(base, parted, method, tracking=tracking), quiet())
    saved = int((parted / "checkpoints" / "last").resolve().name)
    assert 0 < saved < expected.step
    console = quiet()
    again = finetune(settings(base, parted, method, resume=True), console)
    assert "may not be comparable" not in console.file.getvalue()
    assert again.step == expected.step
    assert_same_weights(weights(uninterrupted, expected.step), weights(parted, expected.step))
    ignored = {"elapsed_s", "tracking_s"}
    expected_summary, resumed_summary = expected.summary, again.summary
    assert {k: v for k, v in expected_summary.items() if k not in ignored} == {
        k: v for k, v in resumed_summary.items() if k not in ignored
    }
    steps = [json.loads(line)["step"] for line in (parted / "metrics.jsonl").open()]
    assert sorted(set(steps)) == list(range(expected.step + 1))


def test_a_checkpoint_of_an_interruption_leaves_no_trace(base, tmp_path, monkeypatch, finished):
    """It depends on when the run was stopped, and so would what is cloned from `best`."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        StopAt(patch, OnPolicyLearner, "_collect", 4)
        finetune(settings(base, run), quiet())
    assert (run / "checkpoints" / "last").resolve().name == "000003"
    result = finetune(settings(base, run, resume=True), quiet())
    assert result.best_step == finished[1].best_step
    uninterrupted = finished[0]
    for folder in ("checkpoints", "eval"):
        names = sorted(item.name for item in (run / folder).iterdir())
        assert names == sorted(item.name for item in (uninterrupted / folder).iterdir())


def test_an_update_that_cannot_be_undone_is_not_saved_half_done(base, tmp_path, monkeypatch):
    """A large policy has no snapshot: the first Ctrl-C waits for the update's end, a second not."""
    run, console = tmp_path / "run", quiet()
    monkeypatch.setattr(trainer, "SNAPSHOT_PARAMETERS", 0)
    step, calls = OnPolicyLearner._gradient_step, []

    def interrupted_twice(self, *args):
        calls.append(args)
        for _ in range(2 if len(calls) == 20 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(OnPolicyLearner, "_gradient_step", interrupted_twice)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings(base, run), console)
    steps = sorted(item.name for item in (run / "checkpoints").iterdir() if not item.is_symlink())
    planned = {"000000", "000002", "000004"}
    assert set(steps) <= planned
    assert re.search(r"Interrupted within update \d; saved is \d", console.file.getvalue())


def test_a_killed_run_goes_on_from_its_last_checkpoint(base, tmp_path, monkeypatch, finished):
    run = tmp_path / "run"

    def die(self, update):
        raise RuntimeError("the machine went away")

    collect = OnPolicyLearner._collect
    with monkeypatch.context() as patch:
        patch.setattr(
            OnPolicyLearner, "_collect", lambda s, k: collect(s, k) if k < 4 else die(s, k)
        )
        with pytest.raises(RuntimeError, match="went away"):
            finetune(settings(base, run), quiet())
    shutil.rmtree(run / "eval" / "000002")  # it died before that was measured
    environment = json.loads((run / "environment.json").read_text())
    assert len(environment["policy_hash"]) == 64
    environment["packages"]["mujoco"] = "3.0.0"
    (run / "environment.json").write_text(json.dumps(environment))
    console = quiet()
    finetune(settings(base, run, resume=True), console)
    output = " ".join(console.file.getvalue().split())
    assert "version of mujoco: 3.0.0 against" in output
    assert_same_weights(weights(finished[0], 4), weights(run, 4))
    assert summary(run, 2)["kl_base_tuned"] == summary(finished[0], 2)["kl_base_tuned"]


def test_a_fault_of_the_environment_loses_no_update(base, tmp_path, monkeypatch, finished):
    class WorkerError(RuntimeError):
        pass

    step_wait = ToyVectorEnv.step_wait
    collect = OnPolicyLearner._collect

    def fail(self):
        raise WorkerError(
            "worker 0 raised X: no GL\nTraceback (most)\n  File\nX\n. Its episodes (a)."
        )

    def break_at_three(self, update):
        if update == 3:
            monkeypatch.setattr(ToyVectorEnv, "step_wait", fail)
        return collect(self, update)

    monkeypatch.setattr(OnPolicyLearner, "_collect", break_at_three)
    tracking = dataclasses.replace(TRACKING, every=4)
    with pytest.raises(EnvError, match=r"X: no GL\. Its episodes \(a\)\. `robo-razor doctor`"):
        finetune(settings(base, tmp_path / "run", tracking=tracking), quiet())
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "000002"
    monkeypatch.setattr(ToyVectorEnv, "step_wait", step_wait)
    monkeypatch.setattr(OnPolicyLearner, "_collect", collect)
    finetune(settings(base, tmp_path / "run", resume=True), quiet())
    assert_same_weights(weights(finished[0], 4), weights(tmp_path / "run", 4))


@pytest.mark.parametrize("when", ["update", "tracking"])
def test_a_passing_fault_of_the_environment_changes_nothing(
    base, tmp_path, monkeypatch, finished, when
):
    class WorkerError(RuntimeError):
        pass

    faults = []
    owner, name = (OnPolicyLearner, "_collect") if when == "update" else (Tracker, "_run_sampled")
    original = getattr(owner, name)
    step_wait = ToyVectorEnv.step_wait

    def dies(self):
        faults.append(self)
        monkeypatch.setattr(ToyVectorEnv, "step_wait", step_wait)
        raise WorkerError("Environment worker 1 died (exit code -6).")

    def break_once(self, *args):
        if len(faults) < 2 and (when == "tracking" or args[0] == 3):
            monkeypatch.setattr(ToyVectorEnv, "step_wait", dies)
        return original(self, *args)

    monkeypatch.setattr(owner, name, break_once)
    console = quiet()
    result = finetune(settings(base, tmp_path / "run"), console)
    assert len(set(map(id, faults))) == 2, "every attempt has environments of its own"
    assert "worker 1 died (exit code -6)" in " ".join(console.file.getvalue().split())
    assert_same_weights(weights(finished[0], 4), weights(tmp_path / "run", 4))
    ignored = {"elapsed_s", "tracking_s"}
    expected = summary(finished[0], 4)
    assert {k: v for k, v in result.summary.items() if k not in ignored} == {
        k: v for k, v in expected.items() if k not in ignored
    }


def test_low_rank_updates_resume_too(base, tmp_path, monkeypatch):
    ppo = PPO(
        num_updates=3, episodes_per_update=24, lora_rank=2, value_warmup_updates=0,
        learning_rate=1e-2, minibatch_size=64,
    )  # fmt: skip
    uninterrupted, parted = tmp_path / "whole", tmp_path / "parted"
    expected = finetune(settings(base, uninterrupted, ppo), quiet())
    assert expected.summary["kl_base_tuned"]["new_base_visited"] > 0.0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        StopAt(patch, OnPolicyLearner, "_collect", 2)
        finetune(settings(base, parted, ppo), quiet())
    finetune(settings(base, parted, ppo, resume=True), quiet())
    assert_same_weights(weights(uninterrupted, 3), weights(parted, 3))


def test_a_run_does_not_go_on_from_another_base(tmp_path, monkeypatch):
    """With LoRA the tuned policy is the base and a small update: both would be wrong."""
    base, run = save_tiny_policy(tmp_path / "base"), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        StopAt(patch, OnPolicyLearner, "_collect", 2)
        finetune(settings(base, run), quiet())
    save_tiny_policy(tmp_path / "base", seed=1)
    with pytest.raises(CheckpointError, match="is not the one that this run began with"):
        finetune(settings(base, run, resume=True), quiet())


def test_a_second_ctrl_c_while_an_update_is_undone_saves_nothing(base, tmp_path, monkeypatch):
    run, console = tmp_path / "run", quiet()
    restore = trainer.Trainer._restore

    def interrupted(self, weights, state):
        restore(self, dict.fromkeys(weights, torch.zeros(())), state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        StopAt(patch, OnPolicyLearner, "_collect", 4)
        patch.setattr(trainer.Trainer, "_restore", interrupted)
        finetune(settings(base, run), console)
    assert sorted(p.name for p in (run / "checkpoints").glob("0*")) == ["000000", "000002"]
    assert "Interrupted within update 4; saved is 2." in console.file.getvalue()


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(base, tmp_path, monkeypatch):
    """It could not be resumed, and its directory would be in the way."""

    def fail(self):
        raise ConfigError("no such style")

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(ConfigError):
        patch.setattr(DemonstrationLearner, "prepare", fail)
        finetune(settings(base, run, "bc"), quiet())
    assert not run.exists()


def test_old_checkpoints_go_and_the_best_stays(base, tmp_path):
    tracking = dataclasses.replace(TRACKING, every=1)
    config = settings(
        base, tmp_path / "run", tracking=tracking, checkpoint=CheckpointConfig(keep=1)
    )
    result = finetune(config, quiet())
    checkpoints = {
        p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if not p.is_symlink()
    }
    assert checkpoints == {"000004", f"{result.best_step:06d}"}
    assert len(list((tmp_path / "run" / "eval").iterdir())) == 5


def test_forgetting_raises_an_alarm(base, tmp_path, monkeypatch):
    original = OnPolicyLearner.update

    def destroy(self, update):
        metrics = original(self, update)
        with torch.no_grad():
            for parameter in self.policy_parameters:
                parameter.zero_()
        return metrics

    tracking = dataclasses.replace(TRACKING, episodes_prior=40)
    expert = save_good_policy(tmp_path / "good")
    monkeypatch.setattr(OnPolicyLearner, "update", destroy)
    console = quiet()
    finetune(settings(expert, tmp_path / "run", tracking=tracking), console)
    entry = summary(tmp_path / "run", 4)
    assert entry["prior_mean"]["forgetting"] > 0.3
    output = " ".join(console.file.getvalue().split())
    assert "prior skills are being forgotten" in output or "skill is being forgotten" in output
    assert re.search(r"-> \d+%", output)


def save_good_policy(directory):
    """Clone the expert on both prior skills for a few seconds."""
    from toy_policy import tiny_policy

    from robo_razor.rollout.actors import ExpertActor
    from robo_razor.rollout.demonstrations import collect_demonstrations
    from robo_razor.rollout.environments import make_env
    from robo_razor.training.learner import Context

    policy = tiny_policy()
    env = make_env(RED, ENV, chunk_size=1)
    for task in (RED, GREEN):
        demos = collect_demonstrations(env, ExpertActor("a"), task, 150, console=quiet())
        config = FinetuneConfig(
            task=task,
            method=BC(epochs=8, batch_size=64, learning_rate=4e-3, warmup_steps=5),
        )
        method = config.method.learner(
            Context(
                config=config,
                policy=policy,
                base=policy,
                rollout=lambda *_, **__: None,
                demonstrations=lambda d=demos: d,
            )
        )
        method.prepare()
        for update in range(1, method.num_updates + 1):
            method.update(update)
    policy.save(directory)
    return str(directory)


def test_zero_base_success_stops_before_anything_is_learnt(base, tmp_path):
    # Two control steps are not enough to get anywhere.
    env = dataclasses.replace(ENV, max_episode_steps=1)
    with pytest.raises(TrainingError, match=r"0 of \d+ sampled.*--method bc"):
        finetune(settings(base, tmp_path / "run", env=env), quiet())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"task": "toy/ReachBlu-v0"}, UnknownNameError, "Did you mean 'toy/ReachBlue-v0'"),
        ({"prior_tasks": "ReachRad"}, UnknownNameError, "Did you mean 'ReachRed'"),
        ({"prior_tasks": "ReachBlue,ReachRed"}, ConfigError, "is the new task 'toy/ReachBlue-v0'"),
        ({"policy": "no-such-policy"}, UnknownNameError, "no-such-policy"),
        ({"env": EnvConfig(env_packages=("toy_env",))}, PolicyEnvMismatchError, "16x16"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(base, tmp_path, change, error, text):
    with pytest.raises(error, match=text):
        finetune(settings(base, tmp_path / "run", **change), quiet())
    assert not (tmp_path / "run").exists()


def test_a_used_output_directory_is_refused(base, finished, tmp_path):
    with pytest.raises(RunDirectoryError, match="--resume"):
        finetune(settings(base, finished[0]), quiet())
    with pytest.raises(RunDirectoryError, match="does not exist"):
        finetune(settings(base, tmp_path / "none", resume=True), quiet())


@pytest.mark.parametrize(
    "file", ["pretrained_model/model.safetensors", "training_state/training_step.json"]
)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_taken(
    base, finished, tmp_path, caplog, file
):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy, symlinks=True)
    damaged = copy / "checkpoints" / "000004" / file
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 4  # one bit
    damaged.write_bytes(data)
    finetune(settings(base, copy, resume=True), quiet())
    assert f"{damaged} is damaged" in caplog.text
    assert "goes on from step 2" in caplog.text
    assert (copy / "checkpoints" / "000004.damaged").is_dir()
    assert_same_weights(weights(finished[0], 4), weights(copy, 4))


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(base, finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy, symlinks=True)
    for file in copy.glob("checkpoints/0*/pretrained_model/model.safetensors"):
        file.write_bytes(file.read_bytes()[:500])
    before = sorted(copy.rglob("*"))
    with pytest.raises(CheckpointError, match="model.safetensors is damaged: it was truncated"):
        finetune(settings(base, copy, resume=True), quiet())
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("became", ["folder", "text", "nothing", "stale"])
def test_a_copy_of_a_run_works_whatever_became_of_its_links(
    base, finished, tmp_path, monkeypatch, became
):
    from robo_razor.policies.load import load_policy

    run, copy = tmp_path / "run", tmp_path / "copy"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        StopAt(patch, OnPolicyLearner, "_collect", 4)
        finetune(settings(base, run), quiet())
    shutil.copytree(run, copy, symlinks=became != "folder")
    for name in ("last", "best"):
        link = copy / "checkpoints" / name
        if became in ("text", "nothing", "stale"):
            target = os.readlink(link)
            link.unlink()
        if became == "text":
            link.write_text(target)
        if became == "stale":
            link.symlink_to("000000")
    newest = weights(run, 3)
    for path in (copy, copy / "checkpoints", copy / "checkpoints" / "last"):
        assert_same_weights(newest, load_policy(str(path)).module.state_dict())
    best = finished[1].best_step if finished[1].best_step != 4 else 2
    policy = load_policy(str(copy / "checkpoints" / "best"))
    assert_same_weights(weights(run, best), policy.module.state_dict())
    finetune(settings(base, copy, resume=True), quiet())
    assert (copy / "checkpoints" / "last").readlink().name == "000004"
    assert_same_weights(weights(finished[0], 4), weights(copy, 4))


def test_a_lost_evaluation_of_the_base_is_made_again(base, finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        StopAt(patch, OnPolicyLearner, "_collect", 4)
        finetune(settings(base, run), quiet())
    shutil.rmtree(run / "eval" / "000000")
    finetune(settings(base, run, resume=True), quiet())
    for step in (0, 4):
        assert summary(run, step)["prior"] == summary(finished[0], step)["prior"]


def test_a_run_saves_itself_by_time_too(base, tmp_path, monkeypatch):
    saved = []
    save = trainer.Trainer._save
    monkeypatch.setattr(
        trainer.Trainer, "_save", lambda self: (saved.append(self.step), save(self))
    )
    checkpoint = CheckpointConfig(every_minutes=1e-9)
    result = finetune(settings(base, tmp_path / "run", checkpoint=checkpoint), quiet())
    assert saved == [0, 1, 2, 3, 4]
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("0*"))
    assert steps == ["000000", "000002", "000004"], "what was saved by time pushes nothing out"
    assert result.step == 4
    assert not (tmp_path / "run" / "eval" / "000001").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_is_known_afterwards(base, tmp_path, monkeypatch, number):
    collect = OnPolicyLearner._collect

    def signalled(self, update):
        if update == 2:
            os.kill(os.getpid(), number)
        return collect(self, update)

    monkeypatch.setattr(OnPolicyLearner, "_collect", signalled)
    with pytest.raises(Interrupted) as caught:
        finetune(settings(base, tmp_path / "run"), quiet())
    assert caught.value.signal == number
    assert (tmp_path / "run" / "checkpoints" / "last").readlink().name == "000001"


def test_a_finished_run_can_be_resumed_without_harm(base, finished):
    before = weights(finished[0], 4)
    result = finetune(settings(base, finished[0], resume=True), quiet())
    assert result.step == 4
    assert_same_weights(before, weights(finished[0], 4))


def test_ppo_needs_a_density(base, tmp_path, monkeypatch):
    import robo_razor.policies.load

    original = robo_razor.policies.load.load_policy

    def without_density(*arguments, **settings):
        handle = original(*arguments, **settings)
        handle.has_density = False
        return handle

    monkeypatch.setattr(robo_razor.policies.load, "load_policy", without_density)
    with pytest.raises(PolicyError, match="--method bc"):
        finetune(settings(base, tmp_path / "run"), quiet())
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_another_runs_checkpoint(base, finished, tmp_path):
    result = finetune(settings(str(finished[0]), tmp_path / "run", "bc"), quiet())
    first, last = summary(tmp_path / "run", 0), summary(finished[0], 4)
    assert first["prior"]["ReachRed"]["success_rate"] == last["prior"]["ReachRed"]["success_rate"]
    assert result.summary["method"] == "bc"


def test_a_misspelt_name_is_refused_before_anything_is_written(base, tmp_path):
    with pytest.raises(PolicyEnvMismatchError, match="frond, which does not exist"):
        finetune(settings(base, tmp_path / "run", rename="{frond: front}"), quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("version", "text"), [("v3.0", "holds no data"), ("v2.1", "not v3")])
def test_a_data_set_may_have_the_names_that_are_renamed(base, tmp_path, version, text):
    """The environment calls it otherwise: only what else is wrong is complained of."""
    meta = tmp_path / "data" / "meta"
    meta.mkdir(parents=True)
    features = {"observation.images.frond": {"dtype": "image"}, "action": {"dtype": "float32"}}
    info = {"codebase_version": version, "features": features}
    (meta / "info.json").write_text(json.dumps(info))
    bc = BC(demonstrations=str(tmp_path / "data"))
    config = settings(base, tmp_path / "run", bc, rename="{frond: front}")
    with pytest.raises(DemonstrationError, match=text):
        finetune(config, quiet())


def test_weights_that_are_not_finite_are_never_saved(base, tmp_path, monkeypatch):
    update = OnPolicyLearner.update

    def overflow(self, number):
        metrics = update(self, number)
        if number == 2:
            with torch.no_grad():
                self.policy_parameters[0].view(-1)[0] = float("inf")
        return metrics

    monkeypatch.setattr(OnPolicyLearner, "update", overflow)
    with pytest.raises(TrainingError, match="are not finite after update 2"):
        finetune(settings(base, tmp_path / "run"), quiet())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("0*")] == ["000000"]


@pytest.mark.parametrize("when", ["before", "later"])
def test_a_full_disk_is_told_with_what_is_intact(base, tmp_path, monkeypatch, when):
    from robo_razor.core.run.directory import RunDirectory

    run = tmp_path / "run"
    save = RunDirectory.save_checkpoint

    def full(self, save_policy, state, **more):
        if when == "before" or state.step == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.checkpoints))
        return save(self, save_policy, state, **more)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", full)
    intact = "Nothing was saved yet" if when == "before" else "step 0 is intact.*--resume --out"
    with pytest.raises(RunDirectoryError, match=f"No space left on device.*{intact}"):
        finetune(settings(base, run), quiet())
    assert run.exists() == (when == "later"), "what cannot be resumed is not in the way"
