from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_demonstrations import demonstrations
from toy_policy import tiny_policy

from robo_razor.core.errors import CheckpointError
from robo_razor.evaluation.probes import (
    ProbeSet,
    demonstration_probe,
    encode_probe,
    evenly,
    load_probes,
    save_probes,
)


def probe(seed=0, n=6):
    numbers = torch.Generator().manual_seed(seed)
    return ProbeSet(
        {
            "observation.state": torch.randn(n, 3, generator=numbers),
            "observation.language.attention_mask": torch.ones(n, 2, dtype=torch.bool),
        },
        np.repeat(np.arange(2), n // 2),
    )


def test_the_hash_sees_every_byte_and_name():
    complete = probe()
    assert complete.hash() == probe().hash()
    assert len(complete.hash()) == 64
    state = complete.inputs["observation.state"].clone()
    state[4, 1] = torch.nextafter(state[4, 1], torch.tensor(9.0))
    renamed = {key.upper(): value for key, value in complete.inputs.items()}
    others = [
        dataclasses.replace(complete, inputs=complete.inputs | {"observation.state": state}),
        dataclasses.replace(complete, inputs=renamed),
        dataclasses.replace(complete, episode=complete.episode + 1),
        probe(seed=1),
    ]
    assert len({complete.hash(), *(other.hash() for other in others)}) == 5


def test_probe_sets_come_back_as_they_were(tmp_path):
    sets = {"new_base_visited": probe(), "prior": probe(1), "prior/Open/Drawer": probe(2, 4)}
    save_probes(tmp_path / "probes.safetensors", sets)
    hashes = {name: probe_set.hash() for name, probe_set in sets.items()}
    again = load_probes(tmp_path / "probes.safetensors", hashes)
    assert {name: probe_set.hash() for name, probe_set in again.items()} == hashes


def test_other_observations_than_those_measured_are_refused(tmp_path):
    path = Path(tmp_path / "probes.safetensors")
    save_probes(path, {"prior": probe()})
    hashes = {"prior": probe().hash()}
    tensors = load_file(path)
    tensors["prior/observation.state"][0, 0] += 1.0
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"probe set 'prior' has the hash .*Put the run's"):
        load_probes(path, hashes)
    assert len(load_probes(path)["prior"]) == 6  # a run of an older version has no hashes


def test_evenly_spread_indices_reach_both_ends():
    assert evenly(np.arange(10, 20), 3).tolist() == [10, 14, 19]
    assert evenly(np.arange(3), 5).tolist() == [0, 1, 2]


def test_demonstration_states_are_what_the_demonstrator_decided_on():
    demos, policy = demonstrations(), tiny_policy()
    every = demonstration_probe(demos, policy, 100)
    assert len(every) == 15
    assert every.episode.tolist() == [0] * 9 + [1] * 6
    expected = policy.prepare(
        {"pixels": {k: v[9:10] for k, v in demos.images.items()}, "agent_pos": demos.state[9:10]},
        [demos.instructions[1]],
    )
    for key, value in expected.items():
        assert torch.equal(every.inputs[key][9:10], value)
    assert len(demonstration_probe(demos, policy, 5)) == 5
    chunks = demonstration_probe(dataclasses.replace(demos, decision_stride=4), policy, 100)
    assert chunks.episode.tolist() == [0] * 3 + [1] * 2  # frames 0, 4, 8 and 0, 4
    assert torch.equal(
        chunks.inputs["observation.state"], every.inputs["observation.state"][[0, 4, 8, 9, 13]]
    )


def test_frozen_vision_makes_a_probe_set_small_and_changes_no_logit():
    policy = tiny_policy()
    images = demonstration_probe(demonstrations(), policy, 100)
    assert encode_probe(images, policy) is images
    policy.freeze_vision()
    encoded = encode_probe(images, policy)
    assert not any("images" in key for key in encoded.inputs)
    with torch.no_grad():
        of_images, of_encoded = (policy.distribution(p.inputs).log_probs for p in (images, encoded))
    assert torch.equal(of_images, of_encoded)
