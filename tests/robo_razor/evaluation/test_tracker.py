from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from registries import let_add
from toy_demonstrations import demonstrations
from toy_policy import GREEN, NEW, RED, tiny_policy

from robo_razor.core.errors import CheckpointError
from robo_razor.core.plugins import PREDICTORS, load_plugins
from robo_razor.core.quantities import QUANTITIES
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.settings.config import EnvConfig, FinetuneConfig, TrackingConfig
from robo_razor.evaluation.divergences import MEASURES
from robo_razor.evaluation.tracker import Tracker
from robo_razor.rollout.environments import make_env

ENV = EnvConfig(num_envs=16, num_workers=1, image_size=16, env_packages=("toy_env",))
STATES = {
    "new_base_visited", "new_tuned_visited", "demonstrations", "prior", "prior/ReachRed",
    "prior/ReachGreen",
}  # fmt: skip
PRIOR = {"ReachRed": RED, "ReachGreen": GREEN}


@pytest.fixture(scope="module")
def env():
    return make_env(NEW, ENV, chunk_size=4)


def start(env, out, *, distances=False):
    tracking = TrackingConfig(
        episodes_new=4, episodes_new_sampled=4, episodes_prior=3, kl_states=12, distances=distances
    )
    config = FinetuneConfig(task=NEW, out=str(out), env=ENV, tracking=tracking)
    run = RunDirectory.create(config)
    return Tracker(config, run, env, tiny_policy().frozen_copy(), PRIOR)


def frozen_policy(moved=0.0):
    policy = tiny_policy()
    policy.freeze_vision()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.policy_parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    return policy


@pytest.fixture(scope="module")
def measured(env, tmp_path_factory):
    tracker = start(env, tmp_path_factory.mktemp("run") / "run", distances=True)
    tracker.see_demonstrations(demonstrations())
    tracker.measure(frozen_policy(), 0)
    tracker.measure(frozen_policy(0.1), 1)
    return tracker


def kl_file(tracker, step):
    return json.loads((tracker.run.evaluation(step) / "action_kl.json").read_text())


def test_every_measure_is_told_for_every_probe_set(measured):
    entries = kl_file(measured, 1)
    assert set(entries) == STATES
    for states, entry in entries.items():
        assert set(MEASURES) < set(entry)
        assert entry["n"] == 12
        assert entry["temperature"] == 1.0
        assert 0.0 < entry["share_of_tracking"] < 1.0
        kl = entry["kl_base_tuned"]
        assert sum(kl["per_dimension"]["mean"]) == pytest.approx(kl["mean"])
        assert len(kl["per_dimension"]["standard_error"]) == 5
        assert kl["standard_error"] > 0.0
        assert kl["mean"] != entry["kl_tuned_base"]["mean"]
        fixed = states != "new_tuned_visited"
        assert (entry["hash"] == kl_file(measured, 0)[states]["hash"]) == fixed


def test_the_summary_has_all_predictors_under_flat_names(measured):
    summary = measured.run.summary(1)
    assert set(summary.kl_base_tuned) == {"new_base_visited", "new_tuned_visited", "prior"}
    distances = summary.distances
    for states in STATES:
        for name in ("total_variation", "entropy_change", "greedy_disagreement"):
            assert f"{name}/{states}" in distances
        in_summary = states in summary.kl_base_tuned
        assert (f"kl_base_tuned/{states}" in distances) != in_summary
    assert {"weight_l1", "weight_l2", "weight_fisher_l2", "cknna", "sparsity_bf16"} < set(distances)
    assert distances["kl_base_tuned/demonstrations"] > 0.0
    assert summary.entropy > 0.0


def test_the_base_is_at_distance_zero_exactly_on_every_probe_set(measured):
    distances = measured.run.summary(0).distances
    alike = {"cknna", "sparsity_fp32", "sparsity_1e-5", "sparsity_bf16"}
    assert all(value == (1.0 if name in alike else 0.0) for name, value in distances.items())
    assert len(distances) > 30


def test_a_resumed_run_measures_on_the_same_states(measured, env):
    again = Tracker(measured.config, measured.run, env, tiny_policy().frozen_copy(), PRIOR)
    again.see_demonstrations(demonstrations(seed=9))  # too late: step 0 is measured
    again.load_base()
    first = measured.run.summary(1)
    second = again.measure(frozen_policy(0.1), 1)
    assert replace(first, tracking_s=0.0) == replace(second, tracking_s=0.0)


def test_a_run_of_an_older_version_can_be_gone_on_with(env, tmp_path):
    from safetensors.torch import load_file, save_file

    tracker = start(env, tmp_path / "run")
    summary = tracker.measure(frozen_policy(), 0)
    assert not any("demonstrations" in name for name in summary.distances)
    directory = tracker.run.evaluation(0)
    old = {k: v for k, v in load_file(directory / "probes.safetensors").items() if "Reach" not in k}
    save_file(old, directory / "probes.safetensors")
    entries = kl_file(tracker, 0)
    (directory / "action_kl.json").write_text(
        json.dumps({k: {"kl_base_tuned": entries[k]["kl_base_tuned"]} for k in entries})
    )
    (directory / "summary.json").write_text(json.dumps(replace(summary, distances=None).to_json()))
    again = Tracker(tracker.config, tracker.run, env, tiny_policy().frozen_copy(), PRIOR)
    again.load_base()
    assert tracker.run.summary(0).distances is None
    later = again.measure(frozen_policy(0.1), 1)
    assert later.kl_base_tuned["prior"] > 0.0
    assert "total_variation/prior" in later.distances
    assert "total_variation/prior/ReachRed" not in later.distances


def test_swapped_observations_are_noticed(env, tmp_path):
    from safetensors.torch import load_file, save_file

    tracker = start(env, tmp_path / "run")
    tracker.measure(frozen_policy(), 0)
    path = tracker.run.evaluation(0) / "probes.safetensors"
    tensors = load_file(path)
    tensors["prior/observation.state"] += 0.5
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="probe set 'prior'"):
        tracker.load_base()


def test_a_new_task_called_like_a_prior_skill_has_its_full_name(env, tmp_path):
    config = FinetuneConfig(task=NEW, out=str(tmp_path / "run"), env=ENV)
    run = RunDirectory.create(config)
    prior = {"ReachBlue": "mine/ReachBlue"}
    tracker = Tracker(config, run, env, tiny_policy().frozen_copy(), prior)
    assert (tracker.new, tracker.prior) == ({NEW: NEW}, prior)


def test_a_predictor_of_a_plugin_is_in_the_summary_under_its_name(env, tmp_path, monkeypatch):
    (tmp_path / "my_distance.py").write_text(
        "from robo_razor.evaluation.predictors import predictor\n\n"
        '@predictor("weight_linf", label="Largest weight change", at_base=0.0)\n'
        "def weight_linf(comparison):\n"
        "    changes = comparison.weight_changes.values()\n"
        "    return max((float(change.abs().max()) for change in changes), default=0.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    let_add(monkeypatch, PREDICTORS)
    monkeypatch.setitem(QUANTITIES, "weight_linf", None)  # so that it is taken back
    load_plugins(["my_distance"])
    tracker = start(env, tmp_path / "run")
    for step, moved in enumerate((0.0, 0.1)):
        tracker.measure(frozen_policy(moved), step)
    files = (tracker.run.evaluation(step) / "summary.json" for step in (0, 1))
    before, after = (json.loads(file.read_text())["distances"] for file in files)
    assert before["weight_linf"] == 0.0 < after["weight_linf"]
    assert list(after)[-3:] == ["weight_l1", "weight_l2", "weight_linf"]
