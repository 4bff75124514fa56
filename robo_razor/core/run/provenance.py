"""What a run was made with, read back and checked: its settings and its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robo_razor.core.metrics import check_values, read_small_json
from robo_razor.core.records import both, entries, name, optional, plain_values, text, whole

_ENVIRONMENT = both(plain_values, entries({}, {"policy_hash": optional(name)}))
_SETTINGS = both(
    plain_values,
    entries(
        {},
        {
            **{"method": name, "task": name, "policy": text, "seed": whole(-(2**63), 2**63)},
            **{"env": plain_values, "tracking": plain_values},
        },
    ),
)


def read_environment(file: Path) -> dict[str, Any]:
    """Read a run's fingerprint, `environment.json`; empty where there is no file.

    Raises:
        CheckpointError: It is damaged, or is not a fingerprint.
    """
    if not file.is_file():
        return {}
    remedy = "Copy it again, or delete it: without it the versions of the run are unknown."
    data: dict[str, Any] = read_small_json(file, remedy)
    check_values(_ENVIRONMENT, data, file, remedy)
    return data


def check_settings(data: Mapping[str, Any], file: Path) -> None:
    """Check a run's settings as far as reports read them.

    Raises:
        CheckpointError: A value has another type, or there are too many values.
    """
    check_values(_SETTINGS, data, file, "Mend it, or leave the run out.")
