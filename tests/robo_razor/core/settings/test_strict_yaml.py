"""YAML of strangers: what settings need works, the rest is refused at once and in few words."""

import os

import pytest

from robo_razor.core.errors import ConfigError
from robo_razor.core.settings.strict_yaml import (
    MAX_BYTES,
    MAX_ITEMS,
    dump_yaml,
    parse_yaml,
    read_yaml,
)


def bomb(value, reference):
    """Return nine levels of nine aliases each; `last` stands for 10^9 values."""
    lines = [f"a0: &a0 {value}"]
    for i in range(1, 10):
        lines.append(f"a{i}: &a{i} {reference(', '.join([f'*a{i - 1}'] * 9))}")
    return "\n".join([*lines, "last: *a9"])


def nested(levels):
    return "a: " + "[" * levels + "]" * levels


def refusal(text):
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "F")
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        ("-.5e3", -500.0),
        ("yes", True),
        ("~", None),
        ("", None),
        ("!!int '7'", 7),
        ("2001-02-30", "2001-02-30"),
        ("2001-99-99", "2001-99-99"),
        ("59:59", "59:59"),
        ("'1'", "1"),
        ("٣", "٣"),
        ("=", "="),
    ],
)
def test_values(text, value):
    parsed = parse_yaml(f"a: {text}", "F")["a"]
    assert (parsed, type(parsed)) == (value, type(value))


def test_what_is_read_twice_is_not_shared():
    parse_yaml("a: {b: [1]}", "x")["a"]["b"].append(2)
    assert parse_yaml("a: {b: [1]}", "x") == {"a": {"b": [1]}}


def test_keys_are_texts_as_written():
    assert parse_yaml("on: 1\n2: 3\nnull: 4", "F") == {"on": 1, "2": 3, "null": 4}


def test_merge_keys_give_defaults():
    text = "base: &b {x: 1, y: 2}\nmore: &m {x: 5, z: 3}\nc: {<<: [*b, *m], y: 4}\nd: {'<<': 1}"
    data = parse_yaml(text, "F")
    assert data["c"] == {"x": 1, "y": 4, "z": 3}
    assert data["d"] == {"<<": 1}


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert parse_yaml("\ufeffa: 1", "F") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("? [a]", "line 1: a key must be a text"),
        ("{? {a: b} : 1}", "a key must be a text"),
        ("a: 1\n?   num_envs: 16", "line 2: a key must be a text"),
        ("a: 1\nlr: {{ lr }}", "'lr: {{ lr }}' looks like a template that nobody filled in"),
        ("{% if x %}", "looks like a template that nobody filled in"),
        ("'': 1", "a key is empty"),
        ("' ': 1", "a key is empty"),
        (f"{'k' * 300}: 1", "is too long"),
        ("a: 1\na: 2", r"the key `a` is given twice (line 2)"),
        ("{<<: {a: 1}, <<: {b: 1}}", "the key `<<` is given twice"),
        ("<<: 3", "`<<` merges mappings, and this is not one"),
        ("a: " + "9" * 5000, "cannot be read as a number"),
        ("a: 0x" + "f" * 5000, "cannot be read as a number"),
        ("a: 1" + "0" * 400, "cannot be read as a number"),
        ("a: !!int x", "'x' cannot be read as a number"),
        ("a: !!python/object/apply:os.system [id]", "python/object/apply:os.system` is not one"),
        ("a: !!binary aa==", "binary` is not one of settings"),
        ("a: !!set {b}", "set` is not one of settings"),
        ("a: !!timestamp 2001-01-01", "timestamp` is not one of settings"),
        (nested(1000), "nested more than 32 levels deep"),
        (nested(100_000), "nested more than 32 levels deep"),
        ("- " * 100_000, "nested more than 32 levels deep"),
        ("env: &a {lerobot: *a}", "the alias `*a` contains itself"),
        ("*a", "found undefined alias"),
        (bomb("[x,x,x,x,x,x,x,x,x]", "[{}]".format), "aliases counted in full"),
        (bomb("{k: 1}", "{{<<: [{}]}}".format), "aliases counted in full"),
        ("[" + "1," * (MAX_ITEMS + 1) + "]", f"more than {MAX_ITEMS} items"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \0", "the character #x0000 at position 3"),
        ("a: \x1b", "the character #x001b at position 3"),
        ("a: [", "is not valid YAML at line 1"),
        ("a" * (MAX_BYTES + 1), "is larger than 256 KiB"),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_refused(text, problem):
    assert problem in refusal(text)


def test_deep_by_aliases_is_deep():
    links = [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 40)]
    assert "levels deep" in refusal("\n".join(["a0: &a0 [x]", *links]))


@pytest.mark.parametrize("data", ["a: 1".encode("utf-16"), b"a: \xff", b"\x80"])
def test_other_encodings_are_told(tmp_path, data):
    file = tmp_path / "c.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"not UTF-8: byte 0x.* saved as UTF-8"):
        read_yaml(file)


def test_only_plain_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in [
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is not a plain file"),
        ("/dev/zero", "is not a plain file"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (tmp_path / "a\0b", "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=what):
            read_yaml(path)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(2**32)
    with pytest.raises(ConfigError, match="larger than"):
        read_yaml(tmp_path / "big.yaml")


@pytest.mark.parametrize(
    "text", ["3e-4", "1:30", "2001-01-01", "010", "yes", "~", "<<", "=", "a: b", "é", "", "x\ny"]
)
def test_what_is_written_is_read_back(text):
    data = {"a": text, "b": [text, 1, 1.5, 1e-7, None, True], "c": {"d": text}}
    assert parse_yaml(dump_yaml(data), "F") == data
