"""Demonstrations: made by a scripted expert or a policy, kept as LeRobotDataset v3 or in RAM.

Demonstrations have one frame per control step: observation, the action executed there, reward.
They are kept in RAM as uint8 images, because decoding them anew for every batch costs more than a
gradient step of a small policy (`benchmarks/dataset_loader.py`). LeRobot is imported inside
functions only.

Axis letters as in `types`: E episodes, F frames, H chunk, A action dimensions, S state.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from robo_razor.actors import (
    Actor,
    Decision,
    ExpertActor,
    NoisyActor,
    OpenLoopActor,
    PolicyActor,
    Request,
)
from robo_razor.checkpoint import refuse_used_directory
from robo_razor.config import CollectConfig, FinetuneConfig
from robo_razor.environment import make_env, named_tasks, skill_name
from robo_razor.errors import DemonstrationError
from robo_razor.rollout import StepOutcome, episode_bar, run_actor
from robo_razor.types import DemonstrationSet, EpisodeBatch, make_rows

logger = logging.getLogger(__name__)

IMAGE_PREFIX = "observation.images."
MAX_ATTEMPTS = 10
"""Episodes tried per episode asked for, before collecting gives up."""


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


class _FrameRecorder:
    """Gathers the frames of every episode (an observer of `run_actor`)."""

    def __init__(self) -> None:
        self.episodes: dict[int, _Frames] = {}
        self.landmarks: dict[int, tuple[Any, Any]] = {}

    def on_start(
        self,
        env: Any,
        env_ids: NDArray[np.int64],
        episodes: NDArray[np.int64],
        instructions: Sequence[str],
        infos: dict[str, Any],
    ) -> None:
        self._see_landmarks(env_ids, infos)
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
                frames.images.setdefault(name, []).append(images[row])
            frames.state.append(request.observation["agent_pos"][row])
            frames.actions.append(labels[row, 0])
            frames.rewards.append(float(outcome.rewards[row]))
            frames.success.append(bool(outcome.success[row]))
            if int(request.env_ids[row]) in self.landmarks:
                positions, present = self.landmarks[int(request.env_ids[row])]
                frames.landmarks.append(positions)
                frames.present.append(present)
        self._see_landmarks(request.env_ids, outcome.infos)

    def _see_landmarks(self, env_ids: NDArray[np.int64], infos: dict[str, Any]) -> None:
        if "landmarks" in infos:
            for row, i in enumerate(env_ids):
                self.landmarks[int(i)] = (
                    infos["landmarks"][row].copy(),
                    infos["landmarks_present"][row].copy(),
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
        DemonstrationError: Too few episodes succeed.
    """
    kept: list[_Frames] = []
    tried = 0
    while len(kept) < episodes:
        missing = episodes - len(kept)
        if tried >= MAX_ATTEMPTS * episodes + 10:
            raise DemonstrationError(
                f"Only {len(kept)} of {tried} episodes on {task!r} succeeded, {episodes} were "
                "asked for",
                remedy="Ask for fewer, or let a better policy or the expert demonstrate.",
            )
        number = math.ceil(1.05 * missing)
        rows = make_rows(task, range(first_seed + tried, first_seed + tried + number))
        recorder = _FrameRecorder()
        with episode_bar(console or Console(), f"demonstrations of {skill_name(task)}") as progress:
            batch = run_actor(env, actor, rows, progress=progress, observer=recorder)
        kept += _successful(batch, recorder)[:missing]
        tried += number
    return join_frames(kept, fps=int(env.metadata.get("render_fps", 10)))


def _successful(batch: EpisodeBatch, recorder: _FrameRecorder) -> list[_Frames]:
    return [recorder.episodes[int(e)] for e in np.flatnonzero(batch.success)]


