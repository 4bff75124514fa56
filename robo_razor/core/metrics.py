"""What a run measures: the names and the format of everything that it records.

Three files hold it, and this module alone knows their content:

- `eval/<step>/summary.json`, a `Summary`: what was measured at one checkpoint;
- `eval/<step>/episodes.jsonl`, an `EpisodeEntry` per line: every episode of that checkpoint;
- `metrics.jsonl`: per line the `step` and any numbers, with the keys below.

Rates are in [0, 1]. Divergences and entropies are in nats per decision. Times are in seconds. A
file without `version` has version 1. `docs/reference/files.md` describes all of it for users.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from robo_razor.core.errors import CheckpointError, shown
from robo_razor.core.files import open_file, parse_json, read_json
from robo_razor.core.records import (
    MAX_COUNT,
    MAX_ELAPSED_S,
    MAX_NUMBER,
    Check,
    Key,
    Record,
    boolean,
    both,
    entries,
    interval,
    name,
    number,
    one_of,
    optional,
    record_key,
    table,
    table_key,
    text,
    whole,
)

VERSION = 1
"""Of the format of `summary.json`; a file that does not name one has this."""
MAX_SKILLS = 1000
"""Most prior skills of a run; every table and figure has a line for each."""
MAX_PREDICTORS = 200
"""Most distances that are fitted, those on the states of single skills not counted."""
MAX_EPISODES = 200_000
"""Most episodes of one evaluation."""
MAX_FILE_BYTES = 8 * 2**20
"""Largest size of a summary or a fingerprint."""
MAX_LINE_BYTES = 2**20
"""Greatest length of one line of metrics or episodes."""
DAMAGED_EVALUATION = (
    "A crash or a full disk cut it off, or somebody changed it: delete that evaluation "
    "(`eval/STEP`; the others stay usable), or leave the run out."
)
"""What to do about an evaluation that cannot be read."""


# --- Names ----------------------------------------------------------------------------------------

KL_BASE_TUNED = "kl_base_tuned"
"""KL(base || tuned), nats per decision."""
KL_TUNED_BASE = "kl_tuned_base"
"""KL(tuned || base), nats per decision."""
KL_DIRECTIONS = (KL_BASE_TUNED, KL_TUNED_BASE)
SURROGATE = "surrogate"
"""The measure that replaces the KL where a policy has no density."""

NEW_BASE = "new_base_visited"
"""States that the base visits when it tries the new task."""
NEW_TUNED = "new_tuned_visited"
"""States that the tuned policy visits on the new task."""
PRIOR = "prior"
"""States that the base visits on the prior skills; also the role of these skills."""
NEW = "new"
"""The role of the task that is learnt."""
DEMONSTRATIONS = "demonstrations"
"""States of the demonstrations that a policy learns from."""
MAIN_STATES = (NEW_BASE, NEW_TUNED, PRIOR)
"""States for which the summary itself has the KL divergences."""

FORWARD_KL = f"{KL_BASE_TUNED}/{NEW_BASE}"
"""The paper's predictor: KL(base || tuned) on states that the base visits on the new task."""
REVERSE_KL = f"{KL_TUNED_BASE}/{NEW_BASE}"

GREEDY, SAMPLE = "greedy", "sample"
"""How actions are chosen: the most likely ones, or drawn from the policy."""

STEP = "step"
"""Updates done; the one key that every line of metrics has."""
ELAPSED = "time/elapsed_s"
"""Seconds since this process began to write metrics."""
TRACKING_SHARE = "time/tracking_share"
"""Share of the run's time that measuring took, [0, 1]."""
ROLLOUT_SUCCESS = "rollout/success_rate"
"""Success in the rollouts of one update, [0, 1]."""
ROLLOUT_EPISODES = "rollout/episodes"
"""Episodes of one update."""
ROLLOUT_CONTROL_STEPS = "rollout/mean_control_steps"
"""Mean length of these episodes, control steps."""
TRAIN_LOSS = "train/loss"
"""The method's loss, mean over one update."""
TRAIN_KL = f"train/{KL_BASE_TUNED}"
"""KL(base || tuned) on the states of one update, nats per decision."""
EVALUATION = ("eval/", "forgetting/", "distances/", TRACKING_SHARE)
"""Beginnings of the keys of a checkpoint's numbers, see `summary_metrics`."""


