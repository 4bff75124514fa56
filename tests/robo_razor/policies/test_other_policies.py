"""LeRobot's policies without a density: cloning, evaluation, retention, a surrogate of the KL."""

from __future__ import annotations

import importlib.util
import io
import json
import logging

import numpy as np
import pytest
import tiny_vla
import torch
from rich.console import Console
from toy_env import ToyVectorEnv
from toy_policy import NEW
from toy_runs import (
    assert_same_weights,
    finetune,
    interrupt_at,
    own_warnings,
    quiet,
    run_config,
    summary,
    weights,
)

from robo_razor.core.errors import PolicyError
from robo_razor.core.settings.config import (
    EnvConfig,
    FlowConfig,
    TrackingConfig,
    replace,
)
from robo_razor.core.types import make_rows
from robo_razor.evaluation.tracker import Tracker
from robo_razor.policies.families import PolicyFamily
from robo_razor.policies.load import load_policy
from robo_razor.rollout.episodes import run_episodes
from robo_razor.training.imitation import DemonstrationLearner
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.ppo import PPO

NO_DIFFUSERS = importlib.util.find_spec("diffusers") is None
KINDS = (
    "act",
    pytest.param(
        "diffusion",
        marks=pytest.mark.skipif(NO_DIFFUSERS, reason="LeRobot's Diffusion needs `diffusers`"),
    ),
)
TRACKING = TrackingConfig(
    every=100,  # at the start and the end
    episodes_new=3,
    episodes_new_sampled=3,
    episodes_prior=2,
    kl_states=8,
    final_episodes_new=3,
    max_share=1.0,
)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param) / "policy"
    return tiny_vla.save_tiny_other(place, request.param)


def settings(folder, out, method="bc", **changes):
    sections = {
        "bc": BC(episodes=5, epochs=2, batch_size=8, learning_rate=1e-3, warmup_steps=0),
        "ppo": PPO(num_updates=2, episodes_per_update=8),
    }
    env = EnvConfig(num_envs=8, num_workers=1, image_size=32, env_packages=("toy_env",))
    return run_config(folder, out, method, sections, env=env, tracking=TRACKING, **changes)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    output = io.StringIO()
    finetune(settings(folder, out), Console(file=output, width=200))
    return out, output.getvalue()


def observed(rows=5, size=32):
    observation, _ = ToyVectorEnv(rows, image_size=size).reset(seed=0)
    return observation, ["lift the blue block"] * rows


def test_a_run_measures_retention_and_a_surrogate(finished):
    run, output = finished
    first = summary(run, 0)
    last = summary(run, max(int(path.name) for path in (run / "eval").iterdir()))
    for entry in (first, last):
        assert entry["kl_kind"] is None
        for direction in ("kl_base_tuned", "kl_tuned_base"):
            assert set(entry[direction].values()) == {None}
        assert set(entry["prior"]) == {"ReachRed", "ReachGreen"}
        assert "base_success_rate" in entry["prior"]["ReachRed"]
        assert "not a KL" in entry["surrogate_kind"]
    assert set(first["surrogate"].values()) == {0.0}
    assert set(last["surrogate"]) == {"new_base_visited", "new_tuned_visited", "prior"}
    assert all(value > 0.0 for value in last["surrogate"].values())
    assert last["distances"]["chunk_distance/demonstrations"] > 0.0
    entries = json.loads((run / "eval" / f"{last['step']:06d}" / "action_kl.json").read_text())
    measure = entries["prior"]["chunk_distance"]
    assert measure["kind"] == "surrogate"
    assert len(measure["per_dimension"]["mean"]) == tiny_vla.A
    assert "kl_base_tuned" not in entries["prior"]
    assert "No KL: the policy has no density. Surrogate: " in output
    assert "on the new task where the base goes" in " ".join(output.split())
    assert "KL(base||tuned)" not in output


