"""Demonstrations: made by a scripted expert or a policy, kept as LeRobotDataset v3 or in RAM.

Demonstrations have one frame per control step: observation, the action executed there, reward.
`lerobot_dataset` reads and writes them.

Axis letters as in `types`: E episodes, F frames, H chunk, A action dimensions, S state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console

from robo_razor.core.errors import DemonstrationError
from robo_razor.core.files import check_writable
from robo_razor.core.machine import available_bytes, local_processes
from robo_razor.core.run.directory import refuse_used_directory
from robo_razor.core.seeding import derive
from robo_razor.core.settings.config import POLICY_PREFIX, CollectConfig, FinetuneConfig
from robo_razor.core.types import DemonstrationSet, EpisodeBatch, make_rows
from robo_razor.policies.inputs import STATE, camera_name, image_key
from robo_razor.rollout.actors import (
    Actor,
    Decision,
    ExpertActor,
    NoisyActor,
    OpenLoopActor,
    PolicyActor,
    Request,
)
from robo_razor.rollout.dataset.dataset import create_dataset, load_demonstrations, write_episodes
from robo_razor.rollout.dataset.metadata import describe
from robo_razor.rollout.dataset.tables import listed
from robo_razor.rollout.environments import make_env, named_tasks, skill_name
from robo_razor.rollout.episodes import LandmarkWatch, StepOutcome, episode_bar, run_actor

logger = logging.getLogger(__name__)

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


@dataclass
class _Frames:
    """One episode as it grows."""

    images: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)
    state: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    landmarks: list[Any] = field(default_factory=list)
    present: list[Any] = field(default_factory=list)
    instruction: str = ""

    @property
    def picture_bytes(self) -> int:
        return sum(image.nbytes for images in self.images.values() for image in images)


class _FrameRecorder:
    """Gathers the frames of every episode (an observer of `run_actor`).

    Args:
        wanted: How many successful ones are joined at the end, which has their pictures twice.
        kept: Successful ones of earlier recorders.
    """

    def __init__(self, wanted: int, kept: Sequence[_Frames] = ()) -> None:
        self.episodes: dict[int, _Frames] = {}
        self.landmarks = LandmarkWatch()
        self.wanted, self.kept = wanted, kept
        self.taken_bytes = 0
        self.next_check = 0

    def on_start(
        self,
        env: Any,
        env_ids: NDArray[np.int64],
        episodes: NDArray[np.int64],
        instructions: Sequence[str],
        infos: dict[str, Any],
    ) -> None:
        self.landmarks.see(env_ids, infos)
        for episode, words in zip(episodes, instructions, strict=True):
            self.episodes[int(episode)] = _Frames(instruction=words)

    def on_step(
        self,
        request: Request,
        episodes: NDArray[np.int64],
        decision: Decision,
        outcome: StepOutcome,
    ) -> None:
        labels = decision.actions if decision.label is None else decision.label
        for row, episode in enumerate(episodes):
            frames = self.episodes[int(episode)]
            for name, images in request.observation["pixels"].items():
                frames.images.setdefault(name, []).append(images[row].copy())
            frames.state.append(request.observation["agent_pos"][row])
            frames.actions.append(labels[row, 0])
            frames.rewards.append(float(outcome.rewards[row]))
            frames.success.append(bool(outcome.success[row]))
            if (seen := self.landmarks.of(request.env_ids[row])) is not None:
                frames.landmarks.append(seen[0])
                frames.present.append(seen[1])
        self.landmarks.see(request.env_ids, outcome.infos)
        self.taken_bytes += sum(images.nbytes for images in request.observation["pixels"].values())
        if self.taken_bytes >= self.next_check:
            self.next_check = self.taken_bytes + CHECK_EVERY_BYTES
            self._check_memory()

    def _check_memory(self) -> None:
        """Check that the pictures to come fit in free memory, by the successful episodes so far.

        Those that end first are the short ones, so at first it asks for too little.

        Raises:
            DemonstrationError: They do not.
        """
        available = available_bytes()
        done = [*self.kept, *(e for e in self.episodes.values() if e.success[-1:] == [True])]
        if available is None or not done:
            return
        processes = local_processes()  # each has its own demonstrations
        held = processes * sum(frames.picture_bytes for frames in done)
        each = 2 * held / len(done)
        if self.wanted * each - held <= available:
            return
        raise DemonstrationError(
            f"{self.wanted} demonstrations do not fit in memory: by the {len(done)} so far their "
            f"pictures take {(self.wanted * each - held) / 2**30:.1f} GiB more, and "
            f"{available / 2**30:.1f} GiB are free",
            remedy="Ask for fewer (`--bc.episodes`, of `collect` `--episodes`): at most "
            f"{int((available + held) / each)} fit.",
        )


def collect_demonstrations(
    env: Any,
    actor: Actor,
    task: str,
    episodes: int,
    *,
    first_seed: int = 0,
    console: Console | None = None,
) -> DemonstrationSet:
    """Run episodes until there are enough successful ones; keep those, in seed order.

    Args:
        env: Vector environment with chunks of one action.
        actor: Who demonstrates.
        task: Gymnasium id.
        episodes: Successful episodes wanted.
        first_seed: Seed of the first start state; the next ones follow.
        console: Where progress is shown.

    Raises:
        DemonstrationError: Too few episodes succeed, or one holds numbers that are not finite.
    """
    kept: list[_Frames] = []
    tried = 0
    while len(kept) < episodes:
        missing = episodes - len(kept)
        rate = (len(kept) + 1) / (tried + 1)
        if tried >= MAX_ATTEMPTS * episodes + 10:
            raise DemonstrationError(
                f"Only {len(kept)} of {tried} episodes on {task!r} succeeded, {episodes} were "
                "asked for",
                remedy="Ask for fewer, or let a better policy or the expert demonstrate.",
            )
        number = min(MAX_EPISODES_AT_ONCE, math.ceil(1.05 * missing / rate))
        rows = make_rows(task, range(first_seed + tried, first_seed + tried + number))
        recorder = _FrameRecorder(episodes, kept)
        with episode_bar(console or Console(), f"demonstrations of {skill_name(task)}") as progress:
            batch = run_actor(env, actor, rows, progress=progress, observer=recorder)
        kept += _successful(batch, recorder)[:missing]
        tried += number
    found = join_frames(kept, fps=control_rate(env) or 10)
    check_finite(found, f"demonstrations of {skill_name(task)}")
    return found


def _successful(batch: EpisodeBatch, recorder: _FrameRecorder) -> list[_Frames]:
    return [recorder.episodes[int(e)] for e in np.flatnonzero(batch.success)]


def join_frames(episodes: Sequence[_Frames], fps: float) -> DemonstrationSet:
    """Join episodes into arrays."""
    lengths = [len(frames.actions) for frames in episodes]
    has_landmarks = all(frames.landmarks for frames in episodes)

    def joined(name: str) -> Any:
        return np.concatenate([np.stack(getattr(frames, name)) for frames in episodes])

    return DemonstrationSet(
        images={
            name: np.stack([image for frames in episodes for image in frames.images[name]])
            for name in episodes[0].images
        },
        state=joined("state").astype(np.float32),
        actions=joined("actions").astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        instructions=tuple(frames.instruction for frames in episodes),
        fps=fps,
        rewards=np.concatenate([np.array(f.rewards, dtype=np.float32) for f in episodes]),
        success=np.concatenate([np.asarray(frames.success) for frames in episodes]),
        landmarks=joined("landmarks").astype(np.float32) if has_landmarks else None,
        landmarks_present=joined("present").astype(bool) if has_landmarks else None,
    )


class DemonstrationSource(Protocol):
    """The settings of a method that say where its demonstrations come from."""

    @property
    def demonstrations(self) -> str:
        """Return `expert`, `policy:NAME`, or a dataset's directory."""

    @property
    def episodes(self) -> int:
        """Return how many of them are used."""

    @property
    def style(self) -> str:
        """Return the scripted expert's style."""

    @property
    def noise(self) -> float:
        """Return the noise on what the expert executes, in action units."""

    @property
    def temperature(self) -> float:
        """Return the temperature of a policy that demonstrates."""