# --- summary.json ---------------------------------------------------------------------------------


def _few_predictors(value: Any, place: str) -> None:
    count = sum(f"/{PRIOR}/" not in key for key in value)
    if count > MAX_PREDICTORS:
        raise ValueError(f"`{place}` has {count} names; at most {MAX_PREDICTORS} are expected")


def _ends(low: float, high: float) -> Key:
    return Key(optional(interval(low, high)), make=tuple)


_RATE = Key(number(0.0, 1.0))
_RATE_OR_NULL = Key(optional(number(0.0, 1.0)))
_NUMBER = Key(optional(number()))
_SECONDS = Key(optional(number(0.0, MAX_ELAPSED_S)))
_NAME = Key(optional(name))
_TEXT = Key(optional(text))
_ON_STATES = Key(optional(table(optional(number()), MAX_SKILLS)))

Interval = tuple[float, float]
"""The ends of a 95 % interval, the lower one first."""
OnStates = Mapping[str, float | None]
"""Name of a set of states -> a number; None where it does not exist."""


@dataclass(frozen=True, kw_only=True)
class SampledSuccess(Record):
    """Success with actions that are drawn from the policy."""

    success_rate: Annotated[float, _RATE]
    """Share of successful episodes, [0, 1]."""
    n: Annotated[int, Key(whole(1))]
    """Episodes (>= 1)."""
    interval: Annotated[Interval | None, Key(interval(0.0, 1.0), make=tuple)] = None
    """Wilson's 95 % interval of the success rate."""


@dataclass(frozen=True, kw_only=True)
class SkillSummary(Record):
    """Success on one skill, and how much of it is left."""

    task: Annotated[str | None, _NAME] = None
    """Gymnasium id."""
    role: Annotated[str | None, Key(optional(one_of(NEW, PRIOR)))] = None
    """`new` or `prior`."""
    success_rate: Annotated[float, _RATE]
    """Share of successful episodes with the most likely actions, [0, 1]."""
    n: Annotated[int, Key(whole(1))]
    """Episodes (>= 1)."""
    interval: Annotated[Interval, Key(interval(0.0, 1.0), make=tuple)]
    """Wilson's 95 % interval of the success rate."""
    mean_control_steps: Annotated[float | None, Key(optional(number(0.0, MAX_COUNT)))] = None
    """Mean length of an episode, control steps."""
    base_success_rate: Annotated[float | None, _RATE_OR_NULL] = None
    """The base's success rate on the same start states, [0, 1]."""
    retention: Annotated[float | None, Key(optional(number(0.0)))] = None
    """Success rate / the base's (>= 0); null where the base never succeeded."""
    retention_interval: Annotated[Interval | None, _ends(0.0, MAX_NUMBER)] = None
    """95 % interval of `retention`, paired over start states."""
    forgetting: Annotated[float | None, Key(optional(number(-1.0, 1.0)))] = None
    """The base's success rate minus this one, [-1, 1]; negative: the skill improved."""
    forgetting_interval: Annotated[Interval | None, _ends(-1.0, 1.0)] = None
    """95 % interval of `forgetting`, paired over start states."""
    p_value: Annotated[float | None, _RATE_OR_NULL] = None
    """McNemar's exact test that nothing changed, [0, 1]."""
    sampled: Annotated[SampledSuccess | None, record_key(SampledSuccess)] = None
    """The same with drawn actions; only of the new task, and only where it was measured."""


