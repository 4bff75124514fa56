"""Names are unique, and a wrong one is answered with those there are."""

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