def _source(config: FinetuneConfig) -> DemonstrationSource:
    """Return where the demonstrations of a run come from: its method says it."""
    return cast("DemonstrationSource", config.method)


def demonstrations_for(
    config: FinetuneConfig, policy: Any, console: Console | None = None, env: Any = None
) -> DemonstrationSet:
    """Return the demonstrations that `bc.demonstrations` means.

    `expert`: the task's scripted expert; `policy:NAME`: the successes of a policy that samples its
    actions, from itself (the base) or another run's; else a dataset's directory.

    Args:
        config: Settings of a run with `method: bc`.
        policy: `Policy` whose inputs and actions the demonstrations must fit.
        console: Where progress is shown.
        env: The environment that the policy will act in; a data set that was recorded at another
            rate, or with actions that it does not take, is warned of. None: nothing is said.

    Raises:
        DemonstrationError: There are none, or they do not fit the policy.
    """
    bc = _source(config)
    if bc.demonstrations != "expert" and not bc.demonstrations.startswith(POLICY_PREFIX):
        demonstrations = _of_dataset(config, policy)
        if env is not None:
            _warn_of_env(demonstrations, env, bc.demonstrations)
        return demonstrations
    actor, stride = _demonstrator(config)
    shape = policy.wanted_image_shape
    env = make_env(config.task, config.env, chunk_size=1, image_shape=shape)
    try:
        found = collect_demonstrations(
            env,
            actor,
            config.task,
            bc.episodes,
            first_seed=derive(config.seed, "demonstrations") % FIRST_SEEDS,
            console=console,
        )
    finally:
        env.close()
    check_actions(found, policy, bc.demonstrations)
    # A dataset would not have landmarks either: demonstrations are observations and actions.
    return replace(found, landmarks=None, landmarks_present=None, decision_stride=stride)


