"""Demonstrations: made by a scripted expert or a policy, kept as LeRobotDataset v3 or in RAM.

Demonstrations have one frame per control step: observation, the action executed there, reward.
`dataset` reads and writes them.

Axis letters as in `types`: E episodes, F frames, H chunk, A action dimensions, S state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console

from robo_razor.core.errors import DemonstrationError
from robo_razor.core.files import check_writable
from robo_razor.core.machine import local_processes, resolve_device
from robo_razor.core.plain_text import skill_name
from robo_razor.core.run.directory import refuse_used_directory
from robo_razor.core.seeding import derive
from robo_razor.core.settings.config import POLICY_PREFIX, CollectConfig, EnvConfig
from robo_razor.core.types import DemonstrationSet, EpisodeBatch, make_rows
from robo_razor.policies.inputs import STATE, camera_name, image_key
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import (
    Actor,
    ExpertActor,
    GaussianNoise,
    Mode,
    NoisyActor,
    OpenLoopActor,
    PolicyActor,
)
from robo_razor.rollout.dataset.dataset import create_dataset, load_demonstrations, write_episodes
from robo_razor.rollout.dataset.memory import require_memory
from robo_razor.rollout.dataset.metadata import describe
from robo_razor.rollout.dataset.tables import listed
from robo_razor.rollout.environments import make_env, named_tasks
from robo_razor.rollout.episodes import episode_bar, run_actor
from robo_razor.rollout.groups import VectorEnv
from robo_razor.rollout.recorders import Recorder, StepOutcome

logger = logging.getLogger(__name__)

EXPERT = "expert"
"""Name of the scripted expert where a policy can be named, too."""
MAX_ATTEMPTS = 20
"""Episodes tried per episode asked for, before collecting gives up."""
MAX_EPISODES_AT_ONCE = 500
"""Their frames are in memory, failures too, until it is known which succeeded."""
CHECK_EVERY_BYTES = 16 << 20
"""After so many bytes of new pictures it is looked whether those to come fit in memory."""
FIRST_SEEDS = 900_000
"""Start states of demonstrations begin below this, which leaves room before the held-out ones."""
ACTION_TOLERANCE = 0.01
"""Share of half its range by which an action may lie outside of it."""
RATE_TOLERANCE = 0.01
"""Share by which a data set's rate may differ from the environment's without a word."""


# --- Making demonstrations ------------------------------------------------------------------------


class _DemonstrationRecorder(Recorder):
    """Keeps every frame, and checks while it does whether those to come fit in memory.

    Args:
        wanted: How many successful episodes are joined at the end, which has their pictures twice.
        earlier: Successful ones of earlier recorders.
    """

    def __init__(self, wanted: int, earlier: Sequence[DemonstrationSet] = ()) -> None:
        super().__init__(observations=True, landmarks=True)
        self.wanted = wanted
        self._earlier_episodes = sum(part.num_episodes for part in earlier)
        self._earlier_bytes = sum(_picture_bytes(part.images) for part in earlier)
        self._episode_bytes: dict[int, int] = {}
        self._succeeded: set[int] = set()
        self._taken_bytes = self._next_check = 0

    def on_step(self, outcome: StepOutcome) -> None:
        """Keep one frame of each episode."""
        super().on_step(outcome)
        size = _picture_bytes(outcome.request.observation["pixels"])
        for episode, success in zip(outcome.episodes.tolist(), outcome.success, strict=True):
            before = self._episode_bytes.get(episode, 0)
            self._episode_bytes[episode] = before + size // len(outcome.episodes)
            if success:
                self._succeeded.add(episode)
        self._taken_bytes += size
        if self._taken_bytes >= self._next_check:
            self._next_check = self._taken_bytes + CHECK_EVERY_BYTES
            self._check_memory()

    def _check_memory(self) -> None:
        """Check that the pictures to come fit in free memory, by the successful episodes so far.

        Those that end first are the short ones, so at first it asks for too little.

        Raises:
            DemonstrationError: They do not.
        """
        done = self._earlier_episodes + len(self._succeeded)
        if not done:
            return
        processes = local_processes()  # each has its own demonstrations
        held = self._earlier_bytes + sum(self._episode_bytes[e] for e in self._succeeded)
        held *= processes
        each = 2 * held / done
        require_memory(
            self.wanted * each - held,
            lambda size: (
                f"{self.wanted} demonstrations do not fit in memory: by the {done} so far their "
                f"pictures take {size} more"
            ),
            lambda available: (
                "Ask for fewer (`--bc.episodes`, of `collect` `--episodes`): at most "
                f"{int((available + held) / each)} fit."
            ),
        )

    def demonstrations(self, episodes: NDArray[np.int64], fps: float) -> DemonstrationSet:
        """Return the frames of some episodes, in the order of their rows."""
        owner = np.concatenate(self.episodes)
        order = self.order[np.isin(owner[self.order], episodes)]
        lengths = np.bincount(owner[order], minlength=int(owner.max()) + 1)[episodes]
        actions = [(d.actions if d.label is None else d.label)[:, 0] for d in self.decisions]
        landmarks = [part for part in self.landmarks if part is not None]
        whole = len(landmarks) == len(self.landmarks)

        def ordered(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
            return _rows_of(parts, order).astype(dtype, copy=False)

        return DemonstrationSet(
            images={
                name: ordered([seen["pixels"][name] for seen in self.observations], np.uint8)
                for name in self.observations[0]["pixels"]
            },
            state=ordered([seen["agent_pos"] for seen in self.observations], np.float32),
            actions=ordered(actions, np.float32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            instructions=tuple(self.instructions[int(e)] for e in episodes),
            fps=fps,
            rewards=ordered(self.rewards, np.float32),
            success=ordered(self.success, np.bool_),
            landmarks=ordered([x for x, _ in landmarks], np.float32) if whole else None,
            landmarks_present=ordered([x for _, x in landmarks], np.bool_) if whole else None,
        )


def _picture_bytes(images: Mapping[str, NDArray[np.uint8]]) -> int:
    return sum(pictures.nbytes for pictures in images.values())


def _rows_of(parts: Sequence[NDArray[Any]], order: NDArray[np.int64]) -> NDArray[Any]:
    """Return some rows of joined arrays, without joining them: pictures are large."""
    place = np.full(sum(map(len, parts)), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = np.empty((len(order), *parts[0].shape[1:]), parts[0].dtype)
    start = 0
    for part in parts:
        to = place[start : start + len(part)]
        rows[to[to >= 0]] = part[to >= 0]
        start += len(part)
    return rows


def collect_demonstrations(
    env: VectorEnv,
    actor: Actor,
    task: str,
    episodes: int,
    *,
    first_seed: int = 0,
    console: Console | None = None,
    on_batch: Callable[[EpisodeBatch], None] | None = None,
) -> DemonstrationSet:
    """Run episodes until there are enough successful ones; keep those, in seed order.

    Args:
        env: Vector environment with chunks of one action.
        actor: Who demonstrates.
        task: Gymnasium id.
        episodes: Successful episodes wanted.
        first_seed: Seed of the first start state; the next ones follow.
        console: Where progress is shown; None: nowhere.
        on_batch: Is given all episodes that were run, failures too.

    Raises:
        DemonstrationError: Too few episodes succeed, or one holds numbers that are not finite.
    """
    parts: list[DemonstrationSet] = []
    succeeded = tried = 0
    fps = control_rate(env) or 10
    name = skill_name(task)
    while succeeded < episodes:
        missing = episodes - succeeded
        rate = (succeeded + 1) / (tried + 1)
        if tried >= MAX_ATTEMPTS * episodes + 10:
            raise DemonstrationError(
                f"Only {succeeded} of {tried} episodes on {task!r} succeeded, {episodes} were "
                "asked for",
                remedy="Ask for fewer, or let a better policy or the expert demonstrate.",
            )
        number = min(MAX_EPISODES_AT_ONCE, math.ceil(1.05 * missing / rate))
        rows = make_rows(task, range(first_seed + tried, first_seed + tried + number))
        recorder = _DemonstrationRecorder(episodes, parts)
        with episode_bar(console, f"demonstrations of {name}") as progress:
            batch = run_actor(env, actor, rows, progress=progress, observer=recorder)
        if on_batch is not None:
            on_batch(batch)
        if (good := np.flatnonzero(batch.success)[:missing]).size:
            parts.append(recorder.demonstrations(good, fps))
        del recorder  # with the pictures of the failures
        succeeded += good.size
        tried += number
    demonstrations = _joined(parts)
    check_finite(demonstrations, f"demonstrations of {name}")
    return demonstrations


def _joined(parts: Sequence[DemonstrationSet]) -> DemonstrationSet:
    """Put demonstrations of the same task behind one another."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    whole = all(part.landmarks is not None for part in parts)

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    return DemonstrationSet(
        images={
            name: np.concatenate([part.images[name] for part in parts]) for name in parts[0].images
        },
        state=joined("state"),
        actions=joined("actions"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        instructions=tuple(text for part in parts for text in part.instructions),
        fps=parts[0].fps,
        rewards=joined("rewards"),
        success=joined("success"),
        landmarks=joined("landmarks") if whole else None,
        landmarks_present=joined("landmarks_present") if whole else None,
    )


# --- Those that a run learns from -----------------------------------------------------------------


@dataclass(frozen=True)
class DemonstrationSource:
    """What is demonstrated, and by whom.

    Attributes:
        source: `expert`: the task's scripted expert; `policy:NAME`: the successes of a policy that
            samples its actions; else the directory of a data set.
        episodes: How many; of a data set at most so many.
        task: Gymnasium id.
        env: How its environment is made.
        seed: Decides the start states and the sampled actions.
        style: The expert's.
        noise: Standard deviation of the noise on what an expert executes, in the action's units.
        temperature: Softmax temperature of a policy that demonstrates.
        device: Where such a policy runs.
        rename: Its rename map, see `Policy.rename`.
    """

    source: str
    episodes: int
    task: str
    env: EnvConfig
    seed: int = 0
    style: str = "b"
    noise: float = 0.0
    temperature: float = 1.0
    device: str = "auto"
    rename: str = ""

    @property
    def is_dataset(self) -> bool:
        """Return whether the demonstrations are on disk."""
        return self.source != EXPERT and not self.source.startswith(POLICY_PREFIX)


def demonstrations_for(
    source: DemonstrationSource,
    policy: Policy,
    console: Console | None = None,
    env: VectorEnv | None = None,
) -> DemonstrationSet:
    """Return demonstrations that a policy can learn from.

    Args:
        source: Which.
        policy: The policy whose inputs and actions the demonstrations must fit.
        console: Where progress is shown; None: nowhere.
        env: The environment that the policy will act in; a data set that was recorded at another
            rate, or with actions that it does not take, is warned of. None: nothing is said.

    Raises:
        DemonstrationError: There are none, or they do not fit the policy.
    """
    if source.is_dataset:
        demonstrations = _of_dataset(source, policy)
        if env is not None:
            _warn_of_env(demonstrations, env, source.source)
        return demonstrations
    actor, stride = _demonstrator(source)
    shape = policy.wanted_image_shape
    played_in = make_env(source.task, source.env, chunk_size=1, image_shape=shape)
    try:
        demonstrations = collect_demonstrations(
            played_in,
            actor,
            source.task,
            source.episodes,
            first_seed=derive(source.seed, "demonstrations") % FIRST_SEEDS,
            console=console,
        )
    finally:
        played_in.close()
    check_actions(demonstrations, policy, source.source)
    # A dataset would not have landmarks either: demonstrations are observations and actions.
    return replace(demonstrations, landmarks=None, landmarks_present=None, decision_stride=stride)


def _demonstrator(source: DemonstrationSource) -> tuple[Actor, int]:
    """Return who demonstrates and how many control steps one decision of theirs lasts."""
    if source.source == EXPERT:
        expert: Actor = ExpertActor(source.style)
        # Reactive: every control step is a decision.
        return (NoisyActor(expert, GaussianNoise(source.noise)) if source.noise else expert), 1
    name = source.source.removeprefix(POLICY_PREFIX)
    demonstrator = load_policy(name, resolve_device(source.device))
    demonstrator.rename(source.rename)
    if not demonstrator.has_density:
        raise DemonstrationError(
            f"The policy {name!r} of `bc.demonstrations` has no action density to sample from",
            remedy="Write its episodes with `robo-razor collect --policy` and name that directory.",
        )
    demonstrator.temperature = source.temperature
    seed = derive(source.seed, "demonstration actions")
    actor = PolicyActor(demonstrator, "sample", sampling_seed=seed)
    return OpenLoopActor(actor, demonstrator.chunk_size), demonstrator.chunk_size


def _of_dataset(source: DemonstrationSource, policy: Policy) -> DemonstrationSet:
    """Return the demonstrations of a data set; what does not fit is refused before it is decoded.

    Raises:
        DemonstrationError: There are none, or they do not fit the policy.
    """
    name = source.source
    states = policy.sources.candidates(STATE)
    said = describe(name, states)
    wanted = policy.wanted_image_shape
    shapes = {camera_name(camera.key): wanted or camera.shape for camera in said.cameras}
    state = said.widths[said.state] if said.state else 0
    _check_shapes(shapes, state, said.widths["action"], policy, name, said.columns)
    demonstrations = load_demonstrations(
        name,
        max_episodes=source.episodes,
        image_shape=wanted,
        state_keys=states,
        cameras={policy.sources.camera(key, shapes) for key in policy.sources.image_keys},
    )
    check_fit(demonstrations, policy, name)
    check_actions(demonstrations, policy, name)
    return demonstrations


def check_fit(demonstrations: DemonstrationSet, policy: Policy, source: str) -> None:
    """Check that demonstrations have the policy's cameras, state and actions.

    Raises:
        DemonstrationError: If not; shows both sides.
    """
    demos = demonstrations
    shapes = {name: images.shape[1:3] for name, images in demos.images.items()}
    _check_shapes(shapes, demos.state.shape[1], demos.actions.shape[1], policy, source)


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    state: int,
    actions: int,
    policy: Policy,
    source: str,
    columns: Sequence[str] = (),
) -> None:
    shape = policy.wanted_image_shape
    seen = [shapes.get(policy.sources.camera(key, shapes)) for key in policy.sources.image_keys]
    fits = (
        all(size is not None and shape in (None, size) for size in seen)
        and policy.state_dim in (0, state)
        and actions == policy.action_dim
    )
    if fits:
        return
    cameras = [f"{image_key(name)} {w}x{h} px" for name, (h, w) in shapes.items()]
    size = "" if shape is None else f" {shape[1]}x{shape[0]} px"
    wanted = [f"{key}{size}" for key in policy.sources.image_keys]
    raise DemonstrationError(
        f"The demonstrations in {source!r} do not fit the policy {policy.name!r}: they have "
        f"{', '.join(cameras) or 'no camera'}, state {state}, action {actions}; the policy wants "
        f"{', '.join(wanted)}, state {policy.state_dim}, action {policy.action_dim}"
        + (f". The columns of the data set are {listed(columns)}" if columns else ""),
        remedy="Rename cameras, or the state, that are only called otherwise (`--rename`), or "
        "collect demonstrations in the environment that the policy was trained for.",
    )


