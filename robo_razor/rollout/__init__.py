"""Run a policy in environments and keep what happened.

`robo_razor.rollout` is this package and, in the Python API, a function: `rr.rollout(policy, task)`.
Python gives a package's parent the package under that name, so the package can be called.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robo_razor.rollout.video import Rollout


class _Callable(types.ModuleType):
    """A package that is `play.rollout` when it is called."""

    def __call__(self, *args: Any, **settings: Any) -> Rollout:
        """Run a policy on a task, see `robo_razor.rollout.play.rollout`."""
        from robo_razor.rollout.play import rollout

        return rollout(*args, **settings)


sys.modules[__name__].__class__ = _Callable
