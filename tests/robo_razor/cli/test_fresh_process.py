"""What must work in a process that has imported nothing of LeRobot yet, as every command starts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file


@pytest.mark.slow
def test_lerobots_own_policy_types_are_known(tmp_path):
    (tmp_path / "config.json").write_text('{"type": "smolvla"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    code = f"from robo_razor.policies.load import load_policy; load_policy({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Unknown policy type" not in done.stderr
    assert "needs the settings and the tokenizer of" in done.stderr  # which its type has


@pytest.mark.slow
@pytest.mark.parametrize("task", ["gym_razor/PressButton-v0", "PressButton"])
def test_rollout_knows_the_suites_tasks(task):
    arguments = ["rollout", "--policy", "expert", "--task", task, "--episodes", "1"]
    command = [sys.executable, "-m", "robo_razor.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expert on gym_razor/PressButton-v0: 1 of 1 episodes" in done.stdout
