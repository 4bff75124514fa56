"""Names are unique, and a wrong one is answered with those there are."""

import importlib
import importlib.metadata
import sys

import pytest

from robo_razor.core.errors import RegistryError, RoboRazorError, UnknownNameError, did_you_mean
from robo_razor.core.registry import Registry


@pytest.fixture
def methods():
    registry: Registry[str] = Registry("method")
    registry.add("ppo", "the PPO")
    registry.add("bc", "the BC")
    return registry


def test_what_was_registered_comes_back(methods):
    assert methods.get("ppo") == "the PPO"
    assert methods.names() == ("bc", "ppo")
    assert list(methods) == ["bc", "ppo"]
    assert "ppo" in methods
    assert len(methods) == 2


def test_a_decorator_returns_what_it_decorates():
    registry: Registry[type] = Registry("method")

    @registry.register("x")
    class X:
        pass

    assert registry.get("x") is X


def test_a_name_is_registered_once(methods):
    with pytest.raises(RegistryError, match="'ppo' is already registered as 'the PPO'"):
        methods.add("ppo", "another")
    assert methods.get("ppo") == "the PPO"


def test_an_unknown_name_lists_and_suggests(methods):
    with pytest.raises(UnknownNameError) as caught:
        methods.get("pppo")
    assert str(caught.value) == "Unknown method 'pppo'. Did you mean 'ppo'? Allowed: bc, ppo."


def test_an_empty_registry_says_so():
    with pytest.raises(UnknownNameError, match=r"no policy is registered"):
        Registry("policy").get("x")


def test_errors_are_one_paragraph_of_sentences():
    error = RoboRazorError("It broke", allowed="a, b", remedy="Do this.")
    assert str(error) == "It broke. Allowed: a, b. Do this."
    assert (error.problem, error.allowed, error.remedy) == ("It broke", "a, b", "Do this.")


@pytest.mark.parametrize(
    ("name", "answer"),
    [("learning_rat", "learning_rate"), ("liftcube", "gym_razor/LiftCube-v0"), ("zzz", None)],
)
def test_did_you_mean(name, answer):
    hint = did_you_mean(name, ["learning_rate", "gamma", "gym_razor/LiftCube-v0"])
    assert hint == (f" Did you mean {answer!r}?" if answer else "")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a package with a file `big` that registers itself, and one that cannot be imported."""
    folder = tmp_path / "size_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from robo_razor.core.registry import Registry\n"
        "SIZES = Registry('size', __name__, ('sizes', 'rooms'))\n"
    )
    (folder / "big.py").write_text("from size_package import SIZES\nSIZES.add('big', 3)\n")
    (folder / "broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("size_package")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("size_package")


def test_a_file_of_the_package_is_imported_when_its_name_is_asked_for(package):
    assert package.SIZES.built_in() == ("big", "broken")
    assert "size_package.big" not in sys.modules
    assert package.SIZES.get("big") == 3
    assert "size_package.broken" not in sys.modules
    assert package.SIZES.names() == ("big", "broken")


class _Distribution(importlib.metadata.Distribution):
    def __init__(self, text):
        self.text = text

    def read_text(self, filename):
        return {"entry_points.txt": self.text, "METADATA": "Name: other\n"}.get(filename)

    def locate_file(self, path):
        return path


@pytest.fixture
def install(monkeypatch):
    """Return a function that pretends that a package with these entry points is installed."""

    def install(text):
        points = _Distribution(text).entry_points
        monkeypatch.setattr(
            "importlib.metadata.entry_points", lambda *, group: points.select(group=group)
        )

    return install


def test_an_installed_package_brings_an_object_or_a_module(package, install, tmp_path):
    (tmp_path / "other_sizes.py").write_text(
        "from size_package import SIZES\nSIZES.add('vast', 9)\nTINY = 1\n"
    )
    install("[sizes]\ntiny = other_sizes:TINY\n[rooms]\nall = other_sizes\n")
    assert package.SIZES.get("vast") == 9
    assert package.SIZES.get("tiny") == 1
    assert set(package.SIZES) == {"big", "broken", "tiny", "vast"}


def test_an_object_in_the_group_of_a_room_is_not_taken_for_every_kind(package, install, tmp_path):
    (tmp_path / "other_sizes.py").write_text("TINY = 1\n")
    install("[rooms]\ntiny = other_sizes:TINY\n")
    assert "tiny" not in package.SIZES


def test_an_installed_package_that_cannot_be_imported_is_named(package, install):
    install("[sizes]\ntiny = no_such_package:TINY\n")
    with pytest.raises(RegistryError, match="'tiny' cannot be imported from 'no_such"):
        package.SIZES.get("tiny")
