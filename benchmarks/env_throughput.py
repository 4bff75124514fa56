"""Measure how fast the table suite simulates, against its own physics and against robosuite.

Example: `python benchmarks/env_throughput.py --json throughput.json`

Four ratios, each the median of interleaved repetitions on the same number of processes:

(a) Vector env / bare loop: `RazorVectorEnv` (chunks of H actions, both cameras once per chunk)
    against a loop of only `mj_step` and `mjr_render` on the same model, sizes and effects.
(b) Vector env / robosuite: simulated robot seconds per wall second with both cameras at 64 px.
    `RazorVectorEnv` renders once per decision, robosuite's PickPlaceCan at each of its steps
    (20 Hz). `frames_per_s` in the JSON shows how much of the ratio comes from fewer pictures.
(c) States only / bare physics: `RazorVectorEnv` without pictures against `mj_step`.
(d) Scene / scene: bare `mj_step` on PlaceCanInBin against bare `mj_step` on robosuite's
    PickPlaceCan, simulated seconds per wall second, one process each, from states along an episode
    (PlaceCanInBin: the expert with noise, so with a grasp; robosuite: random actions).

The bare loops replay the controls of the vector env from the same start states and must end in the
same states, bit for bit. Ratios of wall times need a quiet machine; `cpu_ratio` is the ratio of the
processor times of all processes involved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

TASK = "gym_razor/PlaceCanInBin-v0"
CONTROL_DT_S = 0.1
TARGETS = {"a": 0.90, "b": 50.0, "c": 0.85, "d": 5.0}
TITLES = {
    "a": "vector env / bare mj_step + render",
    "b": "vector env / robosuite PickPlaceCan, two 64 px cameras",
    "c": "vector env, states only / bare mj_step",
    "d": "bare physics: PlaceCanInBin scene / robosuite PickPlaceCan",
}


# ---- the same episodes for all contestants -----------------------------------------------------


def record(seed: int, num_steps: int) -> dict[str, Any]:
    """Play the scripted expert with noise; return its actions, controls and states."""
    import mujoco

    from gym_razor.suite.episode import Episode
    from gym_razor.suite.tasks import STYLES
    from gym_razor.suite.world import World

    episode = Episode(World)
    episode.reset(TASK, seed, max_episode_steps=10**9)
    rng = np.random.default_rng(seed)
    actions, controls, states = [], [], []
    start = episode.world.save()
    mj_step = mujoco.mj_step

    def logging_step(model: Any, data: Any, substeps: int = 1) -> None:
        controls[-1].append((data.ctrl.copy(), substeps))
        mj_step(model, data, substeps)

    for _ in range(num_steps):
        noise = 0.25 * rng.standard_normal(5) * np.array([1, 1, 1, 1, 0])
        action = np.clip(episode.task.expert(episode.world, STYLES["a"]) + noise, -1, 1)
        states.append(episode.world.save())
        controls.append([])
        with mock.patch.object(mujoco, "mj_step", logging_step):
            episode.world.step(action.astype(np.float32))
        actions.append(action.astype(np.float32))
    return {
        "world": episode.world,
        "start": start,
        "actions": np.stack(actions),
        "controls": controls,
        "states": states,
        "end": episode.world.data.qpos.copy(),
        "end_state": episode.world.proprioception(),
    }


# ---- contestants: each measure() does one repetition and returns (simulated seconds, frames) ----


class BareLoop:
    """Only `mj_step` (and the two cameras once per chunk) on recorded controls."""

    def __init__(self, seeds: list[int], settings: argparse.Namespace, render: bool) -> None:
        import mujoco

        self.mujoco = mujoco
        self.chunk, self.size = settings.chunk_size, settings.image_size
        self.records = [record(seed, settings.decisions * self.chunk) for seed in seeds]
        self.render = render
        if render:
            self._make_cameras()

    def _make_cameras(self) -> None:
        mujoco, model = self.mujoco, self.records[0]["world"].model
        self.gl = mujoco.GLContext(2 * self.size, self.size)
        self.gl.make_current()
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        mujoco.mjr_resizeOffscreen(2 * self.size, self.size, self.context)
        self.scene = mujoco.MjvScene(model, maxgeom=120)
        for effect in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
            self.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{effect}")] = 0
        self.option = mujoco.MjvOption()
        self.option.sitegroup[:] = 0
        self.option.geomgroup[:] = 0
        self.option.geomgroup[[1, 3]] = 1
        self.cameras = []
        for name in ("front", "wrist"):
            camera = mujoco.MjvCamera()
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = model.camera(name).id
            self.cameras.append(camera)
        self.strip = np.empty((self.size, 2 * self.size, 3), np.uint8)

    def prepare(self) -> None:
        """Restore the start states."""
        for episode in self.records:
            episode["world"].restore(episode["start"])

    def measure(self) -> tuple[float, int]:
        """Play all episodes side by side, as the vector env does."""
        mj_step, chunk = self.mujoco.mj_step, self.chunk
        num_steps = len(self.records[0]["controls"])
        frames = 0
        for first in range(0, num_steps, chunk):
            for episode in self.records:
                model, data = episode["world"].model, episode["world"].data
                for controls in episode["controls"][first : first + chunk]:
                    for control, substeps in controls:
                        data.ctrl[:] = control
                        mj_step(model, data, substeps)
                if self.render:
                    self._render(model, data)
                    frames += 2
        for episode in self.records:
            if not np.array_equal(episode["world"].data.qpos, episode["end"]):
                raise RuntimeError("the bare loop did not end where the recorded episode ended")
        return num_steps * len(self.records) * CONTROL_DT_S, frames

    def _render(self, model: Any, data: Any) -> None:
        mujoco, size = self.mujoco, self.size
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            model, data, self.option, None, self.cameras[0], everything, self.scene
        )
        mujoco.mjr_render(mujoco.MjrRect(0, 0, size, size), self.scene, self.context)
        mujoco.mjv_updateCamera(model, data, self.cameras[1], self.scene)
        mujoco.mjr_render(mujoco.MjrRect(size, 0, size, size), self.scene, self.context)
        mujoco.mjr_readPixels(self.strip, None, mujoco.MjrRect(0, 0, 2 * size, size), self.context)


class RobosuiteEnvironment:
    """robosuite's PickPlaceCan as in its documentation, with two cameras."""

    def __init__(self, seeds: list[int], settings: argparse.Namespace) -> None:
        self.env = make_robosuite(cameras=True, size=settings.image_size)
        self.num_steps = settings.robosuite_steps
        self.rng = np.random.default_rng(seeds[0])

    def prepare(self) -> None:
        """Start an episode."""
        self.env.reset()

    def measure(self) -> tuple[float, int]:
        """Step with random actions."""
        for _ in range(self.num_steps):
            self.env.step(self.rng.uniform(-1, 1, 7))
        return self.num_steps / self.env.control_freq, 2 * self.num_steps


