from __future__ import annotations

import json
import math
import os

import pytest
import torch

from robo_razor.core.errors import CheckpointError
from robo_razor.core.files import read_json
from robo_razor.core.run.training_state import (
    TrainingState,
    fits,
    load_training_state,
    restore_optimizer,
    save_training_state,
)


def stepped(learning_rate=0.1):
    """Return an optimizer that has made a step."""
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([parameter], lr=learning_rate)
    parameter.sum().backward()
    optimizer.step()
    return optimizer


def test_an_optimizer_goes_on_from_what_was_saved(tmp_path):
    save_training_state(tmp_path, TrainingState(3, {"bc": stepped(0.2).state_dict()}))
    optimizer = stepped()
    restore_optimizer(optimizer, load_training_state(tmp_path).optimizers["bc"])
    assert optimizer.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("betas", "ab"), ("betas", (0.9,)), ("betas", (0.9, math.nan)), ("lr", math.inf)),
        *(("lr", "0.1"), ("eps", None), ("weight_decay", [0.1]), ("amsgrad", 1)),
    ],
)
def test_settings_of_another_kind_are_no_optimizers(key, value):
    saved = stepped().state_dict()
    saved["param_groups"][0][key] = value
    with pytest.raises(ValueError, match=f"`{key}` of an optimizer is"):
        restore_optimizer(stepped(), saved)


@pytest.mark.parametrize("value", [torch.ones(3, 2), torch.full((2, 3), math.nan), 3.0])
def test_averages_must_be_the_parameters(value):
    saved = stepped().state_dict()
    saved["state"][0]["exp_avg"] = value
    with pytest.raises(ValueError, match="`exp_avg` of an optimizer"):
        restore_optimizer(stepped(), saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("training_step.json", []), ("training_step.json", {"step": "x", "extra": {}})),
        *(("training_step.json", {"step": 3}), ("training_step.json", {"step": 3, "extra": 1})),
        *(("optimizer_param_groups.json", []), ("optimizer_param_groups.json", {"bc": 3})),
        ("optimizer_param_groups.json", {"bc": {"scalars": {"x": 1}, "param_groups": []}}),
        ("optimizer_param_groups.json", {"bc": {"scalars": {}, "param_groups": [3]}}),
    ],
)
def test_a_state_of_another_shape_does_not_fit(tmp_path, name, value):
    save_training_state(tmp_path, TrainingState(3, {"bc": stepped().state_dict()}))
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*`--resume` then goes on"):
        load_training_state(tmp_path)


def test_an_error_of_a_library_is_told_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="RuntimeError: two lines"), fits(tmp_path):
        raise RuntimeError("two\nlines")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        read_json(tmp_path / "x.json")
