"""Meta-World through LeRobot, where the extra `metaworld` is installed."""

from __future__ import annotations

import numpy as np
import pytest

from robo_razor.core.errors import ConfigError, UnknownNameError
from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
from robo_razor.rollout.environments import check_tasks, make_env, resolve_tasks
from robo_razor.training.preflight import check_settings as validate

pytest.importorskip("metaworld")
# LeRobot and Meta-World warn of each other's and Gymnasium's old ways.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TASKS = ("lerobot:metaworld/button-press-v3", "lerobot:metaworld/reach-v3")


def test_its_tasks_are_known_by_name_and_by_group():
    assert len(resolve_tasks("lerobot:metaworld/hard", ())) == 6
    with pytest.raises(UnknownNameError, match="Did you mean 'lerobot:metaworld/reach-v3'"):
        check_tasks(["lerobot:metaworld/reech-v3"])


def test_the_new_task_by_its_other_name_is_no_prior_skill():
    settings = FinetuneConfig(
        task="lerobot:metaworld/metaworld-push-v3", prior_tasks="lerobot:metaworld/push-v3"
    )
    with pytest.raises(ConfigError, match=r"which is the new task .*metaworld-push-v3"):
        validate(settings)


def test_an_episode_is_a_function_of_task_and_seed():
    """One process, so that an environment's earlier episodes could leave something behind."""
    config = EnvConfig(num_envs=1, num_workers=1)
    env = make_env(TASKS[0], config, chunk_size=5, tasks=TASKS, image_shape=(32, 32))
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 5, 4)).astype(np.float32)
    outcomes = {}
    try:
        for task, seed in [(t, s) for _ in range(2) for t in TASKS for s in (1_000_000, 7)]:
            observation, infos = env.reset(seed=[seed], options={"tasks": [task]})
            assert env.instructions[0] in ("Press a button", "Reach a goal position")
            assert observation["pixels"]["observation.image"].shape == (1, 32, 32, 3)
            after, rewards, terminated, *_ = env.step(actions)
            outcome = (
                str(infos["start_state_hash"][0]),
                after["agent_pos"].tobytes(),
                after["pixels"]["observation.image"].tobytes(),
            )
            assert outcomes.setdefault((task, seed), outcome) == outcome
            assert rewards.tolist() == [float(terminated[0])]
        assert len({outcome[0] for outcome in outcomes.values()}) == 4
    finally:
        env.close()
