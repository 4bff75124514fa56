"""The command `robo-razor`: parse, call, and report errors in one paragraph."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robo_razor.core.errors import ConfigError, RoboRazorError, unknown_name
from robo_razor.core.interrupts import interruptible
from robo_razor.core.settings import config as configs

EXIT_ERROR = 2
EXIT_SIGNAL = 128
"""Plus the number of the signal that stopped a run: 130 for Ctrl-C, 143 for SIGTERM."""


@dataclass(frozen=True)
class Command:
    """One subcommand: what it does, how it is called, and what it calls."""

    about: str
    examples: tuple[str, ...]
    target: str
    """`module:function`, imported when the command runs."""
    config: type[configs.Settings] | None = None


COMMANDS: dict[str, Command] = {
    "finetune": Command(
        "Fine-tune a policy on a new task; measure at every checkpoint what it forgets.",
        (
            "robo-razor finetune --method ppo --out runs/x",
            "robo-razor finetune --config configs/debug_ppo.yaml",
            "robo-razor finetune --method bc --bc.learning-rate 1e-4 --seed 3",
            "robo-razor finetune --resume --out runs/x",
        ),
        "robo_razor.training.trainer:finetune",
        configs.FinetuneConfig,
    ),
    "pretrain": Command(
        "Make the base policy from scratch: perception first, then cloning of all prior skills.",
        ("robo-razor pretrain --out runs/base",),
        "robo_razor.training.pretrain:run_pretrain",
        configs.PretrainConfig,
    ),
    "collect": Command(
        "Write demonstrations of a scripted expert or of a policy as a LeRobotDataset.",
        (
            "robo-razor collect --task gym_razor/PlaceCanInBin-v0 --style b --episodes 100 "
            "--out data/can",
        ),
        "robo_razor.cli.collect:run_collect",
        configs.CollectConfig,
    ),
    "rollout": Command(
        "Run a policy on a task, with an instruction of your own if you like, and film it.",
        (
            "robo-razor rollout --policy razor-base --task gym_razor/LiftCube-v0 --video v.mp4 "
            '--instruction "lift the red cube"',
        ),
        "robo_razor.cli.rollout:run_rollout",
        configs.RolloutConfig,
    ),
    "evaluate": Command(
        "Measure a policy's success on skills, with 95 % intervals, on fixed start states.",
        (
            "robo-razor evaluate --policy razor-base --skills all --episodes 200 --json out.json",
            "robo-razor evaluate --policy runs/x/checkpoints/best --skills PlaceCanInBin,LiftCan",
            "robo-razor evaluate --manifest razor --json out.json --resume",
            "robo-razor evaluate --skills LiftCube --until-width .05",
            "robo-razor evaluate --policy DIR --skills lerobot:metaworld/reach-v3,LiftCube",
        ),
        "robo_razor.cli.evaluate:run_evaluate",
        configs.EvaluateConfig,
    ),
    "manifest": Command(
        "Write down the start states of an evaluation, or check that they are still the same.",
        (
            "robo-razor manifest --skills all --episodes 200 --out states.json.gz",
            "robo-razor manifest --check razor --episodes 10",
        ),
        "robo_razor.cli.manifest:run_manifest",
        configs.ManifestConfig,
    ),
    "compare": Command(
        "Compare runs or a sweep: what is kept at equal new-task success, as a page to read.",
        (
            "robo-razor compare runs/ppo runs/bc --out report",
            "robo-razor compare runs/razor --merge ppo,ppo_rates bc,bc_rates --videos 0",
        ),
        "robo_razor.cli.compare:run",
        configs.CompareConfig,
    ),
    "archive": Command(
        "Keep what a sweep or a run measured in one small file, without weights.",
        (
            "robo-razor archive runs/razor --out razor.tar.xz",
            "robo-razor compare razor.tar.xz --out report",
        ),
        "robo_razor.cli.archive:run_archive",
        configs.ArchiveConfig,
    ),
    "sweep": Command(
        "Run an experiment file: many runs, several at a time, resumable, into one table.",
        (
            "robo-razor sweep configs/experiments/razor_smoke.yaml",
            "robo-razor sweep configs/experiments/razor_smoke.yaml --dry-run",
            "robo-razor sweep configs/experiments/razor_smoke.yaml --backend ray --parallel 8",
        ),
        "robo_razor.cli.sweep:run_sweep",
        configs.SweepConfig,
    ),
    "doctor": Command(
        "Check this machine: packages, OpenGL, CPU, GPU, disk; say what is slow or wrong.",
        ("robo-razor doctor",),
        "robo_razor.cli.doctor:run_doctor",
    ),
    "list": Command(
        "List tasks, skills, methods and policies (or one of them, or LeRobot's environments).",
        ("robo-razor list", "robo-razor list tasks", "robo-razor list lerobot"),
        "robo_razor.cli.listing:run_list",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: Words after `robo-razor`; None: those the process was started with.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    _set_up_logging(debug)
    _let_threads_sleep()
    try:
        return _dispatch(given)
    except RoboRazorError as error:
        if debug:
            raise
        sys.stderr.write(f"robo-razor: error: {' '.join(str(error).split())}\n")
        return EXIT_ERROR
    except KeyboardInterrupt as error:
        if debug:
            raise
        number = getattr(error, "signal", signal.SIGINT)
        by = "" if number == signal.SIGINT else f" by {number.name}"
        sys.stderr.write(f"robo-razor: interrupted{by}\n")
        return EXIT_SIGNAL + number
    except BrokenPipeError:  # `robo-razor list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that is gone, too many open files
        if debug:
            raise
        from robo_razor.core.files import system_refusal

        text = " ".join(system_refusal(error).split())
        sys.stderr.write(f"robo-razor: error: {text}. `--debug` shows where.\n")
        return EXIT_ERROR


def _let_threads_sleep() -> None:
    """Let torch's CPU threads wait for each other asleep, not spinning, after a fraction of a ms.

    Where something else runs beside them, a spinning thread keeps the core that the one it waits
    for needs: a gradient step then took half as long again. Read when torch is loaded (GNU OpenMP).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        sys.stdout.write(f"robo-razor {version('robo-razor')}\n")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS, remedy="See `robo-razor --help`.")
    command = COMMANDS[name]
    if command.config is None:
        return _run_plain(name, command, rest)
    from robo_razor.cli.arguments import parse

    try:
        config = parse(name, command.config, rest, command.about)
    except SystemExit:  # help was shown
        sys.stdout.write(_examples(command))
        return 0
    with interruptible():  # so that workers end and results are kept, whatever signal it is
        _load(command.target)(config)
    if "WORLD_SIZE" in os.environ:  # a launcher's; otherwise `--help` would pay for torch
        _load("robo_razor.core.ranks:part")()
    return 0


