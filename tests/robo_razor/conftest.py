"""Makes the toy environment and policy importable, and keeps torch to one thread."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


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
