from __future__ import annotations

import resource
import shutil
from types import SimpleNamespace

import pytest
import torch

from robo_razor.core.errors import ConfigError, EnvError, RunDirectoryError
from robo_razor.core.machine import (
    check_descriptors,
    check_path_length,
    check_room,
    keep_freed_memory,
    resolve_device,
    torch_threads,
)

BLOCK = 12 << 20  # float32 numbers: 48 MiB, above what glibc keeps by default


def page_faults(times=16):
    for _ in range(times):  # the heap takes a few to settle
        torch.ones(BLOCK)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(BLOCK)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again():
    if not keep_freed_memory():
        pytest.skip("another C library, or the user chose")
    assert page_faults() < BLOCK * 4 // 4096  # the system zeroed no more than one of sixteen


def test_what_the_user_chose_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1) as threads:
        assert torch.get_num_threads() == threads == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"'cuda' .* is missing: torch sees no CUDA devices"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match=r"'gpu' .* is unknown.*Allowed: auto, cpu"):
        resolve_device("gpu")


def test_only_cuda_devices_that_are_there_are_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == "cuda:0"
    with pytest.raises(ConfigError, match=r"torch sees 1 CUDA device\b.*auto, cpu, cuda, cuda:0"):
        resolve_device("cuda:7")


def test_a_library_that_refuses_is_left_as_it_was(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def mallopt(name, value):
            asked.append(name)
            return 0

    monkeypatch.setattr("robo_razor.core.machine.ctypes.CDLL", lambda name: Library)
    assert not keep_freed_memory()
    assert asked in ([-3], [])  # not the other threshold, which alone makes it slower


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 20)])
def test_a_name_that_the_system_cannot_have_is_refused(tmp_path, name):
    with pytest.raises(RunDirectoryError, match="is too long for this system.*names up to 255"):
        check_path_length(tmp_path / name)


def test_a_usual_name_is_taken(tmp_path):
    check_path_length(tmp_path / "not" / "there" / "yet")


def test_a_disk_that_will_be_full_is_told_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=99 * 2**20))
    check_room(tmp_path / "not" / "there" / "yet", 10 * 2**20, 9)
    with pytest.raises(RunDirectoryError, match=r"99 MiB free.*10\s+checkpoints of about 10 MiB"):
        check_room(tmp_path / "run", 10 * 2**20, 10)


@pytest.fixture
def limit(monkeypatch):
    """Return a function that pretends some limits of open files, and what was set."""
    made = []

    def pretend(soft, hard):
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda which, both: made.append(both))
        return made

    return pretend


def test_the_limit_of_open_files_is_raised_where_that_is_allowed(limit):
    made = limit(64, 4096)
    check_descriptors(24)
    assert made == [(144, 4096)]
    check_descriptors(2)
    assert len(made) == 1, "two workers fit"


def test_too_few_open_files_are_told_before_workers_start(limit):
    limit(64, 64)
    with pytest.raises(EnvError, match=r"24 worker processes need some 144.*ulimit -n 144"):
        check_descriptors(24)
