"""Contestants for the tests of the meter; their processes import this."""

from __future__ import annotations

import multiprocessing
import time


class Settings(float):
    """Seconds that a unit of `steady` takes."""

    repeats = 2


def steady(settings, meter, samples=3, trained_parameters=7):
    meter.facts["trained_parameters"] = trained_parameters
    while True:
        meter.boundary()
        meter.notes["asked"] = meter.notes.get("asked", 0) + 1
        time.sleep(settings)
        meter.add(samples)


def broken(settings, meter):
    raise ValueError("no such dataset")


def tick(counter):
    while True:
        counter.value += 1
        time.sleep(0.01)


def with_child(settings, meter):
    counter = multiprocessing.Value("i", 0)
    child = multiprocessing.Process(target=tick, args=(counter,), daemon=True)
    child.start()
    meter.notes["child"] = child.pid
    while True:
        meter.boundary()
        before = counter.value
        while counter.value == before:  # it goes on
            time.sleep(0.001)
        meter.add(1)
