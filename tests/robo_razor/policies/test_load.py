import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robo_razor.core.errors import (
    CheckpointError,
    PolicyEnvMismatchError,
    PolicyError,
    UnknownNameError,
)
from robo_razor.policies.load import (
    Policy,
    create_policy,
    load_policy,
    locate_policy,
    shipped_policies,
)

TINY = {
    "dim_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "dim_feedforward": 32,
    "dim_head": 32,
    "stem_channels": (8, 8, 8),
}
WORDS = ("pick up the red can", "open the drawer", "put the blue cube into the bin", "push it")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_tiny(**settings: object) -> Policy:
    torch.manual_seed(0)
    handle = create_policy([0.5] * 7, [0.2] * 7, **(TINY | settings))
    for parameter in handle.module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 9
        torch.nn.init.normal_(parameter, std=max(fan_in, 1) ** -0.5)
    return handle


def observe(count: int = 6, seed: int = 0) -> tuple[dict, list[str]]:
    rng = np.random.default_rng(seed)
    pixels = {
        name: rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        for name in ("front", "wrist")
    }
    state = rng.normal(size=(count, 7)).astype(np.float32)
    return {"pixels": pixels, "agent_pos": state}, [WORDS[i % 4] for i in range(count)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Save a policy where a run would and return the run directory."""
    folder = tmp_path / "run" / "checkpoints" / "000010" / "pretrained_model"
    make_tiny().save(folder)
    (folder.parent.parent / "last").symlink_to("000010")
    return tmp_path / "run"


# Acting -------------------------------------------------------------------------------------


def test_a_handle_describes_its_policy():
    handle = make_tiny()
    assert (handle.chunk_size, handle.action_dim, handle.state_dim) == (4, 5, 7)
    assert handle.camera_names == ["front", "wrist"]
    assert handle.image_size == 64
    assert handle.has_density
    assert "parameters" in repr(handle)


def test_prepare_normalises_and_copies():
    handle = make_tiny()
    observation, instructions = observe()
    batch = handle.prepare(observation, instructions)
    expected = (observation["agent_pos"] - 0.5) / 0.2
    np.testing.assert_allclose(batch["observation.state"].numpy(), expected, rtol=1e-5)
    assert batch["observation.images.front"].dtype == torch.uint8
    for image in observation["pixels"].values():
        image[:] = 0
    observation["agent_pos"][:] = 0
    assert batch["observation.images.front"].float().mean() > 100
    np.testing.assert_allclose(batch["observation.state"].numpy(), expected, rtol=1e-5)


def test_act_greedy_and_sampled():
    handle = make_tiny()
    observation, instructions = observe()
    greedy = handle.act(observation, instructions)
    assert greedy.shape == (6, 4, 5)
    assert greedy.dtype == np.float32
    assert np.abs(greedy).max() <= 1
    uniforms = np.random.default_rng(0).random((6, 4, 5))
    sampled = [handle.act(observation, instructions, "sample", uniforms) for _ in range(2)]
    assert np.array_equal(*sampled)
    assert not np.array_equal(sampled[0], greedy)
    with pytest.raises(PolicyError, match="needs `uniforms`"):
        handle.act(observation, instructions, "sample")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_its_company(threads):
    """Bit for bit: whatever runs beside it, in whatever order, on any number of threads."""
    handle = make_tiny()
    batch = handle.prepare(*observe(37))
    with torch.no_grad():
        expected, values = handle.distribution_and_value(batch)
    torch.set_num_threads(threads)
    shuffled = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for rows in (shuffled, torch.arange(16), *torch.arange(37)[:, None][::9]):
            some = {key: value[rows] for key, value in batch.items()}
            distribution, value = handle.distribution_and_value(some)
            assert torch.equal(distribution.log_probs, expected.log_probs[rows])
            assert torch.equal(value, values[rows])


def test_inference_and_training_agree():
    handle = make_tiny()
    batch = handle.prepare(*observe())
    trained, value = handle.distribution_and_value(batch)
    assert value.requires_grad
    with torch.no_grad():
        inferred, inferred_value = handle.distribution_and_value(batch)
    torch.testing.assert_close(trained.log_probs, inferred.log_probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value, inferred_value, rtol=1e-4, atol=1e-5)


def test_temperature_reaches_the_distribution():
    handle = make_tiny()
    batch = handle.prepare(*observe())
    warm = handle.distribution(batch).entropy()
    handle.temperature = 0.5
    assert bool((handle.distribution(batch).entropy() < warm).all())


def test_only_the_executed_actions_count():
    handle = make_tiny(n_action_steps=2)
    assert handle.chunk_size == 2
    observation, instructions = observe()
    assert handle.act(observation, instructions).shape == (6, 2, 5)
    assert handle.distribution(handle.prepare(observation, instructions)).log_probs.shape[1] == 2


def test_encoded_observations_act_alike():
    handle = make_tiny()
    handle.freeze_vision()
    batch = handle.prepare(*observe(40))
    encoded = handle.encode(batch)
    assert not any("images" in key for key in encoded)
    with torch.no_grad():
        expected, got = handle.distribution(batch), handle.distribution(encoded)
    assert torch.equal(expected.log_probs, got.log_probs)
    assert handle.distribution(encoded).kl(expected).abs().max() < 1e-5


def test_an_instruction_without_any_known_word_is_an_error():
    handle = make_tiny()
    handle.check_instruction("defenestrate the can")
    for nothing in ("Defenestrate!", "", "apportez bouteille", "!?", "拿起罐子", "подними банку"):
        with pytest.raises(PolicyError, match="knows no word"):
            handle.check_instruction(nothing)


# Training -----------------------------------------------------------------------------------


def test_bc_loss_trains_the_policy_and_not_the_value():
    handle = make_tiny(num_landmarks=3)
    batch = handle.prepare(*observe()) | {
        "action": torch.rand(6, 4, 5),
        "observation.landmarks": torch.rand(6, 3, 3),
    }
    loss, info = handle.bc_loss(batch)
    loss.backward()
    assert {"action_loss", "token_accuracy", "landmark_error_m"} <= set(info)
    assert all(parameter.grad is not None for parameter in handle.policy_parameters())
    assert all(parameter.grad is None for parameter in handle.value_parameters())


def test_parameters_are_told_apart():
    handle = make_tiny()
    value, policy = handle.value_parameters(), handle.policy_parameters()
    assert value
    assert not {id(p) for p in value} & {id(p) for p in policy}
    assert len(value) + len(policy) == len(list(handle.module.parameters()))


def test_frozen_copy_stays_while_the_policy_moves():
    handle = make_tiny()
    base = handle.frozen_copy()
    batch = handle.prepare(*observe())
    with torch.no_grad():
        assert base.distribution(batch).kl(handle.distribution(batch)).tolist() == [0.0] * 6
        before = base.distribution(batch).log_probs
        for parameter in handle.policy_parameters():
            parameter.add_(0.01)
        assert torch.equal(base.distribution(batch).log_probs, before)
        assert bool((base.distribution(batch).kl(handle.distribution(batch)) > 0).all())
    assert not any(parameter.requires_grad for parameter in base.module.parameters())


def test_lora_starts_as_the_base_and_merges_when_saved(tmp_path):
    handle = make_tiny()
    base = handle.frozen_copy()
    added = handle.add_lora(rank=2)
    batch = handle.prepare(*observe())
    assert {id(p) for p in handle.policy_parameters()} == {id(p) for p in added}
    assert handle.value_parameters()
    with torch.no_grad():
        assert base.distribution(batch).kl(handle.distribution(batch)).tolist() == [0.0] * 6
    handle.distribution(batch).log_prob(torch.zeros(6, 4, 5)).sum().backward()
    with torch.no_grad():
        for parameter in added:
            parameter.add_(0.1 * torch.randn_like(parameter))
        tuned = handle.distribution(batch).log_probs
        assert bool((base.distribution(batch).kl(handle.distribution(batch)) > 0).all())
        handle.save(tmp_path)
        assert torch.equal(load_policy(tmp_path).distribution(batch).log_probs, tuned)
        assert torch.equal(handle.frozen_copy().distribution(batch).log_probs, tuned)
        with pytest.raises(PolicyError, match="already"):
            handle.add_lora(rank=2)
        handle.merge_lora()
        assert torch.equal(handle.distribution(batch).log_probs, tuned)
    with pytest.raises(PolicyError, match="rank is 0"):
        handle.add_lora(rank=0)


# Loading ------------------------------------------------------------------------------------


def test_a_checkpoint_loads_from_every_level(checkpoint):
    expected = make_tiny().act(*observe())
    step = checkpoint / "checkpoints" / "000010"
    for path in (checkpoint, checkpoint / "checkpoints", step, step / "pretrained_model"):
        assert np.array_equal(load_policy(path).act(*observe()), expected)
    assert not load_policy(str(checkpoint)).module.training


def test_saved_files_are_those_of_lerobot_and_name_no_place(checkpoint, tmp_path):
    handle = load_policy(checkpoint)
    handle.save(tmp_path / "again")
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {"config.json", "model.safetensors"} <= names
    assert {"policy_preprocessor.json", "policy_postprocessor.json"} <= names
    for path in (tmp_path / "again").glob("*.json"):
        assert str(tmp_path) not in path.read_text()
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (
        checkpoint / "checkpoints/last/pretrained_model" / weights
    ).read_bytes()


def test_shipped_policies_are_found_by_name(monkeypatch, checkpoint):
    import robo_razor.policies.load as module

    folder = checkpoint / "checkpoints/last/pretrained_model"
    monkeypatch.setattr(module, "shipped_policies", lambda: {"razor-base": folder})
    assert locate_policy("razor-base") == folder
    with pytest.raises(UnknownNameError, match="Did you mean 'razor-base'"):
        load_policy("razor-bse")
    assert all((path / "config.json").is_file() for path in shipped_policies().values())


@pytest.mark.parametrize("name", ["nonsense", "./runs/none", "/nowhere/else", "~/none"])
def test_a_name_that_is_nothing_is_an_error_without_network(name):
    with pytest.raises(UnknownNameError, match="not a directory either"):
        load_policy(name)


def test_an_unreachable_hub_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PolicyError, match="cannot be fetched from the hub") as error:
        load_policy("nobody/robo-razor-does-not-exist")
    assert "give its path" in str(error.value)
    assert "hf download nobody/robo-razor-does-not-exist" in str(error.value)


def test_a_directory_without_a_policy(tmp_path):
    with pytest.raises(CheckpointError, match="it does not exist or holds no config.json"):
        load_policy(tmp_path)


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    settings = json.loads(config.read_text())
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated config":
        config.write_text(config.read_text()[:100])
    elif how == "other shape":
        config.write_text(json.dumps(settings | {"dim_feedforward": 48}))
    elif how == "other layers":
        config.write_text(json.dumps(settings | {"n_layers": 3}))
    elif how == "unknown key":
        config.write_text(json.dumps(settings | {"dim_modle": 3}))
    elif how == "no processor":
        (folder / "policy_preprocessor.json").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated weights", "truncated or"),
        ("empty weights", "truncated or"),
        ("no weights", "model.safetensors is missing"),
        ("truncated config", "not the configuration"),
        ("other shape", "cannot be loaded"),
        ("other layers", "cannot be loaded"),
        ("unknown key", "cannot be loaded"),
        ("no processor", "cannot be loaded"),
    ],
)
def test_damaged_checkpoints(checkpoint, how, message):
    damage(checkpoint / "checkpoints/last/pretrained_model", how)
    with pytest.raises(CheckpointError, match=message) as error:
        load_policy(checkpoint)
    assert "nother checkpoint" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_type_of_policy(checkpoint):
    config = checkpoint / "checkpoints/last/pretrained_model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"type": "rasor"}))
    with pytest.raises(UnknownNameError, match="Did you mean 'razor'"):
        load_policy(checkpoint)


# Environments -------------------------------------------------------------------------------


def space(size: int = 64, cameras: tuple[str, ...] = ("front", "wrist"), state: int = 7):
    pixels = {name: spaces.Box(0, 255, (size, size, 3), np.uint8) for name in cameras}
    return spaces.Dict(
        {
            "pixels": spaces.Dict(pixels),
            "agent_pos": spaces.Box(-np.inf, np.inf, (state,), np.float32),
        }
    )


def action_space(size: int = 5) -> spaces.Box:
    return spaces.Box(-1, 1, (size,), np.float32)


def test_a_policy_fits_its_environment_and_more_cameras_do_not_matter():
    handle = make_tiny()
    handle.check_env(space(), action_space())
    handle.check_env(space(cameras=("front", "wrist", "side")), action_space())


@pytest.mark.parametrize(
    ("observation", "action", "needs", "has"),
    [
        (space(cameras=("front",)), action_space(), "images.wrist 64x64 px", "front 64x64 px"),
        (space(size=96), action_space(), "images.front 64x64 px", "images.front 96x96 px"),
        (space(state=9), action_space(), "observation.state 7", "observation.state 9"),
        (space(), action_space(7), "action 5", "action 7"),
        (spaces.Box(-1, 1, (3,)), action_space(), "observation.images.front", "action 5"),
    ],
)
def test_a_mismatch_shows_both_sides(observation, action, needs, has):
    with pytest.raises(PolicyEnvMismatchError) as error:
        make_tiny().check_env(observation, action)
    problem, _, offer = str(error.value).partition("the environment has")
    assert needs in problem
    assert has in offer


def test_tokens_stand_for_actions_between_minus_one_and_one():
    with pytest.raises(PolicyEnvMismatchError, match=r"in \[-1, 1\].*takes \[0, 512\]"):
        make_tiny().check_env(space(), spaces.Box(0, 512, (5,), np.float32))
    make_tiny().check_env(space(), spaces.Box(-np.inf, np.inf, (5,), np.float32))


# Other policies of LeRobot ------------------------------------------------------------------


@pytest.fixture
def act_policy() -> Policy:
    torch.manual_seed(0)
    return create_policy(
        [0.5] * 7,
        [0.2] * 7,
        policy_type="act",
        camera_names=("front",),
        chunk_size=4,
        n_action_steps=3,
        pretrained_backbone_weights=None,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=4,
    )


def test_a_policy_without_density_acts_and_can_be_cloned(act_policy, tmp_path):
    handle = act_policy
    observation, instructions = observe(3)
    assert not handle.has_density
    assert handle.act(observation, instructions).shape == (3, 3, 5)
    batch = handle.prepare(observation, instructions)
    assert batch["observation.images.front"].dtype == torch.float32
    targets = {"action": torch.rand(3, 4, 5), "action_is_pad": torch.zeros(3, 4, dtype=torch.bool)}
    handle.module.train()
    loss, _ = handle.bc_loss(batch | targets)
    loss.backward()
    assert loss > 0
    handle.module.eval()
    handle.save(tmp_path)
    again = load_policy(tmp_path, may_lack_statistics=True)
    assert np.array_equal(
        again.act(observation, instructions), handle.act(observation, instructions)
    )


def test_a_policy_without_density_says_so(act_policy):
    batch = act_policy.prepare(*observe(2))
    for method in (act_policy.distribution, act_policy.distribution_and_value):
        with pytest.raises(PolicyError, match="no action density") as error:
            method(batch)
        assert "--method bc" in str(error.value)


def test_action_tokens_want_actions_as_they_are():
    from lerobot.configs import NormalizationMode

    mapping = {"STATE": NormalizationMode.MEAN_STD, "ACTION": NormalizationMode.MEAN_STD}
    with pytest.raises(PolicyError, match="normalises its actions"):
        create_policy([0.0] * 7, [1.0] * 7, normalization_mapping=mapping, **TINY)
