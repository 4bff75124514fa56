"""Actors choose the actions in a rollout: a policy, a scripted expert, or a changed one of these.

The environment's expert looks ahead in a copy of the state. So every visited state can get a clean
label, whichever action is executed there: the expert's, a disturbed one (as in DART, Laskey et al.
2017), or a policy's (as in DAgger, Ross et al. 2011).

Axis letters as in `types`: N environments, H chunk, A action dimensions.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.errors import EnvError, unknown_name
from robo_razor.core.types import EpisodeRow, Observation
from robo_razor.policies.distributions import log_prob_steps
from robo_razor.policies.policy import Policy
from robo_razor.rollout.faults import worker_errors
from robo_razor.rollout.groups import VectorEnv, has_expert, take

Mode = Literal["greedy", "sample"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The environments that wait for a decision; all lists have one entry per environment."""

    env: VectorEnv
    env_ids: NDArray[np.int64]
    observation: Observation
    instructions: list[str]
    rows: list[EpisodeRow]
    steps: NDArray[np.int64]


@dataclass(frozen=True)
class Decision:
    """Chunks to execute, and the policy's inputs and outputs for a record.

    Attributes:
        actions: float32 [n, H, A], the chunks to execute.
        label: The chunks to learn from, if they differ from `actions`.
        inputs: The policy's prepared inputs.
        log_prob: Log-probability of the sample.
        value: The policy's value.
        sample: The policy's sample, if it holds more than the chunk (see `DecisionRecord.actions`).
        encoded: Encoded inputs that can replace `inputs` in an update, if the policy has them.
    """

    actions: NDArray[np.float32]
    label: NDArray[np.float32] | None = None
    inputs: dict[str, Tensor] | None = None
    log_prob: Tensor | None = None
    value: Tensor | None = None
    sample: Tensor | None = None
    encoded: dict[str, Tensor] | None = None


class Actor(Protocol):
    """Chooses chunks for the environments that wait."""

    def decide(self, request: Request) -> Decision:
        """Return one chunk per waiting environment."""
        ...

    def final_values(self, observation: Observation, instructions: Sequence[str]) -> Tensor | None:
        """Return the value of true final observations, float32 [n]; None without values."""
        ...


def decision_generator(row: EpisodeRow, step: int, seed: int) -> np.random.Generator:
    """Return the generator of one decision: a function of (seed, row, step) only (Philox)."""
    bits = np.random.Philox(
        key=[seed & 0xFFFF_FFFF_FFFF_FFFF, zlib.crc32(row.task.encode())],
        counter=[0, row.seed, int(step), row.sample],
    )
    return np.random.Generator(bits)


def sampling_uniforms(
    rows: Sequence[EpisodeRow],
    steps: NDArray[np.int64],
    shape: tuple[int, ...],
    sampling_seed: int,
) -> Tensor:
    """Draw the uniforms of each row's decision, float32 [n, *shape] in (0, 1).

    A pure function of (sampling_seed, task, seed, sample, decision).
    """
    uniforms = np.empty((len(rows), *shape), dtype=np.float32)
    for i, row in enumerate(rows):
        generator = decision_generator(row, int(steps[i]), sampling_seed)
        uniforms[i] = generator.random(shape, dtype=np.float32)
    # 2^-25 off both ends: inverse CDFs of densities with tails must not see 0 or 1.
    return torch.from_numpy(uniforms.clip(2.0**-25, 1.0 - 2.0**-24))