def test_the_surrogate_is_the_distance_of_normalised_chunks(finished, folder):
    run, _ = finished
    base, tuned = load_policy(folder), load_policy(str(run))
    inputs = base.prepare(*observed())
    before, after = base.chunks(inputs), tuned.chunks(inputs)
    assert before.shape == (5, tiny_vla.CHUNK, tiny_vla.A)
    from robo_razor.evaluation.divergences import compare, decision_values

    distance = compare(before, after)["chunk_distance"]
    expected = (before - after).double().square().mean((1, 2))
    assert torch.allclose(decision_values("chunk_distance", distance), expected)
    # What is executed is the chunk with the base's statistics undone.
    assert np.allclose(base.act(*observed()), base.postprocessor(before).numpy(), atol=1e-6)


def test_what_it_does_depends_on_the_observation_alone(folder):
    """Diffusion draws noise: neither the batch nor what was drawn before may matter."""
    handle = load_policy(folder)
    inputs = handle.prepare(*observed(20))
    torch.manual_seed(1)
    together = handle.chunks(inputs)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # the stream of others is not touched
    for row in (0, 7, 19):
        alone = handle.chunks({key: value[row : row + 1] for key, value in inputs.items()})
        assert torch.equal(alone[0], together[row])
    rows = make_rows(NEW, range(5))
    outcomes = []
    for num_envs in (2, 5):
        env = ToyVectorEnv(num_envs, image_size=32, task=NEW, chunk_size=tiny_vla.CHUNK)
        outcomes.append(run_episodes(env, handle, rows).episode_return.tolist())
    assert outcomes[0] == outcomes[1]


def test_a_resumed_run_equals_the_uninterrupted_one(folder, finished, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, DemonstrationLearner, 2, settings(folder, tmp_path / "run"))
    result = finetune(settings(folder, tmp_path / "run", resume=True), quiet())
    assert result.step >= 2
    assert_same_weights(weights(finished[0], result.step), weights(tmp_path / "run", result.step))
    assert result.summary["surrogate"] == summary(finished[0], result.step)["surrogate"]


ENCODERS = {"act": "model.backbone.", "diffusion": "diffusion.rgb_encoder."}


def clone(handle, steps=2):
    """Make gradient steps of cloning and return the names of what they changed."""
    before = {name: x.clone() for name, x in handle.module.state_dict().items()}
    n = handle.predicted_actions
    targets = {"action": torch.rand(5, n, 5), "action_is_pad": torch.zeros(5, n, dtype=torch.bool)}
    inputs = handle.prepare(*observed(size=handle.image_size))
    optimizer = torch.optim.SGD(handle.policy_parameters(), lr=0.1)
    for _ in range(steps):
        handle.module.train()
        loss, _ = handle.bc_loss({**inputs, **targets})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    handle.module.eval()
    after = handle.module.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_image_encoder_stays_as_it_is_in_a_run(finished, folder):
    run, _ = finished
    base = load_policy(folder)
    old = base.module.state_dict()
    step = max(int(path.name) for path in (run / "eval").iterdir())
    new = weights(run, step)
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved
    assert not [name for name in moved if name.startswith(ENCODERS[base.config.type])]


def test_the_image_encoder_is_trained_where_that_is_asked_for(folder):
    handle = load_policy(folder)
    assert [name for name in clone(handle) if name.startswith(ENCODERS[handle.config.type])]


def test_a_frozen_encoder_gets_no_low_rank_update(folder):
    handle = load_policy(folder)
    handle.freeze_vision()
    handle.add_lora(2)
    encoder = ENCODERS[handle.config.type]
    names = [name for name, p in handle.module.named_parameters() if p.requires_grad]
    assert names
    assert not [name for name in names if name.startswith(encoder)]


@pytest.mark.skipif(NO_DIFFUSERS, reason="LeRobot's Diffusion needs `diffusers`")
def test_statistics_of_a_frozen_encoder_do_not_move(tmp_path):
    # LeRobot tries the encoder on one image, of which a layer must keep more than one pixel.
    settings_ = {"image_size": 64, "use_group_norm": False}
    folder = tiny_vla.save_tiny_other(tmp_path / "policy", "diffusion", **settings_)
    free, frozen = load_policy(folder), load_policy(folder)
    assert [name for name in clone(free) if name.endswith("running_mean")]
    frozen.freeze_vision()
    moved = clone(frozen)
    assert moved
    assert not [name for name in moved if name.startswith(ENCODERS["diffusion"])]


