"""PPO: `robo-razor finetune --method ppo` and Stable-Baselines3's PPO, rollout and update together.

Equal on both sides: the task, the number of environments, the decisions (chunks of 4 control steps)
per update, epochs, minibatch size, and the network. Stable-Baselines3 gets a policy made of the
razor policy's modules, with its own distribution of several categories over the action tokens. The
value head reads detached features on both sides, and both freeze the same weights. The environments
of Stable-Baselines3 come from `gym.make` and render at every control step; `finetune` renders only
the pictures that its policy reads. With `--spared` Stable-Baselines3 renders only those, too.

The policy's weights are new. So no episode succeeds, all last until the time limit, and a fixed
number of episodes (`finetune`) is a fixed number of steps (Stable-Baselines3). The reward is
shaped, because `finetune` stops if all returns are 0. No update stops early (`target_kl` is off).

A unit is one update: the rollout and the gradient steps. `finetune` also measures the KL divergence
to the base and writes its log; Stable-Baselines3 has its logger, silent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from contestants.cloning import ENDLESS, bounded, parameters, tracking

CHUNK = 4


def write_policy(settings: Any) -> None:
    """Write a razor policy of the shipped base's shape with new weights."""
    from robo_razor.policies.load import load_policy

    base = load_policy(settings.policy)
    torch.manual_seed(0)
    module = type(base.module)(base.config)
    base.module.load_state_dict(module.state_dict())
    base.save(settings.folder / "untrained")


def decisions_per_episode(settings: Any) -> int:
    """Return the decisions of an episode that lasts until its time limit."""
    import gym_razor  # noqa: F401  # registers the tasks
    from robo_razor.rollout.environments import time_limit

    return math.ceil((settings.max_episode_steps or time_limit(settings.task)) / CHUNK)


def minibatch_size(settings: Any) -> int:
    """Return the decisions per gradient step."""
    decisions = decisions_per_episode(settings) * settings.num_envs * settings.episodes_per_env
    return decisions // settings.minibatches


def train_ours(settings: Any, meter: Any, freeze_vision: bool = True, bf16: bool = False) -> None:
    """Run `finetune` with PPO."""
    from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
    from robo_razor.training.learner import OnPolicyLearner
    from robo_razor.training.methods.ppo import PPO
    from robo_razor.training.trainer import finetune

    config = FinetuneConfig(
        policy=str(settings.folder / "untrained"),
        task=settings.task,
        prior_tasks="none",
        out=str(settings.folder / f"ppo{'-frozen' * freeze_vision}{'-bf16' * bf16}"),
        freeze_vision=freeze_vision,
        device="cpu",
        torch_threads=settings.threads,
        env=EnvConfig(
            num_envs=settings.num_envs,
            num_workers=min(settings.workers, settings.num_envs),
            max_episode_steps=settings.max_episode_steps,
            reward_type="shaped",
        ),
        tracking=tracking(),
        method=PPO(
            episodes_per_update=settings.num_envs * settings.episodes_per_env,
            num_updates=ENDLESS,
            update_epochs=settings.update_epochs,
            minibatch_size=minibatch_size(settings),
            target_kl=None,
            value_warmup_updates=0,
            temperature=1.0,
            bf16=bf16,
        ),
    )
    with bounded(OnPolicyLearner, meter, lambda metrics: int(metrics["rollout/decisions"])):
        finetune(config)


def train_sb3(
    settings: Any, meter: Any, freeze_vision: bool = True, envs: str = "ours", spared: bool = False
) -> None:
    """Run Stable-Baselines3's `PPO.learn` on its "dummy" or "subprocesses", or on "ours".

    With `spared` its environments render once per chunk instead of at every control step.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    from contestants.sb3_policy import RazorActorCritic, TokenActions
    from robo_razor.policies.load import load_policy

    class Boundaries(BaseCallback):
        """Lets every update (rollout, then gradient steps) be a unit of work."""

        def _on_rollout_start(self) -> None:
            meter.facts["trained_parameters"] = parameters(self.model.policy)
            meter.boundary()

        def _on_step(self) -> bool:
            meter.add(self.training_env.num_envs)
            return True

    def make() -> Any:
        handle = load_policy(settings.folder / "untrained")
        if freeze_vision:
            handle.freeze_vision()
        return handle

    torch.set_num_threads(settings.threads)
    env, instruction = (
        _our_vector_env(settings) if envs == "ours" else _sb3_vector_env(settings, envs, spared)
    )
    model = PPO(
        RazorActorCritic,
        TokenActions(env, make().module.bin_centers.numpy()),
        learning_rate=1.2e-4,
        n_steps=decisions_per_episode(settings) * settings.episodes_per_env,
        batch_size=minibatch_size(settings),
        n_epochs=settings.update_epochs,
        policy_kwargs={"make": make, "instruction": instruction},
        seed=0,
        device="cpu",
    )
    try:
        model.learn(10**12, callback=Boundaries())
    finally:
        env.close()


def _our_vector_env(settings: Any) -> tuple[Any, str]:
    """Return this project's vector environment in its wrapper, and the longest instruction."""
    from gym_razor.adapters.sb3 import SB3VecEnv
    from robo_razor.core.settings.config import EnvConfig
    from robo_razor.rollout.environments import make_env

    env = make_env(
        settings.task,
        EnvConfig(
            num_envs=settings.num_envs,
            num_workers=min(settings.workers, settings.num_envs),
            max_episode_steps=settings.max_episode_steps,
            reward_type="shaped",
        ),
        chunk_size=CHUNK,
    )
    wrapped = SB3VecEnv(env)
    wrapped.seed(0)
    wrapped.reset()
    return wrapped, _longest(env.instructions)


def _sb3_vector_env(settings: Any, kind: str, spared: bool) -> tuple[Any, str]:
    """Return Stable-Baselines3's vector env of registered tables, and the longest instruction.

    With `spared` the tables render once per chunk.
    """
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    from contestants.sb3_policy import ChunkEnv, make_registered
    from robo_razor.rollout.environments import time_limit

    limit = int(settings.max_episode_steps or time_limit(settings.task))
    make: Callable[..., Any] = ChunkEnv if spared else make_registered
    makers = [functools.partial(make, settings.task, CHUNK, limit)] * settings.num_envs
    env = DummyVecEnv(makers) if kind == "dummy" else SubprocVecEnv(makers, start_method="spawn")
    env.seed(0)
    env.reset()
    return env, _longest(env.get_attr("task_description"))


def _longest(instructions: Sequence[str]) -> str:
    """Return the instruction with the most words."""
    return max(instructions, key=lambda instruction: len(instruction.split()))
