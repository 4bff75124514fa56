"""A few hundred cases of `make fuzz`, and the test of that test."""

from __future__ import annotations

import pytest

from fuzz import harness
from fuzz.__main__ import PLACES

pytestmark = pytest.mark.slow

CASES_OF_A_PLACE = 25
HARMLESS = {"nothing": "worked", "enough": "worked", "a paragraph": "refused"}
TOLD = {
    "a long paragraph": "an error of 8999 letters",
    "a traceback": "ValueError: a fault",
    "an exit": "SystemExit: 2",
    "an end": "ended with status 3",
    "a loop": "a hang: more than 6 s",
    "a wait": "a hang: it waits",
    "memory": "GiB of memory",
    "a program": "started a process: subprocess.Popen",
    "a shell": "started a process: os.system",
    "the trap": "the trap was imported",
    "a pickle": "unpickled posix.system",
    "a socket": "used the network",
    "a secret": "read outside: secret.txt",
    "a secret by a library": "touched a file outside",
    "a file outside": "changed a file outside: open for writing",
    "a folder outside": "changed a file outside: os.mkdir",
    "a removed file": "changed a file outside: os.remove",
    "something left": "left behind: left",
    "a thread": "traceback in a thread: ValueError: a fault",
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """Return the process that runs cases.

    A slow and busy machine gets three times the processor time that `make fuzz` allows.
    """
    folder = tmp_path_factory.mktemp("fuzz")
    worker = harness.Worker(folder, [*PLACES, "trouble"], limit_s=6.0)
    yield worker
    worker.stop()


def test_damaged_and_hostile_files_work_or_are_refused_in_one_paragraph(worker, tmp_path):
    cases = harness.spread(CASES_OF_A_PLACE * len(PLACES), list(PLACES), seed=0)
    counts = harness.count(harness.run_cases(worker, cases, tmp_path))
    failures = [f for found in counts.values() for f in found.failures]
    told = [f"{f.case}: {f.words}\n{f.text}" for f in failures]
    assert not failures, "\n\n".join([harness.table(counts), *told])
    numbers = {name: found.cases for name, found in counts.items()}
    assert numbers == dict.fromkeys(PLACES, CASES_OF_A_PLACE)
    # That valid files work is tried before; damage that is never seen would be none.
    assert all(found.refused for found in counts.values())


def test_what_is_forbidden_is_seen_and_what_is_allowed_is_not(worker):
    from fuzz.places.trouble import TROUBLES

    cases = [("trouble", i) for i in range(len(TROUBLES))]
    found = {result.words: result for result in harness.run_cases(worker, cases)}
    assert {kind: found[kind].outcome for kind in HARMLESS} == HARMLESS
    unseen = {kind: found[kind].text for kind in TOLD if TOLD[kind] not in found[kind].text}
    assert not unseen
    assert set(found) == {*HARMLESS, *TOLD}


def test_a_case_is_the_same_whenever_it_is_run(worker):
    cases = [(place, 3) for place in PLACES]
    one, other = ([r.words for r in harness.run_cases(worker, cases)] for _ in range(2))
    assert one == other
