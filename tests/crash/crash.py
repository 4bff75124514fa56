"""Stop a small run at every operation on its files, go on, and compare with an undisturbed one.

    python tests/crash/crash.py                     # every operation, every way to stop
    python tests/crash/crash.py --sample 30         # a seeded sample
    python tests/crash/crash.py --only ppo-kill-57  # one case again

A case is METHOD-KIND-K: the run of METHOD is stopped at its K-th operation by KIND:

- kill: SIGKILL, as of a scheduler after its grace or of the out-of-memory killer
- term: SIGTERM
- full: that operation finds the disk full, once
- twice: SIGKILL there, and again somewhere while the run goes on

After `finetune --resume auto` every file must equal that of a run that nothing disturbed, but for
times. Each run is a process forked from this one, which has everything imported.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "toys")]

from faults import Faults  # noqa: E402

METHODS = ("ppo", "bc")
KINDS = ("kill", "term", "full", "twice")
COMMON = """
method: {method}
policy: {base}
task: toy/ReachBlue-v0
out: run
torch_threads: 1
env: {{num_envs: 16, num_workers: 1, image_size: 16, max_episode_steps: 8, env_packages: [toy_env]}}
checkpoint: {{keep: 1}}
tracking: {{every: 1, episodes_new: 3, episodes_new_sampled: 2, episodes_prior: 1, kl_states: 4,
  final_episodes_new: 4, max_share: 1.0}}
"""
SECTIONS = {
    "ppo": "ppo: {num_updates: 2, episodes_per_update: 16, minibatch_size: 64, learning_rate: 3e-3,"
    " value_warmup_updates: 0, warmup_updates: 0, update_epochs: 1}\n",
    "bc": "bc: {episodes: 3, epochs: 1, batch_size: 32, learning_rate: 3e-3, warmup_steps: 1}\n",
}
TIMES = (
    "elapsed_s",
    "wall_s",
    "tracking_s",
    "time/",
    "inference_ms",
    "share_of_tracking",
    "seconds",
)
STOPPED = {"kill": {-signal.SIGKILL}, "term": {143}, "full": {2}, "twice": {-signal.SIGKILL}}


@dataclass
class Result:
    """What became of one case.

    Attributes:
        case: Its name.
        what: The operation at which it was stopped.
        problem: What is wrong; empty where all is well.
    """

    case: str
    what: str = ""
    problem: str = ""


@dataclass
class Laboratory:
    """Reference runs and the folder in which cases run.

    Attributes:
        folder: Everything is below it.
        operations: Method -> operations of an undisturbed run.
        expected: Method -> its files, see `snapshot`.
    """

    folder: Path
    operations: dict[str, int] = field(default_factory=dict)
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)

    def prepare(self, methods: Iterable[str] = METHODS) -> None:
        """Make the base policy and an undisturbed run of each method."""
        import toy_policy

        toy_policy.save_tiny_policy(self.folder / "base")
        for method in methods:
            place = self._place(f"{method}-reference")
            faults = Faults(place / "run")
            status, output = in_child(lambda f=faults, p=place, m=method: self._run(p, m, f))
            if status != 0:
                raise SystemExit(f"the undisturbed run failed ({status}):\n{output}")
            self.operations[method] = int((place / "operations").read_text())
            self.expected[method] = snapshot(place)

    def cases(self, methods: Iterable[str] = METHODS, kinds: Iterable[str] = KINDS) -> list[str]:
        """Return the names of all cases."""
        return [
            f"{method}-{kind}-{k}"
            for method in methods
            for kind in kinds
            for k in range(1, self.operations[method] + 1)
        ]

    def sample(self, number: int, seed: int = 0) -> list[str]:
        """Return cases spread evenly over methods and kinds, at seeded operations."""
        draw = random.Random(seed)
        pairs = [(method, kind) for method in self.operations for kind in KINDS]
        chosen = [pairs[i % len(pairs)] for i in range(number)]
        return [f"{m}-{kind}-{draw.randint(1, self.operations[m])}" for m, kind in chosen]

    def run(self, case: str) -> Result:
        """Run one case."""
        method, kind, number = case.split("-")
        place = self._place(case)
        faults = Faults(place / "run", int(number), "kill" if kind == "twice" else kind)
        status, output = in_child(lambda: self._run(place, method, faults))
        result = Result(case, what=_what(output, status))
        result.problem = _wrong_end(kind, status, output)
        if kind == "twice" and not result.problem:
            again = Faults(place / "run", random.Random(case).randint(1, 120), "kill")
            in_child(lambda: self._go_on(place, method, again))
        if not result.problem:
            status, output = in_child(lambda: self._go_on(place, method, None))
            result.problem = "" if status == 0 else f"going on ends with {status}: {output[-1500:]}"
        if not result.problem:
            result.problem = "; ".join(differences(self.expected[method], snapshot(place)))
        if not result.problem:
            shutil.rmtree(place)
        return result

    def _place(self, name: str) -> Path:
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        method = name.split("-")[0]
        text = COMMON.format(method=method, base=self.folder / "base") + SECTIONS[method]
        (place / "settings.yaml").write_text(text)
        return place

    def _run(self, place: Path, method: str, faults: Faults) -> int:
        return self._command(place, ["--config", "settings.yaml"], faults)

    def _go_on(self, place: Path, method: str, faults: Faults | None) -> int:
        words = ["--config", "settings.yaml", "--resume", "auto"]
        return self._command(place, words, faults)

    def _command(self, place: Path, words: list[str], faults: Faults | None) -> int:
        """Run `finetune` in this process, which is a case's own."""
        from robo_razor.cli import main

        os.chdir(place)
        if faults is not None:
            faults.install()
        status = main(["finetune", *words])
        if faults is not None:
            print(f"operation: {faults.what}")
            if faults.at == 0:
                (place / "operations").write_text(str(faults.count))
        return status


