from __future__ import annotations

import resource
import shutil
from types import SimpleNamespace

import pytest

from robo_razor.core.errors import EnvError, RunDirectoryError
from robo_razor.core.limits import check_descriptors, check_path_length, check_room


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