def check_finite(demonstrations: DemonstrationSet, source: str) -> None:
    """Check that there is no NaN and nothing infinite in demonstrations.

    Raises:
        DemonstrationError: There is; names what, and in which episode and frame.
    """
    parts = {
        "state": demonstrations.state,
        "action": demonstrations.actions,
        "reward": demonstrations.rewards,
    }
    for name, values in parts.items():
        finite = np.isfinite(values).reshape(len(demonstrations), -1)
        for frame in np.flatnonzero(~finite.all(1))[:1].tolist():
            raise DemonstrationError(
                f"The {name} of {demonstrations.place(frame)} of the {source} is not finite: "
                f"{np.atleast_1d(values[frame])[~finite[frame]][0]}",
                remedy="Nothing is written or learnt from it: mend the environment or the policy "
                "that gave this number.",
            )


def check_actions(demonstrations: DemonstrationSet, policy: Policy, source: str) -> None:
    """Check that a policy with action tokens can express the actions that it is to clone.

    Raises:
        DemonstrationError: One is outside of its range, so that another would be learnt.
    """
    centers = getattr(policy.module, "bin_centers", None)
    if centers is None:
        return
    low, high = float(centers.min()), float(centers.max())
    margin = ACTION_TOLERANCE * (high - low) / 2
    for text in _outside(demonstrations, low - margin, high + margin):
        raise DemonstrationError(
            f"{text} in {source!r}, and the policy {policy.name!r} can only express [{low:g}, "
            f"{high:g}]: it would learn another action",
            remedy="Scale the actions of the data set to the environment's units, or clone into a "
            "policy that normalises its actions (SmolVLA, pi0, ACT, ...).",
        )