def _run_plain(name: str, command: Command, arguments: list[str]) -> int:
    """Run a command that has no settings, only positional arguments."""
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(f"usage: robo-razor {name}\n\n{command.about}\n{_examples(command)}")
        return 0
    if arguments and (name != "list" or len(arguments) > 1 or arguments[0].startswith("-")):
        raise ConfigError(
            f"`robo-razor {name}` does not take {arguments[-1]!r}",
            allowed="tasks, skills, methods, policies or lerobot"
            if name == "list"
            else "no option",
        )
    return int(_load(command.target)(*arguments) or 0)


def _load(target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    entry: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return entry


def _overview() -> str:
    lines = [f"  {name:<10}{command.about}" for name, command in COMMANDS.items()]
    return (
        "usage: robo-razor COMMAND [OPTIONS]\n\n"
        "Fine-tune robot policies and see at every checkpoint which skills they forgot.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`robo-razor COMMAND --help` shows a command's options and examples. Everywhere:\n"
        "  --config FILE  read settings from a YAML file; flags override it\n"
        "  --debug        on an error, show the traceback\n"
        "  --version      show the version\n\n"
        "example:\n  robo-razor finetune --method ppo --out runs/x\n"
    )


def _examples(command: Command) -> str:
    title = "example" if len(command.examples) == 1 else "examples"
    body = "\n".join(command.examples)
    more = "" if command.config is None else "also: --config FILE.yaml, --debug\n"
    return f"\n{title}:\n{textwrap.indent(body, '  ')}\n{more}"


def _set_up_logging(debug: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s" if debug else "%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("robo_razor").setLevel(logging.DEBUG if debug else logging.INFO)
    if debug:  # their debug output would bury ours
        for name in ("matplotlib", "PIL", "urllib3", "httpcore", "httpx", "OpenGL", "fsspec"):
            logging.getLogger(name).setLevel(logging.WARNING)