def in_child(work: Callable[[], int]) -> tuple[int, str]:
    """Run something in a forked process.

    Returns:
        Its exit status (negative: the signal that ended it) and what it printed.
    """
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            status = 1
            try:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                status = work()
            except BaseException:  # a bug in the product: its traceback is the problem
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(process, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(ended), output.read().decode(errors="replace")


def _what(output: str, status: int) -> str:
    found = re.search(r"^operation: (.*)$", output, re.MULTILINE)
    return found[1] if found else f"status {status}"


def _wrong_end(kind: str, status: int, output: str) -> str:
    """Return what is wrong with how a stopped run ended; empty where nothing is."""
    if "Traceback" in output:
        return f"a traceback: {output[-1500:]}"
    if status not in STOPPED[kind] | {0}:  # 0: what failed was not needed
        return f"ends with {status}: {output[-800:]}"
    paragraphs = [line for line in output.splitlines() if "error:" in line]
    if status == 2 and len(paragraphs) != 1:
        return f"{len(paragraphs)} paragraphs for one error: {output[-800:]}"
    return ""


def snapshot(place: Path) -> dict[str, Any]:
    """Return relative path -> content of a run's files, without times and TensorBoard's files."""
    found: dict[str, Any] = {}
    run = place / "run"
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if name.startswith("tensorboard/") or name in (".lock", ".begun_in"):
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = _content(path, str(place))
    return found


def _content(path: Path, place: str) -> Any:
    data = path.read_bytes()
    if path.suffix not in (".json", ".jsonl", ".yaml", ".md"):
        return data
    text = data.decode().replace(place, "PLACE")
    if path.suffix == ".json":
        content = _timeless(json.loads(text))
        if path.name == "checksums.json":
            for entries in content.values():
                entries.pop("training_state/training_step.json")  # which holds times
        return content
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in text.splitlines()]
    return text


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.startswith(TIMES)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Say which files differ."""
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} should not be there" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        one, two = expected[name], found[name]
        if one == two:
            continue
        if isinstance(one, list):
            lines.append(f"{name} has {len(two)} lines, not {len(one)}, or others")
        elif isinstance(one, dict):
            keys = sorted(k for k in one.keys() | two.keys() if one.get(k) != two.get(k))
            lines.append(f"{name} differs in {', '.join(keys)}")
        else:
            lines.append(f"{name} differs")
    return sorted(lines)


def import_everything() -> None:
    """Import here, once, what every case needs."""
    import torch

    torch.set_num_threads(1)
    import toy_env

    toy_env.RADIUS = 0.5  # a policy that was never trained succeeds now and then, and soon
    from toy_runs import quiet  # noqa: F401

    import robo_razor.rollout.demonstrations
    import robo_razor.training.trainer  # noqa: F401

    with contextlib.suppress(ImportError):
        import torch.utils.tensorboard
    gc.collect()
    gc.freeze()  # so that processes to come share it: looking for garbage would copy it


def run_all(laboratory: Laboratory, cases: list[str], jobs: int) -> list[Result]:
    """Run cases, several at a time, and print those that fail as they come."""
    results = []
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for result in pool.imap_unordered(laboratory.run, cases):
            results.append(result)
            if result.problem:
                print(f"FAILED {result.case} ({result.what}): {result.problem}", flush=True)
            if len(results) % 100 == 0:
                print(f"{len(results)} of {len(cases)}", flush=True)
    return results


def main() -> int:
    """Run cases and print how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many seeded cases instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one case, or a prefix such as ppo-kill")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    options = parser.parse_args()
    import_everything()
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    laboratory = Laboratory(folder)
    laboratory.prepare()
    cases = laboratory.cases()
    if options.sample:
        cases = laboratory.sample(options.sample, options.seed)
    if options.only:
        cases = [c for c in cases if c == options.only or c.startswith(f"{options.only}-")]
    counts = ", ".join(f"{m}: {n} operations" for m, n in laboratory.operations.items())
    print(f"{counts}; {len(cases)} cases in {folder}", flush=True)
    results = run_all(laboratory, cases, options.jobs)
    for method in METHODS:
        for kind in KINDS:
            mine = [r for r in results if r.case.startswith(f"{method}-{kind}-")]
            bad = sum(bool(r.problem) for r in mine)
            print(f"{method:4} {kind:6} {len(mine):5} cases, {bad} failed")
    failed = sum(bool(r.problem) for r in results)
    print(f"{len(results)} cases, {failed} failed")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
