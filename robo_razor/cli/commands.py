"""The command `robo-razor`: parse, call, and report errors in one paragraph."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robo_razor.core.errors import ConfigError, RoboRazorError, UnknownNameError, unknown_name
from robo_razor.core.interrupts import interruptible
from robo_razor.core.settings import config as configs

WIDTH = 80
"""Columns that the overview fits into."""
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
    synonyms: tuple[str, ...] = ()
    """What people may type instead; an error then suggests the command."""


COMMANDS: dict[str, Command] = {
    "finetune": Command(
        "Fine-tune a policy on a new task; measure at every checkpoint what it forgets.",
        (
            "robo-razor finetune --method ppo --out runs/x",
            "robo-razor finetune --config debug_ppo",
            "robo-razor finetune --method bc --bc.learning-rate 1e-4 --seed 3",
            "robo-razor finetune --resume --out runs/x",
        ),
        "robo_razor.cli.training:run_finetune",
        configs.FinetuneConfig,
        ("train", "tune", "fit", "learn"),
    ),
    "pretrain": Command(
        "Make a base policy from scratch: perception, then cloning of all prior skills.",
        ("robo-razor pretrain --out runs/base",),
        "robo_razor.cli.training:run_pretrain",
        configs.PretrainConfig,
    ),
    "collect": Command(
        "Write demonstrations of a scripted expert or of a policy as a LeRobotDataset.",
        ("robo-razor collect --task PlaceCanInBin --style b --out data/can",),
        "robo_razor.cli.collect:run_collect",
        configs.CollectConfig,
        ("record", "demonstrate", "demo"),
    ),
    "rollout": Command(
        "Run a policy on a task, with your own instruction if you like, and film it.",
        (
            "robo-razor rollout --policy razor-base --task LiftCube --video v.mp4",
            'robo-razor rollout --task LiftCube --instruction "lift the red cube"',
        ),
        "robo_razor.cli.rollout:run_rollout",
        configs.RolloutConfig,
        ("run", "play", "film", "watch"),
    ),
    "evaluate": Command(
        "Measure a policy's success on skills, on fixed start states, with intervals.",
        (
            "robo-razor evaluate --policy razor-base --skills all --json out.json",
            "robo-razor evaluate --policy runs/x/checkpoints/best --skills LiftCan",
            "robo-razor evaluate --manifest razor --json out.json --resume",
            "robo-razor evaluate --skills LiftCube --until-width 0.05",
            "robo-razor evaluate --policy DIR --skills lerobot:metaworld/reach-v3",
        ),
        "robo_razor.cli.evaluate:run_evaluate",
        configs.EvaluateConfig,
        ("eval", "test", "measure"),
    ),
    "manifest": Command(
        "Write down an evaluation's start states, or check that they are the same.",
        (
            "robo-razor manifest --skills all --episodes 200 --out states.json.gz",
            "robo-razor manifest --check razor --episodes 10",
        ),
        "robo_razor.cli.manifest:run_manifest",
        configs.ManifestConfig,
    ),
    "compare": Command(
        "Compare runs or a sweep at equal new-task success, as a page to read.",
        (
            "robo-razor compare runs/ppo runs/bc --out report",
            "robo-razor compare runs/razor --merge ppo,ppo_rates bc,bc_rates --videos 0",
        ),
        "robo_razor.cli.compare:run",
        configs.CompareConfig,
        ("report", "plot", "show", "analyse"),
    ),
    "archive": Command(
        "Pack the measurements of a sweep or a run into one small file, without weights.",
        (
            "robo-razor archive runs/razor --out razor.tar.xz",
            "robo-razor compare razor.tar.xz --out report",
        ),
        "robo_razor.cli.archive:run_archive",
        configs.ArchiveConfig,
    ),
    "sweep": Command(
        "Run an experiment file: many runs, several at a time, resumable; one table.",
        (
            "robo-razor sweep razor_smoke",
            "robo-razor sweep my_experiment.yaml --dry-run",
            "robo-razor sweep my_experiment.yaml --backend ray --parallel 8",
        ),
        "robo_razor.cli.sweep:run_sweep",
        configs.SweepConfig,
        ("experiment", "grid"),
    ),
    "doctor": Command(
        "Check packages, OpenGL, CPU, GPU and disk; show what is slow or wrong.",
        ("robo-razor doctor",),
        "robo_razor.cli.doctor:run_doctor",
        synonyms=("check", "info"),
    ),
    "list": Command(
        "List tasks, skills, methods, regularisers, predictors, policies, configs, ...",
        (
            "robo-razor list",
            "robo-razor list configs predictors lerobot",
            "robo-razor list tasks --env.env-packages gym_razor my_package",
            "robo-razor list methods --plugins my_module",
        ),
        "robo_razor.cli.listing:run_list",
        configs.ListConfig,
        ("ls",),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: Arguments after `robo-razor`; None: those of the process.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    _set_up_logging(debug)
    _let_threads_sleep()
    try:
        return _dispatch(argv)
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
    """Let torch's CPU threads sleep, not spin, when they wait for each other.

    On a busy machine a spinning thread holds the core that the other thread needs: a gradient step
    then took half as long again. GNU OpenMP reads this when torch is loaded.
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
    name, flags = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise _unknown_command(name)
    command = COMMANDS[name]
    if command.config is None:
        return _run_plain(name, command, flags)
    from robo_razor.cli.arguments import parse

    try:
        config = parse(name, command.config, flags, command.about)
    except SystemExit:  # help was shown
        sys.stdout.write(_examples(command))
        return 0
    with interruptible():  # on any signal, workers end and results are saved
        _load(command.target)(config)
    if "WORLD_SIZE" in os.environ:  # set by a launcher; `--help` must not import torch
        _load("robo_razor.core.ranks:part")()
    return 0


