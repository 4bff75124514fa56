from __future__ import annotations

import math

import pytest

from robo_razor.training.schedules import cosine, decay, warm_up


def test_a_warm_up_rises_from_nothing_to_all():
    assert [warm_up(step, 4) for step in (-1, 0, 1, 2, 4, 9)] == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert warm_up(1, 0) == warm_up(1, 1) == 1.0


def test_rates_fall_as_they_are_said_to():
    assert [decay("linear", step, 4) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert decay("constant", 3, 4) == 1.0
    assert decay("cosine", 1, 3) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))
    assert decay("cosine", 0, 0) == 1.0
    assert cosine(3, 3) == pytest.approx(0.0)