def _outside(demonstrations: DemonstrationSet, low: Any, high: Any) -> list[str]:
    """Say, in at most one text, which action is the first outside of a range."""
    actions = demonstrations.actions
    rows, columns = np.nonzero((actions < low) | (actions > high))
    if not len(rows):
        return []
    frame, entry = int(rows[0]), int(columns[0])
    return [
        f"The action ('action') of {demonstrations.place(frame)} is {actions[frame, entry]:g} "
        f"(entry {entry}; {len(np.unique(rows))} of {len(actions)} frames are outside)"
    ]


def control_rate(env: VectorEnv) -> float | None:
    """Return an environment's control steps per second, None where it does not say."""
    rate = env.metadata.get("render_fps")
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
        return None
    if not 0 < rate < math.inf:
        return None
    return int(rate) if rate == int(rate) else float(rate)


def _warn_of_env(demonstrations: DemonstrationSet, env: VectorEnv, source: str) -> None:
    """Warn of demonstrations at another rate than the environment's, or of actions outside."""
    rate, fps = control_rate(env), demonstrations.fps
    if rate is not None and abs(fps / rate - 1) > RATE_TOLERANCE:
        logger.warning(
            "The data set %s has %g frames per second, the environment %g control steps "
            "(`render_fps`): every frame is cloned as one control step, so that an action will "
            "last %.3g times as long as in the recording. Resample the data set, or set the "
            "environment's rate.",
            source,
            fps,
            rate,
            fps / rate,
        )
    space = env.single_action_space
    if not isinstance(space, spaces.Box) or space.shape != demonstrations.actions.shape[1:]:
        return
    with np.errstate(over="ignore"):  # no bound may be the largest number that there is
        margin = ACTION_TOLERANCE * (space.high - space.low) / 2
    for text in _outside(demonstrations, space.low - margin, space.high + margin):
        logger.warning(
            "%s in %s, and the environment says that it takes [%g, %g] only: what it does with "
            "others is its own affair.",
            text,
            source,
            space.low.min(),
            space.high.max(),
        )


