"""A policy type is one class in one file, in the tree or out of it."""

from __future__ import annotations

import importlib.metadata
import sys
import types

import numpy as np
import pytest
import torch
from linear_policy import saved_linear_policy
from registries import let_add

from robo_razor.core.errors import PolicyError, RegistryError
from robo_razor.core.plugins import FAMILIES, load_plugins
from robo_razor.policies.families import PolicyFamily, family_of
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy

FAMILY = '''
import torch

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.distributions import GaussianChunkDistribution
from robo_razor.policies.families import PolicyFamily
from robo_razor.policies.policy import Policy


class GaussianPolicy(Policy):
    """The chunk and a noise of 0.1 around it."""

    has_density = True

    def distribution(self, batch):
        mean = self.module.predict_action_chunk(batch)[:, : self.chunk_size]
        return GaussianChunkDistribution(mean, torch.tensor(0.1).log())


@FAMILIES.register("linear")
class LinearFamily(PolicyFamily):
    def wrap(self, loaded):
        return GaussianPolicy(loaded)

    def image_encoder(self, module):
        return module.eye

    def loss_mean_over(self, config):
        return "actions"
'''
"""What makes the toolkit know more of it."""

OBSERVED = (
    {
        "pixels": {"front": np.full((3, 16, 16, 3), 100, np.uint8)},
        "agent_pos": np.ones((3, 7), np.float32),
    },
    ["go"] * 3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The saved policy of a type that LeRobot knows from another package."""
    with saved_linear_policy(tmp_path_factory.mktemp("package")) as policy:
        yield policy


@pytest.fixture
def families(monkeypatch):
    let_add(monkeypatch, FAMILIES)
    monkeypatch.setattr(FAMILIES, "_entry_points_loaded", False)
    return FAMILIES


def test_every_file_holds_the_family_of_its_name():
    assert set(FAMILIES.built_in()) == {"act", "diffusion", "pi0", "pi05", "razor", "smolvla"}
    for name in FAMILIES.built_in():
        assert family_of(name).type == name
        assert type(family_of(name)) is FAMILIES.get(name)
        assert FAMILIES.get(name).__module__ == f"robo_razor.policies.families.{name}"


def test_a_type_that_nobody_described_gets_the_defaults():
    family = family_of("tdmpc")
    assert type(family) is PolicyFamily
    assert family.type == "tdmpc"
    assert not family.masks_cameras
    assert family.refused(types.SimpleNamespace(use_relative_actions=False)) is None
    setting, reason = family.refused(types.SimpleNamespace(use_relative_actions=True))
    assert setting == "use_relative_actions"
    assert "relative to the state" in reason


def test_only_flow_policies_go_without_a_camera():
    masking = [name for name in FAMILIES.built_in() if family_of(name).masks_cameras]
    assert masking == ["pi0", "pi05", "smolvla"]


def test_a_backbone_is_what_the_settings_name_or_that_of_pi():
    config = types.SimpleNamespace(vlm_model_name="owner/model")
    assert family_of("smolvla").backbone(config) == "owner/model"
    assert family_of("pi05").backbone(config) == "google/paligemma-3b-pt-224"
    assert family_of("act").backbone(types.SimpleNamespace()) is None


def test_a_foreign_policy_acts_and_is_cloned_without_a_family(folder, caplog):
    policy = load_policy(folder)
    assert type(policy) is Policy
    assert policy.act(*OBSERVED).shape == (3, 2, 5)
    loss, _ = policy.bc_loss(policy.prepare(*OBSERVED) | {"action": torch.zeros(3, 2, 5)})
    assert loss > 0
    assert policy.loss_weight(np.array([[False, True]])) == 1
    with pytest.raises(PolicyError, match=r"\(type 'linear'\) has no action density"):
        policy.distribution({})
    policy.freeze_vision()
    assert "the image encoder of policies of type linear is not known" in caplog.text


def test_a_module_of_the_users_brings_a_family(folder, families, tmp_path, monkeypatch):
    (tmp_path / "linear_family.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["linear_family"])
    _check_family(folder)
    monkeypatch.delitem(sys.modules, "linear_family")


def test_an_installed_package_brings_a_family(folder, families, tmp_path, monkeypatch):
    (tmp_path / "installed_linear.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint(
        "linear", "installed_linear:LinearFamily", "robo_razor.families"
    )
    points = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda *, group: points.select(group=group)
    )
    assert "linear" in families
    _check_family(folder)
    monkeypatch.delitem(sys.modules, "installed_linear")


def test_a_package_whose_family_cannot_be_imported_is_named(folder, families, monkeypatch):
    point = importlib.metadata.EntryPoint("linear", "not_there:Family", "robo_razor.families")
    installed = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda *, group: installed.select(group=group)
    )
    with pytest.raises(RegistryError, match="policy family 'linear' cannot be imported"):
        load_policy(folder)


def _check_family(folder):
    policy = load_policy(folder)
    assert type(policy).__name__ == "GaussianPolicy"
    with torch.no_grad():
        batch = policy.prepare(*OBSERVED)
        assert policy.distribution(batch).kl(policy.distribution(batch)).tolist() == [0.0] * 3
    greedy = policy.act(*OBSERVED)
    assert np.allclose(greedy, policy.chunks(batch))
    middle = np.full((3, *policy.noise_shape), 0.5)
    assert np.allclose(policy.act(*OBSERVED, mode="sample", uniforms=middle), greedy)
    policy.freeze_vision()
    assert {name for name, p in policy.module.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    assert policy.loss_weight(np.array([[False, True], [False, False]])) == 3
