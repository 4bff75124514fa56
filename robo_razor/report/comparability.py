"""Whether runs were made under like conditions: versions, renderer, settings, base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from robo_razor.core.errors import ReportError
from robo_razor.core.fingerprint import AGAINST, differences
from robo_razor.report.episodes import State, read_episodes, read_rows, unlike_starts
from robo_razor.report.load import RunSeries

MAX_CHANGED = 0.05
"""Share of start states on which one base may come out differently in two runs; rounding on another
machine flips single ones."""
OTHER_BASE = (
    "the base's outcomes on the same start states (another base of that name, or another simulator)"
)

HARMLESS = "Differences between runs (harmless):"
"""Begins the note of what differs without harm."""
SHORT_HASH = 8
_HASH = re.compile(r"\b[0-9a-f]{16,}\b")
OTHER_STARTS = "the start states or instructions"


def unlike(runs: Sequence[RunSeries]) -> list[str]:
    """Return what differs between runs that should not, each as a clause."""
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
    return [f"{clause} ({first.title} / {_some(names)})" for clause, names in clauses_of.items()]


def noted(runs: Sequence[RunSeries]) -> list[str]:
    """Return what differs without harm to a comparison, such as the commit, as sentences.

    Hashes are shortened; the fingerprints have them whole.
    """
    first = runs[0]
    differences_of: dict[str, dict[str, list[str]]] = {}
    for run in runs[1:]:
        decisive = differences(first.environment, run.environment)
        for clause in differences(first.environment, run.environment, harmless=True):
            if clause not in decisive and not clause.startswith("policy_hash"):
                what, _, other = clause.rpartition(AGAINST)
                differences_of.setdefault(what, {}).setdefault(other, []).append(run.title)
    return [
        _HASH.sub(
            lambda text: text.group()[:SHORT_HASH],
            f"{HARMLESS} {what} ({first.title}){AGAINST}"
            + "; ".join(f"{other} ({_one(names)})" for other, names in others.items()),
        )
        + "."
        for what, others in differences_of.items()
    ]


def divergence_kinds(runs: Sequence[RunSeries]) -> list[str]:
    """Return which runs' KL divergences are those of denoising paths, as sentences."""
    names_of: dict[str, list[str]] = {}
    for run in runs:
        if run.kl_kind in ("upper bound", "path divergence"):
            names_of.setdefault(run.kl_kind, []).append(run.title)
    return [
        f"KL divergences of {_some(names)} are not exact: {kind}. They depend on `flow.kernel`, "
        "`flow.noise` and the number of denoising steps."
        for kind, names in names_of.items()
    ]


def _other_weights(first: RunSeries, run: RunSeries) -> str | None:
    """Return that bases of one name have other weights, where both runs kept their hash."""
    one, two = (r.environment.get("policy_hash") for r in (first, run))
    if one is None or two is None or one == two:
        return None
    return f"weights of the base: hash {one[:12]} against {two[:12]}"


def _other_starts(first: RunSeries, run: RunSeries) -> list[str]:
    """Return that episodes of one task and seed did not begin alike, counted at the last step."""
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
    """Refuse to compare runs that were made under unlike conditions.

    Raises:
        ReportError: There is any difference.
    """
    if clauses:
        raise ReportError(
            f"The runs were made under unlike conditions: {'; '.join(clauses)}",
            remedy="Compare runs of one machine and one installation, or say that you want this "
            "with `--allow-unlike` (the report then names the differences).",
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _one(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
