from __future__ import annotations

import resource

import pytest
import torch

from robo_razor.core.device import keep_freed_memory, resolve_device, torch_threads
from robo_razor.core.errors import ConfigError

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
    with pytest.raises(ConfigError, match=r"'cuda' .* is not here: torch sees no CUDA devices"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match=r"'gpu' .* is none that .*Allowed: auto, cpu"):
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

    monkeypatch.setattr("robo_razor.core.device.ctypes.CDLL", lambda name: Library)
    assert not keep_freed_memory()
    assert asked in ([-3], [])  # not the other threshold, which alone makes it slower
