"""Fine-tuning methods: one file each, registered by name.

A method knows how to make one update of a policy. The trainer knows everything else (environments,
checkpoints, tracking), so a new method is one file with a class that is registered in `METHODS`, a
line that imports it below, and its section in `config`.

Methods keep no random state: whatever they draw is derived from (seed, update, ...), see `seeding`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from robo_razor.core.errors import PolicyError, TrainingError
from robo_razor.core.ranks import ALONE, Ranks
from robo_razor.core.registry import Registry
from robo_razor.core.settings.config import FinetuneConfig
from robo_razor.core.types import DemonstrationSet, EpisodeBatch, EpisodeRow

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]


class Rollout(Protocol):
    """Runs episodes with the policy that is being tuned."""

    def __call__(
        self,
        rows: Sequence[EpisodeRow],
        *,
        mode: Literal["greedy", "sample"],
        record: bool,
        sampling_seed: int,
    ) -> EpisodeBatch:
        """Run every row once."""
        ...


@dataclass(frozen=True)
class Services:
    """What the trainer offers to a method."""

    rollout: Rollout
    demonstrations: Callable[[], DemonstrationSet]
    on_gradient_steps: Callable[[int, int], None] = lambda done, total: None
    ranks: Ranks = ALONE


@dataclass
class MethodState:
    """What a method needs to go on beyond the policy's weights."""

    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


class Method(ABC):
    """A way to fine-tune a policy, update by update."""

    needs_density = True
    """Whether the policy must give log-probabilities."""

    def __init__(self, config: FinetuneConfig, policy: Any, base: Any, services: Services) -> None:
        """Build optimizers for `policy`; `base` is its frozen copy.

        Args:
            config: The run's settings.
            policy: `Policy` that is tuned in place.
            base: `Policy` with the weights the run started from.
            services: Rollouts and demonstrations.
        """
        self.config = config
        self.policy = policy
        self.base = base
        self.services = services
        self.ranks = services.ranks

    @classmethod  # noqa: B027  # optional
    def validate(cls, config: FinetuneConfig) -> None:
        """Refuse settings that cannot work, before anything is loaded or made."""

    def prepare(self) -> None:  # noqa: B027  # optional
        """Get what all updates need, such as demonstrations."""

    @property
    @abstractmethod
    def num_updates(self) -> int:
        """Return the number of updates in the run (known after `prepare`)."""

    @abstractmethod
    def update(self, update: int) -> Metrics:
        """Make update number `update` (from 1) and return what to log."""

    def check_start(self, sampled_success: Sequence[bool]) -> None:  # noqa: B027  # optional
        """Refuse to start where the base's sampled episodes on the new task give no hope."""

    def state(self) -> MethodState:
        """Return what must be saved to go on."""
        return MethodState()

    def load_state(self, state: MethodState) -> None:  # noqa: B027  # optional
        """Take over what `state` returned."""


METHODS: Registry[type[Method]] = Registry("method")


def trained_parameters(policy: Any) -> list[Any]:
    """Return the parameters that a policy's loss trains.

    Raises:
        PolicyError: One has less than float32: an optimiser's small steps would be rounded away.
    """
    found = [p for p in policy.policy_parameters() if p.requires_grad]
    low = {str(p.dtype).removeprefix("torch.") for p in found if p.element_size() < 4}
    if low:
        raise PolicyError(
            f"The policy {policy.name!r} would be trained in {', '.join(sorted(low))}, where small "
            "steps are rounded away",
            allowed="trained parameters in float32",
            remedy="Load the policy in float32. A flow policy's `share_frozen(base)` raises what "
            "is trained.",
        )
    return found


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a norm, in place.

    Returns:
        Their norm before.

    Raises:
        TrainingError: It is not finite: a step would make every weight NaN.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    if not math.isfinite(norm):
        raise TrainingError(
            f"The norm of the gradients became {norm}",
            remedy="Lower the learning rate, or switch `bf16` off. The last checkpoint is intact.",
        )
    return norm


def bf16_is_fast() -> bool:
    """Say whether this machine's processor multiplies bfloat16 matrices natively."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())


def autocast(device: torch.device | str, enabled: bool) -> torch.autocast:
    """Return the context in which matrix products are computed in bfloat16, if enabled."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


# They register themselves.
from robo_razor.training.methods import bc, ppo, reinforce  # noqa: E402, F401