def _demonstrator(config: FinetuneConfig) -> tuple[Actor, int]:
    """Return who demonstrates and how many control steps one decision of theirs lasts."""
    from robo_razor.core.machine import resolve_device
    from robo_razor.policies.load import load_policy

    bc = _source(config)
    if bc.demonstrations == "expert":
        expert: Actor = ExpertActor(bc.style)
        # Reactive: every control step is a decision.
        return (NoisyActor(expert, bc.noise) if bc.noise else expert), 1
    name = bc.demonstrations.removeprefix(POLICY_PREFIX)
    demonstrator = load_policy(name, resolve_device(config.device))
    demonstrator.rename(config.rename)
    if not demonstrator.has_density:
        raise DemonstrationError(
            f"The policy {name!r} of `bc.demonstrations` has no action density to sample from",
            remedy="Write its episodes with `robo-razor collect --policy` and name that directory.",
        )
    demonstrator.temperature = bc.temperature
    seed = derive(config.seed, "demonstration actions")
    actor = PolicyActor(demonstrator, "sample", sampling_seed=seed)
    return OpenLoopActor(actor, demonstrator.chunk_size), demonstrator.chunk_size


def _of_dataset(config: FinetuneConfig, policy: Any) -> DemonstrationSet:
    """Return the demonstrations of a data set; what does not fit is refused before it is decoded.

    Raises:
        DemonstrationError: There are none, or they do not fit the policy.
    """
    bc = _source(config)
    source = bc.demonstrations
    states = policy.sources.candidates(STATE)
    said = describe(source, states)
    wanted = policy.wanted_image_shape
    shapes = {camera_name(camera.key): wanted or camera.shape for camera in said.cameras}
    state = said.widths[said.state] if said.state else 0
    _check_shapes(shapes, state, said.widths["action"], policy, source, said.columns)
    demonstrations = load_demonstrations(
        source,
        max_episodes=bc.episodes,
        image_shape=wanted,
        state_keys=states,
        cameras={policy.sources.camera(key, shapes) for key in policy.sources.image_keys},
    )
    check_fit(demonstrations, policy, source)
    check_actions(demonstrations, policy, source)
    return demonstrations


