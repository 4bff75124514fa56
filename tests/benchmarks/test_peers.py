"""Both sides of every comparison with peers do the same work; how fast is not tested."""

from __future__ import annotations

import argparse
import json
import logging
import os

import peers
import pytest
import torch
from contestants.meter import Stopped, check_same_work
from lerobot.configs.default import EvalConfig

from robo_razor.training.update import bf16_is_fast

TOY = [
    *("--threads", "1", "--workers", "1", "--num-envs", "2", "--max-episode-steps", "8"),
    *("--task", "gym_razor/PressButton-v0", "--demonstrations", "2", "--batch-size", "4"),
    *("--gradient-steps", "10", "--loader-workers", "0", "--episodes", "4"),
    *("--denoising-steps", "3", "--replay-batch", "2", "--replays", "2"),
    *("--episodes-per-env", "2", "--update-epochs", "1", "--minibatches", "2"),
    "--no-subprocesses",
]
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the peers


class LocalMeter:
    """Lets a contestant do some units of work in this process and leaves its loop then."""

    def __init__(self, units):
        self.units, self.samples, self.facts, self.notes = units, 0, {}, {}

    def add(self, samples):
        self.samples += samples

    def boundary(self):
        self.units -= 1
        if self.units < 0:
            raise Stopped


@pytest.fixture
def settings(tmp_path):
    """Toy sizes; afterwards, what `lerobot-train` sets for the whole process is as it was."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = list(root.handlers), root.level
    yield argparse.Namespace(**vars(peers.parse(TOY)), folder=tmp_path)
    root.handlers[:], root.level = handlers, level
    torch.set_num_threads(threads)


def run_once(name, settings):
    """Run every contestant once; check that the work was the same and return what they counted."""
    comparison = peers.comparisons(settings)[name]
    peers.prepare(name, settings)
    meters = {}
    for contestant, (run, units) in comparison.contestants.items():
        meters[contestant] = LocalMeter(units)
        with pytest.raises(Stopped):
            run(settings, meters[contestant])
    facts = {contestant: meter.facts for contestant, meter in meters.items()}
    counts = {contestant: {"samples": meter.samples} for contestant, meter in meters.items()}
    check_same_work(comparison, facts, [counts])
    return meters


@pytest.mark.slow
def test_cloning(settings):
    meters = run_once("a", settings)
    assert {meter.samples for meter in meters.values()} == {10 * 4}
    all_parameters = meters["robo-razor finetune"].facts["trained_parameters"]
    frozen = meters["robo-razor finetune, image encoder frozen"].facts["trained_parameters"]
    assert 0 < frozen < all_parameters


@pytest.mark.slow
def test_evaluation(settings):
    settings.max_episode_steps = 28  # some of them succeed by then
    meters = run_once("b", settings)
    assert {meter.samples for meter in meters.values()} == {4}
    assert len({meter.notes["success_rate"] for meter in meters.values()}) == 1
    assert meters["lerobot-eval"].notes["num_envs"] == EvalConfig(n_episodes=4).batch_size
    assert meters["lerobot-eval, 2 environments in processes"].notes["num_envs"] == 2


def test_replay(settings):
    batched, sequential = run_once("c", settings).values()
    assert batched.samples == sequential.samples == 2 * 2
    assert batched.facts["steps"] == 3
    assert batched.notes["log_prob"] == pytest.approx(sequential.notes["log_prob"], rel=1e-4)


@pytest.mark.parametrize(("name", "spared"), [("d", False), ("d", True), ("e", False)])
def test_ppo(settings, name, spared):
    settings.spared = spared
    meters = run_once(name, settings)
    assert {meter.samples for meter in meters.values()} == {2 * 2 * 2}  # envs, episodes, decisions


@pytest.mark.slow
def test_ppo_against_one_process_per_environment(settings):
    settings.no_subprocesses = False
    meters = run_once("d", settings)
    assert {meter.samples for meter in meters.values()} == {2 * 2 * 2}
    assert list(meters) == [
        "robo-razor finetune",
        *["robo-razor finetune --ppo.bf16"] * bf16_is_fast(),
        "Stable-Baselines3, DummyVecEnv",
        "Stable-Baselines3, SubprocVecEnv",
        "Stable-Baselines3 on our vector env",
    ]


@pytest.mark.slow
def test_the_command_writes_ratios_with_machine_and_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers.os, "environ", dict(os.environ))
    out = tmp_path / "p.json"
    assert peers.main(["--only", "c", "--repeats", "1", "--json", str(out), *TOY]) == 0
    assert "(c) replay of denoising paths" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["settings"]["replay_batch"] == 2
    assert document["machine"]["cores"] >= 1
    assert document["ratios"]["c"]["ratio"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "ax"], "give letters out of abcde"),
        (["--gradient-steps", "15"], "give a multiple of 10"),
    ],
)
def test_settings_that_cannot_be_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        peers.parse(flags)
    assert message in capsys.readouterr().err
