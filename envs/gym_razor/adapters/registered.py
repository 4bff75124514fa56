"""Environments by their Gymnasium ids, in worker processes if those can make them.

A worker gets the registration itself, so it imports the environment's module and no other. It
cannot make what only this process knows (a class of the script that runs, a function within a
function): such environments run in this process, with the same results.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from gym_razor.adapters.contract import make_contract_vector_env
from gym_razor.vector.any_env import ChunkedVectorEnv
from gym_razor.vector.faults import EnvironmentFault

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegisteredEnv:
    """Makes single environments of one id; a process needs no registry for it.

    Attributes:
        spec: The registration.
        arguments: Further arguments of `gymnasium.make`.
    """

    spec: EnvSpec
    arguments: Mapping[str, Any]

    def __call__(self) -> gym.Env[Any, Any]:
        """Make an environment.

        Raises:
            EnvironmentFault: It cannot be made; the text says why.
        """
        arguments = dict(self.arguments)
        try:
            if _takes_render_mode(self.spec):
                arguments = {"render_mode": "rgb_array", **arguments}
            return gym.make(self.spec, disable_env_checker=True, **arguments)
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(
                f"The environment {self.spec.id!r} cannot be made with "
                f"{arguments or 'no argument'}: {type(error).__name__}: {error}. Install what it "
                "needs, and leave out settings of `env` that its `__init__` does not take"
            ) from error

    @property
    def known_here_only(self) -> bool:
        """Whether only this process can make the environment."""
        try:
            pickled = pickle.dumps(self)
        except Exception:  # a user's object may raise anything when it is pickled
            return True
        return b"__main__" in pickled


def make_registered_vector_env(
    tasks: Sequence[str],
    num_envs: int,
    *,
    chunk_size: int = 1,
    num_workers: int = 0,
    max_episode_steps: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> ChunkedVectorEnv:
    """Build a chunk-stepping vector of environments that are registered with Gymnasium.

    The environments decide about rewards and the ends of episodes.

    Args:
        tasks: Ids that every environment can switch between; all begin with the first.
        num_envs: Number of environments.
        chunk_size: Actions per decision.
        num_workers: Worker processes; 0 steps in this process.
        max_episode_steps: Time limit in actions; None takes each environment's.
        arguments: Further arguments of `gymnasium.make`.
    """
    makers = {
        # The vector entry point is not needed, and a worker may not be able to import it.
        task: RegisteredEnv(
            dataclasses.replace(gym.spec(task), vector_entry_point=None), dict(arguments or {})
        )
        for task in tasks
    }
    local = [task for task, make in makers.items() if make.known_here_only]
    if local and num_workers:
        logger.warning(
            "%s can be made in this process only (its entry point is in the script that runs, or "
            "within a function), so its environments run here, one after another. Put it into a "
            "module of its own, and they run in worker processes.",
            local[0],
        )
    return make_contract_vector_env(
        makers,
        num_envs,
        chunk_size=chunk_size,
        num_workers=0 if local else num_workers,
        max_episode_steps=max_episode_steps,
        own_rules=True,
    )


def _takes_render_mode(spec: EnvSpec) -> bool:
    """Return whether an environment's maker takes `render_mode`; True if there is no maker."""
    maker: Any = spec.entry_point
    maker = load_env_creator(maker) if isinstance(maker, str) else maker
    if maker is None:
        return True
    parameters = inspect.signature(maker).parameters.values()
    return any(x.name == "render_mode" or x.kind is x.VAR_KEYWORD for x in parameters)
