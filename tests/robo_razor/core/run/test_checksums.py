from __future__ import annotations

import os

import pytest

from robo_razor.core.errors import CheckpointError
from robo_razor.core.run.checksums import verify_checksums, write_checksums


@pytest.fixture
def folder(tmp_path):
    for name in ("pretrained_model/model.safetensors", "training_state/step.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"0123456789")
    write_checksums(tmp_path)
    return tmp_path


def test_what_was_written_is_what_is_read(folder):
    verify_checksums(folder)
    verify_checksums(folder, from_disk=True)


@pytest.mark.parametrize("data", [b"", b"012345678", b"0123456788", b"01234567890"])
def test_a_change_is_noticed(folder, data):
    (folder / "training_state" / "step.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step\.json is damaged: it was truncated"):
        verify_checksums(folder)
    verify_checksums(folder, "pretrained_model")  # not there


def test_a_file_that_grew_is_not_read_and_a_pipe_is_not_opened(folder):
    step = folder / "training_state" / "step.json"
    with step.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"step\.json is damaged: it was truncated"):
        verify_checksums(folder)
    step.unlink()
    os.mkfifo(step)
    with pytest.raises(CheckpointError, match=r"step\.json is damaged: it is not a file"):
        verify_checksums(folder)


def test_a_missing_file_is_noticed(folder):
    (folder / "pretrained_model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tensors is damaged: the file is missing"):
        verify_checksums(folder, "pretrained_model")


@pytest.mark.parametrize(
    "record",
    [
        *("{}", "[]", "{", '{"sha256":', '{"sha256": {}}', '{"bytes": {}, "sha256": 3}'),
        '{"bytes": {}, "sha256": {"../../secret": ""}}',
    ],
)
def test_a_damaged_record_is_an_error_too(folder, record):
    (folder / "checksums.json").write_text(record)
    with pytest.raises(CheckpointError, match=r"checksums\.json is damaged"):
        verify_checksums(folder)


def test_without_a_record_weights_must_be_as_long_as_they_say(tmp_path):
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(9)}, file)
    verify_checksums(tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        verify_checksums(tmp_path)
