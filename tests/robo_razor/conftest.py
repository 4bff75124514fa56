"""Keeps torch to one thread; fixtures of sweeps."""

from __future__ import annotations

import textwrap

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes an experiment file."""

    def write(text):
        file = tmp_path / "experiment.yaml"
        file.write_text(textwrap.dedent(text))
        return file

    return write


@pytest.fixture
def fake(tmp_path, write, monkeypatch):
    """Return a sweep of fake runs whose behaviour a test chooses."""
    from fake_sweep import FakeSweep

    return FakeSweep(tmp_path, write, monkeypatch)
