"""`make fuzz`: run cases, print the counts, and end with status 1 if any failed."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fuzz import harness

PLACES = (
    *("settings", "checkpoint", "archive", "run", "resume"),
    *("dataset", "manifest", "sweep", "evaluation"),
)
FIRST_LINES = 12


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("-n", type=int, default=500, help="cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of each place's first case")
    parser.add_argument("--only", default="", help=f"places with commas, of {', '.join(PLACES)}")
    parser.add_argument("--case", default="", help="one case, PLACE-SEED")
    parser.add_argument("--loud", action="store_true", help="show every case")
    parser.add_argument("--keep", default="runs/fuzz", help="folder for failed cases")
    asked = parser.parse_args()
    names = [name.strip() for name in asked.only.split(",") if name.strip()] or list(PLACES)
    cases = harness.spread(asked.n, names, asked.seed)
    if asked.case:
        place, _, seed = asked.case.rpartition("-")
        cases, names = [(place, int(seed))], [place]
    if unknown := sorted(set(names) - set(PLACES)):
        parser.error(f"unknown place {', '.join(unknown)}; there are {', '.join(PLACES)}")
    kept = Path(asked.keep).resolve()
    with tempfile.TemporaryDirectory(prefix="razor-fuzz-", dir=os.environ.get("TMPDIR")) as folder:
        worker = harness.Worker(Path(folder), dict.fromkeys(names))
        try:
            results = harness.run_cases(worker, cases, kept)
            counts = harness.count(_told(results, loud=bool(asked.case) or asked.loud))
        finally:
            worker.stop()
    print(harness.table(counts))
    failed = sum(found.failed for found in counts.values())
    if failed:
        print(f"Failed cases with their files are in {kept}; run one again with CASE=PLACE-SEED.")
    return 1 if failed else 0


def _told(results: Iterator[harness.Result], *, loud: bool) -> Iterator[harness.Result]:
    """Print what failed as it comes; of a single case everything."""
    for result in results:
        if loud or result.outcome == "failed":
            lines = result.text.splitlines()
            shown = lines if loud else lines[-FIRST_LINES:]
            print(f"\n{result.case}: {result.outcome}: {result.words}\n  {result.command}")
            print("\n".join(f"  | {line}" for line in shown), flush=True)
        yield result


if __name__ == "__main__":
    sys.exit(main())
