"""Measure the real loops of libraries in turns, each in a process of its own.

A contestant is a function `run(settings, meter)` that starts its library's loop. From a hook in the
loop it calls `meter.boundary()` at the start of every unit of work (a gradient step, an update, an
evaluation) and `meter.add(samples)` for the work done. Between two measurements the loop waits
inside `boundary`, and the processes that it started are stopped (SIGSTOP). So data loaders neither
fill their queues while another contestant is measured, nor get a head start.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from env_throughput import cpu_seconds

SAME_WORK = 0.01
"""Largest share by which contestants' numbers of samples may differ."""

Run = Callable[[Any, Any], None]


class Stopped(BaseException):
    """Leaves a contestant's loop after the last measurement."""


class Meter:
    """Counts a contestant's work and the time that it takes, from inside its loop.

    Args:
        connection: Connection to the measuring side, which requests units of work and gets counts.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.facts: dict[str, Any] = {}
        """Constants, such as `trained_parameters`; sent before the first unit."""
        self.notes: dict[str, Any] = {}
        """Results, such as `success_rate`; sent with every measurement."""
        self._samples = self._units_left = 0
        self._started = (0.0, 0.0)
        self._ready = False

    def add(self, samples: int) -> None:
        """Count samples of the running unit."""
        self._samples += samples

    def boundary(self) -> None:
        """Mark the start of a unit; wait until it is requested.

        Raises:
            Stopped: No more units are wanted.
        """
        if not self._ready:
            self._ready = True
            self._wait({"facts": self.facts})
            return
        self._units_left -= 1
        if self._units_left == 0:
            wall, cpu = time.perf_counter(), self._cpu_seconds()
            result = {
                "samples": self._samples,
                "wall_s": wall - self._started[0],
                "cpu_s": cpu - self._started[1],
            }
            self._wait(result | {"notes": dict(self.notes)})

    def _wait(self, report: dict[str, Any]) -> None:
        children = [child.pid for child in multiprocessing.active_children()]
        _signal(children, signal.SIGSTOP)
        self.connection.send(report)
        self._units_left = self.connection.recv()
        _signal(children, signal.SIGCONT)
        if self._units_left == 0:
            raise Stopped
        self._samples = 0
        self._started = (time.perf_counter(), self._cpu_seconds())

    @staticmethod
    def _cpu_seconds() -> float:
        """Return the processor time of this process and of those it started."""
        children = multiprocessing.active_children()
        return time.process_time() + sum(cpu_seconds(int(child.pid or 0)) for child in children)


def _signal(pids: Sequence[int | None], number: signal.Signals) -> None:
    for pid in pids:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def serve(connection: Any, run: Run, settings: Any, log: str) -> None:
    """Run a contestant in this process; its output goes to the file `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = 0
    try:
        run(settings, Meter(connection))
    except (Stopped, EOFError):
        pass
    except BaseException:
        traceback.print_exc()
        status = 1
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)  # libraries leave threads and exit handlers that wait


class Contestant:
    """One contestant in its own process, ready to be measured.

    Args:
        name: Its name in the results.
        run: See the module.
        units: Units of work per measurement.
        settings: Passed to `run`.
        folder: Folder of its log.

    Raises:
        RuntimeError: It ends before its first unit of work; the message has the end of its log.
    """

    def __init__(self, name: str, run: Run, units: int, settings: Any, folder: Path) -> None:
        self.name, self.units = name, units
        self.log = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.log"
        context = multiprocessing.get_context("spawn")
        self.connection, contestant_end = context.Pipe()
        arguments = (contestant_end, run, settings, str(self.log))
        self.process = context.Process(target=serve, args=arguments)
        self.process.start()
        contestant_end.close()
        self.facts: dict[str, Any] = self._receive()["facts"]

    def measure(self) -> dict[str, Any]:
        """Run its units of work once; return samples, wall time and processor time."""
        self.connection.send(self.units)
        return self._receive()

    def close(self) -> None:
        """End the process and those that it started."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(0)
        self.process.join(timeout=60)
        if self.process.is_alive():
            self.process.kill()

    def _receive(self) -> dict[str, Any]:
        try:
            report: dict[str, Any] = self.connection.recv()
        except EOFError:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            raise RuntimeError(f"{self.name} ended early; its log ends with:\n{tail}") from None
        return report


@dataclass(frozen=True)
class Comparison:
    """This project's contestant against its peers.

    Attributes:
        title: Title of the comparison.
        unit: Name of a sample.
        aim: The ratio to reach.
        ours: Name of this project's contestant.
        contestants: Name -> (function to run, units of work per measurement), of all contestants.
        extra: Names of this project's further contestants with other settings: reported, not
            compared.
        relieved: Names of peers that do not run with their defaults, or skip a part of their work:
            compared too, but they do not count for the aim.
        same: Facts that all contestants except the extra ones must share.
    """

    title: str
    unit: str
    aim: float
    ours: str
    contestants: Mapping[str, tuple[Run, int]]
    extra: tuple[str, ...] = ()
    relieved: tuple[str, ...] = ()
    same: tuple[str, ...] = field(default=("trained_parameters",))

    @property
    def peers(self) -> list[str]:
        """Return the names of the contestants that this project's is compared with."""
        return [n for n in self.contestants if n != self.ours and n not in self.extra]


def compare(comparison: Comparison, settings: Any, folder: Path) -> dict[str, Any]:
    """Measure all contestants in turns; return rates and ratios (medians over repetitions).

    Raises:
        RuntimeError: The contestants did not do the same work.
    """
    contestants: list[Contestant] = []
    rounds: list[dict[str, dict[str, Any]]] = []
    try:
        for name, (run, units) in comparison.contestants.items():
            contestants.append(Contestant(name, run, units, settings, folder))
        for contestant in contestants:
            contestant.measure()  # warm-up: allocation, caches, threads, queues
        for repeat in range(settings.repeats):
            # Alternate the order, so that a machine that heats up or fills favours none of them.
            order = contestants[::-1] if repeat % 2 else contestants
            rounds.append({contestant.name: contestant.measure() for contestant in order})
    finally:
        for contestant in contestants:
            contestant.close()
    facts = {contestant.name: contestant.facts for contestant in contestants}
    check_same_work(comparison, facts, rounds)
    return summarise(comparison, facts, rounds)


def check_same_work(
    comparison: Comparison,
    facts: Mapping[str, dict[str, Any]],
    rounds: Sequence[Mapping[str, dict[str, Any]]],
) -> None:
    """Check that all contestants did equal numbers of samples with equal facts.

    Raises:
        RuntimeError: They did not.
    """
    names = [comparison.ours, *comparison.peers]
    for key in comparison.same:
        values = {name: facts[name].get(key) for name in names}
        if len(set(values.values())) > 1 or None in values.values():
            raise RuntimeError(f"the contestants differ in {key}: {values}")
    for measured in rounds:
        counts = {name: measured[name]["samples"] for name in names}
        if min(counts.values()) < (1.0 - SAME_WORK) * max(counts.values()):
            raise RuntimeError(
                f"the contestants did unequal numbers of {comparison.unit}: {counts}"
            )


def summarise(
    comparison: Comparison,
    facts: Mapping[str, dict[str, Any]],
    rounds: Sequence[Mapping[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Return the results for the JSON file: every contestant's rates, and ratios to every peer."""

    def rates(name: str, time_key: str) -> list[float]:
        return [measured[name]["samples"] / measured[name][time_key] for measured in rounds]

    def ratio(name: str, other: str) -> dict[str, Any]:
        pairs = zip(rates(name, "wall_s"), rates(other, "wall_s"), strict=True)
        walls = sorted(a / b for a, b in pairs)
        cpus = zip(rates(name, "cpu_s"), rates(other, "cpu_s"), strict=True)
        return {
            "ratio": statistics.median(walls),
            "ratio_range": [walls[0], walls[-1]],
            "cpu_ratio": statistics.median(a / b for a, b in cpus),
        }

    measurements = {
        name: {
            f"{comparison.unit}_per_s": statistics.median(rates(name, "wall_s")),
            f"{comparison.unit}_per_cpu_s": statistics.median(rates(name, "cpu_s")),
            "samples": rounds[-1][name]["samples"],
            "facts": facts[name],
            "notes": rounds[-1][name]["notes"],
        }
        for name in comparison.contestants
    }
    unaided = [name for name in comparison.peers if name not in comparison.relieved]
    fastest = max(unaided, key=lambda name: statistics.median(rates(name, "wall_s")))
    headline = ratio(comparison.ours, fastest)
    return {
        "what": comparison.title,
        "unit": comparison.unit,
        "target": comparison.aim,
        "reached": headline["ratio"] >= comparison.aim,
        **headline,
        "against": fastest,
        "ours": comparison.ours,
        "ratios": {name: ratio(comparison.ours, name) for name in comparison.peers},
        "extra": {name: ratio(name, fastest) for name in comparison.extra},
        "contestants": measurements,
    }
