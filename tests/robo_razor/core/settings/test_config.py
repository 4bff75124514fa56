"""Settings are strict: no key is unknown, misspelt, of the wrong type, undocumented or unread."""

import ast
import dataclasses
import typing
from pathlib import Path

import pytest

from robo_razor.core.errors import ConfigError
from robo_razor.core.plugins import METHODS, REGULARISERS
from robo_razor.core.settings import config as configs
from robo_razor.core.settings.config import (
    EvaluateConfig,
    FinetuneConfig,
    RolloutConfig,
    Settings,
    TrackingConfig,
    describe_fields,
    from_dict,
    load_yaml,
    to_dict,
    to_yaml,
)
from robo_razor.core.settings.conversion import field_help
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.regularisers.kl import KL
from robo_razor.training.regularisers.l2 import L2

ROOT = Path(__file__).parents[4]
CLASSES = [
    *(
        item
        for item in vars(configs).values()
        if isinstance(item, type) and issubclass(item, Settings) and item is not Settings
    ),
    *map(METHODS.get, METHODS),
    *map(REGULARISERS.get, REGULARISERS),
]


def load(tmp_path, text, config_class=FinetuneConfig):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_yaml(config_class, file)


@pytest.mark.parametrize("config_class", CLASSES)
def test_yaml_round_trip(config_class, tmp_path):
    config = config_class()
    assert load(tmp_path, to_yaml(config), config_class) == config


@pytest.mark.parametrize("text", ["3e-4", "1e5", "1.5", "null", "yes", "2026-11-29", "é"])
def test_texts_that_look_like_something_else_round_trip(text, tmp_path):
    config = FinetuneConfig(out=text)
    assert load(tmp_path, to_yaml(config)) == config


@pytest.mark.parametrize("method", METHODS)
def test_every_method_round_trips_without_the_others_sections(method, tmp_path):
    config = FinetuneConfig(method=method)
    assert set(METHODS) & set(to_dict(config)) == {method}
    assert load(tmp_path, to_yaml(config)) == config
    assert config.method == METHODS.get(method)()
    assert (config.method.name, to_dict(config)["method"]) == (method, method)


def test_regularisers_are_sections_of_their_own_in_any_number(tmp_path):
    text = "regularise: {l2: {weight: 0.5}, kl: {on: prior}}"
    config = load(tmp_path, text)
    assert config.regularise == (L2(weight=0.5), KL(on="prior"))
    assert to_dict(config)["regularise"]["l2"] == {"weight": 0.5}
    assert load(tmp_path, to_yaml(config)) == config
    assert load(tmp_path, "regularise: {l2: }").regularise == (L2(),)
    assert load(tmp_path, "regularise: {}") == FinetuneConfig()
    with pytest.raises(ConfigError, match="`regularise` has 'l2' twice"):
        FinetuneConfig(regularise=(L2(), L2(weight=2.0)))


def test_a_method_and_its_settings_are_one_object():
    config = FinetuneConfig(method=PPO(gamma=0.5), seed=3)
    assert to_dict(config)["ppo"]["gamma"] == 0.5
    assert dataclasses.replace(config, seed=4).method == PPO(gamma=0.5)
    with pytest.raises(ConfigError, match="`method` must be MethodSettings"):
        FinetuneConfig(method=L2())
    with pytest.raises(ConfigError, match=r"`regularise\[0\]` must be RegulariserSettings"):
        FinetuneConfig(regularise=(PPO(),))


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        (
            "ppo: {kl_coef: 0.02}",
            r"`ppo\.kl_coef` does not exist any more.*regularise: \{kl: \{weight",
        ),
        ("ppo: {kl_direction: reverse}", r"`ppo\.kl_direction`.*direction: reverse"),
        ("ppo: {baseline: group}", r"`ppo\.baseline`.*method: grpo"),
        ("ppo: {group_size: 4}", r"`ppo\.group_size`.*method: grpo"),
    ],
)
def test_what_is_gone_says_what_to_write_instead(text, instead, tmp_path):
    with pytest.raises(ConfigError, match=instead):
        load(tmp_path, text)


def test_absent_keys_keep_their_defaults(tmp_path):
    config = load(tmp_path, "method: bc\nbc: {epochs: 3}\n")
    assert config.method == BC(epochs=3)
    assert config.env == FinetuneConfig().env