def check_fit(demonstrations: DemonstrationSet, policy: Any, source: str) -> None:
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
    policy: Any,
    source: str,
    columns: Sequence[str] = (),
) -> None:
    shape = policy.wanted_image_shape
    seen = [shapes.get(policy.sources.camera(key, shapes)) for key in policy.sources.image_keys]
    fits = (
        all(found is not None and shape in (None, found) for found in seen)
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


def check_actions(demonstrations: DemonstrationSet, policy: Any, source: str) -> None:
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


def control_rate(env: Any) -> float | None:
    """Return an environment's control steps per second, None where it does not say."""
    rate = env.metadata.get("render_fps")
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
        return None
    if not 0 < rate < math.inf:
        return None
    return int(rate) if rate == int(rate) else float(rate)


def _warn_of_env(demonstrations: DemonstrationSet, env: Any, source: str) -> None:
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
    env: Any,
    actor: Actor,
    episodes: Mapping[str, int],
    directory: Path,
    *,
    first_seed: int = 0,
    console: Console | None = None,
) -> None:
    """Collect demonstrations of some tasks and write them as one dataset.

    Args:
        env: Vector environment of all tasks, with chunks of one action.
        actor: Who demonstrates.
        episodes: Gymnasium id -> successful episodes wanted, at least one task.
        directory: Where; must not exist.
        first_seed: Seed of every task's first start state; the next ones follow.
        console: Where progress is shown.

    Raises:
        DemonstrationError: Too few episodes succeed.
    """
    writer = None
    try:
        for task, number in episodes.items():
            found = collect_demonstrations(
                env, actor, task, number, first_seed=first_seed, console=console
            )
            writer = writer or create_dataset(directory, found)
            write_episodes(writer, found)
    except BaseException:
        if writer is not None:
            logger.warning("%s is readable, but holds the first tasks' episodes only", directory)
        raise
    finally:
        if writer is not None:
            writer.finalize()  # without it, what was written could not be read


def run_collect(config: CollectConfig, console: Console | None = None) -> Path:
    """Collect demonstrations as the settings say and write them as a LeRobotDataset v3.

    Args:
        config: Settings of `robo-razor collect`.
        console: Where progress is shown; default: standard output.

    Returns:
        The dataset's directory.

    Raises:
        RoboRazorError: Unknown task or policy, output in use, or too few successes.
    """
    console = console or Console()
    tasks = named_tasks(config.task, config.env.env_packages)
    out = Path(config.out)
    refuse_used_directory(out)
    check_writable(out, "out", directory=True)
    actor: Actor = ExpertActor(config.style)
    policy = None
    if config.policy != "expert":
        policy, actor = _policy_actor(config)
    if config.noise > 0.0:
        actor = NoisyActor(actor, config.noise)
    env = make_env(
        next(iter(tasks.values())),
        config.env,
        chunk_size=1,
        tasks=tuple(tasks.values()),
        image_shape=None if policy is None else policy.wanted_image_shape,
    )
    try:
        if policy is not None:
            policy.check_env(env.single_observation_space, env.single_action_space)
        numbers = dict.fromkeys(tasks.values(), config.episodes)
        write_demonstrations(env, actor, numbers, out, first_seed=config.seed, console=console)
    finally:
        env.close()
    console.print(
        f"{config.episodes * len(tasks)} episodes of {', '.join(tasks)} in {out}",
        highlight=False,
        markup=False,
    )
    return out


def _policy_actor(config: CollectConfig) -> tuple[Any, Actor]:
    from robo_razor.core.machine import resolve_device
    from robo_razor.policies.load import load_policy

    policy = load_policy(config.policy, resolve_device(config.device))
    policy.rename(config.rename)
    mode = "sample" if policy.has_density else "greedy"
    actor = PolicyActor(policy, mode, sampling_seed=config.seed)  # type: ignore[arg-type]
    return policy, OpenLoopActor(actor, policy.chunk_size)
