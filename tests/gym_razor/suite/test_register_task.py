"""Tasks of other packages: registered with one call, known everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import my_tasks
import numpy as np
import pytest

import gym_razor
from gym_razor.suite.tasks import TASKS
from gym_razor.suite.tasks.lift import Lift

ROOT = Path(__file__).parents[3]
TASK_ID = "my_tasks/HoverOverButton-v0"


def lift_block(**changes):
    """Return a task that another package makes of the suite's own parts."""
    settings = {
        "name": "LiftBlock",
        "namespace": "elsewhere",
        "role": "prior",
        "pairs": (("cube", "block"),),
        "templates": ("lift the block",),
        "max_episode_steps": 50,
        "target": "block",
    }
    return Lift(**(settings | changes))


@pytest.fixture
def registered():
    """Return a function that registers a task; all are forgotten afterwards."""
    before, known = dict(gym.registry), dict(TASKS)
    yield gym_razor.register_task
    for now, then in ((gym.registry, before), (TASKS, known)):
        now.clear()
        now.update(then)


def test_the_documentation_shows_the_file_that_is_tested():
    file = Path(my_tasks.__file__)
    assert file == ROOT / "docs" / "extend" / "my_tasks.py"
    assert file.read_text() in (ROOT / "docs" / "how-to" / "environments.md").read_text()


def test_a_registration_says_role_package_and_time_limit(registered):
    task = registered(lift_block())
    spec = gym.spec("elsewhere/LiftBlock-v0")
    assert TASKS[spec.id] is task
    assert spec.max_episode_steps == 50
    assert spec.kwargs == {"task": spec.id, "role": "prior", "package": "elsewhere"}
    env = gym.make(spec.id, image_size=16)
    env.reset(seed=0)
    assert env.unwrapped.role == "prior"
    assert env.unwrapped.task_description == "lift the block"
    env.close()


def test_workers_play_a_task_whose_module_they_have_not_imported(registered):
    registered(lift_block())
    vector = gym.make_vec(
        TASK_ID,
        num_envs=2,
        vectorization_mode="vector_entry_point",
        num_workers=2,
        chunk_size=4,
        image_size=16,
    )
    options = {"tasks": [TASK_ID, "elsewhere/LiftBlock-v0"]}
    vector.reset(seed=[0, 1], options=options)
    assert vector.tasks == options["tasks"]
    ended = np.zeros(2, np.bool_)
    for _ in range(15):
        *_, terminated, truncated, infos = vector.step(vector.expert_actions("a"), mask=~ended)
        ended = terminated | truncated
    assert infos["is_success"].all()
    vector.close()


def test_a_task_that_is_registered_again_is_replaced(registered):
    registered(lift_block())
    registered(lift_block(max_episode_steps=60))
    assert gym.spec("elsewhere/LiftBlock-v0").max_episode_steps == 60


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "LiftCube", "namespace": "gym_razor"}, "a task of the suite itself"),
        ({"role": "old"}, "role 'old'; allowed are 'prior' and 'new'"),
        ({"max_episode_steps": 0}, "max_episode_steps 0: give at least 1"),
        ({"templates": ()}, "at least one instruction"),
        ({"pairs": (("block", "spoon"),)}, "pairs of objects out of cube\\+can"),
    ],
)
def test_a_task_that_cannot_be_played_is_refused(registered, changes, text):
    with pytest.raises(ValueError, match=text):
        registered(lift_block(**changes))


def test_a_task_can_be_registered_by_a_script(tmp_path):
    """Its class is in no module that workers could import: it travels whole."""
    file = tmp_path / "script.py"
    file.write_text(
        Path(my_tasks.__file__).read_text()
        + f"""
if __name__ == "__main__":
    import gymnasium as gym

    vector = gym.make_vec("{TASK_ID}", 1, "vector_entry_point", num_workers=1, image_size=16)
    vector.reset(seed=0)
    for _ in range(40):
        *_, terminated, truncated, infos = vector.step(vector.expert_actions("b"))
        if terminated[0]:
            print("solved")
            break
    vector.close()
"""
    )
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True)
    assert done.stdout == "solved\n", done.stderr
