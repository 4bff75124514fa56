"""Evaluation: `robo-razor evaluate` and `lerobot-eval` on the same policy, task and start states.

Both act greedily, and the environments of both already run. The benchmark measures what the
commands call for every task. `lerobot-eval` always films its first ten episodes and has no setting
for it, so its time without videos is an extra figure. The designs differ:

- `lerobot-eval` steps one control step at a time and renders both cameras at each of them, though
  the policy reads pictures only when a chunk is used up. `evaluate` executes a chunk per call and
  renders once.
- `lerobot-eval` runs one process per environment, or all environments one after another in its own
  process. `evaluate` has a few workers, and one half moves while the policy decides for the other.
- In `lerobot-eval` a batch of episodes ends with its slowest one. In `evaluate` an environment
  starts its next episode at once.
"""

from __future__ import annotations

from typing import Any

import torch

from contestants.cloning import parameters


def evaluate_ours(settings: Any, meter: Any) -> None:
    """Call what `robo-razor evaluate` calls for its episodes."""
    from robo_razor.core.plain_text import skill_name
    from robo_razor.core.settings.config import HELD_OUT_SEED, EnvConfig
    from robo_razor.evaluation.evaluate import evaluate
    from robo_razor.policies.load import load_policy
    from robo_razor.rollout.environments import make_env

    torch.set_num_threads(max(1, settings.threads - settings.workers))  # as the command does
    policy = load_policy(settings.policy)
    skill = skill_name(settings.task)
    env_config = EnvConfig(
        num_envs=min(EnvConfig.num_envs, settings.episodes),
        num_workers=settings.workers,
        max_episode_steps=settings.max_episode_steps,
    )
    env = make_env(settings.task, env_config, chunk_size=policy.chunk_size)
    meter.facts["trained_parameters"] = parameters(policy.module)
    try:
        while True:
            meter.boundary()
            result = evaluate(
                policy, env, {skill: settings.task}, settings.episodes, HELD_OUT_SEED
            )[skill]
            meter.notes["success_rate"] = result.success_rate
            meter.add(result.n)
    finally:
        env.close()


FILMED = 10
"""Episodes that `lerobot-eval` films of every task."""


def evaluate_lerobot(
    settings: Any,
    meter: Any,
    num_envs: int | None = None,
    asynchronous: bool = True,
    filmed: int = FILMED,
) -> None:
    """Call what `lerobot-eval` calls for each of its tasks."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.configs.default import EvalConfig
    from lerobot.envs import make_env_pre_post_processors
    from lerobot.policies import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_policy

    from robo_razor.core.settings.config import HELD_OUT_SEED
    from robo_razor.lerobot_env import RazorEnvConfig
    from robo_razor.policies.load import locate_policy

    torch.set_num_threads(settings.threads)
    chosen = EvalConfig(n_episodes=settings.episodes, batch_size=num_envs or 0)  # 0: its own choice
    directory = locate_policy(settings.policy)
    env_config = RazorEnvConfig(task=settings.task, episode_length=settings.max_episode_steps or 0)
    config = PreTrainedConfig.from_pretrained(directory)
    config.pretrained_path, config.device = directory, "cpu"
    policy = make_policy(cfg=config, env_cfg=env_config).eval()
    preprocessor, postprocessor = make_pre_post_processors(
        policy_cfg=config,
        pretrained_path=str(directory),
        preprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    env_preprocessor, env_postprocessor = make_env_pre_post_processors(
        env_cfg=env_config, policy_cfg=config
    )
    env: Any = env_config.create_envs(chosen.batch_size, use_async_envs=asynchronous)["razor"][0]
    env.reset(seed=list(range(chosen.batch_size)))  # starts the processes
    meter.notes["num_envs"] = chosen.batch_size
    meter.facts["trained_parameters"] = parameters(policy)
    try:
        while True:
            meter.boundary()
            with torch.no_grad():
                result = eval_policy(
                    env,
                    policy,
                    env_preprocessor,
                    env_postprocessor,
                    preprocessor,
                    postprocessor,
                    n_episodes=settings.episodes,
                    max_episodes_rendered=filmed,
                    videos_dir=settings.folder / "videos",
                    start_seed=HELD_OUT_SEED,
                )
            episodes = result["per_episode"]
            meter.notes["success_rate"] = sum(e["success"] for e in episodes) / len(episodes)
            meter.add(len(episodes))
    finally:
        env.close()
