"""Which cameras and states a policy's inputs are read from, and how a map of names is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_policy import tiny_policy

from robo_razor.core.errors import ConfigError, PolicyEnvMismatchError, PolicyError
from robo_razor.policies.inputs import InputSources, camera_name, image_key, state_name
from robo_razor.policies.load import load_policy


def observation(names, state="agent_pos", n=2):
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for name in names}
    return {"pixels": pixels, state: rng.normal(size=(n, 7)).astype(np.float32)}


def inputs(policy, host):
    batch = policy.prepare(host, ["lift the red block"] * 2)
    return {key: value for key, value in batch.items() if "image" in key or "state" in key}


def test_names_go_both_ways():
    for camera in ("front", "observation.image"):
        assert camera_name(image_key(camera)) == camera
    assert image_key("front") == "observation.images.front"
    assert state_name("observation.state") == "agent_pos"
    assert state_name("observation.environment_state") == "environment_state"


def test_what_is_offered_decides_among_several_names():
    sources = InputSources(["c.a", "c.b"], {"observation.images.top": "c.a", "c.b": "c.a"})
    assert sources.candidates("c.a") == ["observation.images.top", "c.b", "c.a"]
    assert sources.candidates("c.b") == []  # its own name means another input
    assert sources.camera("c.a", {"c.a", "c.b"}) == "c.b"
    assert sources.camera("c.a", set()) == "top"


@pytest.mark.parametrize(
    "text",
    [
        "{observation.images.top: observation.images.front, hand: wrist}",
        '{"top": "front", "observation.images.hand": "observation.images.wrist"}',
    ],
)
def test_renamed_inputs_are_the_same_inputs(text):
    plain, renamed = tiny_policy(), tiny_policy()
    renamed.rename(text)
    host = observation(("front", "wrist"))
    other = {"pixels": dict(zip(("top", "hand"), host["pixels"].values(), strict=True))}
    other |= {"agent_pos": host["agent_pos"]}
    expected, actual = inputs(plain, host), inputs(renamed, other)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert renamed.camera_names == ["top", "hand"]
    # What it called them before is understood as well.
    assert all(torch.equal(expected[key], x) for key, x in inputs(renamed, host).items())


def test_cameras_can_be_swapped_and_the_state_read_from_elsewhere():
    policy = tiny_policy()
    policy.rename("{front: wrist, wrist: front, observation.environment_state: observation.state}")
    host = observation(("front", "wrist"), state="environment_state")
    swapped = {"front": host["pixels"]["wrist"], "wrist": host["pixels"]["front"]}
    expected = inputs(tiny_policy(), {"pixels": swapped, "agent_pos": host["environment_state"]})
    actual = inputs(policy, host)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_a_checkpoint_keeps_its_names(tmp_path):
    policy = tiny_policy()
    policy.rename("{top: front}")
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert again.camera_names == ["top", "wrist"]
    host = observation(("top", "wrist"))
    expected, actual = inputs(policy, host), inputs(again, host)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    again.rename("{side: front}")  # a new name for one input replaces its old one
    assert again.camera_names == ["side", "wrist"]


def test_wrong_maps_are_refused():
    policy = tiny_policy()
    with pytest.raises(PolicyError, match=r"an input 'frond'.*Allowed: observation\.images\.front"):
        policy.rename("{top: frond}")
    for text in ("top", "{top: front", "[top]"):
        with pytest.raises(ConfigError, match="`rename` ="):
            policy.rename(text)


def offer(policy, *cameras, also=()):
    """Check a policy against an environment with these cameras."""
    images = {name: spaces.Box(0, 255, (16, 16, 3), np.uint8) for name in cameras}
    state = spaces.Box(-np.inf, np.inf, (7,), np.float32)
    observation = spaces.Dict({"pixels": spaces.Dict(images), "agent_pos": state})
    policy.check_env(observation, spaces.Box(-1, 1, (5,), np.float32), also)


def test_a_misspelt_name_is_refused_though_the_policys_own_is_there():
    policy = tiny_policy()
    policy.rename("{observation.images.wirst: front}")
    with pytest.raises(PolicyEnvMismatchError) as caught:
        offer(policy, "front", "wrist", "side")
    message = str(caught.value)
    assert "reads observation.images.front from observation.images.wirst" in message
    assert "Did you mean 'observation.images.wrist'" in message
    assert "Allowed: observation.images.front, observation.images.side, " in message
    policy.rename("{agent_poss: observation.state}")
    with pytest.raises(PolicyEnvMismatchError, match=r"reads observation\.state from"):
        offer(policy, "front", "wrist")


def test_one_of_several_names_is_enough_and_a_data_set_may_have_it():
    policy = tiny_policy()
    policy.rename("{top: front, above: front}")
    offer(policy, "above", "wrist")
    offer(policy, "front", "wrist", also=["observation.images.top"])
    with pytest.raises(PolicyEnvMismatchError, match=r"images\.top or observation\.images\.above"):
        offer(policy, "front", "wrist")
    policy.rename("{top: front}", strict=False)
    offer(policy, "front", "wrist")


def test_names_that_a_checkpoint_brings_need_not_be_there(tmp_path):
    policy = tiny_policy()
    policy.rename("{top: front}")
    policy.save(tmp_path)
    offer(load_policy(tmp_path), "front", "wrist")


def test_a_policy_that_masks_no_camera_needs_all_of_them():
    with pytest.raises(PolicyError, match=r"leaves observation\.images\.wrist out, which"):
        tiny_policy().rename("{none: wrist}")


def test_images_of_several_sizes_are_refused_with_the_reason():
    policy = tiny_policy()
    features = policy.config.input_features
    features["observation.images.wrist"].shape = (3, 16, 24)
    with pytest.raises(PolicyEnvMismatchError, match=r"several sizes .*front 16x16.*wrist 24x16"):
        offer(policy, "front", "wrist")


def shown_to(policy, observation, action=None):
    """Check a policy against spaces that do not fit, and return what it says."""
    with pytest.raises(PolicyEnvMismatchError) as caught:
        policy.check_env(observation, action or spaces.Box(-1, 1, (5,), np.float32))
    return str(caught.value)


def pictures(shape, state=7):
    image = spaces.Box(0, 255, shape, np.uint8)
    numbers = spaces.Box(-1, 1, (state,), np.float32)
    return spaces.Dict(
        {"pixels": spaces.Dict({"front": image, "wrist": image}), "agent_pos": numbers}
    )


def test_pictures_with_channels_first_are_named_as_such():
    message = shown_to(tiny_policy(), pictures((3, 16, 16)))
    assert "observation.images.front 16x16 px with channels first" in message
    assert "np.moveaxis(image, 0, -1)" in message
    assert "16x16 px of 1 channels" in shown_to(tiny_policy(), pictures((16, 16, 1)))


def test_a_lone_array_is_shown_under_the_name_that_it_would_have():
    policy = tiny_policy()
    image = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    assert "the environment has observation.image 16x16 px, action" in shown_to(policy, image)
    state = spaces.Box(-1, 1, (7,), np.float32)
    assert "the environment has observation.state 7, action 5" in shown_to(policy, state)
    lone_camera = spaces.Dict({"pixels": image, "agent_pos": state})
    assert "observation.image 16x16 px, observation.state 7" in shown_to(policy, lone_camera)


def test_every_dimension_of_an_action_must_have_the_range_of_action_tokens():
    high = np.array([1, 1, 1, 1, 0.5], np.float32)
    uneven = spaces.Box(-high, high)
    message = shown_to(tiny_policy(), pictures((16, 16, 3)), uneven)
    assert "takes [-1.0, -1.0, -1.0, -1.0, -0.5] to [1.0, 1.0, 1.0, 1.0, 0.5]" in message
