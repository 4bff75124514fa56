"""What vector environments may give, of whatever kind they are."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from toy_env import TASKS, ToyVectorEnv
from toy_policy import GREEN, RED

from robo_razor.core.errors import EnvError, PolicyError
from robo_razor.core.settings.config import EnvConfig
from robo_razor.rollout.boundary import Boundary
from robo_razor.rollout.environments import check_vector_env, make_env
from robo_razor.rollout.groups import GroupDriver

IDS = np.arange(2)


class Lying(ToyVectorEnv):
    """Gives what a test puts in the place of what it should give."""

    def __init__(self, **changes):
        super().__init__(2, 1, chunk_size=3, image_size=16)
        self.changes = changes

    def step_wait(self):
        ids, observation, rewards, terminated, truncated, infos = super().step_wait()
        results = {"rewards": rewards, "terminated": terminated, "truncated": truncated}
        for name, value in self.changes.items():
            if name in results:
                results[name] = value
            elif name == "infos":
                infos = value
            elif value is None:
                del observation[name]
            else:
                observation[name] = value
        return ids, observation, *results.values(), infos


def step(env, value=0.0):
    driver = GroupDriver(env)
    driver.reset(IDS, [3, 4], [RED, GREEN], [None, None])
    driver.submit(np.full((2, 3, 5), value, np.float32), IDS)
    return driver.wait()


NO, YES = np.zeros(2, bool), np.ones(2, bool)
HALF = np.array([1.0, np.nan])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rewards": HALF}, r"ReachGreen-v0 \(seed 4, control step 3\) gives `reward` nan"),
        ({"rewards": np.ones((2, 1))}, r"`reward` as float64 of shape \(2, 1\)"),
        ({"terminated": np.zeros(2)}, "`terminated` that is not a bool array"),
        ({"truncated": [False, False]}, "`truncated` that is not a bool array"),
        ({"agent_pos": None}, "gives no 'agent_pos', though its observation space has it"),
        ({"agent_pos": np.zeros((2, 6), np.float32)}, r"'agent_pos' as float32 of shape \(6,\)"),
        ({"agent_pos": np.zeros((2, 7))}, "float64 .* space says float32"),
        (
            {"agent_pos": np.full((2, 7), np.inf, np.float32)},
            r"ReachRed-v0 \(seed 3, control step 3\) gives `agent_pos` inf at \[0\]",
        ),
        ({"pixels": {"front": np.zeros((2, 16, 16, 3), np.uint8)}}, "gives no 'pixels wrist'"),
        ({"infos": {"is_success": [None, True]}}, "is_success` as None, .* True nor False"),
        ({"infos": {"success": HALF}}, r"seed 4.*`success` as .*nan.*neither"),
        ({"infos": {"success": np.ones((2, 2))}}, "not one value for each of 2"),
        ({"infos": {"success": YES, "is_success": NO}}, r"seed 3.*contradicts itself"),
        ({"infos": {}, "terminated": YES}, r"seed 3.*does not report success: .*\[\]"),
        ({"infos": {"is_success": NO, "landmarks": HALF}}, "seed 4.*`landmarks` nan"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_task_seed_and_control_step(changes, text):
    with pytest.raises(EnvError, match=text):
        step(Lying(**changes))


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ({"success": YES}, [True, True]),
        ({"is_success": np.array([0, 1])}, [False, True]),
        ({"is_success": [True, False]}, [True, False]),
        ({"success": np.array([[1.0], [0.0]])}, [True, False]),
        (
            {"success": np.array([True, None]), "_success": np.array([True, False])},
            [True, False],
        ),
    ],
)
def test_success_is_read_from_either_key(infos, expected):
    *_, found = step(Lying(infos=infos))
    assert found["is_success"].tolist() == expected


def test_a_success_is_kept_for_the_rest_of_the_episode_and_not_for_the_next():
    env = Lying(infos={"success": np.array([True, False])}, terminated=NO, truncated=NO)
    driver = GroupDriver(env)
    driver.reset(IDS, [3, 4], [RED, GREEN], [None, None])
    successes = []
    for success in ([True, False], [False, False], [False, True]):
        env.changes["infos"] = {"success": np.array(success)}
        driver.submit(np.zeros((2, 3, 5), np.float32), IDS)
        successes.append(driver.wait()[-1]["is_success"].tolist())
    assert successes == [[True, False], [True, False], [True, True]]
    driver.reset(np.arange(1), [5], [RED], [None])
    env.changes["infos"] = {"success": NO}
    driver.submit(np.zeros((2, 3, 5), np.float32), IDS)
    assert driver.wait()[-1]["is_success"].tolist() == [False, True]


def test_an_action_that_is_not_finite_is_the_policys_fault():
    boundary = Boundary(2, ToyVectorEnv(2).single_observation_space)
    boundary.begin(IDS, [RED, GREEN], [3, 4])
    actions = np.zeros((2, 3, 5), np.float32)
    boundary.check_actions(actions, IDS)
    actions[1, 2, 0] = np.nan
    text = r"ReachGreen-v0 \(seed 4, control step 2\): nan in dimension 0"
    with pytest.raises(PolicyError, match=text):
        boundary.check_actions(actions, IDS)


def test_an_environment_that_runs_another_task_than_it_was_asked_for_is_refused():
    class Deaf(ToyVectorEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed, options={**options, "tasks": None})

    driver = GroupDriver(Deaf(2, 1, image_size=16))
    with pytest.raises(EnvError, match=r"was reset to 'toy/ReachGreen-v0', but it runs .*ReachRed"):
        driver.reset(IDS, [3, 4], [RED, GREEN], [None, None])


def test_whatever_a_vector_environment_raises_names_the_episode():
    class Broken(ToyVectorEnv):
        def step_async(self, actions, env_ids):
            raise ZeroDivisionError("no mass")

    with pytest.raises(EnvError, match=r"A step of toy/ReachRed-v0 \(seed 3, .*no mass"):
        step(Broken(2, 1, chunk_size=3, image_size=16))


def vector_task(name, **attributes):
    """Register a task with a vector environment of its own that differs from the toy's."""

    class Other(ToyVectorEnv):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            vars(self).update(attributes)

    gym.register(f"boundary/{name}-v0", vector_entry_point=Other, kwargs={"task": RED})
    return f"boundary/{name}-v0"