def test_what_does_nothing_is_warned_of(folder, caplog):
    handle = load_policy(folder)
    handle.check_finetuning(FlowConfig())
    handle.freeze_vision()
    assert not own_warnings(caplog)
    handle.check_finetuning(FlowConfig(train="all"))
    assert "settings `flow.*` have no effect" in caplog.text
    handle.family = PolicyFamily(handle.config.type)
    handle.freeze_vision()
    assert "`freeze_vision` has no effect" in caplog.text


def test_temporal_ensembling_is_warned_of(tmp_path, caplog):
    folder = tiny_vla.save_tiny_other(
        tmp_path / "policy", "act", n_action_steps=1, temporal_ensemble_coeff=0.01
    )
    with caplog.at_level(logging.WARNING):
        assert load_policy(folder).chunk_size == 1
    assert "`temporal_ensemble_coeff: 0.01` is not applied" in caplog.text
    caplog.clear()
    load_policy(folder)
    assert not own_warnings(caplog)  # a run loads its base twice


def test_checkpoints_on_the_way_run_no_more_episodes_than_others_do(folder, tmp_path, monkeypatch):
    """Their inputs are recorded for the surrogate; that is no reason for the last one's number."""
    monkeypatch.setattr(
        "robo_razor.evaluation.tracker.run_shared",
        lambda ranks, env, policy, rows, mode, record, progress, whole: (len(rows), record),
    )
    config = settings(folder, tmp_path / "run")
    config = replace(config, tracking=replace(TRACKING, final_episodes_new=9))
    handle = load_policy(folder)
    tracker = Tracker(config, None, None, handle, {})
    calls = [
        tracker._run_greedy(handle, step, final=final, progress=None)
        for step, final in ((0, False), (1, False), (2, True))
    ]
    assert calls == [(9, "inputs"), (3, "inputs"), (9, "inputs")]


def test_ppo_is_refused_before_any_work(folder, tmp_path):
    with pytest.raises(PolicyError, match="no action density, which the method 'ppo' needs"):
        finetune(settings(folder, tmp_path / "run", "ppo"), quiet())
    assert not (tmp_path / "run").exists()


def test_cloning_uses_the_policys_own_loss(folder):
    handle = load_policy(folder)
    n = handle.predicted_actions
    assert n == (tiny_vla.CHUNK if handle.config.type == "act" else 2 * tiny_vla.CHUNK)
    inputs = handle.prepare(*observed())
    targets = {"action": torch.rand(5, n, 5), "action_is_pad": torch.zeros(5, n, dtype=torch.bool)}
    handle.module.train()
    loss, _ = handle.bc_loss(inputs | targets)
    loss.backward()
    assert loss.item() > 0.0
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in handle.module.parameters())


@pytest.mark.skipif(NO_DIFFUSERS, reason="LeRobot's Diffusion needs `diffusers`")
def test_a_policy_that_looks_back_is_refused(tmp_path):
    folder = tiny_vla.save_tiny_other(tmp_path / "policy", "diffusion", n_obs_steps=2)
    with pytest.raises(PolicyError, match="looks at the last 2 control steps"):
        load_policy(folder)


def test_low_rank_updates_are_merged_when_saved(folder, tmp_path):
    handle = load_policy(folder)
    inputs = handle.prepare(*observed())
    before = handle.chunks(inputs)
    added = handle.add_lora(2)
    assert torch.equal(handle.chunks(inputs), before)
    n = handle.predicted_actions
    targets = {"action": torch.rand(5, n, 5), "action_is_pad": torch.zeros(5, n, dtype=torch.bool)}
    optimizer = torch.optim.SGD(added, lr=10.0)
    loss, _ = handle.bc_loss(inputs | targets)
    loss.backward()
    optimizer.step()
    after = handle.chunks(inputs)
    assert not torch.allclose(after, before, atol=1e-4)
    handle.save(tmp_path)
    assert torch.allclose(load_policy(tmp_path).chunks(inputs), after, atol=1e-4)
