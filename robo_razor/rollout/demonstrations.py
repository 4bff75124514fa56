"""Demonstrations: made by a scripted expert or a policy, stored as LeRobotDataset v3 or in RAM.

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

from robo_razor.core.errors import ConfigError, DemonstrationError
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
from robo_razor.rollout.environments import make_env, make_fitting_env, named_tasks
from robo_razor.rollout.episodes import episode_bar, run_actor
from robo_razor.rollout.groups import VectorEnv
from robo_razor.rollout.recorders import Recorder, StepOutcome

logger = logging.getLogger(__name__)

EXPERT = "expert"
"""Name of the scripted expert in settings that also take a policy."""
MAX_ATTEMPTS = 20
"""Episodes tried per wanted episode, before collecting gives up."""
MAX_EPISODES_AT_ONCE = 500
"""Their frames are in memory, also those of failures, until it is known which succeeded."""
CHECK_EVERY_BYTES = 16 << 20
"""Bytes of new pictures between two checks that the pictures to come fit in memory."""
FIRST_SEEDS = 900_000
"""Start states of demonstrations begin below this seed, well before the held-out ones."""
ACTION_TOLERANCE = 0.01
"""Share of half its range by which an action may lie outside the range."""
RATE_TOLERANCE = 0.01
"""Share by which a data set's rate may differ from the environment's without a warning."""


# --- Making demonstrations ------------------------------------------------------------------------


class _DemonstrationRecorder(Recorder):
    """Records every frame, and checks meanwhile that the frames to come fit in memory.

    Args:
        wanted: Number of successful episodes. They are joined at the end, when their pictures are
            in memory twice.
        earlier: Successful episodes of earlier recorders.
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
        """Record one frame of each episode."""
        super().on_step(outcome)
        size = _picture_bytes(outcome.request.observation["pixels"])
        for episode, success in zip(outcome.episodes.tolist(), outcome.success, strict=True):
            earlier = self._episode_bytes.get(episode, 0)
            self._episode_bytes[episode] = earlier + size // len(outcome.episodes)
            if success:
                self._succeeded.add(episode)
        self._taken_bytes += size
        if self._taken_bytes >= self._next_check:
            self._next_check = self._taken_bytes + CHECK_EVERY_BYTES
            self._check_memory()

    def _check_memory(self) -> None:
        """Check that the pictures to come fit in free memory, judged by the successes so far.

        Short episodes end first, so the first estimates are too low.

        Raises:
            DemonstrationError: They do not fit.
        """
        done = self._earlier_episodes + len(self._succeeded)
        if not done:
            return
        processes = local_processes()  # each has its own demonstrations
        stored = self._earlier_bytes + sum(self._episode_bytes[e] for e in self._succeeded)
        stored *= processes
        per_episode = 2 * stored / done
        require_memory(
            self.wanted * per_episode - stored,
            lambda size: (
                f"{self.wanted} demonstrations do not fit in memory: judged by the {done} so far, "
                f"their pictures need {size} more"
            ),
            lambda available: (
                "Set fewer (`--bc.episodes`, or `--episodes` of `collect`): at most "
                f"{int((available + stored) / per_episode)} fit."
            ),
        )

    def demonstrations(self, episodes: NDArray[np.int64], fps: float) -> DemonstrationSet:
        """Return the frames of some episodes, in the order of their rows."""
        owner = np.concatenate(self.episodes)
        order = self.order[np.isin(owner[self.order], episodes)]
        lengths = np.bincount(owner[order], minlength=int(owner.max()) + 1)[episodes]
        actions = [(d.actions if d.label is None else d.label)[:, 0] for d in self.decisions]
        landmarks = [part for part in self.landmarks if part is not None]
        has_landmarks = len(landmarks) == len(self.landmarks)

        def ordered(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
            return _rows_of(parts, order).astype(dtype, copy=False)

        return DemonstrationSet(
            images={
                name: ordered([part["pixels"][name] for part in self.observations], np.uint8)
                for name in self.observations[0]["pixels"]
            },
            state=ordered([part["agent_pos"] for part in self.observations], np.float32),
            actions=ordered(actions, np.float32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            instructions=tuple(self.instructions[int(e)] for e in episodes),
            fps=fps,
            rewards=ordered(self.rewards, np.float32),
            success=ordered(self.success, np.bool_),
            landmarks=ordered([x for x, _ in landmarks], np.float32) if has_landmarks else None,
            landmarks_present=(
                ordered([x for _, x in landmarks], np.bool_) if has_landmarks else None
            ),
        )


def _picture_bytes(images: Mapping[str, NDArray[np.uint8]]) -> int:
    return sum(pictures.nbytes for pictures in images.values())


def _rows_of(parts: Sequence[NDArray[Any]], order: NDArray[np.int64]) -> NDArray[Any]:
    """Return some rows of joined arrays, without joining them: pictures are large."""
    position = np.full(sum(map(len, parts)), -1, dtype=np.int64)
    position[order] = np.arange(len(order))
    rows = np.empty((len(order), *parts[0].shape[1:]), parts[0].dtype)
    start = 0
    for part in parts:
        targets = position[start : start + len(part)]
        rows[targets[targets >= 0]] = part[targets >= 0]
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
    """Run episodes until enough have succeeded; return these in seed order.

    Args:
        env: Vector environment with chunks of one action.
        actor: The demonstrator.
        task: Gymnasium id.
        episodes: Successful episodes wanted.
        first_seed: Seed of the first start state; the next ones follow.
        console: Where to show progress; None: nowhere.
        on_batch: Called with all episodes that were run, also failures.

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
                f"Only {succeeded} of {tried} episodes on {task!r} succeeded, but {episodes} are "
                "wanted",
                remedy="Set fewer, or let a better policy or the expert demonstrate.",
            )
        number = min(MAX_EPISODES_AT_ONCE, math.ceil(1.05 * missing / rate))
        rows = make_rows(task, range(first_seed + tried, first_seed + tried + number))
        recorder = _DemonstrationRecorder(episodes, parts)
        with episode_bar(console, f"demonstrations of {name}") as progress:
            batch = run_actor(env, actor, rows, progress=progress, observer=recorder)
        if on_batch is not None:
            on_batch(batch)
        if (successes := np.flatnonzero(batch.success)[:missing]).size:
            parts.append(recorder.demonstrations(successes, fps))
        del recorder  # frees the pictures of the failures
        succeeded += successes.size
        tried += number
    demonstrations = _joined(parts)
    check_finite(demonstrations, f"demonstrations of {name}")
    return demonstrations


def _joined(parts: Sequence[DemonstrationSet]) -> DemonstrationSet:
    """Concatenate demonstrations of the same task."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    has_landmarks = all(part.landmarks is not None for part in parts)

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
        landmarks=joined("landmarks") if has_landmarks else None,
        landmarks_present=joined("landmarks_present") if has_landmarks else None,
    )


# --- The demonstrations of a run ------------------------------------------------------------------


@dataclass(frozen=True)
class DemonstrationSource:
    """Where demonstrations come from.

    Attributes:
        source: `expert`: the task's scripted expert; `policy:NAME`: the successes of a policy that
            samples its actions; else the directory of a data set.
        episodes: Number of episodes; of a data set the largest number.
        task: Gymnasium id.
        env: Settings of the environment.
        seed: Seed of the start states and the sampled actions.
        style: Style of the expert.
        noise: Standard deviation of the noise on an expert's actions, in the action's units.
        temperature: Softmax temperature of a policy that demonstrates.
        device: Device of a policy that demonstrates.
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
        source: Where they come from.
        policy: The policy whose inputs and actions the demonstrations must fit.
        console: Where to show progress; None: nowhere.
        env: The environment that the policy will act in. A data set with another rate, or with
            actions outside its space, causes a warning. None: no warnings.

    Raises:
        DemonstrationError: They do not exist, or do not fit the policy.
    """
    if source.is_dataset:
        demonstrations = _of_dataset(source, policy)
        if env is not None:
            _warn_of_env(demonstrations, env, source.source)
        return demonstrations
    actor, stride = _demonstrator(source)
    shape = policy.wanted_image_shape
    own_env = make_env(source.task, source.env, chunk_size=1, image_shape=shape)
    try:
        demonstrations = collect_demonstrations(
            own_env,
            actor,
            source.task,
            source.episodes,
            first_seed=derive(source.seed, "demonstrations") % FIRST_SEEDS,
            console=console,
        )
    finally:
        own_env.close()
    check_actions(demonstrations, policy, source.source)
    # Without landmarks, like a data set: demonstrations are observations and actions.
    return replace(demonstrations, landmarks=None, landmarks_present=None, decision_stride=stride)


def _demonstrator(source: DemonstrationSource) -> tuple[Actor, int]:
    """Return the demonstrator, and the control steps of one of its decisions."""
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
    """Return the demonstrations of a data set; check the fit before decoding them.

    Raises:
        DemonstrationError: They do not exist, or do not fit the policy.
    """
    name = source.source
    states = policy.sources.candidates(STATE)
    description = describe(name, states)
    wanted = policy.wanted_image_shape
    shapes = {camera_name(camera.key): wanted or camera.shape for camera in description.cameras}
    state = description.widths[description.state] if description.state else 0
    actions = description.widths["action"]
    _check_shapes(shapes, state, actions, policy, name, description.columns)
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
        DemonstrationError: They do not; the message shows both sides.
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
    sizes = [shapes.get(policy.sources.camera(key, shapes)) for key in policy.sources.image_keys]
    fits = (
        all(size is not None and shape in (None, size) for size in sizes)
        and policy.state_dim in (0, state)
        and actions == policy.action_dim
    )
    if fits:
        return
    cameras = [f"{image_key(name)} {w}x{h} px" for name, (h, w) in shapes.items()]
    wanted_size = "" if shape is None else f" {shape[1]}x{shape[0]} px"
    wanted = [f"{key}{wanted_size}" for key in policy.sources.image_keys]
    raise DemonstrationError(
        f"The demonstrations in {source!r} do not fit the policy {policy.name!r}: they have "
        f"{', '.join(cameras) or 'no camera'}, state {state}, action {actions}; the policy wants "
        f"{', '.join(wanted)}, state {policy.state_dim}, action {policy.action_dim}"
        + (f". The columns of the data set are {listed(columns)}" if columns else ""),
        remedy="If cameras or the state only have other names, rename them (`--rename`). Else "
        "collect demonstrations in the environment that the policy was trained for.",
    )


def check_finite(demonstrations: DemonstrationSet, source: str) -> None:
    """Check that all numbers of demonstrations are finite.

    Raises:
        DemonstrationError: One is not; the message names its episode and frame.
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
                remedy="Mend the environment or the policy that returned this number.",
            )


def check_actions(demonstrations: DemonstrationSet, policy: Policy, source: str) -> None:
    """Check that a policy with action tokens can express the actions of its demonstrations.

    Raises:
        DemonstrationError: One is outside the tokens' range: the policy would learn another.
    """
    centers = getattr(policy.module, "bin_centers", None)
    if centers is None:
        return
    low, high = float(centers.min()), float(centers.max())
    margin = ACTION_TOLERANCE * (high - low) / 2
    for text in _outside(demonstrations, low - margin, high + margin):
        raise DemonstrationError(
            f"{text} in {source!r}, but the policy {policy.name!r} can only express [{low:g}, "
            f"{high:g}]: it would learn another action",
            remedy="Scale the actions of the data set to the environment's units, or clone into a "
            "policy that normalises its actions (SmolVLA, pi0, ACT, ...).",
        )


def _outside(demonstrations: DemonstrationSet, low: Any, high: Any) -> list[str]:
    """Return a text about the first action outside a range; [] if all are inside."""
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
    """Return an environment's control steps per second, None if it does not report them."""
    rate = env.metadata.get("render_fps")
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
        return None
    if not 0 < rate < math.inf:
        return None
    return int(rate) if rate == int(rate) else float(rate)


def _warn_of_env(demonstrations: DemonstrationSet, env: VectorEnv, source: str) -> None:
    """Warn if demonstrations have another rate than the environment, or actions outside it."""
    rate, fps = control_rate(env), demonstrations.fps
    if rate is not None and abs(fps / rate - 1) > RATE_TOLERANCE:
        logger.warning(
            "The data set %s has %g frames per second, but the environment has %g control steps "
            "(`render_fps`). Every frame is cloned as one control step, so an action will last "
            "%.3g times as long as in the recording. Resample the data set, or set the "
            "environment's rate.",
            source,
            fps,
            rate,
            fps / rate,
        )
    space = env.single_action_space
    if not isinstance(space, spaces.Box) or space.shape != demonstrations.actions.shape[1:]:
        return
    with np.errstate(over="ignore"):  # a space without bounds may have the largest numbers
        margin = ACTION_TOLERANCE * (space.high - space.low) / 2
    for text in _outside(demonstrations, space.low - margin, space.high + margin):
        logger.warning(
            "%s in %s, but the environment's action space is [%g, %g]: it may clip other actions "
            "or fail.",
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
        actor: The demonstrator.
        episodes: Gymnasium id -> successful episodes wanted, at least one task.
        directory: Directory to write; must not exist.
        first_seed: Seed of every task's first start state; the next ones follow.
        console: Where to show progress; None: nowhere.
        on_batch: Called with all episodes that were run, also failures.

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
            logger.warning("%s is readable, but holds only the episodes of some tasks", directory)
        raise
    finally:
        if writer is not None:
            writer.finalize()  # makes the files readable


@dataclass(frozen=True)
class Collected:
    """A data set that was written.

    Attributes:
        directory: Its directory.
        tasks: Skill name -> task id of the demonstrated tasks.
        episodes: Number of successful episodes that were written, of all tasks together.
        tried: Number of episodes that were run for them.
        succeeded: How many of these succeeded; it can be more than were needed and written.
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
        console: Where to show progress; None: nowhere.

    Raises:
        RoboRazorError: Unknown task or policy, output in use, or too few successes.
    """
    tasks = named_tasks(config.task, config.env.env_packages)
    if not tasks:
        raise ConfigError(
            f"`task` = {config.task!r} names no task",
            allowed="prior, new, all, or names with commas",
        )
    out = Path(config.out)
    refuse_used_directory(out)
    check_writable(out, "out", directory=True)
    actor: Actor = ExpertActor(config.style)
    policy = None
    if config.policy != EXPERT:
        policy, actor = _policy_actor(config)
    if config.noise > 0.0:
        actor = NoisyActor(actor, GaussianNoise(config.noise))
    env = make_fitting_env(policy, list(tasks.values()), config.env, chunk_size=1)
    outcomes: list[bool] = []
    try:
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