def test_a_section_starts_from_the_commands_own_default(tmp_path):
    config = load(tmp_path, "env: {num_workers: 1}", RolloutConfig)
    assert config.env.num_envs == RolloutConfig().env.num_envs


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load(tmp_path, "# nothing\n") == FinetuneConfig()


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("3", 3.0), ("0.5", 0.5), (".5", 0.5)])
def test_numbers_as_people_write_them(text, value, tmp_path):
    assert load(tmp_path, f"ppo: {{learning_rate: {text}}}").method.learning_rate == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ppo: {learning_rat: 1}",
            r"Unknown key `ppo\.learning_rat`\. Did you mean 'learning_rate'",
        ),
        ("gamma: 1", r"Unknown key `gamma`\. Did you mean 'ppo\.gamma'"),
        ("method: pppo", r"Unknown method 'pppo'\. Did you mean 'ppo'\? Allowed: bc, grpo, ppo"),
        ("bc: {epochs: 3}", r"the section `bc` has no effect.*set `method: bc`"),
        ("ppo: {num_updates: x}", r"`ppo\.num_updates` must be a whole number, .*'x' \(str\)"),
        ("ppo: {num_updates: true}", r"must be a whole number, but was given True"),
        ("ppo: {num_updates: 1.5}", r"must be a whole number, but was given 1\.5"),
        ("ppo: {bf16: 1}", r"`ppo\.bf16` must be true or false"),
        ("seed: null", r"`seed` must be a whole number, but was given None"),
        ("ppo: 3", r"`ppo` is a section with keys of its own"),
        ("ppo: {gamma: 1.5}", r"`ppo\.gamma` = 1\.5 is out of range\. Allowed: >= 0 and <= 1"),
        ("ppo: {learning_rate: 0}", r"`ppo\.learning_rate` = 0\.0 is out of range\. Allowed: > 0"),
        ("ppo: {gamma: .nan}", r"`ppo\.gamma` = nan is out of range"),
        (
            "regularise: {kl: {direction: foward}}",
            r"`regularise\.kl\.direction` = 'foward' is not possible\. Did you mean 'forward'",
        ),
        ("regularise: {l3: {}}", r"Unknown regulariser 'l3'.*Allowed: kl, l2"),
        ("regularise: 3", r"`regularise` is a section with keys of its own, but was given 3"),
        ("regularise: {l2: 3}", r"`regularise\.l2` is a section with keys of its own"),
        ("regularise: {l2: {wieght: 3}}", r"Unknown key `regularise\.l2\.wieght`.*'weight'"),
        ("plugins: [no_such_plugin]", r"The plugin 'no_such_plugin' cannot be imported"),
        ("plugins: [os]", r"`plugins` holds 'os', which is a part of Python"),
        ("seed: 1\nseed: 2", r"`seed` is given twice \(line 2\)"),
        ("resume: true", r"`resume` is set but `out` is not"),
        ("ppo: {num_updates: 2, value_warmup_updates: 2}", r"leaves no update for the policy"),
        ("- a", r"must hold keys and values"),
        ("a: [", r"is not valid YAML"),
    ],
)
def test_bad_files(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load(tmp_path, "nope: 1")
    with pytest.raises(ConfigError, match="does not exist"):
        load_yaml(FinetuneConfig, tmp_path / "absent.yaml")


def test_ranges_hold_in_python_too():
    with pytest.raises(ConfigError, match=r"`env\.num_envs` = 0"):
        configs.EnvConfig(num_envs=0)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PPO().gamma = 1.0


@pytest.mark.parametrize(
    ("every", "early", "updates", "steps"),
    [
        (0.25, 0, 40, (10, 20, 30, 40)),
        (0.25, 2, 36, (3, 5, 9, 18, 27, 36)),
        (0.25, 2, 140, (9, 18, 35, 70, 105, 140)),
        (0.5, 0, 5, (3, 5)),
        (0.4, 0, 10, (4, 8, 10)),
        (0.45, 0, 10, (5, 10)),
        (4.0, 2, 9, (4, 9)),  # 8 would come right before the end
        (5.0, 2, 60, tuple(range(5, 61, 5))),  # a number of updates is meant exactly
        (0.001, 2, 4, (1, 2, 3, 4)),
        (100.0, 0, 60, (60,)),
        (0.25, 2, 1, (1,)),
    ],
)
def test_checkpoints_of_a_run(every, early, updates, steps):
    assert TrackingConfig(every=every, early=early).checkpoints(updates) == steps


@pytest.mark.parametrize("config_class", CLASSES)
def test_every_field_is_documented_in_one_line(config_class):
    lines = field_help(config_class)
    for item in dataclasses.fields(config_class):
        assert lines.get(item.name), f"{config_class.__name__}.{item.name} has no line under it"
        assert len(lines[item.name]) <= 100
        assert lines[item.name].endswith((".", "..."))


@pytest.mark.parametrize("config_class", CLASSES)
def test_sections_name_themselves(config_class):
    hints = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[item.name]) and item.name != "method":
            assert item.name == hints[item.name].SECTION
    for key, section in config_class.sections().items():
        assert key == section.SECTION


def test_every_setting_is_read():
    read = set()
    for file in sorted((ROOT / "robo_razor").rglob("*.py")):
        if file.name != "settings.py":
            read |= set(_settings_read(ast.parse(file.read_text(encoding="utf-8"))))
    unread = [
        f"{config_class.__name__}.{item.name}"
        for config_class in CLASSES
        for item in dataclasses.fields(config_class)
        if item.name not in read
    ]
    assert not unread, f"nothing reads {', '.join(unread)}"


def _settings_read(tree):
    """Yield what is read from something called like settings: `config.seed`, `self._ppo.gamma`."""
    owners = {"settings", "method", "term", *(c.SECTION for c in CLASSES if c.SECTION)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "_check_together":
            node.body = []  # a check alone is no use
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).rpartition(".")[2].lstrip("_")
            if "config" in owner or owner in owners or owner == "self":
                yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            yield from (a.value for a in node.args[1:2] if isinstance(a, ast.Constant))


def test_an_unread_setting_is_noticed():
    source = "def f(config, other):\n    other.gamma\n    return config.env.num_envs, config.seed"
    assert set(_settings_read(ast.parse(source))) == {"env", "num_envs", "seed"}


def test_keys_have_their_paths():
    keys = describe_fields(FinetuneConfig)
    assert {"ppo.learning_rate", "bc.epochs", "env.num_envs", "seed"} <= set(keys)
    assert {"regularise.kl.weight", "method", "plugins"} <= set(keys)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(file):
    assert any(_is_config(config_class, file) for config_class in (FinetuneConfig, *CLASSES)), file


def _is_config(config_class, file):
    try:
        load_yaml(config_class, file)
    except ConfigError:
        return False
    return True


def test_python_dictionaries_work_like_files():
    config = from_dict(EvaluateConfig, {"episodes": 3, "env": {"num_envs": 2}})
    assert (config.episodes, config.env.num_envs) == (3, 2)