@dataclass(frozen=True, kw_only=True)
class PriorMeans(Record):
    """Means over the prior skills; null without any."""

    success_rate: Annotated[float | None, _NUMBER] = None
    """Mean success rate, [0, 1]."""
    base_success_rate: Annotated[float | None, _NUMBER] = None
    """Mean success rate of the base, [0, 1]."""
    retention: Annotated[float | None, _NUMBER] = None
    """Mean retention of the skills that have one (>= 0)."""
    forgetting: Annotated[float | None, _NUMBER] = None
    """Mean loss of success, [-1, 1] (negative backward transfer)."""


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """What was measured at one checkpoint."""

    step: Annotated[int, Key(whole())]
    """Updates done (>= 0); 0 is the base."""
    method: Annotated[str | None, _NAME] = None
    """How the policy is fine-tuned."""
    task: Annotated[str | None, _NAME] = None
    """Gymnasium id of the new task."""
    seed: Annotated[int | None, Key(optional(whole(-(2**63), 2**63)))] = None
    """The run's seed."""
    policy: Annotated[str | None, _TEXT] = None
    """Name or path of the base."""
    new: Annotated[dict[str, SkillSummary], table_key(SkillSummary, 10, least=1)]
    """Skill -> success on the new task; a run has one."""
    prior: Annotated[dict[str, SkillSummary], table_key(SkillSummary, MAX_SKILLS)] = field(
        default_factory=dict
    )
    """Skill -> success on the skills that may be forgotten."""
    prior_mean: Annotated[
        PriorMeans | None,
        Key(optional(table(optional(number()), 50)), make=PriorMeans.made),
    ] = None
    """Means over the prior skills."""
    kl_base_tuned: Annotated[OnStates | None, _ON_STATES] = None
    """States -> KL(base || tuned), nats per decision; null for a policy without a density."""
    kl_base_tuned_standard_error: Annotated[OnStates | None, _ON_STATES] = None
    """States -> standard error of that mean, nats per decision."""
    kl_tuned_base: Annotated[OnStates | None, _ON_STATES] = None
    """States -> KL(tuned || base), nats per decision."""
    kl_tuned_base_standard_error: Annotated[OnStates | None, _ON_STATES] = None
    """States -> standard error of that mean, nats per decision."""
    kl_kind: Annotated[str | None, _NAME] = None
    """`exact`, or what the KL divergences are instead, e.g. `upper bound`."""
    surrogate: Annotated[OnStates | None, _ON_STATES] = None
    """States -> the measure that replaces the KL; only for a policy without a density."""
    surrogate_standard_error: Annotated[OnStates | None, _ON_STATES] = None
    """States -> standard error of that mean."""
    surrogate_kind: Annotated[str | None, _TEXT] = None
    """What the surrogate is."""
    entropy: Annotated[float | None, _NUMBER] = None
    """Entropy of the actions on the base's states of the new task, nats per decision."""
    distances: Annotated[
        Mapping[str, float | None] | None,
        Key(optional(both(table(optional(number()), 20 * MAX_SKILLS), _few_predictors))),
    ] = None
    """`NAME` or `NAME/STATES` -> any other distance to the base, in its own unit."""
    tracking_s: Annotated[float | None, _SECONDS] = None
    """Seconds that this measurement took."""
    elapsed_s: Annotated[float | None, _SECONDS] = None
    """Seconds since the run began, interruptions left out."""
    updates: Annotated[int | None, Key(optional(whole()))] = None
    """Updates that the whole run has."""

    @property
    def is_last(self) -> bool:
        """Whether this is the run's last checkpoint."""
        return self.step == self.updates

    def kl(self) -> dict[str, float]:
        """Return `kl_base_tuned/new_base_visited`, ... -> nats per decision, known ones only."""
        return {
            f"{direction}/{states}": float(value)
            for direction in KL_DIRECTIONS
            for states, value in (getattr(self, direction) or {}).items()
            if value is not None
        }

    def known_distances(self) -> dict[str, float]:
        """Return name -> distance of those that were measured."""
        return {key: float(x) for key, x in (self.distances or {}).items() if x is not None}

    def prior_means(self) -> PriorMeans:
        """Return the means over prior skills, computed where the file has none."""
        if self.prior_mean is not None:
            return self.prior_mean
        skills = self.prior.values()
        return PriorMeans(
            success_rate=_mean([skill.success_rate for skill in skills]),
            base_success_rate=_mean([skill.base_success_rate for skill in skills]),
            retention=_mean([skill.retention for skill in skills]),
            forgetting=_mean([skill.forgetting for skill in skills]),
        )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def read_summary(file: Path, step: int) -> Summary:
    """Read what was measured at one step, `eval/<step>/summary.json`.

    Args:
        file: The file.
        step: The step that its directory is named for.

    Raises:
        CheckpointError: It is missing or damaged, belongs to another step or a later version, or
            holds impossible values.
    """
    data = read_small_json(file, DAMAGED_EVALUATION)
    if isinstance(data, dict) and data.get("version", VERSION) != VERSION:
        raise CheckpointError(
            f"{file} has version {shown(data['version'])}",
            allowed=str(VERSION),
            remedy="Read it with the version of robo-razor that wrote it, or leave the run out.",
        )
    check_values(Summary.check, data, file, DAMAGED_EVALUATION)
    if data["step"] != step:
        raise CheckpointError(
            f"{file} is the summary of step {data['step']}, but its directory says step {step}",
            remedy="Give the directory its old name, or leave the run out.",
        )
    return Summary.made(data)


