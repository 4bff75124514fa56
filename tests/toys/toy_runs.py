"""Runs of `finetune` on the toy environment, and how tests read what they left."""

from __future__ import annotations

import io
import json
import logging

import pytest
import torch
from rich.console import Console
from toy_policy import NEW

from robo_razor.core.run.display import Display
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.policies.load import load_policy
from robo_razor.training import trainer


def quiet():
    return Console(file=io.StringIO(), width=200)


def finetune(config, console):
    """Fine-tune, and show on a console what the command shows."""
    return trainer.finetune(config, Display(console))


def run_config(base, out, method, sections, **settings):
    """Return the settings of a run; `sections` holds methods by their names, with settings."""
    chosen = sections.get(method, method) if isinstance(method, str) else method
    common = {"method": chosen, "policy": base, "task": NEW, "out": str(out), "torch_threads": 1}
    return FinetuneConfig(**(common | settings))


def interrupt_at(monkeypatch, learner, update, config):
    """Run until Ctrl-C at the beginning of an update of a learner (class)."""
    original = learner.update

    def stop(self, k):
        if k == update:
            raise KeyboardInterrupt
        return original(self, k)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(learner, "update", stop)
        finetune(config, quiet())


def weights(run, step):
    return load_policy(str(run / "checkpoints" / f"{step:06d}")).module.state_dict()


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def summary(run, step):
    return json.loads((run / "eval" / f"{step:06d}" / "summary.json").read_text())


def metrics(run):
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def own_warnings(caplog):
    """Return what this package warned of; other tests may let more be told, and by others."""
    return [
        record.message
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("robo_razor")
    ]
