"""A cheap environment that keeps the toolkit's contract: a point reaches the dot of a colour.

Three dots lie on a plane; the instruction names one. `agent_pos` holds the vectors to the three
dots, the images show them. Start states are a pure function of (task, seed). The two expert styles
go straight, or along x and then along y. Importing this module registers the tasks.
"""

from __future__ import annotations

import zlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

COLOURS = {"Red": (220, 40, 40), "Green": (40, 200, 60), "Blue": (50, 80, 230)}
TASKS = {f"toy/Reach{name}-v0": i for i, name in enumerate(COLOURS)}
SPEED, RADIUS, MAX_STEPS = 0.1, 0.15, 40
A = 5


class ToyVectorEnv(gym.vector.VectorEnv):
    """N points in one process, in `num_workers` groups; ready groups come in a chosen order."""

    def __init__(
        self,
        num_envs: int = 1,
        num_workers: int = 2,
        chunk_size: int = 4,
        image_size: int = 64,
        task: str = "toy/ReachRed-v0",
        max_episode_steps: int = MAX_STEPS,
        last_in_first_out: bool = False,
        **_: Any,
    ) -> None:
        n, s = num_envs, image_size
        self.num_envs, self.chunk_size, self.image_size = n, chunk_size, s
        self.max_steps, self.lifo = max_episode_steps, last_in_first_out
        self.metadata = {
            "render_fps": 10,
            "autoreset_mode": AutoresetMode.DISABLED,
            "landmark_names": list(COLOURS),
        }
        image = gym.spaces.Box(0, 255, (s, s, 3), np.uint8)
        self.single_observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({"front": image, "wrist": image}),
                "agent_pos": gym.spaces.Box(-np.inf, np.inf, (7,), np.float32),
            }
        )
        self.single_action_space = gym.spaces.Box(-1, 1, (A,), np.float32)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, n)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, n)
        self.groups = [g for g in np.array_split(np.arange(n), num_workers) if len(g)]
        self.tasks = [task] * n
        self._words: list[str] = [""] * n
        self.point, self.dots = np.zeros((n, 2)), np.zeros((n, 3, 2))
        self.elapsed = np.zeros(n, dtype=np.int64)
        self.pending: list[tuple[np.ndarray, np.ndarray]] = []
        self.closed = False

    @property
    def instructions(self) -> list[str]:
        return list(self._words)

    def reset(self, *, seed=None, options=None):
        options = options or {}
        n = self.num_envs
        mask = np.asarray(options.get("reset_mask", np.ones(n, bool)))
        seeds = (
            seed
            if isinstance(seed, list)
            else [None if seed is None else seed + i for i in range(n)]
        )
        for i in np.flatnonzero(mask):
            if options.get("tasks") and options["tasks"][i]:
                self.tasks[i] = options["tasks"][i]
            words = options.get("instructions")
            name = list(COLOURS)[TASKS[self.tasks[i]]].lower()
            self._words[i] = (words and words[i]) or f"lift the {name} block"
            rng = np.random.default_rng([zlib.crc32(self.tasks[i].encode()), seeds[i] or 0])
            self.point[i] = rng.uniform(-0.9, 0.9, 2)
            self.dots[i] = rng.uniform(-0.9, 0.9, (3, 2))
            self.elapsed[i] = 0
        infos = self._infos(np.arange(n))
        states = np.concatenate([self.point, self.dots.reshape(n, -1)], axis=1)
        infos["start_state_hash"] = np.array([f"{zlib.crc32(s.tobytes()):016x}" for s in states])
        return self._observe(np.arange(n)), infos

    def step_async(self, actions, env_ids):
        assert not any(np.intersect1d(ids, env_ids).size for _, ids in self.pending)
        self.pending.append((np.asarray(actions), np.asarray(env_ids)))

    def step_wait(self):
        actions, ids = self.pending.pop(-1 if self.lifo else 0)
        alive = np.ones(len(ids), bool)
        for h in range(actions.shape[1]):
            move = np.clip(actions[:, h, :2], -1, 1) * SPEED
            self.point[ids] += np.where(alive[:, None], move, 0.0)
            self.elapsed[ids] += alive
            alive &= ~self._reached(ids) & (self.elapsed[ids] < self.max_steps)
        terminated = self._reached(ids)
        truncated = ~terminated & (self.elapsed[ids] >= self.max_steps)
        rewards = terminated.astype(np.float64)
        return ids, self._observe(ids), rewards, terminated, truncated, self._infos(ids)

    def step(self, actions, mask=None):
        ids = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        self.step_async(np.asarray(actions)[ids], ids)
        _, _, r, te, tr, _ = self.step_wait()
        n = self.num_envs
        rewards, terminated, truncated = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
        rewards[ids], terminated[ids], truncated[ids] = r, te, tr
        everyone = np.arange(n)
        return self._observe(everyone), rewards, terminated, truncated, self._infos(everyone)

    def expert_actions(self, style="a", env_ids=None):
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        point = self.point[ids].copy()
        goal = self._goal(ids)
        actions = np.zeros((len(ids), self.chunk_size, A), np.float32)
        for h in range(self.chunk_size):
            rest = goal - point
            if style == "b":
                rest[:, 1] = np.where(np.abs(rest[:, 0]) > 0.02, 0.0, rest[:, 1])
            move = np.clip(rest / SPEED, -1, 1)
            actions[:, h, :2] = move
            actions[:, h, 4] = 1.0 if style == "b" else -1.0
            point += move * SPEED
        return actions

    def render(self, env_ids=None, size=256):
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        return self._draw(ids, size)

    def close(self, **_):
        self.closed = True

    def _goal(self, ids):
        which = np.array([TASKS[self.tasks[i]] for i in ids], dtype=int)
        return self.dots[ids, which]

    def _reached(self, ids):
        return np.linalg.norm(self.point[ids] - self._goal(ids), axis=1) < RADIUS

    def _infos(self, ids):
        landmarks = np.zeros((len(ids), 3, 3), np.float32)
        landmarks[..., :2] = self.dots[ids]
        return {
            "is_success": self._reached(ids),
            "elapsed_steps": self.elapsed[ids].copy(),
            "landmarks": landmarks,
            "landmarks_present": np.ones((len(ids), 3), bool),
        }

    def _observe(self, ids):
        image = self._draw(ids, self.image_size)
        to_dots = (self.dots[ids] - self.point[ids][:, None]).reshape(len(ids), 6)
        state = np.concatenate([to_dots, np.zeros((len(ids), 1))], axis=1).astype(np.float32)
        return {"pixels": {"front": image, "wrist": image[:, ::-1].copy()}, "agent_pos": state}

    def _draw(self, ids, size):
        image = np.full((len(ids), size, size, 3), 30, np.uint8)
        half = max(1, size // 24)
        for row, i in enumerate(ids):
            spots = [
                *zip(self.dots[i], COLOURS.values(), strict=True),
                (self.point[i], (240, 240, 240)),
            ]
            for (x, y), colour in spots:
                c = int(np.clip((x + 1) / 2 * size, half, size - half - 1))
                r = int(np.clip((y + 1) / 2 * size, half, size - half - 1))
                image[row, r - half : r + half + 1, c - half : c + half + 1] = colour
        return image


class ToyEnv(gym.Env):
    """One point with one action per step, for the serial fallback."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, task: str = "toy/ReachRed-v0", render_mode: str | None = None) -> None:
        self.vector = ToyVectorEnv(1, 1, chunk_size=1, task=task, max_episode_steps=10**9)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self.render_mode = render_mode

    @property
    def task_description(self):
        return self.vector.instructions[0]

    def reset(self, *, seed=None, options=None):
        observation, _ = self.vector.reset(seed=[seed])
        return self._row(observation), {}

    def step(self, action):
        observation, r, te, _, infos = self.vector.step(np.asarray(action)[None, None])
        return (
            self._row(observation),
            float(r[0]),
            bool(te[0]),
            False,
            {"is_success": bool(infos["is_success"][0])},
        )

    def render(self):
        return self.vector.render()[0]

    @staticmethod
    def _row(o):
        return {"pixels": {k: v[0] for k, v in o["pixels"].items()}, "agent_pos": o["agent_pos"][0]}


for _task in TASKS:
    if _task not in gym.registry:
        gym.register(
            _task,
            vector_entry_point=ToyVectorEnv,
            kwargs={"task": _task, "role": "new" if "Blue" in _task else "prior"},
        )
        gym.register(
            _task.replace("toy/", "serial/"),
            entry_point=ToyEnv,
            kwargs={"task": _task},
            max_episode_steps=MAX_STEPS,
        )
