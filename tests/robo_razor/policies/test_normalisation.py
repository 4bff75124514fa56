"""Whose statistics a policy normalises with, and that none are missing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tiny_vla
import torch
from toy_policy import save_tiny_policy, tiny_policy
from toy_runs import (
    assert_same_weights,
    finetune,
    interrupt_at,
    quiet,
    run_config,
    summary,
    weights,
)

from robo_razor.core.errors import ConfigError, PolicyError
from robo_razor.core.settings.config import (
    EnvConfig,
    FinetuneConfig,
    TrackingConfig,
    replace,
)
from robo_razor.policies.load import load_policy
from robo_razor.policies.normalisation import check_statistics, statistics_of, with_statistics
from robo_razor.training import imitation
from robo_razor.training.imitation import DemonstrationLearner
from robo_razor.training.methods.bc import BC
from robo_razor.training.trainer import Trainer

STATE, ACTION = "observation.state", "action"
THEIRS = FinetuneConfig(method=BC(statistics="demonstrations"))
TRACKING = TrackingConfig(
    every=100,  # at the start and the end
    episodes_new=2,
    episodes_new_sampled=2,
    episodes_prior=1,
    kl_states=8,
    final_episodes_new=2,
    max_share=1.0,
)


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    return tiny_vla.save_tiny_other(tmp_path_factory.mktemp("act") / "policy", "act")


@pytest.fixture(scope="module")
def razor(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("razor"))


def settings(base, out, **changes):
    method = {"episodes": 6, "epochs": 8, "batch_size": 16, "statistics": "demonstrations"}
    env = EnvConfig(num_envs=8, num_workers=1, image_size=16, env_packages=("toy_env",))
    method |= {"learning_rate": 1e-3, "warmup_steps": 0} | changes.pop("bc", {})
    sections = {"bc": BC(**method)}
    return run_config(base, out, "bc", sections, env=env, tracking=TRACKING, **changes)


def normalisers(policy):
    steps = [*policy.preprocessor.steps, *policy.postprocessor.steps]
    return [step for step in steps if hasattr(step, "norm_map")]


def without(policy, *keys):
    """Take statistics away, as from a checkpoint that was saved without."""
    for step in normalisers(policy):
        step.stats = {key: statistics for key, statistics in step.stats.items() if key not in keys}
        step.to(device=step.device)
    return policy


def held(policy, key=STATE):
    return {name: torch.as_tensor(x) for name, x in normalisers(policy)[0].stats[key].items()}


def at(run, step):
    return load_policy(str(run / "checkpoints" / f"{step:06d}"))


def test_statistics_are_those_of_all_frames():
    values = np.random.default_rng(0).normal(3.0, 2.0, (500, 2)).astype(np.float32)
    statistics = statistics_of(values)
    for name in ("mean", "std", "min", "max"):
        expected = getattr(values.astype(np.float64), name)(0)
        np.testing.assert_allclose(statistics[name].numpy(), expected, rtol=1e-5)
    for name, share in (("q01", 0.01), ("q10", 0.1), ("q90", 0.9), ("q99", 0.99)):
        np.testing.assert_allclose(
            statistics[name].numpy(), np.quantile(values, share, 0), rtol=1e-5
        )


def test_what_never_or_hardly_changes_is_not_blown_up():
    values = np.zeros((1000, 2), np.float32)
    values[:, 0] = 0.3
    values[0, 1] = 1.0
    statistics = {name: x.tolist() for name, x in statistics_of(values).items()}
    assert statistics["std"][0] == 1.0
    assert statistics["mean"][0] == pytest.approx(0.3)
    for lower, upper in (("min", "max"), ("q01", "q99"), ("q10", "q90")):
        assert statistics[upper][0] - statistics[lower][0] == pytest.approx(2.0)
        assert (statistics[lower][1], statistics[upper][1]) == (0.0, 1.0)


def test_other_statistics_are_used_saved_and_leave_copies_alone(act, tmp_path):
    policy = load_policy(act)
    base = policy.frozen_copy()
    old = {key: held(base, key)["mean"] for key in (STATE, ACTION)}
    cameras = held(base, "observation.images.front")
    other = {
        key: statistics_of(np.random.default_rng(i).random((50, n), dtype=np.float32))
        for i, (key, n) in enumerate(((STATE, tiny_vla.STATE), (ACTION, tiny_vla.A)))
    }
    policy.use_statistics(other)
    policy.save(tmp_path / "saved")
    for changed in (policy, load_policy(tmp_path / "saved")):
        numbers = torch.rand(3, tiny_vla.STATE)
        host = {STATE: numbers, "task": ["x"] * 3}
        expected = (numbers - other[STATE]["mean"]) / other[STATE]["std"]
        assert torch.allclose(changed.preprocessor(host)[STATE], expected, atol=1e-5)
        actions = torch.rand(3, 4, tiny_vla.A)
        expected = actions * other[ACTION]["std"] + other[ACTION]["mean"]
        assert torch.allclose(changed.postprocessor(actions), expected, atol=1e-5)
        # What is learnt is what is executed.
        assert torch.allclose(changed._normalize_action(expected), actions, atol=1e-5)
        for name, tensor in held(changed, "observation.images.front").items():
            assert torch.equal(tensor.flatten(), cameras[name].flatten())
    for key, mean in old.items():
        assert torch.equal(held(base, key)["mean"], mean)
    assert torch.equal(base.postprocessor(torch.zeros(1, tiny_vla.A))[0], old[ACTION])


def test_a_policy_with_all_its_statistics_passes(act, razor):
    for policy in (load_policy(act), load_policy(razor), load_policy("razor-base")):
        for config in (FinetuneConfig(method="ppo"), FinetuneConfig(method="bc"), THEIRS):
            check_statistics(policy, config)


@pytest.mark.parametrize("key", [STATE, ACTION])
def test_missing_statistics_are_refused_unless_they_come_from_demonstrations(act, key):
    policy = without(load_policy(act), key)
    held_key = STATE if key == ACTION else ACTION
    for method in ("bc", "ppo"):
        with pytest.raises(
            PolicyError,
            match=rf"normalises '{key}' \(MEAN_STD\).* no mean and std of it.* statistics are: "
            rf".*{held_key} \(.*mean.*\).*saved with its statistics, or .*--bc.statistics demonstr",
        ):
            check_statistics(policy, FinetuneConfig(method=method))
    check_statistics(policy, THEIRS)


def test_statistics_of_another_mode_do_not_do(act):
    policy = load_policy(act)
    for step in normalisers(policy):
        del step.stats[ACTION]["std"]
    with pytest.raises(PolicyError, match=r"'action' \(MEAN_STD\), .* hold no std of it"):
        check_statistics(policy, FinetuneConfig(method="bc"))


def test_missing_statistics_of_a_camera_are_refused_whatever_is_cloned(act):
    policy = without(load_policy(act), "observation.images.wrist")
    for config in (FinetuneConfig(method="bc"), THEIRS):
        with pytest.raises(PolicyError, match=r"'observation.images.wrist'.*Give a checkpoint"):
            check_statistics(policy, config)


def test_a_policy_that_normalises_nothing_needs_and_takes_no_statistics():
    from lerobot.configs import NormalizationMode

    modes = dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    policy = without(tiny_policy(normalization_mapping=modes), STATE)
    check_statistics(policy, FinetuneConfig(method="bc"))
    with pytest.raises(ConfigError, match="normalises neither its state nor its actions"):
        check_statistics(policy, THEIRS)


def test_a_run_is_refused_before_anything_is_written(razor, tmp_path):
    without(load_policy(razor), STATE).save(tmp_path / "bare")
    run = settings(str(tmp_path / "bare"), tmp_path / "run", bc={"statistics": "base"})
    with pytest.raises(PolicyError, match=r"'observation.state' \(MEAN_STD\)"):
        finetune(run, quiet())
    assert not (tmp_path / "run").exists()
    result = finetune(settings(str(tmp_path / "bare"), tmp_path / "run"), quiet())
    assert held(at(tmp_path / "run", result.step))["std"].shape == (7,)


@pytest.fixture(scope="module")
def finished(razor, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, finetune(settings(razor, out), quiet()).step


def test_step_0_is_the_base_and_the_rest_has_the_demonstrations_statistics(finished, razor):
    run, last = finished
    base, tuned = held(load_policy(razor)), held(at(run, last))
    assert torch.equal(held(at(run, 0))["mean"], base["mean"])
    assert set(summary(run, 0)["kl_base_tuned"].values()) == {0.0}
    assert not torch.allclose(tuned["mean"], base["mean"], atol=1e-3)
    # The last number of the toy's state never changes, so it has a scale that blows nothing up.
    assert tuned["std"].min() > 1e-3


@pytest.mark.parametrize("rank", [0, 2])
def test_a_resumed_run_keeps_its_statistics(razor, finished, tmp_path, monkeypatch, rank):
    """Though the data would now give others; with LoRA the policy is loaded from the base."""
    run, last = finished
    assert last >= 2
    if rank:
        run = tmp_path / "whole"
        finetune(settings(razor, run, bc={"lora_rank": rank}), quiet())
    again = settings(razor, tmp_path / "run", bc={"lora_rank": rank})
    interrupt_at(monkeypatch, DemonstrationLearner, last, again)
    before = held(at(tmp_path / "run", last - 1))
    monkeypatch.setattr(
        imitation,
        "demonstration_statistics",
        lambda *_: {STATE: {name: 7.0 * x for name, x in before.items()}},
    )
    finetune(replace(again, resume=True), quiet())
    for name, tensor in held(at(run, last)).items():
        assert torch.equal(held(at(tmp_path / "run", last))[name], tensor)
    assert_same_weights(weights(run, last), weights(tmp_path / "run", last))


def test_the_base_keeps_its_own_and_what_is_learnt_from_is_prepared_anew(
    razor, tmp_path, monkeypatch, caplog
):
    seen = {}
    track = Trainer._track

    def look(self, total):
        track(self, total)
        seen[self.step] = (
            held(self.base)["mean"],
            held(self.policy)["mean"],
            self.learner.sampler.batch(np.arange(4))[STATE],
            self.learner.demonstrations.state[self.learner.sampler.frames[:4]],
        )

    monkeypatch.setattr(Trainer, "_track", look)
    with caplog.at_level(logging.WARNING):
        last = finetune(settings(razor, tmp_path / "run"), quiet()).step
    assert "replaces the statistics with which" in caplog.text
    assert "normalises observation.state. With other statistics the same weights are" in caplog.text
    of_base = held(load_policy(razor))
    of_tuned = held(at(tmp_path / "run", last))
    for step, used in ((0, of_base), (last, of_tuned)):
        base, tuned, batch, raw = seen[step]
        assert torch.equal(base, of_base["mean"])
        assert torch.equal(tuned, used["mean"])
        expected = (torch.from_numpy(raw) - used["mean"]) / (used["std"] + 1e-8)
        assert torch.allclose(batch, expected, atol=1e-5)


def test_a_flow_policy_acts_and_learns_with_them(tmp_path):
    base = tiny_vla.save_tiny_smolvla(tmp_path / "policy")
    last = finetune(settings(base, tmp_path / "run", bc={"epochs": 1}), quiet()).step
    tuned, of_base = at(tmp_path / "run", last), load_policy(base)
    for key in (STATE, ACTION):
        assert not torch.allclose(held(tuned, key)["mean"], held(of_base, key)["mean"], atol=1e-3)
    chunk = torch.zeros(1, 4, tiny_vla.A)
    assert torch.allclose(tuned.postprocessor(chunk)[0, 0], held(tuned, ACTION)["mean"])


def test_with_statistics_leaves_other_steps_shared(act):
    pipeline = load_policy(act).preprocessor
    changed = with_statistics(pipeline, {ACTION: statistics_of(np.ones((2, 5), np.float32))})
    same = [new is old for new, old in zip(changed.steps, pipeline.steps, strict=True)]
    assert same.count(False) == 1