def write_demonstrations(
    env: VectorEnv,
    actor: Actor,
    episodes: Mapping[str, int],
    directory: Path,
    *,
    first_seed: int = 0,
    console: Console | None = None,
    on_batch: Callable[[EpisodeBatch], None] | None = None,
) -> None:
    """Collect demonstrations of some tasks and write them as one dataset.

    Args:
        env: Vector environment of all tasks, with chunks of one action.
        actor: Who demonstrates.
        episodes: Gymnasium id -> successful episodes wanted, at least one task.
        directory: Where; must not exist.
        first_seed: Seed of every task's first start state; the next ones follow.
        console: Where progress is shown; None: nowhere.
        on_batch: Is given all episodes that were run, failures too.

    Raises:
        DemonstrationError: Too few episodes succeed.
    """
    writer = None
    try:
        for task, number in episodes.items():
            demonstrations = collect_demonstrations(
                env,
                actor,
                task,
                number,
                first_seed=first_seed,
                console=console,
                on_batch=on_batch,
            )
            writer = writer or create_dataset(directory, demonstrations)
            write_episodes(writer, demonstrations)
    except BaseException:
        if writer is not None:
            logger.warning("%s is readable, but holds the first tasks' episodes only", directory)
        raise
    finally:
        if writer is not None:
            writer.finalize()  # without it, what was written could not be read