class PolicyActor:
    """Lets a policy act, greedily or by sampling, and returns inputs and outputs for a record."""

    def __init__(
        self,
        policy: Policy,
        mode: Mode,
        *,
        sampling_seed: int = 0,
        record: bool | Literal["inputs"] = False,
    ) -> None:
        self.policy = policy
        self.mode = mode
        self.sampling_seed = sampling_seed
        self.record = record
        self._bytes_left = policy.prefix_bytes if record is True else 0
        """Bytes that encoded observations may still take."""

    @torch.no_grad()
    def decide(self, request: Request) -> Decision:
        """Return the policy's chunks for the waiting environments."""
        policy = self.policy
        if not policy.has_density:
            return self._decide_without_density(request)
        inputs = policy.prepare(request.observation, request.instructions)
        if self.record and policy.vision_frozen:
            inputs = policy.encode(inputs)  # smaller in memory, and an update need not encode again
        encoded = self._encode(inputs)
        if self.record is True:
            distribution, value = policy.distribution_and_value(encoded or inputs)
        else:
            distribution, value = policy.distribution(inputs), None
        if self.mode == "sample":
            shape = policy.noise_shape
            uniforms = sampling_uniforms(request.rows, request.steps, shape, self.sampling_seed)
            sample = distribution.sample(uniforms.to(policy.device))
        else:
            sample = distribution.mode()
        chunks = policy.to_actions(sample)
        if not self.record:
            return Decision(chunks)
        inputs = {key: tensor.cpu() for key, tensor in inputs.items()}
        if value is None:
            return Decision(chunks, inputs=inputs)
        log_prob = log_prob_steps(distribution, sample)
        return Decision(
            chunks,
            inputs=inputs,
            log_prob=log_prob.float().cpu(),
            value=value.float().cpu(),
            sample=sample.float().cpu(),
            encoded=encoded and {key: tensor.cpu() for key, tensor in encoded.items()},
        )

    def _encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Return encoded observations, None when those so far exceed the memory for them."""
        if self._bytes_left <= 0:
            return None
        encoded = self.policy.encode_prefix(inputs)
        self._bytes_left -= sum(tensor.nbytes for tensor in encoded.values())
        if self._bytes_left <= 0:
            logger.info(
                "Encoded observations take more than `flow.prefix_gib`: the update encodes again"
            )
            return None
        return encoded

    def _decide_without_density(self, request: Request) -> Decision:
        """Let a policy act in its own way, which may be random in either mode."""
        chunks = self.policy.act(request.observation, request.instructions)
        inputs = None
        if self.record:
            inputs = self.policy.prepare(request.observation, request.instructions)
            inputs = {key: tensor.cpu() for key, tensor in inputs.items()}
        return Decision(chunks, inputs=inputs)

    @torch.no_grad()
    def final_values(self, observation: Observation, instructions: Sequence[str]) -> Tensor | None:
        """Return the policy's value of final observations, float32 [n]."""
        if self.record is not True:
            return None
        inputs = self.policy.prepare(observation, instructions)
        _, value = self.policy.distribution_and_value(inputs)
        return value.float().cpu()


class ExpertActor:
    """Lets the environment's scripted expert act."""

    def __init__(self, style: str) -> None:
        self.style = style

    def decide(self, request: Request) -> Decision:
        """Return the expert's chunks for the waiting environments.

        Raises:
            EnvError: The environment has no expert, or not this style.
        """
        env = request.env
        if not has_expert(env):
            raise EnvError(
                f"The environment of {request.rows[0].task!r} has no scripted expert",
                remedy="Choose a task of gym_razor, let a policy demonstrate, or give your "
                "environment a method `expert_actions(style, length)` "
                "(docs/how-to/environments.md).",
            )
        styles = getattr(env, "expert_styles", (self.style,))
        if self.style not in styles:
            raise unknown_name("expert style", self.style, styles)
        with worker_errors():
            actions = env.expert_actions(style=self.style, env_ids=request.env_ids)
        return Decision(np.asarray(actions, dtype=np.float32))

    def final_values(self, observation: Observation, instructions: Sequence[str]) -> Tensor | None:
        """Return None: an expert has no values."""
        return None


class Noise(Protocol):
    """Changes the executed actions; a pure function of its arguments."""

    def __call__(
        self, chunk: NDArray[np.float32], row: EpisodeRow, step: int
    ) -> NDArray[np.float32]:
        """Return the chunk to execute instead of a chunk float32 [H, A] at a row's decision."""


@dataclass(frozen=True)
class GaussianNoise:
    """Independent noise on every action.

    Attributes:
        standard_deviation: Standard deviation, in the action's units.
    """

    standard_deviation: float

    def __call__(
        self, chunk: NDArray[np.float32], row: EpisodeRow, step: int
    ) -> NDArray[np.float32]:
        """Return the noisy chunk, clipped to [-1, 1]."""
        bits = np.random.Philox(
            key=[zlib.crc32(row.task.encode()), row.seed], counter=[0, step, 0, 0]
        )
        noise = np.random.Generator(bits).standard_normal(chunk.shape, dtype=np.float32)
        noisy = np.clip(chunk + self.standard_deviation * noise, -1.0, 1.0)
        return noisy.astype(np.float32)


@dataclass(frozen=True)
class Disturbance:
    """Pushes that last a chunk, and small independent noise; see `disturb`.

    Attributes:
        probability: Probability of a push, per decision.
        noise: Standard deviation of a push, in the action's units.
        seed: Seed of pushes and noise.
    """

    probability: float
    noise: float
    seed: int

    def __call__(
        self, chunk: NDArray[np.float32], row: EpisodeRow, step: int
    ) -> NDArray[np.float32]:
        """Return the disturbed chunk."""
        random = decision_generator(row, step, self.seed)
        return disturb(chunk, random, probability=self.probability, noise=self.noise)


