"""Single Gymnasium environments, one after another behind the chunked interface.

For ids without a vector environment of this toolkit's kind. They are run in this process by
`gym_razor.adapters.foreign`, which reads pictures, states and success in the same way as for
LeRobot's environments; the reward and the end of an episode stay the environment's own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from robo_razor.core.errors import EnvError
from robo_razor.core.settings.config import EnvConfig
from robo_razor.rollout.environments import takes

logger = logging.getLogger(__name__)

VECTOR_ENV = "gym_razor.adapters.foreign:make_foreign_vector_env"


def make_serial_env(
    tasks: Sequence[str], config: EnvConfig, *, chunk_size: int, env_kwargs: dict[str, Any]
) -> Any:
    """Make a vector environment that runs single environments one after another.

    Args:
        tasks: Gymnasium ids; every sub-environment begins with the first.
        config: Number of environments, time limit.
        chunk_size: Control steps per decision, H.
        env_kwargs: Arguments of `gymnasium.make`.

    Raises:
        EnvError: An environment cannot be made, or what it gives cannot be used.
    """
    make: Any = load_env_creator(VECTOR_ENV)
    told: set[str] = set()
    factories: dict[str, Callable[[], Any]] = {
        task: functools.partial(_make, task, env_kwargs, told) for task in tasks
    }
    return make(
        factories=factories,
        num_envs=config.num_envs,
        chunk_size=chunk_size,
        max_episode_steps=config.max_episode_steps,
        own_rules=True,
    )


def _make(task: str, given: dict[str, Any], told: set[str]) -> Any:
    """Make a single environment; warn once (`told`) where it has no time limit."""
    kwargs = dict(given)
    try:
        if _draws(task):
            kwargs = {"render_mode": "rgb_array", **kwargs}
        env = gym.make(task, disable_env_checker=True, **kwargs)
    except (Exception, SystemExit) as error:
        raise EnvError(
            f"The environment {task!r} cannot be made with {kwargs or 'no argument'}: "
            f"{type(error).__name__}: {error}",
            remedy="Install what it needs, and leave out settings of `env` that its `__init__` "
            "does not take.",
        ) from error
    if _limit(env) is None and task not in told:
        told.add(task)
        logger.warning(
            "The environment %r tells no time limit. Where it has none, an episode that fails "
            "never ends: register it with max_episode_steps, or set --env.max-episode-steps.",
            task,
        )
    return env


def _limit(env: Any) -> Any:
    """Return the time limit that an environment tells, in actions; not all enforce theirs."""
    try:
        return env.get_wrapper_attr("_max_episode_steps")
    except AttributeError:
        return None


def _draws(task: str) -> bool:
    """Tell whether an environment's maker takes `render_mode`; an unknown one is asked."""
    maker: Any = gym.spec(task).entry_point
    maker = load_env_creator(maker) if isinstance(maker, str) else maker
    return maker is None or takes(maker, {"render_mode"})
