"""Sweeps of fake runs, in this process, for tests; their fixtures are in conftest."""

from __future__ import annotations

import contextlib
import functools
import io
import json

import fake_finetune
from rich.console import Console

from robo_razor.cli import sweep as command
from robo_razor.cli.sweep import run_sweep
from robo_razor.core.run.sweep_record import read_sweep
from robo_razor.core.settings.config import SweepConfig
from robo_razor.sweep import run as sweep
from robo_razor.sweep.schedule import Scheduler

TWO_ARMS = """
base: {tracking: {episodes_new: 7}}
arms:
  - {name: a, settings: {method: bc}, grid: {seed: [0, 1]}}
  - {name: b, settings: {method: ppo}, grid: {seed: [0, 1]}, needs: a}
"""


class Died(Exception):
    """What SIGKILL does where there is a process."""


def die():
    raise Died


class InProcess:
    """Runs the stand-in in this process, at once; it is seen to have ended a little later."""

    threads = 3

    def __init__(self, parallel=2):
        self.parallel, self.going, self.most = parallel, 0, 0

    def start(self, words, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as output, contextlib.redirect_stderr(output):
            try:
                status = fake_finetune.main(list(words), die)
            except Died:
                status = -9
        self.going += 1
        self.most = max(self.most, self.going)
        return self.Handle(self, status)

    def close(self):
        pass

    class Handle:
        def __init__(self, launcher, status):
            self.launcher, self.status, self.polls = launcher, status, 0

        def poll(self):
            self.polls += 1
            if self.polls < 3:
                return None
            self.launcher.going -= 1
            return self.status


class FakeSweep:
    def __init__(self, tmp_path, write, monkeypatch):
        self.tmp, self.write, self.out = tmp_path, write, tmp_path / "out"
        self.behaviour = tmp_path / "behaviour.json"
        monkeypatch.setenv("FAKE_FINETUNE", str(self.behaviour))
        monkeypatch.setattr(command, "_check_tasks", lambda configs: None)
        monkeypatch.setattr(sweep, "Scheduler", functools.partial(Scheduler, poll_s=0.01))
        self.behave({})

    def behave(self, plan):
        self.behaviour.write_text(json.dumps(plan))

    def run(self, text=TWO_ARMS, launcher=None, **options):
        self.console = Console(file=io.StringIO(), width=200)
        config = SweepConfig(file=str(self.write(text)), out=str(self.out), **options)
        launcher = launcher or InProcess()
        return {p.run.id: p for p in run_sweep(config, self.console, launcher)}

    @property
    def starts(self):
        file = self.tmp / "starts.log"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def states(self):
        return {f"{r['arm']}/{r['name']}": r["state"] for r in read_sweep(self.out)["runs"]}

    @property
    def shown(self):
        return self.console.file.getvalue()
