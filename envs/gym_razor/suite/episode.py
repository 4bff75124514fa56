"""One running episode of a task: step count, success, time limit, and the expert's advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gym_razor.suite.action import ACTION_DIM
from gym_razor.suite.tasks import TASKS
from gym_razor.suite.tasks.base import Task
from gym_razor.suite.world import PhysicsError, World

WorldFactory = Callable[[tuple[str, str]], World]


@dataclass
class StepResult:
    """The result of one decision (a chunk of control steps)."""

    reward: float
    terminated: bool
    truncated: bool
    is_success: bool
    physics_error: bool


class Episode:
    """A task being played in a world.

    Args:
        take_world: Gives a world for a pair of objects.
        reward_type: `sparse` (1 at success) or `shaped` (plus the change of the task's potential).
    """

    def __init__(self, take_world: WorldFactory, reward_type: str = "sparse") -> None:
        if reward_type not in ("sparse", "shaped"):
            raise ValueError(f"reward_type is {reward_type!r}; allowed are 'sparse' and 'shaped'.")
        self._take_world = take_world
        self._shaped = reward_type == "shaped"
        self.task: Task
        self.world: World
        self.seed = 0
        self.instruction = ""
        self.max_episode_steps: float = 0
        self.elapsed_steps = 0
        self.is_success = False
        self._held = 0
        self._potential = 0.0

    def reset(
        self,
        task_id: str,
        seed: int,
        instruction: str | None = None,
        max_episode_steps: float | None = None,
    ) -> None:
        """Start the episode that (task, seed) names.

        Args:
            task_id: Gymnasium id of a task of the suite.
            seed: Start-state seed.
            instruction: Replaces the drawn instruction.
            max_episode_steps: Time limit in control steps (may be infinite); the task's if None.
        """
        self.task = TASKS[task_id]
        pair, layout, drawn_instruction = self.task.sample(seed)
        self.world = self._take_world(pair)
        self.world.reset(layout)
        self.seed = seed
        self.instruction = drawn_instruction if instruction is None else instruction
        self.max_episode_steps = max_episode_steps or self.task.max_episode_steps
        self.elapsed_steps = 0
        self.is_success = False
        self._held = 0
        self._potential = self.task.progress(self.world) if self._shaped else 0.0

    def step(self, actions: npt.NDArray[np.float32]) -> StepResult:
        """Execute a chunk of actions, stopping at success or at the time limit.

        Args:
            actions: float32 [H, 5] in [-1, 1].
        """
        reward = 0.0
        for action in actions:
            try:
                self.world.step(action)
            except PhysicsError:
                self.elapsed_steps += 1
                return StepResult(
                    reward, terminated=True, truncated=False, is_success=False, physics_error=True
                )
            self.elapsed_steps += 1
            self._held = self._held + 1 if self.task.succeeded(self.world) else 0
            self.is_success = self._held >= self.task.hold_steps
            if self._shaped:
                potential = self.task.progress(self.world)
                reward += potential - self._potential
                self._potential = potential
            if self.is_success:
                reward += 1.0
                break
            if self.elapsed_steps >= self.max_episode_steps:
                break
        truncated = not self.is_success and self.elapsed_steps >= self.max_episode_steps
        return StepResult(reward, self.is_success, truncated, self.is_success, physics_error=False)

    def expert_actions(self, style: str, length: int) -> npt.NDArray[np.float32]:
        """Return the scripted expert's next actions by looking ahead; the state does not change.

        Args:
            style: `a` or `b`.
            length: Number of actions H.

        Returns:
            float32 [H, 5] in [-1, 1].
        """
        saved = self.world.save()
        actions = np.zeros((length, ACTION_DIM), dtype=np.float32)
        for index in range(length):
            actions[index] = self.task.expert_action(self.world, style)
            try:
                self.world.step(actions[index])
            except PhysicsError:
                break
        self.world.restore(saved)
        return actions