class ScenePhysics:
    """Only `mj_step`, a tenth of a second from each of some states along an episode."""

    def __init__(self, seeds: list[int], settings: argparse.Namespace, scene: str) -> None:
        import mujoco

        self.mujoco = mujoco
        if scene == "robosuite":
            self.model, self.data, self.states = robosuite_states(settings.physics_states)
        else:
            self.states = []
            episode = record(seeds[0], settings.physics_states)
            self.model, self.data = episode["world"].model, episode["world"].data
            for (state, _), controls in zip(episode["states"], episode["controls"], strict=True):
                self.states.append((state, controls[-1][0]))
        self.substeps = round(CONTROL_DT_S / self.model.opt.timestep)
        self.spec = mujoco.mjtState.mjSTATE_INTEGRATION

    def prepare(self) -> None:
        """Do nothing: `measure` sets every state."""

    def measure(self) -> tuple[float, int]:
        """Simulate a tenth of a second from each state."""
        for state, control in self.states:
            self.mujoco.mj_setState(self.model, self.data, state, self.spec)
            self.data.ctrl[:] = control
            self.mujoco.mj_step(self.model, self.data, self.substeps)
        return len(self.states) * CONTROL_DT_S, 0


def make_robosuite(cameras: bool, size: int = 64) -> Any:
    with quiet_robosuite():
        import robosuite

        return robosuite.make(
            "PickPlaceCan",
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=cameras,
            use_camera_obs=cameras,
            camera_names=["agentview", "robot0_eye_in_hand"],
            camera_heights=size,
            camera_widths=size,
            control_freq=20,
            hard_reset=False,
            ignore_done=True,
            renderer="mujoco",
        )


def robosuite_states(num_states: int) -> tuple[Any, Any, list[tuple[Any, Any]]]:
    """Return model, data and (state, control) every tenth of a second under random actions."""
    import mujoco

    env = make_robosuite(cameras=False)
    env.reset()
    model, data = env.sim.model._model, env.sim.data._data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    rng = np.random.default_rng(0)
    states = []
    for _ in range(num_states):
        state = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, data, state, kind)
        states.append((state, data.ctrl.copy()))
        action = rng.uniform(-1, 1, 7)
        for _ in range(2):
            env.step(action)
    env_keeps_model_alive.append(env)
    return model, data, states


