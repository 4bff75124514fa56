"""Fixtures of sweeps."""

from __future__ import annotations

import textwrap

import pytest


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
