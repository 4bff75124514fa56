"""Errors a user can act on: what was given, what is allowed, what to do.

Every error that robo-razor raises on purpose is a `RoboRazorError`. The command line prints it as
one paragraph and exits with status 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = 6
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120


class RoboRazorError(Exception):
    """Base of all errors that robo-razor raises on purpose."""

    def __init__(self, problem: str, allowed: str | None = None, remedy: str | None = None) -> None:
        """Build the error's paragraph.

        Args:
            problem: What was given and why it cannot be used, with its key path or file.
            allowed: What would have been accepted.
            remedy: What to do now, ideally a command.
        """
        self.problem = problem
        self.allowed = allowed
        self.remedy = remedy
        parts = [problem, allowed and f"Allowed: {allowed}", remedy]
        super().__init__(" ".join(_sentence(part) for part in parts if part))


class ConfigError(RoboRazorError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""


class UnknownNameError(RoboRazorError):
    """A name is not registered: a method, a task, a skill, a policy."""


class RegistryError(RoboRazorError):
    """A registration is not possible, e.g. because the name is taken."""


class PolicyError(RoboRazorError):
    """A policy cannot be found, loaded or used for this purpose."""


class PolicyEnvMismatchError(PolicyError):
    """A policy's cameras, state or actions do not fit the environment's."""


class EnvError(RoboRazorError):
    """An environment is unknown, cannot be built, or failed while running."""


class CheckpointError(RoboRazorError):
    """A checkpoint is missing, truncated or of another kind."""


class ManifestError(RoboRazorError):
    """A manifest of start states is missing, damaged, or has other start states."""


class RunDirectoryError(RoboRazorError):
    """An output directory is in use, or is not a run directory."""


class DemonstrationError(RoboRazorError):
    """Demonstrations are missing, empty or do not fit the policy."""


class TrainingError(RoboRazorError):
    """Training cannot start or cannot go on, e.g. no success to learn from, or NaN."""


class SweepError(RoboRazorError):
    """A sweep cannot start, or some of its runs failed."""


class ReportError(RoboRazorError):
    """Runs cannot be read or compared."""


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."


def shown(value: Any) -> str:
    """Return a short text for a value that a user gave, so that an error can quote it.

    It stays fast for megabytes of text, deep nesting, and YAML aliases that stand for 10^9 items.
    """
    try:
        text = _SHORT.repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a number with too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:197]}..."


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the option closest to `name`, or an empty string."""
    names = list(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:  # a case or namespace slip: `liftcube` for `gym_razor/LiftCube-v0`
        close = [o for o in names if len(name) > 2 and name.lower() in o.lower()][:1]
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_name(
    kind: str, name: str, options: Iterable[str], remedy: str | None = None
) -> UnknownNameError:
    """Build the error for a `name` that is not among `options`.

    Args:
        kind: What the name stands for, e.g. `"method"`.
        name: What was given.
        options: What would have been accepted.
        remedy: What to do, where the list of options is not enough.
    """
    names = sorted(options)
    return UnknownNameError(
        f"Unknown {kind} {shown(name)}.{did_you_mean(name, names)}",
        allowed=", ".join(names) if names else f"(no {kind} is registered)",
        remedy=remedy,
    )