IMAGE = spaces.Box(0, 255, (16, 16, 3), np.uint8)
STATE = spaces.Box(-1, 1, (7,), np.float32)
FLOATS = spaces.Dict({"pixels": spaces.Dict({"front": spaces.Box(0, 1, (16, 16, 3), np.float32)})})


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"metadata": {"autoreset_mode": AutoresetMode.NEXT_STEP}}, "resets automatically"),
        ({"single_observation_space": IMAGE}, r"gives .*Box\(0, 255, \(16, 16, 3\).*Allowed: a D"),
        ({"single_observation_space": FLOATS}, "gives the picture 'front' as float32"),
    ],
)
def test_what_a_vector_environment_offers_is_checked_before_it_runs(attributes, text):
    env = ToyVectorEnv(1)
    vars(env).update(attributes)
    with pytest.raises(EnvError, match=text):
        check_vector_env("some/task", env)


def test_tasks_of_unlike_vector_environments_are_refused_with_what_differs(monkeypatch):
    monkeypatch.setitem(TASKS, "boundary/Wider-v0", 0)
    wider = vector_task("Wider", single_action_space=spaces.Box(-2, 2, (5,), np.float32))
    config = EnvConfig(num_envs=1, image_size=16, env_packages=("toy_env",))
    with pytest.raises(EnvError, match=r"action 5 \[-1, 1\]; the second .*action 5 \[-2, 2\]"):
        make_env(RED, config, chunk_size=1, tasks=(wider,))
