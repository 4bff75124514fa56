"""Stands in for `robo-razor` in tests of sweeps: writes a minimal run directory, or misbehaves.

Called as a process, or as `main` where a process is not what is tested.
What a run does is said in the JSON file that FAKE_FINETUNE names: `{"arm/name": "fail", ...}`, with
`*` for all others. Every start is appended to `starts.log` beside that file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from robo_razor.core.metrics import Summary
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.settings.config import FinetuneConfig, load_yaml

UPDATES = 2
FOREVER_S = 3600
"""Until it is interrupted or killed."""
LET_GO = "let-go"
"""File beside FAKE_FINETUNE for which a run that lingers waits."""


def summary(config: dict, step: int) -> dict:
    skill = {"task": "x", "n": 10, "interval": [0.1, 0.9]}
    return {
        "step": step,
        "updates": UPDATES,
        "method": config["method"],
        "new": {
            "New": {
                **skill,
                "success_rate": 0.25 * (1 + step),
                "sampled": {"success_rate": 0.125, "n": 8},
            }
        },
        "prior": {"Old": {**skill, "success_rate": 0.5, "retention": 0.75}},
        "prior_mean": {
            "success_rate": 0.5,
            "base_success_rate": 0.625,
            "retention": 0.75,
            "forgetting": 0.125,
        },
        "kl_base_tuned": {"new_base_visited": 0.5 * step, "prior": None},
        "kl_kind": "exact",
        "distances": {"weight_l1": 3.0 * step},
        "entropy": 9.0,
        "elapsed_s": 60.0 * step,
        "tracking_s": 1.0,
    }


def write_step(run: RunDirectory, step: int) -> None:
    config = run.config_data()
    (run.checkpoints / f"{step:06d}").mkdir(parents=True)
    if step:
        line = {"step": step, "rollout/episodes": 4.0, "rollout/mean_control_steps": 25.0}
        with run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    run.write_summary(step, Summary.from_json(summary(config, step)))


def behaviour(out: Path, resumed: bool) -> str:
    plan = Path(os.environ["FAKE_FINETUNE"])
    name = f"{out.parent.name}/{out.name}"
    with (plan.parent / "starts.log").open("a", encoding="utf-8") as file:
        file.write(f"{name} {'resumed' if resumed else 'new'}\n")
    chosen = json.loads(plan.read_text())
    return str(chosen.get(name, chosen.get("*", "")))


def main(words: list[str], die: Callable[[], None]) -> int:
    try:
        return finetune(words, die)
    except KeyboardInterrupt:
        return 130


def finetune(words: list[str], die: Callable[[], None]) -> int:
    out = Path(words[words.index("--out") + 1])
    resumed = "--resume" in words
    what = behaviour(out, resumed)
    if what == "fail":
        sys.stderr.write("robo-razor: error: it cannot work\n")
        return 2
    if what == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if resumed:
        run = RunDirectory.resume(out)
    else:
        config = load_yaml(FinetuneConfig, words[words.index("--config") + 1])
        run = RunDirectory.create(config, out)
        if what == "die unborn" and not (out.parent / "died").exists():
            (out.parent / "died").touch()
            die()
        write_step(run, 0)
    start = int(run.last_step() or 0)
    for step in range(start + 1, UPDATES + 1):
        if step == UPDATES and (what == "always die" or (what == "die" and not resumed)):
            die()
        if step == UPDATES and what in ("hang", "stubborn") and not resumed:
            time.sleep(FOREVER_S)
        if step == UPDATES and what == "linger":
            let_go = Path(os.environ["FAKE_FINETUNE"]).with_name(LET_GO)
            while not let_go.exists():
                time.sleep(0.02)
        write_step(run, step)
    run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], lambda: os.kill(os.getpid(), signal.SIGKILL)))
