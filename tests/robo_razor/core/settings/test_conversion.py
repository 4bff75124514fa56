"""Every setting has bounds, every path is one, and a name is found by its last part."""

import math
import typing

import numpy as np
import pytest

from robo_razor.cli.arguments import parse
from robo_razor.core.errors import ConfigError
from robo_razor.core.settings import config as configs
from robo_razor.core.settings.config import (
    CompareConfig,
    EnvConfig,
    EvaluateConfig,
    FinetuneConfig,
    Settings,
    from_dict,
)
from robo_razor.core.settings.conversion import describe_fields, field_help, path_keys, suggest_key
from robo_razor.sweep.experiment import Head
from robo_razor.training.methods.bc import BC

CLASSES = [
    item
    for item in (*vars(configs).values(), Head, *FinetuneConfig.sections().values())
    if isinstance(item, type) and issubclass(item, Settings) and item is not Settings
]


def numbers():
    """Yield every setting that holds a number: its class, name, and whether it is a tuple."""
    for config_class in CLASSES:
        for name, hint in typing.get_type_hints(config_class).items():
            parts = {hint, *typing.get_args(hint)}
            if {int, float} & parts and typing.get_origin(hint) is not typing.Literal:
                yield config_class, name, tuple in {typing.get_origin(hint)}


def test_no_number_is_infinite_or_senselessly_large():
    checked = 0
    for config_class, name, many in numbers():
        for value in (math.inf, -math.inf, math.nan, 2**63, 1e30, 10**30, 10**400):
            with pytest.raises(ConfigError, match=f"`.*{name}"):
                config_class(**{name: (value,) if many else value})
            with pytest.raises(ConfigError, match=f"`.*{name}"):
                from_dict(config_class, {name: value})
        checked += 1
    assert checked > 100


def test_every_path_is_marked():
    """A new setting that holds a path must say so, or `~` and odd names are not seen to."""
    path_names = ("path", "file", "director", "manifest", "dataset")
    for config_class in CLASSES:
        marked, hints = path_keys(config_class), typing.get_type_hints(config_class)
        for name, line in field_help(config_class).items():
            is_text = str in {hints[name], *typing.get_args(hints[name])}
            if is_text and any(word in line.lower() for word in path_names):
                assert name in marked, f"{config_class.__name__}.{name}"


def test_home_is_expanded_wherever_a_path_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for config_class in CLASSES:
        for key, prefix in path_keys(config_class).items():
            if "." in key:  # its own class is among them
                continue
            hint = typing.get_type_hints(config_class)[key]
            value = f"{prefix}~/x"
            many = typing.get_origin(hint) is tuple
            config = config_class(**{key: (value,) if many else value})
            expanded = getattr(config, key)
            assert (expanded[0] if many else expanded) == f"{prefix}{tmp_path}/x"
    assert parse("finetune", FinetuneConfig, ["--out=~/x"], "").out == f"{tmp_path}/x"
    assert BC(demonstrations="~/data").demonstrations == f"{tmp_path}/data"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "names nothing"),
        ("x" * 300, "longer than a path may be"),
        ("a/" * 3000, "longer than a path may be"),
        ("a\0b", "holds the unprintable character"),
        ("a\x1bb", "holds the unprintable character"),
        ("\udcff", "holds the unprintable character"),
        ("~nobody-is-called-so/x", "no home directory"),
    ],
)
def test_paths_that_no_file_can_have(value, problem):
    for make in (
        lambda: FinetuneConfig(out=value),
        lambda: BC(demonstrations=value),
        lambda: EvaluateConfig(json=value),
        lambda: CompareConfig(runs=("fine", value)),
    ):
        with pytest.raises(ConfigError, match=problem):
            make()


def test_texts_are_bounded_and_printable():
    with pytest.raises(ConfigError, match="`task` is a text of 20000 characters"):
        FinetuneConfig(task="x" * 20_000)
    with pytest.raises(ConfigError, match="`instruction` = .* holds the unprintable character"):
        configs.RolloutConfig(instruction="lift\x07")
    assert configs.RolloutConfig(instruction="lift\nit").instruction == "lift\nit"


def test_types_are_checked_in_python_too():
    with pytest.raises(ConfigError, match="`env.num_envs` must be a whole number"):
        EnvConfig(num_envs="4")
    config = EnvConfig(num_envs=np.int64(4), env_packages=["a", "b"])
    assert (config.num_envs, config.env_packages) == (4, ("a", "b"))
    assert type(config.num_envs) is int


@pytest.mark.parametrize("text", ["{a: .inf}", "{a: [1, {b: .nan}]}", "{a: 1e999}"])
def test_mappings_hold_finite_numbers(text):
    with pytest.raises(ConfigError, match="not finite"):
        EnvConfig(lerobot=text)


def test_nested_mappings_are_kept_as_text():
    config = from_dict(FinetuneConfig, {"rename": {"a": "é 🤖"}, "env": {"lerobot": {"fps": 5}}})
    assert config.rename == '{"a": "é 🤖"}'
    with pytest.raises(ConfigError, match="cannot be written as text"):
        from_dict(FinetuneConfig, {"rename": {"a": math.inf}})


OTHERS = {"bc", "grpo", "reinforce", "regularise"}


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("lr", "'ppo.learning_rate'"),
        ("learning_rate", "'ppo.learning_rate'"),
        ("--learning-rate", "'ppo.learning_rate'"),
        ("wd", None),
        ("steps", "'env.max_episode_steps' or 'flow.num_steps'"),
        ("env.envs", "'env.num_envs'"),
        ("sed", "'seed'"),
        ("zzz", None),
        ("x" * 100_000, None),
    ],
)
def test_what_a_name_may_mean(name, suggestion):
    keys = [key for key in describe_fields(FinetuneConfig) if key.split(".")[0] not in OTHERS]
    assert suggest_key(name, keys) == (f" Did you mean {suggestion}?" if suggestion else "")


def test_unknown_keys_are_looked_for_in_the_chosen_methods_section():
    with pytest.raises(ConfigError, match=r"Unknown key `lr`\. Did you mean 'bc\.learning_rate'\?"):
        from_dict(FinetuneConfig, {"method": "bc", "lr": 1})


@pytest.mark.parametrize("name", ["", ".x", "a b", "a-b", "../x", "a..b", "os", "json.tool", "é"])
def test_packages_of_environments_have_plain_names(name):
    with pytest.raises(ConfigError, match=r"`env\.env_packages` holds"):
        EnvConfig(env_packages=("gym_razor", name))


@pytest.mark.slow
def test_a_file_may_not_name_a_package_that_came_with_it(tmp_path, monkeypatch):
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded" / "brought_along.py").write_text("raise SystemExit('it ran')")
    file = tmp_path / "downloaded" / "c.yaml"
    file.write_text("env: {env_packages: [brought_along]}")
    monkeypatch.syspath_prepend(str(file.parent))  # as for `python -m` in that directory
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for command, config_class in [("finetune", FinetuneConfig), ("evaluate", EvaluateConfig)]:
        with pytest.raises(ConfigError, match="'brought_along'.* may not bring code"):
            parse(command, config_class, ["--config", str(file)], "")
    argv = ["--config", str(file), "--env.env-packages", "brought_along"]
    assert parse("evaluate", EvaluateConfig, argv, "").env.env_packages == ("brought_along",)
    monkeypatch.setenv("PYTHONPATH", str(file.parent))
    assert parse("evaluate", EvaluateConfig, argv[:2], "").env.env_packages == ("brought_along",)
