"""Python's and numpy's global generators, lent to environments that draw from them."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

_lock = threading.RLock()
"""One environment at a time may have the global generators."""


class GlobalGenerators:
    """One environment's states of Python's and numpy's global generators.

    Args:
        python_seed: Seed of `random`.
        numpy_seed: Seed of `numpy.random`.
    """

    def __init__(self, python_seed: int, numpy_seed: int) -> None:
        self._states: tuple[Any, Any] = (
            random.Random(python_seed).getstate(),
            np.random.RandomState(numpy_seed).get_state(),
        )

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put these states into the global generators; afterwards restore the caller's."""
        with _lock:
            caller_states = _current()
            _install(self._states)
            try:
                yield
            finally:
                self._states = _current()
                _install(caller_states)


def _current() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002 - environments draw from it


def _install(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
