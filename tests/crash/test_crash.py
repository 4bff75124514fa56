"""A seeded sample of `make crash`, which tries every operation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crash.py")
CASES = 16


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_undisturbed_one():
    # In a process of its own: it forks, which threads of the test runner do not survive.
    words = [sys.executable, "-W", "ignore", str(SCRIPT), "--sample", str(CASES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"{CASES} cases, 0 failed" in done.stdout
