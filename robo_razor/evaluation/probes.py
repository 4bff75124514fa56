"""Probe sets: observations on which a policy is compared with its base, chosen once and hashed.

- `new_base_visited`: what the base sees when it tries the new task;
- `new_tuned_visited`: what the tuned policy sees there (the only set that is new at every step);
- `demonstrations`: what the demonstrator saw, in runs that learn from demonstrations;
- `prior/<Skill>`: what the base sees when it performs a prior skill, and `prior`: all of them.

Axis letters as in `types`: M recorded decisions, F frames of demonstrations. n observations are in
a set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robo_razor.core.errors import CheckpointError
from robo_razor.core.files import write_bytes
from robo_razor.core.metrics import PRIOR
from robo_razor.core.run.training_state import load_tensors
from robo_razor.core.types import DecisionRecord, DemonstrationSet
from robo_razor.policies.policy import Policy

EPISODE = "episode"


def prior_states(skill: str) -> str:
    """Return the name of the probe set of one prior skill."""
    return f"{PRIOR}/{skill}"


@dataclass(frozen=True)
class ProbeSet:
    """Observations on which action distributions are compared.

    Attributes:
        inputs: Prepared policy inputs, tensors of first axis n.
        episode: int64 [n], each observation's episode; observations of one episode are similar.
    """

    inputs: dict[str, Tensor]
    episode: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.episode)

    def rows(self, start: int, stop: int, device: torch.device | str) -> dict[str, Tensor]:
        """Return the inputs of some of the observations on a device."""
        return {key: tensor[start:stop].to(device) for key, tensor in self.inputs.items()}

    def hash(self) -> str:
        """Return the SHA-256 of the observations and of the episodes they come from."""
        digest = hashlib.sha256()
        for name, tensor in sorted((self.inputs | {EPISODE: self._episode()}).items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _episode(self) -> Tensor:
        return torch.from_numpy(np.array(self.episode, dtype=np.int64))


def evenly(index: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return up to `n` of the given indices, evenly spread over all of them."""
    if len(index) <= n:
        return index
    return index[np.linspace(0, len(index) - 1, n).round().astype(np.int64)]


def make_probe(record: DecisionRecord | None, n: int, episodes: NDArray[np.int64]) -> ProbeSet:
    """Take up to `n` decisions, evenly spread over all decisions of the given episodes.

    Args:
        record: The record of a batch of episodes.
        n: Number of observations.
        episodes: int64, numbers of the episodes in the batch.

    Raises:
        ValueError: The episodes were run without recording their decisions.
    """
    if record is None:
        raise ValueError('the episodes have no record: run them with record="inputs"')
    owner = record.episode
    index = evenly(np.flatnonzero(np.isin(owner, episodes)), n)
    return ProbeSet(record.select(index), owner[index])


@torch.no_grad()
def demonstration_probe(demonstrations: DemonstrationSet, policy: Policy, n: int) -> ProbeSet:
    """Take up to `n` frames at which the demonstrator decided, evenly spread over all such frames.

    Args:
        demonstrations: Demonstrations with frames at control rate.
        policy: Prepares the inputs.
        n: Number of observations.
    """
    demos = demonstrations
    lengths = np.diff(demos.offsets)
    owner = np.repeat(np.arange(demos.num_episodes), lengths)
    position = np.arange(len(demos)) - demos.offsets[owner]
    frames = evenly(np.flatnonzero(position % demos.decision_stride == 0), n)
    observation = {
        "pixels": {name: images[frames] for name, images in demos.images.items()},
        "agent_pos": demos.state[frames],
    }
    instructions = demos.words(frames)
    inputs = policy.prepare(observation, instructions)
    return ProbeSet({key: tensor.cpu() for key, tensor in inputs.items()}, owner[frames])


@torch.no_grad()
def encode_probe(probe: ProbeSet, policy: Policy) -> ProbeSet:
    """Encode images once with a frozen image encoder: they get smaller and faster to use."""
    if not policy.vision_frozen:
        return probe
    encoded = policy.encode(probe.rows(0, len(probe), policy.device))
    return ProbeSet({key: tensor.cpu() for key, tensor in encoded.items()}, probe.episode)


def save_probes(path: Path, probes: Mapping[str, ProbeSet]) -> None:
    """Write probe sets to a safetensors file, atomically."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for name, probe in probes.items():
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in probe.inputs.items()}
        tensors[f"{name}/{EPISODE}"] = torch.from_numpy(probe.episode.copy())
    write_bytes(path, save(tensors))


def load_probes(path: Path, hashes: Mapping[str, str] | None = None) -> dict[str, ProbeSet]:
    """Read what `save_probes` wrote.

    Args:
        path: The file.
        hashes: Name -> hash that the set had when it was measured; other sets are not checked.

    Raises:
        CheckpointError: The file is missing or truncated, or a set has changed.
    """
    inputs: dict[str, dict[str, Tensor]] = {}
    for full, tensor in load_tensors(path).items():
        name, _, key = full.rpartition("/")
        inputs.setdefault(name, {})[key] = tensor
    probes = {
        name: ProbeSet(tensors, tensors.pop(EPISODE).numpy()) for name, tensors in inputs.items()
    }
    for name, probe in probes.items():
        expected = (hashes or {}).get(name, probe.hash())
        if probe.hash() != expected:
            raise CheckpointError(
                f"{path}: the probe set {name!r} has the hash {probe.hash()[:12]}, but step 0 was "
                f"measured on a set with the hash {expected[:12]}",
                remedy="Put the run's own file back: distances on other observations cannot be "
                "compared along the run.",
            )
    return probes