def join_frames(episodes: Sequence[_Frames], fps: int) -> DemonstrationSet:
    """Join episodes into arrays."""
    lengths = [len(frames.actions) for frames in episodes]
    has_landmarks = all(frames.landmarks for frames in episodes)

    def joined(name: str) -> Any:
        return np.concatenate([np.stack(getattr(frames, name)) for frames in episodes])

    return DemonstrationSet(
        images={
            name: np.concatenate([np.stack(frames.images[name]) for frames in episodes])
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


def demonstrations_for(
    config: FinetuneConfig, policy: Any, console: Console | None = None
) -> DemonstrationSet:
    """Return the demonstrations that `bc.demonstrations` means: the expert's, or a dataset's.

    Args:
        config: Settings of a run with `method: bc`.
        policy: `PolicyHandle` whose inputs and actions the demonstrations must fit.
        console: Where progress is shown.

    Raises:
        DemonstrationError: There are none, or they do not fit the policy.
    """
    bc = config.bc
    if bc.demonstrations == "expert":
        env = make_env(config.task, config.env, chunk_size=1)
        try:
            found = collect_demonstrations(
                env, ExpertActor(bc.style), config.task, bc.episodes, console=console
            )
        finally:
            env.close()
        # A dataset would not have them either: demonstrations are observations and actions.
        return replace(found, landmarks=None, landmarks_present=None)
    demonstrations = load_demonstrations(bc.demonstrations, max_episodes=bc.episodes)
    check_fit(demonstrations, policy, bc.demonstrations)
    return demonstrations


def check_fit(demonstrations: DemonstrationSet, policy: Any, source: str) -> None:
    """Check that demonstrations have the policy's cameras, state and actions.

    Raises:
        DemonstrationError: If not; shows both sides.
    """
    size = policy.image_size
    shapes = {name: images.shape[1:3] for name, images in demonstrations.images.items()}
    fits = (
        all(shapes.get(name) == (size, size) for name in policy.camera_names)
        and demonstrations.state.shape[1] == policy.state_dim
        and demonstrations.actions.shape[1] == policy.action_dim
    )
    if not fits:
        raise DemonstrationError(
            f"The demonstrations in {source!r} do not fit the policy {policy.name!r}: they have "
            f"cameras {shapes}, state {demonstrations.state.shape[1]}, actions "
            f"{demonstrations.actions.shape[1]}; the policy needs cameras "
            f"{policy.camera_names} of {size} px, state {policy.state_dim}, actions "
            f"{policy.action_dim}",
            remedy="Collect demonstrations in the environment that the policy was trained for.",
        )


# --- LeRobotDataset -------------------------------------------------------------------------------


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
    actor: Actor = ExpertActor(config.style)
    policy = None
    if config.policy != "expert":
        policy, actor = _policy_actor(config)
    if config.noise > 0.0:
        actor = NoisyActor(actor, config.noise)
    env = make_env(next(iter(tasks.values())), config.env, chunk_size=1)
    writer = None
    try:
        if policy is not None:
            policy.check_env(env.single_observation_space, env.single_action_space)
        for task in tasks.values():
            found = collect_demonstrations(
                env, actor, task, config.episodes, first_seed=config.seed, console=console
            )
            writer = writer or _create_dataset(out, found)
            write_episodes(writer, found)
    finally:
        env.close()
    assert writer is not None
    writer.finalize()
    console.print(
        f"{config.episodes * len(tasks)} episodes of {', '.join(tasks)} in {out}", highlight=False
    )
    return out


def _policy_actor(config: CollectConfig) -> tuple[Any, Actor]:
    from robo_razor.device import resolve_device
    from robo_razor.policies import load_policy

    policy = load_policy(config.policy, resolve_device(config.device))
    mode = "sample" if policy.has_density else "greedy"
    actor = PolicyActor(policy, mode, sampling_seed=config.seed)  # type: ignore[arg-type]
    return policy, OpenLoopActor(actor, policy.chunk_size)


def save_demonstrations(demonstrations: DemonstrationSet, directory: str | Path) -> None:
    """Write demonstrations as a new LeRobotDataset v3 in image mode."""
    refuse_used_directory(directory)
    dataset = _create_dataset(Path(directory), demonstrations)
    write_episodes(dataset, demonstrations)
    dataset.finalize()


def _create_dataset(directory: Path, like: DemonstrationSet) -> Any:
    """Create an empty dataset with the features that `like` has."""
    import datasets

    # It reports at length that a video library which images do not need is missing.
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    from lerobot.datasets import LeRobotDataset

    datasets.disable_progress_bars()
    features: dict[str, Any] = {
        f"{IMAGE_PREFIX}{name}": {
            "dtype": "image",
            "shape": images.shape[1:],
            "names": ["height", "width", "channels"],
        }
        for name, images in like.images.items()
    }
    features["observation.state"] = _vector("float32", like.state.shape[1])
    features["action"] = _vector("float32", like.actions.shape[1])
    features["next.reward"] = _vector("float32", 1)
    features["next.success"] = _vector("bool", 1)
    if directory.is_dir():  # empty, as was checked; LeRobot wants to make it itself
        directory.rmdir()
    return LeRobotDataset.create(
        f"local/{directory.name}",
        fps=like.fps,
        features=features,
        root=directory,
        robot_type="sim",
        use_videos=False,
    )


def _vector(dtype: str, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (size,), "names": None}


def write_episodes(dataset: Any, demonstrations: DemonstrationSet) -> None:
    """Append all episodes to an open LeRobotDataset."""
    demos = demonstrations
    for episode, instruction in enumerate(demos.instructions):
        for frame in range(int(demos.offsets[episode]), int(demos.offsets[episode + 1])):
            dataset.add_frame(
                {
                    **{f"{IMAGE_PREFIX}{name}": x[frame] for name, x in demos.images.items()},
                    "observation.state": demos.state[frame],
                    "action": demos.actions[frame],
                    "next.reward": demos.rewards[frame : frame + 1].astype(np.float32),
                    "next.success": demos.success[frame : frame + 1],
                    "task": instruction,
                }
            )
        dataset.save_episode()


def load_demonstrations(directory: str | Path, max_episodes: int | None = None) -> DemonstrationSet:
    """Decode a LeRobotDataset v3 in image mode into RAM, straight from its parquet table.

    Args:
        directory: The dataset's directory.
        max_episodes: Read only the first ones.

    Raises:
        DemonstrationError: There is no dataset, it holds no episode, or its images are videos.
    """
    import pyarrow.parquet as pq

    root = Path(directory)
    info = _read_info(root)
    files = sorted((root / "data").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DemonstrationError(f"The dataset {str(root)!r} holds no data (data/chunk-*/file-*)")
    cameras = [key for key in info["features"] if key.startswith(IMAGE_PREFIX)]
    videos = [key for key in cameras if info["features"][key]["dtype"] != "image"]
    if videos:
        raise DemonstrationError(
            f"{', '.join(videos)} in {str(root)!r} is video, which is not read into RAM",
            remedy="Write the dataset in image mode (`use_videos=False`).",
        )
    columns = [*cameras, "observation.state", "action", "episode_index", "task_index"]
    optional = [key for key in ("next.reward", "next.success") if key in info["features"]]
    limit = [("episode_index", "<", max_episodes)] if max_episodes is not None else None
    table = pq.read_table(files, columns=columns + optional, filters=limit)
    if table.num_rows == 0:
        raise DemonstrationError(f"The dataset {str(root)!r} holds no frames")
    lengths = np.bincount(table["episode_index"].to_numpy())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names = _task_names(root)
    tasks = table["task_index"].to_numpy()[offsets[:-1]]
    shape = tuple(info["features"][cameras[0]]["shape"]) if cameras else ()
    success = _column(table, "next.success", (len(table),), bool)
    return DemonstrationSet(
        images={key.removeprefix(IMAGE_PREFIX): _decode(table[key], shape) for key in cameras},
        state=_matrix(table["observation.state"]),
        actions=_matrix(table["action"]),
        offsets=offsets,
        instructions=tuple(names[int(task)] for task in tasks),
        fps=int(info["fps"]),
        rewards=_column(table, "next.reward", (len(table),), np.float32),
        success=success,
    )


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta" / "info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DemonstrationError(
            f"There are no demonstrations in {str(root)!r}: {path} does not exist",
            allowed="the directory of a LeRobotDataset v3, or `expert`",
            remedy="Make one: `robo-razor collect --task TASK --episodes 300 --out DIR`.",
        ) from error
    except json.JSONDecodeError as error:
        raise DemonstrationError(f"{path} is no JSON ({error})") from error
    if not str(info.get("codebase_version", "")).startswith("v3"):
        raise DemonstrationError(
            f"{str(root)!r} has format {info.get('codebase_version')!r}, not v3",
            remedy="Convert it with LeRobot's converter.",
        )
    return info


def _task_names(root: Path) -> dict[int, str]:
    """Return task index -> instruction from LeRobot's `meta/tasks.parquet`."""
    import pyarrow.parquet as pq

    table = pq.read_table(root / "meta" / "tasks.parquet").to_pydict()
    index = table.pop("task_index")
    (words,) = table.values()  # LeRobot keeps the instruction as the table's index
    return {int(i): str(text) for i, text in zip(index, words, strict=True)}


def _decode(column: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode a column of PNG bytes into uint8 [F, H, W, 3]."""
    from PIL import Image

    images = np.empty((len(column), *shape), dtype=np.uint8)
    row = 0
    for chunk in column.chunks:
        for data in chunk.field("bytes"):
            images[row] = np.asarray(Image.open(io.BytesIO(data.as_py())).convert("RGB"))
            row += 1
    return images


def _matrix(column: Any) -> NDArray[np.float32]:
    """Turn a column of equally long lists into float32 [F, n]."""
    arrays = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    matrix: NDArray[np.float32] = np.concatenate(arrays).reshape(len(column), -1)
    return matrix.astype(np.float32)


def _column(table: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a column of numbers, zeros where the dataset has none."""
    if name not in table.column_names:
        return np.zeros(shape, dtype=dtype)
    values = np.asarray(table[name].to_pylist(), dtype=dtype)
    return values.reshape(shape)
