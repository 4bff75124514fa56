"""A policy in an environment, from Python: episodes, and a video of them if you like."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from robo_razor.core.settings.config import HELD_OUT_SEED, EnvConfig, RolloutConfig
from robo_razor.policies.policy import Policy
from robo_razor.rollout.episodes import episode_bar
from robo_razor.rollout.video import Rollout, roll_out


def rollout(
    policy: str | Policy,
    task: str,
    episodes: int = 9,
    *,
    instruction: str | None = None,
    mode: Literal["greedy", "sample"] = "greedy",
    seed: int = HELD_OUT_SEED,
    video: str | Path | None = None,
    env: EnvConfig | None = None,
    progress: bool = False,
) -> Rollout:
    """Run a policy on a task, with the task's instruction or your own, and film it.

    Args:
        policy: A policy, a name or path that `load_policy` takes, or `expert` for the task's
            scripted expert.
        task: The task: a skill's name, a Gymnasium id, or LeRobot's `lerobot:TYPE/TASK`.
        episodes: Episodes to run (>= 1).
        instruction: The policy's instruction; None: the task's.
        mode: Actions: the most likely (`greedy`) or drawn from the policy (`sample`).
        seed: Seed of the first start state.
        video: Video file to write (.mp4 or .gif); None: none.
        env: How environments are run in parallel.
        progress: Show a bar on standard error.

    Returns:
        The episodes; `.batch.success` is bool [episodes], `.success_rate` lies in [0, 1].

    Raises:
        RoboRazorError: Unknown task or policy, or one that does not fit the environment.
    """
    config = RolloutConfig(
        policy=policy if isinstance(policy, str) else policy.name,
        task=task,
        episodes=episodes,
        instruction=instruction,
        mode=mode,
        seed=seed,
        video=None if video is None else str(video),
        env=env or RolloutConfig().env,
    )
    console = Console(stderr=True) if progress else None
    with episode_bar(console, f"{config.policy} on {task}") as bar:
        return roll_out(config, bar, None if isinstance(policy, str) else policy)