def disturb(
    chunk: NDArray[np.float32], rng: np.random.Generator, *, probability: float, noise: float
) -> NDArray[np.float32]:
    """Return the chunk to execute instead of the expert's chunk float32 [H, A].

    Small independent noise is always added. With `probability` a push is added that lasts the whole
    chunk (standard deviation `noise` per motion dimension); in one of eight such cases the gripper
    also does the opposite.
    """
    executed = chunk.copy()
    motion = executed[:, :-1]
    motion += rng.normal(0.0, 0.15 * noise, motion.shape)
    if rng.random() < probability:
        motion += rng.normal(0.0, noise, motion.shape[1])
        if rng.random() < 0.125:
            executed[:, -1] *= -1.0
    clipped: NDArray[np.float32] = np.clip(executed, -1.0, 1.0).astype(np.float32)
    return clipped


class NoisyActor:
    """Adds noise to another actor's actions and keeps the clean action as the label.

    As in DART (Laskey et al. 2017): the demonstrations then show how to recover from errors.

    Args:
        actor: Chooses the clean actions.
        noise: Changes them.
    """

    def __init__(self, actor: Actor, noise: Noise) -> None:
        self.actor, self.noise = actor, noise

    def decide(self, request: Request) -> Decision:
        """Return the noisy chunks, with the clean ones as labels."""
        clean = self.actor.decide(request).actions
        executed = [
            self.noise(chunk, row, int(step))
            for chunk, row, step in zip(clean, request.rows, request.steps, strict=True)
        ]
        return Decision(np.stack(executed), label=clean)

    def final_values(self, observation: Observation, instructions: Sequence[str]) -> None:
        """Return None: demonstrations need no values."""


class LabellingActor:
    """Adds the expert's label and the policy's inputs to another actor's decisions.

    Args:
        actor: The actor.
        expert: Labels the decisions that have no label.
        policy: Prepares the inputs of the decisions that have none.
    """

    def __init__(self, actor: Actor, expert: Actor, policy: Policy) -> None:
        self.actor, self.expert, self.policy = actor, expert, policy

    def decide(self, request: Request) -> Decision:
        """Return the actor's decision with `label` and `inputs`."""
        decision = self.actor.decide(request)
        label = decision.label
        if label is None:
            label = self.expert.decide(request).actions
        inputs = decision.inputs
        if inputs is None:
            inputs = self.policy.prepare(request.observation, request.instructions)
            inputs = {key: value.cpu() for key, value in inputs.items()}
        return Decision(decision.actions, label=label.copy(), inputs=inputs)

    def final_values(self, observation: Observation, instructions: Sequence[str]) -> None:
        """Return None: labels need no values."""


class OpenLoopActor:
    """Lets an actor with chunks of H actions act in an environment with chunks of one action.

    The actor gets the same observations and draws the same noise as with chunks of H, so the
    episodes are the same; but every control step can be filmed or recorded.

    Args:
        actor: Chooses chunks.
        chunk_size: H.
    """

    def __init__(self, actor: Actor, chunk_size: int) -> None:
        self.actor = actor
        self.chunk_size = chunk_size
        self._chunks: dict[int, NDArray[np.float32]] = {}

    def decide(self, request: Request) -> Decision:
        """Return each environment's next action; the actor decides where a chunk is used up."""
        position = request.steps % self.chunk_size
        rows = np.flatnonzero(position == 0)
        if len(rows):
            chunks = self.actor.decide(self._decisions(request, rows)).actions
            for i, chunk in zip(request.env_ids[rows], chunks, strict=True):
                self._chunks[int(i)] = chunk
        actions = [self._chunks[int(i)][k] for i, k in zip(request.env_ids, position, strict=True)]
        return Decision(np.stack(actions)[:, None])

    def final_values(self, observation: Observation, instructions: Sequence[str]) -> Tensor | None:
        """Return None: values belong to decisions, not to control steps."""
        return None

    def _decisions(self, request: Request, rows: NDArray[np.int64]) -> Request:
        return replace(
            request,
            env_ids=request.env_ids[rows],
            observation=take(request.observation, rows),
            instructions=[request.instructions[i] for i in rows],
            rows=[request.rows[i] for i in rows],
            steps=request.steps[rows] // self.chunk_size,
        )