@dataclass(frozen=True)
class Collected:
    """A data set that was written.

    Attributes:
        directory: Where.
        tasks: Skill name -> task id of what was demonstrated.
        episodes: Successful episodes, of all tasks together, which were written.
        tried: Episodes that were run for them, of all tasks together.
        succeeded: How many of those succeeded; more than are written where some were left over.
    """

    directory: Path
    tasks: Mapping[str, str]
    episodes: int
    tried: int
    succeeded: int


def collect(config: CollectConfig, console: Console | None = None) -> Collected:
    """Collect demonstrations as the settings say and write them as a LeRobotDataset v3.

    Args:
        config: Settings of `robo-razor collect`.
        console: Where progress is shown; None: nowhere.

    Raises:
        RoboRazorError: Unknown task or policy, output in use, or too few successes.
    """
    tasks = named_tasks(config.task, config.env.env_packages)
    out = Path(config.out)
    refuse_used_directory(out)
    check_writable(out, "out", directory=True)
    actor: Actor = ExpertActor(config.style)
    policy = None
    if config.policy != EXPERT:
        policy, actor = _policy_actor(config)
    if config.noise > 0.0:
        actor = NoisyActor(actor, GaussianNoise(config.noise))
    env = make_env(
        next(iter(tasks.values())),
        config.env,
        chunk_size=1,
        tasks=tuple(tasks.values()),
        image_shape=None if policy is None else policy.wanted_image_shape,
    )
    outcomes: list[bool] = []
    try:
        if policy is not None:
            policy.check_env(env.single_observation_space, env.single_action_space)
        write_demonstrations(
            env,
            actor,
            dict.fromkeys(tasks.values(), config.episodes),
            out,
            first_seed=config.seed,
            console=console,
            on_batch=lambda batch: outcomes.extend(batch.success.tolist()),
        )
    finally:
        env.close()
    return Collected(out, tasks, config.episodes * len(tasks), len(outcomes), sum(outcomes))


def _policy_actor(config: CollectConfig) -> tuple[Policy, Actor]:
    policy = load_policy(config.policy, resolve_device(config.device))
    policy.rename(config.rename)
    mode: Mode = "sample" if policy.has_density else "greedy"
    actor = PolicyActor(policy, mode, sampling_seed=config.seed)
    return policy, OpenLoopActor(actor, policy.chunk_size)
