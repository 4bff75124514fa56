from __future__ import annotations

import errno
import os

import pytest

from robo_razor.core import files
from robo_razor.core.errors import CheckpointError, shown
from robo_razor.core.files import (
    clear_leftovers,
    make_directory,
    parse_json,
    raising_os_errors,
    read_json,
    read_link,
    replace_link,
    system_refusal,
    write_text,
)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "1e999", "9" * 5000, "[" * 100_000, "{", "", "\ufeff{}"]
)
def test_what_is_not_json_is_one_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):  # noqa: PT011  # of many kinds
        parse_json(text)
    with pytest.raises(CheckpointError, match=r"a\.json is damaged or not JSON"):
        read_json(tmp_path / "a.json")


def test_other_encodings_and_huge_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="not UTF-8: byte 0xff at 7"):
        read_json(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path)
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(files.MAX_TEXT_BYTES + 1)
    with pytest.raises(CheckpointError, match="larger than 256 MiB"):
        read_json(tmp_path / "b.json")


def test_a_value_is_quoted_shortly_whatever_it_holds():
    value: object = "x"
    for _ in range(9):
        value = [value] * 9
    deep: object = []
    for _ in range(100_000):
        deep = [deep]
    for hostile in (value, "y" * 10**7, deep, 10**6000, {"a": {"b": {"c": {"d": 1}}}}):
        assert len(shown(hostile)) < 500
    assert shown("a\nb") == "'a\\nb'"


def test_the_first_error_of_a_write_is_the_one_told(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    def read_only(self, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(type(tmp_path), "unlink", read_only)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "text")


@pytest.mark.parametrize("was", ["link", "folder", "text", "nothing", "dangling"])
def test_a_link_is_replaced_whatever_a_copy_made_of_it(tmp_path, was):
    (tmp_path / "000002").mkdir()
    link = tmp_path / "last"
    if was == "folder":
        (link / "pretrained_model").mkdir(parents=True)
    elif was == "text":
        link.write_text("000001\n")
    elif was != "nothing":
        link.symlink_to("000001" if was == "dangling" else "000002")
    replace_link(link, "000002")
    assert os.readlink(link) == "000002"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000002", "last"]


def test_without_links_a_text_stands_for_one(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(type(tmp_path), "symlink_to", refuse)
    replace_link(tmp_path / "last", "000002")
    assert read_link(tmp_path / "last") == "000002"
    assert read_link(tmp_path / "nothing") is None


def test_leftovers_go_and_what_was_set_aside_comes_back(tmp_path):
    folder = tmp_path / "eval" / "000001"
    make_directory(folder)
    (folder / ".summary.json.12.345.tmp").write_text("half")
    (tmp_path / ".last.12.tmp").symlink_to("000009")
    (tmp_path / ".000003.12.tmp").mkdir()
    (tmp_path / ".000002.12.old").mkdir()
    (tmp_path / ".000004.12.old").mkdir()
    (tmp_path / "000004").mkdir()
    (tmp_path / ".lock").touch()
    clear_leftovers(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == [".lock", "000002", "000004", "eval", "eval/000001"]


def test_what_the_system_refused_is_a_sentence(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", "/data/run")
    assert system_refusal(error).endswith("(No space left on device): /data/run")


def test_safetensors_errors_of_the_system_are_os_errors(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="No space left") as caught, raising_os_errors(tmp_path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError), raising_os_errors(tmp_path):
        raise SafetensorError("invalid header")
