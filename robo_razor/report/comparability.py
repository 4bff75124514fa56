"""Whether runs were made under the same conditions: versions, renderer, settings, base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from robo_razor.core.errors import ReportError
from robo_razor.core.fingerprint import AGAINST, differences
from robo_razor.report.episodes import State, read_episodes, read_rows, unlike_starts
from robo_razor.report.load import RunSeries

MAX_CHANGED = 0.05
"""Share of start states on which one base may succeed in one run only: rounding on another machine
flips single outcomes."""
OTHER_BASE = (
    "the base's outcomes on the same start states (another base of that name, or another simulator)"
)

HARMLESS = "Differences between runs (harmless):"
"""Begins the note about harmless differences."""
SHORT_HASH = 8
_HASH = re.compile(r"\b[0-9a-f]{16,}\b")
OTHER_STARTS = "the start states or instructions"


def unlike(runs: Sequence[RunSeries]) -> list[str]:
    """Return the differences between runs that make a comparison doubtful, each as a clause."""
    first = runs[0]
    base = read_episodes(first.path, 0)
    clauses_of: dict[str, list[str]] = {}
    for run in runs[1:]:
        clauses = differences(_fingerprint(first), _fingerprint(run))
        if first.config.get("policy") != run.config.get("policy"):
            clauses.append(f"base: {first.config.get('policy')} against {run.config.get('policy')}")
        elif (text := _other_weights(first, run)) is not None:
            clauses.append(text)
        elif _differ(base, read_episodes(run.path, 0)):
            clauses.append(OTHER_BASE)
        if bool(first.environment) != bool(run.environment):
            clauses.append("fingerprint: one of them has none")
        clauses += _other_starts(first, run)
        for clause in clauses:
            clauses_of.setdefault(clause, []).append(run.title)
    return [f"{clause} ({first.title} / {_listed(names)})" for clause, names in clauses_of.items()]


def noted(runs: Sequence[RunSeries]) -> list[str]:
    """Return the harmless differences, such as the commit, as sentences.

    Hashes are shortened; the fingerprints have all of their digits.
    """
    first = runs[0]
    differences_of: dict[str, dict[str, list[str]]] = {}
    for run in runs[1:]:
        decisive = differences(first.environment, run.environment)
        for clause in differences(first.environment, run.environment, harmless=True):
            if clause not in decisive and not clause.startswith("policy_hash"):
                subject, _, value = clause.rpartition(AGAINST)
                differences_of.setdefault(subject, {}).setdefault(value, []).append(run.title)
    return [
        _HASH.sub(
            lambda text: text.group()[:SHORT_HASH],
            f"{HARMLESS} {subject} ({first.title}){AGAINST}"
            + "; ".join(f"{value} ({_first_of(names)})" for value, names in values.items()),
        )
        + "."
        for subject, values in differences_of.items()
    ]


def divergence_kinds(runs: Sequence[RunSeries]) -> list[str]:
    """Return sentences about the runs whose KL divergences are those of denoising paths."""
    names_of: dict[str, list[str]] = {}
    for run in runs:
        if run.kl_kind in ("upper bound", "path divergence"):
            names_of.setdefault(run.kl_kind, []).append(run.title)
    return [
        f"KL divergences of {_listed(names)} are not exact: {kind}. They depend on `flow.kernel`, "
        "`flow.noise` and the number of denoising steps."
        for kind, names in names_of.items()
    ]


def _other_weights(first: RunSeries, run: RunSeries) -> str | None:
    """Return a clause if bases of one name have different weights, as their hashes show."""
    first_hash, second_hash = (r.environment.get("policy_hash") for r in (first, run))
    if first_hash is None or second_hash is None or first_hash == second_hash:
        return None
    return f"weights of the base: hash {first_hash[:12]} against {second_hash[:12]}"


def _other_starts(first: RunSeries, run: RunSeries) -> list[str]:
    """Return a clause if episodes of one task and seed began differently at the last step."""
    changed, shared = unlike_starts(
        read_rows(first.path, first.last.step), read_rows(run.path, run.last.step)
    )
    if not changed:
        return []
    return [f"{OTHER_STARTS} of {changed} of {shared} episodes of equal task and seed"]


def _differ(first: dict[State, bool], second: dict[State, bool]) -> bool:
    shared = first.keys() & second.keys()
    return sum(first[state] != second[state] for state in shared) > MAX_CHANGED * len(shared)


def refuse_unlike(clauses: Sequence[str]) -> None:
    """Refuse to compare runs that were made under different conditions.

    Raises:
        ReportError: There is any difference.
    """
    if clauses:
        raise ReportError(
            f"The runs were made under different conditions: {'; '.join(clauses)}",
            remedy="Compare runs of one machine and one installation, or allow the differences "
            "with `--allow-unlike` (the report then lists them).",
        )


def _fingerprint(run: RunSeries) -> dict[str, Any]:
    return {**run.environment, "config": run.config}


def fingerprint_groups(runs: Sequence[RunSeries]) -> list[dict[str, Any]]:
    """Return the distinct fingerprints with the runs that have them."""
    groups: list[dict[str, Any]] = []
    for run in runs:
        for group in groups:
            if group["fingerprint"] == run.environment:
                group["runs"].append(run.name)
                break
        else:
            groups.append({"runs": [run.name], "fingerprint": run.environment})
    return groups


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_of(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