def summary_metrics(summary: Summary) -> dict[str, float]:
    """Return a summary's numbers under the keys that metrics and TensorBoard use.

    `eval/<role>/success_rate`, `eval/<role>/<skill>/success_rate`,
    `eval/new/<skill>/sampled_success_rate`, `eval/entropy`, `forgetting/<skill>/retention`,
    `forgetting/<KL>/<states>`, `forgetting/{retention, forgetting}` (means over prior skills) and
    `distances/<name>`.
    """
    values: dict[str, float | None] = {}
    for skill, entry in summary.prior.items():
        values[f"eval/{PRIOR}/{skill}/success_rate"] = entry.success_rate
        values[f"forgetting/{skill}/retention"] = entry.retention
    for skill, entry in summary.new.items():
        values[f"eval/{NEW}/{skill}/success_rate"] = entry.success_rate
        if entry.sampled is not None:
            values[f"eval/{NEW}/{skill}/sampled_success_rate"] = entry.sampled.success_rate
    for role, skills in ((NEW, summary.new), (PRIOR, summary.prior)):
        rates = [entry.success_rate for entry in skills.values()]
        values[f"eval/{role}/success_rate"] = _mean(rates)
    values |= {f"forgetting/{key}": kl for key, kl in summary.kl().items()}
    if summary.prior_mean is not None:
        values["forgetting/retention"] = summary.prior_mean.retention
        values["forgetting/forgetting"] = summary.prior_mean.forgetting
    values |= {f"distances/{key}": x for key, x in summary.known_distances().items()}
    values["eval/entropy"] = summary.entropy
    return {key: float(value) for key, value in values.items() if value is not None}


# --- metrics.jsonl --------------------------------------------------------------------------------

