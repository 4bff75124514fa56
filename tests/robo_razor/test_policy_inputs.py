"""Which cameras and states a policy's inputs are read from, and how a map of names is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_policy import tiny_policy

from robo_razor.errors import ConfigError, PolicyError
from robo_razor.policies import load_policy
from robo_razor.policy_inputs import InputSources, camera_name, image_key, state_name


def observation(names, state="agent_pos", n=2):
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for name in names}
    return {"pixels": pixels, state: rng.normal(size=(n, 7)).astype(np.float32)}


def inputs(policy, seen):
    batch = policy.prepare(seen, ["lift the red block"] * 2)
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
    one = observation(("front", "wrist"))
    other = {"pixels": dict(zip(("top", "hand"), one["pixels"].values(), strict=True))}
    other |= {"agent_pos": one["agent_pos"]}
    expected, found = inputs(plain, one), inputs(renamed, other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert renamed.camera_names == ["top", "hand"]
    # What it called them before is understood as well.
    assert all(torch.equal(expected[key], x) for key, x in inputs(renamed, one).items())


def test_cameras_can_be_swapped_and_the_state_read_from_elsewhere():
    policy = tiny_policy()
    policy.rename("{front: wrist, wrist: front, observation.environment_state: observation.state}")
    seen = observation(("front", "wrist"), state="environment_state")
    swapped = {"front": seen["pixels"]["wrist"], "wrist": seen["pixels"]["front"]}
    expected = inputs(tiny_policy(), {"pixels": swapped, "agent_pos": seen["environment_state"]})
    found = inputs(policy, seen)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_checkpoint_keeps_its_names(tmp_path):
    policy = tiny_policy()
    policy.rename("{top: front}")
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert again.camera_names == ["top", "wrist"]
    seen = observation(("top", "wrist"))
    expected, found = inputs(policy, seen), inputs(again, seen)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    again.rename("{side: front}")  # a new name for one input replaces its old one
    assert again.camera_names == ["side", "wrist"]


def test_wrong_maps_are_refused():
    policy = tiny_policy()
    with pytest.raises(PolicyError, match=r"an input 'frond'.*Allowed: observation\.images\.front"):
        policy.rename("{top: frond}")
    for text in ("top", "{top: front", "[top]"):
        with pytest.raises(ConfigError, match="`rename` ="):
            policy.rename(text)
