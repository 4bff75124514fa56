"""Flow policies whose checkpoints are set in their own ways: cameras, actions, compilation."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny_vla
import torch
from gymnasium import spaces
from toy_env import ToyVectorEnv
from toy_runs import finetune, quiet, run_config

from robo_razor.core.errors import PolicyEnvMismatchError, PolicyError
from robo_razor.core.settings.config import EnvConfig, FlowConfig
from robo_razor.core.types import DemonstrationSet
from robo_razor.policies.flow.encoding import policy_batch
from robo_razor.policies.flow.policy import FlowPolicy
from robo_razor.policies.load import load_policy
from robo_razor.rollout.demonstrations import check_fit

FRONT, WRIST, EMPTY = (f"observation.images.{n}" for n in ("front", "wrist", "empty_camera_0"))


@pytest.fixture(scope="module", params=tiny_vla.KINDS)
def folder(request, tmp_path_factory):
    """A policy of every family that was trained beside one empty camera."""
    place = tmp_path_factory.mktemp(request.param) / "policy"
    with tiny_vla.saved(request.param, place, empty_cameras=1) as made:
        yield made


@pytest.fixture
def handle(folder):
    return load_policy(folder)


def observed(rows=3):
    observation, _ = ToyVectorEnv(rows, image_size=16).reset(seed=0)
    return observation, ["lift the red block"] * rows


def spaces_of(*cameras):
    images = {name: spaces.Box(0, 255, (16, 16, 3), np.uint8) for name in cameras}
    state = spaces.Box(-np.inf, np.inf, (7,), np.float32)
    observation = spaces.Dict({"pixels": spaces.Dict(images), "agent_pos": state})
    return observation, spaces.Box(-1, 1, (5,), np.float32)


def demonstrations(*cameras):
    return DemonstrationSet(
        images={name: np.zeros((2, 16, 16, 3), np.uint8) for name in cameras},
        state=np.zeros((2, 7), np.float32),
        actions=np.zeros((2, 5), np.float32),
        offsets=np.array([0, 2]),
        instructions=("go",),
        fps=10,
        rewards=np.zeros(2, np.float32),
        success=np.ones(2, bool),
    )


def assert_samples_as_lerobot(handle, batch):
    """Check the sampler without noise, the ratio at equal weights and the gradient of cloning."""
    start = torch.randn(3, tiny_vla.CHUNK, 8, generator=torch.Generator().manual_seed(1))
    expected = handle.module.predict_action_chunk(policy_batch(batch), noise=start)
    chunks = handle.distribution(batch).integrate(start)
    assert float((chunks - expected).abs().max()) < 1e-5
    uniforms = torch.rand(3, *handle.noise_shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        distribution = handle.distribution(batch)
        path = distribution.sample(uniforms.clamp(1e-6, 1 - 1e-6))
        collected = distribution.log_prob_steps(path)
    replayed = handle.distribution(batch).log_prob_steps(path).detach()
    assert float((replayed - collected).exp().sub(1).abs().max()) <= 1e-4
    loss, _ = handle.bc_loss({**batch, "action": torch.rand(3, tiny_vla.CHUNK, 5)})
    loss.backward()
    assert torch.isfinite(loss)


def test_an_empty_camera_is_neither_asked_for_nor_fed(handle):
    assert EMPTY in handle.config.image_features
    assert handle.camera_names == ["front", "wrist"]
    handle.check_env(*spaces_of("front", "wrist"))
    check_fit(demonstrations("front", "wrist"), handle, "data")
    batch = handle.prepare(*observed())
    assert {key for key in batch if "images" in key} == {FRONT, WRIST}
    module = handle.module
    prepare = getattr(module, "prepare_images", None) or module._preprocess_images
    _, masks = prepare(policy_batch(batch))
    assert [bool(mask.all()) for mask in masks] == [True, True, False]
    assert_samples_as_lerobot(handle, batch)


def test_a_missing_camera_is_asked_for_still_and_no_empty_one_is_offered(handle):
    with pytest.raises(PolicyEnvMismatchError) as caught:
        handle.check_env(*spaces_of("front", "top"))
    message = str(caught.value)
    assert f"--rename '{{observation.images.top: {WRIST}}}'" in message
    assert f"--rename '{{none: {WRIST}}}'" in message
    assert "empty_camera" not in message
    with pytest.raises(PolicyError, match="an input 'empty_camera_0', which it does not have"):
        handle.rename("{top: empty_camera_0}")


def test_a_camera_can_be_left_out(handle, tmp_path):
    with_all = handle.distribution(handle.prepare(*observed())).mode()
    handle.rename("{none: wrist}")
    handle.check_env(*spaces_of("front"))
    check_fit(demonstrations("front"), handle, "data")
    observation, instructions = observed()
    del observation["pixels"]["wrist"]
    batch = handle.prepare(observation, instructions)
    assert {key for key in batch if "images" in key} == {FRONT}
    assert_samples_as_lerobot(handle, batch)
    without = handle.distribution(batch).mode()
    assert not torch.allclose(without, with_all, atol=1e-4)
    handle.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert again.camera_names == ["front"]
    assert torch.equal(again.distribution(again.prepare(observation, instructions)).mode(), without)
    again.rename("{top: wrist}")
    assert again.camera_names == ["front", "top"]


def test_what_cannot_be_left_out(handle):
    with pytest.raises(PolicyError, match="leaves out all cameras"):
        handle.rename("{none: [front, wrist]}")
    with pytest.raises(PolicyError, match=r"leaves observation\.images\.wrist out and gives it"):
        handle.rename("{none: wrist, top: wrist}")
    with pytest.raises(PolicyError, match=r"leaves observation\.state out"):
        handle.rename("{none: observation.state}")


def test_a_policy_of_empty_cameras_alone_sees_nothing(tmp_path):
    folder = Path(tiny_vla.save_tiny_smolvla(tmp_path / "policy", empty_cameras=1))
    config = json.loads((folder / "config.json").read_text())
    for key in (FRONT, WRIST):
        del config["input_features"][key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PolicyError, match="has only the empty cameras"):
        load_policy(folder)


def test_a_compiled_policy_is_loaded_without_its_compilation(tmp_path, caplog):
    folder = Path(tiny_vla.save_tiny_smolvla(tmp_path / "policy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"compile_model": True}))
    with caplog.at_level(logging.INFO, logger="robo_razor"):
        handle = load_policy(folder)
    assert isinstance(handle, FlowPolicy)
    assert "`compile_model` is switched off" in caplog.text
    handle.check_finetuning(FlowConfig(train="expert"))


def refused(folder, method):
    env = EnvConfig(num_envs=2, num_workers=1, image_size=16, env_packages=("toy_env",))
    finetune(run_config(str(folder), f"{folder}-run", method, {}, env=env), quiet())


@pytest.mark.parametrize("method", ["bc", "ppo"])
def test_alohas_own_actions_are_not_tuned(tmp_path, method):
    folder = tiny_vla.save_tiny_smolvla(tmp_path / "policy", adapt_to_pi_aloha=True)
    with pytest.raises(PolicyError, match="cannot be fine-tuned here with its `adapt_to_pi_aloha"):
        refused(folder, method)
    assert not Path(f"{folder}-run").exists()


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_relative_actions_are_not_tuned_but_evaluated(tmp_path, kind):
    """What is executed is relative to the state at the decision, for all of the chunk."""
    with tiny_vla.saved(kind, tmp_path / "policy", use_relative_actions=True) as folder:
        for method in ("bc", "ppo"):
            with pytest.raises(
                PolicyError, match="with its `use_relative_actions: true`"
            ) as caught:
                refused(folder, method)
            assert "lerobot-train" in str(caught.value)
        handle = load_policy(folder)
        observation, instructions = observed()
        chunks = handle.chunks(handle.prepare(observation, instructions))
        actions = handle.act(observation, instructions)
    relative = actions - observation["agent_pos"][:, None, : tiny_vla.A]
    action = tiny_vla.statistics()["action"]  # the quantiles of pi0.5 lie one deviation away
    np.testing.assert_allclose(relative, chunks * action["std"] + action["mean"], atol=1e-4)
