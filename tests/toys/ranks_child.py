"""What `test_ranks` starts on two ranks: runs of the toy task, and sums that are known."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from toy_policy import GREEN, NEW, RED
from toy_runs import finetune, quiet, run_config

from robo_razor.cli.evaluate import run_evaluate
from robo_razor.core.ranks import launched, part
from robo_razor.core.settings.config import EnvConfig, EvaluateConfig, TrackingConfig
from robo_razor.training.methods.bc import BC
from robo_razor.training.methods.grpo import GRPO
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.methods.reinforce import Reinforce
from robo_razor.training.regularisers.kl import KL
from robo_razor.training.regularisers.l2 import L2

ENV = EnvConfig(num_envs=8, num_workers=1, image_size=16, env_packages=("toy_env",))
METHODS = {
    "ppo": PPO(
        num_updates=2,
        episodes_per_update=24,
        minibatch_size=32,
        micro_batch_size=8,
        learning_rate=1e-3,
        value_warmup_updates=0,
        warmup_updates=0,
        temperature=1.0,
    ),
    "reinforce": Reinforce(
        num_updates=2, episodes_per_update=24, learning_rate=1e-3, temperature=1.0
    ),
    "bc": BC(episodes=6, epochs=2, batch_size=16, learning_rate=1e-3),
    "grpo": GRPO(
        num_updates=2,
        episodes_per_update=24,
        group_size=4,
        learning_rate=1e-3,
        warmup_updates=0,
        temperature=1.0,
        lora_rank=2,
    ),
}
REGULARISERS = {
    "ppo": (KL(weight=0.1), L2(weight=0.01)),
    "reinforce": (KL(weight=0.1, on="new", episodes=2, states=8, batch_size=6),),
    "bc": (KL(weight=0.1), L2(weight=0.01)),
    "grpo": (KL(weight=0.1, on="prior", episodes=2, states=8, batch_size=6), L2(weight=0.01)),
}


def settings(base, out, method, **changes):
    tracking = TrackingConfig(
        every=0.5,
        early=0,
        episodes_new=5,
        final_episodes_new=5,
        episodes_new_sampled=3,
        episodes_prior=1,  # fewer rows than ranks for one skill, but not for all of them together
        kl_states=16,
        max_share=1.0,
    )
    common = {"env": ENV, "tracking": tracking, "regularise": REGULARISERS[method]}
    return run_config(base, out, method, METHODS, **(common | changes))


def evaluation(base, file, **changes):
    skills = ",".join((NEW, RED, GREEN))
    return EvaluateConfig(
        policy=base, skills=skills, episodes=5, json=str(file), env=ENV, torch_threads=1, **changes
    )


def check_sums():
    ranks = launched("cpu")
    assert ranks.gather(ranks.rank) == [0, 1]
    one, two, three = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    one.grad = torch.full((2,), 1.0 + ranks.rank)
    if ranks.rank == 1:
        two.grad = torch.full((2,), 5.0)
    ranks.sum_gradients([one, two, three])
    assert one.grad.tolist() == [3.0, 3.0]
    assert two.grad.tolist() == [5.0, 5.0]
    assert three.grad is None
    mine = {"a": 1.0, "largest": float(ranks.rank)} if ranks.rank else {}
    assert ranks.totals(mine, maxima=("largest",)) == {"a": 1.0, "largest": 1.0}


def main(base, out):
    root = Path(out)
    check_sums()
    said = {}
    for method in METHODS:
        console = quiet()
        result = finetune(settings(base, root / method, method), console)
        said[method] = [str(result.run), result.step, "Done:" in console.file.getvalue()]
    finetune(settings(base, root / "ppo", "ppo", resume=True), quiet())  # nothing is left to do
    run_evaluate(evaluation(base, root / "all.json"), quiet())
    run_evaluate(evaluation(base, root / "until.json", until_width=0.9), quiet())
    (root / f"said-{os.environ['RANK']}.json").write_text(json.dumps(said))
    part()


if __name__ == "__main__":
    main(*sys.argv[1:])