env_keeps_model_alive: list[Any] = []


@contextlib.contextmanager
def quiet_robosuite() -> Any:
    logging.getLogger("robosuite_logs").addFilter(lambda entry: entry.levelno >= logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


CONTESTANTS: dict[str, Callable[[list[int], argparse.Namespace], Any]] = {
    "bare_render": lambda seeds, settings: BareLoop(seeds, settings, render=True),
    "bare_physics": lambda seeds, settings: BareLoop(seeds, settings, render=False),
    "robosuite": RobosuiteEnvironment,
    "scene_ours": lambda seeds, settings: ScenePhysics(seeds, settings, "ours"),
    "scene_robosuite": lambda seeds, settings: ScenePhysics(seeds, settings, "robosuite"),
}


# ---- running a contestant in several processes -------------------------------------------------


def serve(connection: Any, name: str, seeds: list[int], settings: argparse.Namespace) -> None:
    contestant = CONTESTANTS[name](seeds, settings)
    connection.send("ready")
    while connection.recv() == "prepare":
        contestant.prepare()
        connection.send("prepared")
        connection.recv()
        started = time.process_time()
        result = contestant.measure()
        connection.send((*result, time.process_time() - started))


class Fleet:
    """One contestant in `num_processes` processes that start each repetition together."""

    def __init__(self, name: str, num_processes: int, settings: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.connections, self.processes = [], []
        for seeds in np.array_split(np.arange(settings.num_envs), num_processes):
            parent_end, child_end = context.Pipe()
            arguments = (child_end, name, seeds.tolist() or [0], settings)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            self.connections.append(parent_end)
            self.processes.append(process)
        self._receive()

    def _receive(self) -> list[Any]:
        return [connection.recv() for connection in self.connections]

    def _send(self, message: str) -> None:
        for connection in self.connections:
            connection.send(message)

    def measure(self) -> dict[str, float]:
        """Run one repetition in all processes at once."""
        self._send("prepare")
        self._receive()
        started = time.perf_counter()
        self._send("go")
        results = self._receive()
        wall_s = time.perf_counter() - started
        return rates(*(sum(column) for column in zip(*results, strict=True)), wall_s)

    def close(self) -> None:
        """Stop the processes."""
        self._send("stop")
        for process in self.processes:
            process.join(timeout=10)


class VectorEnvironment:
    """`RazorVectorEnv`, stepped group by group with recorded actions."""

    def __init__(self, num_workers: int, settings: argparse.Namespace, render: bool) -> None:
        import gymnasium as gym

        import gym_razor  # noqa: F401

        self.settings, self.render = settings, render
        self.env: Any = gym.make_vec(
            TASK,
            num_envs=settings.num_envs,
            vectorization_mode="vector_entry_point",
            num_workers=num_workers,
            chunk_size=settings.chunk_size,
            image_size=settings.image_size,
            render_observations=render,
            max_episode_steps=10**9,
        )
        num_steps = settings.decisions * settings.chunk_size
        seeds = range(settings.num_envs)
        records = [record(seed, num_steps) for seed in seeds]
        self.ends = np.stack([episode["end_state"] for episode in records])
        actions = np.stack([episode["actions"] for episode in records])
        self.chunks = actions.reshape(
            settings.num_envs, settings.decisions, settings.chunk_size, -1
        )

    def measure(self) -> dict[str, float]:
        """Play the recorded actions, a chunk per call; resets are not timed."""
        env, settings = self.env, self.settings
        env.reset(seed=list(range(settings.num_envs)))
        workers = [process.pid for process in env._processes]
        cpu = time.process_time() + sum(cpu_seconds(pid) for pid in workers)
        ends = np.zeros_like(self.ends)
        decided = np.zeros(settings.num_envs, np.int64)
        started = time.perf_counter()
        for ids in env.groups:
            env.step_async(self.chunks[ids, 0], ids)
        remaining = len(env.groups) * settings.decisions
        while remaining:
            ids, observations, *_ = env.step_wait()
            remaining -= 1
            decided[ids] += 1
            decision = int(decided[ids[0]])
            if decision < settings.decisions:
                env.step_async(self.chunks[ids, decision], ids)
            else:
                ends[ids] = observations["agent_pos"]
        wall_s = time.perf_counter() - started
        cpu = time.process_time() + sum(cpu_seconds(pid) for pid in workers) - cpu
        if not np.array_equal(ends, self.ends):
            raise RuntimeError(
                "the vector env did not end in the recorded episodes' last states; if one of them "
                "succeeded, give fewer --decisions"
            )
        steps = settings.num_envs * settings.decisions * settings.chunk_size
        frames = 2 * settings.num_envs * settings.decisions if self.render else 0
        return rates(steps * CONTROL_DT_S, frames, cpu, wall_s)

    def close(self) -> None:
        """Stop the workers."""
        self.env.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rates(simulated_s: float, frames: float, cpu_s: float, wall_s: float) -> dict[str, float]:
    return {
        "simulated_s_per_wall_s": simulated_s / wall_s,
        "simulated_s_per_cpu_s": simulated_s / cpu_s,
        "frames_per_s": frames / wall_s,
    }


# ---- the four comparisons ----------------------------------------------------------------------


def pairs(num_processes: int, settings: argparse.Namespace) -> dict[str, tuple[Any, Any]]:
    """Return makers of numerator and denominator of each ratio."""

    def vector(render: bool) -> Any:
        return lambda: VectorEnvironment(num_processes, settings, render=render)

    def fleet(name: str, count: int = num_processes) -> Any:
        return lambda: Fleet(name, count, settings)

    return {
        "a": (vector(True), fleet("bare_render")),
        "b": (vector(True), fleet("robosuite")),
        "c": (vector(False), fleet("bare_physics")),
        "d": (fleet("scene_ours", 1), fleet("scene_robosuite", 1)),
    }


def compare(makers: tuple[Any, Any], repeats: int) -> dict[str, Any]:
    """Measure two contestants in turns; return medians and the median ratio."""
    first, second = makers[0](), makers[1]()
    try:
        first.measure(), second.measure()  # warm-up: compilers, caches, allocation
        rounds = []
        for repeat in range(repeats):
            # Alternate the order, so that a machine that heats up or fills favours neither.
            if repeat % 2:
                other, own = second.measure(), first.measure()
            else:
                own, other = first.measure(), second.measure()
            rounds.append((own, other))
    finally:
        first.close()
        second.close()
    wall, cpu = "simulated_s_per_wall_s", "simulated_s_per_cpu_s"
    ratios = sorted(own[wall] / other[wall] for own, other in rounds)
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "cpu_ratio": statistics.median(own[cpu] / other[cpu] for own, other in rounds),
        "ours": {key: statistics.median(own[key] for own, _ in rounds) for key in rounds[0][0]},
        "other": {key: statistics.median(own[key] for _, own in rounds) for key in rounds[0][1]},
    }


def machine() -> dict[str, Any]:
    import mujoco

    model_name = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model_name = names[0] if names else model_name
    return {
        "cpu": model_name,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "mujoco": mujoco.__version__,
        "gl": os.environ.get("MUJOCO_GL", ""),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--only", default="abcd", help="which ratios, e.g. ac (default: abcd)")
    parser.add_argument("--repeats", type=int, default=15, help="interleaved repetitions")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--num-envs", type=int, default=48)
    parser.add_argument("--chunk-size", type=int, default=4, help="actions per decision")
    parser.add_argument("--decisions", type=int, default=5, help="per env and repetition")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--robosuite-steps", type=int, default=20)
    parser.add_argument("--physics-states", type=int, default=40)
    settings = parser.parse_args(arguments)
    if not settings.only or set(settings.only) - set(TARGETS):
        parser.error(f"--only {settings.only}: give letters out of {''.join(TARGETS)}")
    return settings


def main(arguments: list[str] | None = None) -> int:
    settings = parse(arguments)
    for name, value in (("MUJOCO_GL", "egl"), ("LP_NUM_THREADS", "0"), ("OMP_NUM_THREADS", "1")):
        os.environ.setdefault(name, value)
    num_processes = settings.workers or len(os.sched_getaffinity(0))
    results = {}
    for name, makers in pairs(num_processes, settings).items():
        if name not in settings.only:
            continue
        result = compare(makers, settings.repeats)
        result |= {"what": TITLES[name], "target": TARGETS[name]}
        result["reached"] = result["ratio"] >= TARGETS[name]
        results[name] = result
        low, high = result["ratio_range"]
        print(
            f"({name}) {TITLES[name]}: {result['ratio']:.2f} [{low:.2f}, {high:.2f}], "
            f"target {TARGETS[name]}, by processor time {result['cpu_ratio']:.2f}; "
            f"{result['ours']['simulated_s_per_wall_s']:.1f} against "
            f"{result['other']['simulated_s_per_wall_s']:.2f} simulated s per s",
            flush=True,
        )
    if settings.json:
        chosen = {key: value for key, value in vars(settings).items() if key != "json"}
        document = {
            "machine": machine(),
            "settings": {**chosen, "processes": num_processes, "task": TASK},
            "ratios": results,
        }
        settings.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
