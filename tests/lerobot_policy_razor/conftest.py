"""A small razor policy and batches for it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch import Tensor

from lerobot_policy_razor.configuration_razor import RazorConfig
from lerobot_policy_razor.modeling_razor import RazorPolicy

CAMERAS = ("front", "wrist")


def tiny_config(**settings: object) -> RazorConfig:
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
        for name in CAMERAS
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (7,))
    small: dict[str, object] = {
        "dim_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "dim_feedforward": 32,
        "dim_head": 32,
        "stem_channels": (8, 8, 8),
        "num_landmarks": 3,
        "device": "cpu",
    }
    return RazorConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (5,))},
        **(small | settings),
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep small tensors on one thread: sharing them out takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_policy() -> Callable[..., RazorPolicy]:
    """Build a policy whose weights are large enough for its outputs to differ."""

    def make(**settings: object) -> RazorPolicy:
        torch.manual_seed(0)
        policy = RazorPolicy(tiny_config(**settings))
        for parameter in policy.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 9
            torch.nn.init.normal_(parameter, std=max(fan_in, 1) ** -0.5)
        return policy.eval()

    return make


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    def make(size: int = 4, seed: int = 0, chunk: int = 4, slots: int = 3) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        images = {
            f"observation.images.{name}": torch.randint(
                0, 256, (size, 64, 64, 3), dtype=torch.uint8, generator=g
            )
            for name in CAMERAS
        }
        lengths = torch.randint(3, 8, (size, 1), generator=g)
        mask = torch.arange(12) < lengths
        return {
            **images,
            "observation.state": torch.randn(size, 7, generator=g),
            "observation.language.tokens": torch.randint(2, 90, (size, 12), generator=g) * mask,
            "observation.language.attention_mask": mask,
            "action": torch.rand(size, chunk, 5, generator=g) * 2 - 1,
            "observation.landmarks": torch.rand(size, slots, 3, generator=g),
            "observation.landmarks_present": torch.rand(size, slots, generator=g) > 0.3,
        }

    return make