_METRICS = entries(
    {STEP: whole()},
    dict.fromkeys((ROLLOUT_CONTROL_STEPS, ROLLOUT_EPISODES), optional(number(0.0, MAX_COUNT))),
)


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl`; none where there is no file.

    The last line is left out if it is incomplete, as after a run that was killed while writing.

    Raises:
        CheckpointError: Another line is damaged, or a line does not hold metrics.
    """
    if file.is_file():
        for _, line in _lines(file, _METRICS, may_be_cut=True):
            yield line


def is_evaluation(line: Mapping[str, Any]) -> bool:
    """Return whether a line of metrics was made of a checkpoint's summary."""
    keys = line.keys() - {STEP, ELAPSED}
    return bool(keys) and all(key.startswith(EVALUATION) for key in keys)


def rollout_steps(file: Path) -> dict[int, float]:
    """Return update -> control steps of its rollouts; empty where the method has none."""
    steps: dict[int, float] = {}
    for line in read_metrics(file):
        length, episodes = line.get(ROLLOUT_CONTROL_STEPS), line.get(ROLLOUT_EPISODES)
        if length is not None and episodes is not None:
            steps[line[STEP]] = length * episodes
    return steps


# --- episodes.jsonl -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EpisodeEntry(Record):
    """One episode, and how it came out."""

    row: Annotated[int | None, Key(optional(whole()))] = None
    """Its number among the episodes of its mode."""
    skill: Annotated[str | None, _NAME] = None
    """Short name of the task."""
    role: Annotated[str | None, Key(optional(one_of(NEW, PRIOR)))] = None
    """`new` or `prior`."""
    task: Annotated[str, Key(name)]
    """Gymnasium id."""
    seed: Annotated[int, Key(whole(0, 2**63))]
    """Seed of the start state."""
    sample: Annotated[int | None, Key(optional(whole()))] = None
    """Number that separates episodes of one start state."""
    mode: Annotated[str, Key(one_of(GREEDY, SAMPLE))] = GREEDY
    """Actions: the most likely (`greedy`) or drawn from the policy (`sample`)."""
    instruction: Annotated[str | None, _TEXT] = None
    """The instruction that the policy read."""
    start_state: Annotated[str | None, _TEXT] = None
    """Hash of the start state; null where the environment does not give one."""
    success: Annotated[bool, Key(boolean)]
    """Whether the task was done at the end of the episode."""
    episode_return: Annotated[float | None, Key(optional(number()), name="return")] = None
    """Undiscounted sum of rewards."""
    decisions: Annotated[int | None, Key(optional(whole()))] = None
    """Decisions of the policy; each is a chunk of actions."""
    control_steps: Annotated[int | None, Key(optional(whole()))] = None
    """Control steps."""
    terminated: Annotated[bool | None, Key(optional(boolean))] = None
    """Whether the environment ended it."""
    truncated: Annotated[bool | None, Key(optional(boolean))] = None
    """Whether the time limit ended it."""


def read_episodes(file: Path) -> list[EpisodeEntry]:
    """Read the lines of `episodes.jsonl`, one per episode; none where there is no file.

    Raises:
        CheckpointError: A line is damaged or incomplete, repeats another one, or is not an episode.
    """
    if not file.is_file():
        return []
    status = file.stat()
    version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return list(_episodes_of(file, version))


@functools.lru_cache(maxsize=1024)
def _episodes_of(file: Path, version: tuple[int, ...]) -> tuple[EpisodeEntry, ...]:
    """Return the episodes of a file; a report asks for most files several times.

    Args:
        file: The file.
        version: What changes with its content.
    """
    episodes: dict[tuple[Any, ...], EpisodeEntry] = {}
    try:
        for place, line in _lines(file, EpisodeEntry.check):
            episode = EpisodeEntry.made(line)
            key = (episode.mode, episode.task, episode.seed, episode.sample)
            if key in episodes:
                raise CheckpointError(
                    f"{file} cannot be read: line {place} is damaged (it repeats the episode of "
                    f"{shown(episode.task)} with seed {episode.seed})"
                )
            if place > MAX_EPISODES:
                raise CheckpointError(f"{file} has more than {MAX_EPISODES} episodes")
            episodes[key] = episode
        if len({episode.task for episode in episodes.values()}) > MAX_SKILLS + 1:
            raise CheckpointError(f"{file} has episodes of more than {MAX_SKILLS} skills")
    except CheckpointError as error:
        raise CheckpointError(
            f"The episodes in {error.problem}",
            error.allowed,
            "Copy the file again, or delete it: reports then have no intervals over this "
            "checkpoint's episodes.",
        ) from error
    return tuple(episodes.values())


# --- A row per checkpoint -------------------------------------------------------------------------


def checkpoint_row(summary: Summary, env_steps: float | None = None) -> dict[str, Any]:
    """Return one checkpoint as one row of a table: `checkpoints.csv`, `.parquet`, `run.table()`.

    Columns; a value that a run does not have is None:

    - `step`, `updates`, `final` (whether it is the run's last checkpoint)
    - `new_success_rate`, `new_n`, `new_low`, `new_high` (greedy, 95 % interval),
      `new_sampled_success_rate`, `new_sampled_n`
    - `prior_success_rate`, `prior_base_success_rate`, `prior_retention`, `prior_forgetting`: means
      over prior skills; `prior_n`: their episodes; `prior/<skill>/success_rate`,
      `prior/<skill>/retention`
    - `kl_base_tuned/<states>`, `kl_tuned_base/<states>`, each with
      `..._standard_error/<states>`, and `kl_kind`; every other distance under its own name
    - `entropy`, `wall_s` (since the run began), `tracking_s` (of this measurement)
    - `env_steps`: control steps of training so far, without those of measuring and of experts

    Args:
        summary: The checkpoint.
        env_steps: The value of the last column.
    """
    new = next(iter(summary.new.values()))
    sampled, means = new.sampled, summary.prior_means()
    row: dict[str, Any] = {
        "step": summary.step,
        "updates": summary.updates,
        "final": summary.is_last,
        "new_success_rate": new.success_rate,
        "new_n": new.n,
        "new_low": new.interval[0],
        "new_high": new.interval[1],
        "new_sampled_success_rate": None if sampled is None else sampled.success_rate,
        "new_sampled_n": None if sampled is None else sampled.n,
        "prior_success_rate": means.success_rate,
        "prior_base_success_rate": means.base_success_rate,
        "prior_retention": means.retention,
        "prior_forgetting": means.forgetting,
        "prior_n": sum(entry.n for entry in summary.prior.values()),
    }
    for skill, entry in summary.prior.items():
        row[f"{PRIOR}/{skill}/success_rate"] = entry.success_rate
        row[f"{PRIOR}/{skill}/retention"] = entry.retention
    for direction in KL_DIRECTIONS:
        for key in (direction, f"{direction}_standard_error"):
            row |= {f"{key}/{states}": x for states, x in (getattr(summary, key) or {}).items()}
    return row | {
        "kl_kind": summary.kl_kind,
        **(summary.distances or {}),
        "entropy": summary.entropy,
        "wall_s": summary.elapsed_s,
        "tracking_s": summary.tracking_s,
        "env_steps": env_steps,
    }


# --- Files ----------------------------------------------------------------------------------------


def _lines(
    file: Path, check: Check, *, may_be_cut: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, value) of every line of JSON lines that is not empty."""
    place = 0
    try:
        with open_file(file) as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                place += 1
                if line.strip():
                    value = _line(line, check, may_be_cut=may_be_cut and not line.endswith(b"\n"))
                    if value is not None:
                        yield place, value
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read: line {place} is damaged ({error})",
            remedy="Copy the file again, or leave the run out.",
        ) from error


def _line(line: bytes, check: Check, *, may_be_cut: bool) -> dict[str, Any] | None:
    """Return the value of one line; None where it is incomplete and that is allowed."""
    if len(line) == MAX_LINE_BYTES:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
    try:
        value: dict[str, Any] = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {line[error.start]:#04x} at {error.start}") from error
    except ValueError:
        if may_be_cut:
            return None
        raise
    check(value, "")
    return value


def read_small_json(file: Path, remedy: str) -> Any:
    """Return the content of a JSON file that must be small.

    Raises:
        CheckpointError: It is missing, damaged, or larger than `MAX_FILE_BYTES`.
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(
                f"{file} is larger than {MAX_FILE_BYTES / 2**20:g} MiB", remedy=remedy
            )
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})", remedy=remedy) from error
    return read_json(file, remedy)


def check_values(check: Check, data: Any, file: Path, remedy: str) -> None:
    """Check the content of a file.

    Raises:
        CheckpointError: A value is not allowed; the message names the file and the place.
    """
    try:
        check(data, "")
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}", remedy=remedy) from error