def _unknown_command(name: str) -> RoboRazorError:
    """Return the error for an unknown command, with a suggestion for synonyms and typing errors."""
    remedy = "See `robo-razor --help`."
    for command, entry in COMMANDS.items():
        if name in entry.synonyms:
            return UnknownNameError(
                f"Unknown command {name!r}. Did you mean {command!r}?",
                allowed=", ".join(sorted(COMMANDS)),
                remedy=remedy,
            )
    return unknown_name("command", name, COMMANDS, remedy=remedy)


def _run_plain(name: str, command: Command, arguments: list[str]) -> int:
    """Run a command that has no settings."""
    if any(word in arguments for word in ("-h", "--help", "--help-all")):
        sys.stdout.write(f"usage: robo-razor {name}\n\n{command.about}\n{_examples(command)}")
        return 0
    if arguments:
        problem = f"`robo-razor {name}` does not take {arguments[-1]!r}"
        raise ConfigError(problem, allowed="no option")
    return int(_load(command.target)() or 0)


def _load(target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    entry: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return entry


def _overview() -> str:
    lines = [
        textwrap.fill(f"  {name:<10}{command.about}", WIDTH, subsequent_indent=" " * 12)
        for name, command in COMMANDS.items()
    ]
    return (
        "usage: robo-razor COMMAND [OPTIONS]\n\n"
        "Fine-tune robot policies and see at every checkpoint which skills they forgot.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`robo-razor COMMAND --help` shows a command's options and examples. Everywhere:\n"
        "  --config FILE  read settings from a YAML file, or one that ships (`robo-razor\n"
        "                 list configs`); flags override it\n"
        "  --help-all     show all settings, not just the main ones\n"
        "  --debug        on an error, show the traceback\n"
        "  --version      show the version\n\n"
        "example:\n  robo-razor finetune --method ppo --out runs/x\n"
    )


def _examples(command: Command) -> str:
    title = "example" if len(command.examples) == 1 else "examples"
    body = "\n".join(command.examples)
    footer = (
        ""
        if command.config is None
        else "also: --config FILE (settings from YAML; flags override them), --debug\n"
    )
    return f"\n{title}:\n{textwrap.indent(body, '  ')}\n{footer}"


class _Folded(logging.Formatter):
    """Breaks lines between words if the width of the terminal is known."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a message."""
        text = super().format(record)
        if "COLUMNS" not in os.environ and not sys.stderr.isatty():
            return text
        width = shutil.get_terminal_size().columns
        lines = [
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
            for line in text.split("\n")
        ]
        return "\n".join(lines)


def _set_up_logging(debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(levelname)s %(name)s: %(message)s")
        if debug
        else _Folded("%(levelname)s: %(message)s")
    )
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("robo_razor").setLevel(logging.DEBUG if debug else logging.INFO)
    if debug:  # their debug output would bury ours
        for name in ("matplotlib", "PIL", "urllib3", "httpcore", "httpx", "OpenGL", "fsspec"):
            logging.getLogger(name).setLevel(logging.WARNING)
