"""A LeRobot policy of a type that this toolkit does not know, from a package of somebody else."""

from __future__ import annotations

import contextlib
import sys

import pytest

LEROBOT_POLICY = {
    "configuration_linear.py": """
from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig


@PreTrainedConfig.register_subclass("linear")
@dataclass
class LinearConfig(PreTrainedConfig):
    chunk_size: int = 2
    n_action_steps: int = 2
    image_size: int = 16
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {"STATE": NormalizationMode.MEAN_STD}
    )
    observation_delta_indices = reward_delta_indices = None

    @property
    def action_delta_indices(self):
        return list(range(self.chunk_size))

    def get_optimizer_preset(self):
        return None

    def get_scheduler_preset(self):
        return None

    def validate_features(self):
        pass
""",
    "modeling_linear.py": '''
import torch
from configuration_linear import LinearConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn


class LinearPolicy(PreTrainedPolicy):
    """The actions of a chunk are a linear function of what is seen."""

    config_class = LinearConfig
    name = "linear"

    def __init__(self, config, **_):
        super().__init__(config)
        self.eye = nn.Conv2d(3, 4, 4, stride=4)
        self.head = nn.Linear(4 + config.robot_state_feature.shape[0], 2 * 5)

    def predict_action_chunk(self, batch, **_):
        seen = self.eye(batch["observation.images.front"]).mean((-1, -2))
        return self.head(torch.cat([seen, batch["observation.state"]], -1)).view(-1, 2, 5)

    def forward(self, batch):
        return (self.predict_action_chunk(batch) - batch["action"]).square().mean(), {}

    def get_optim_params(self):
        return self.parameters()

    def reset(self):
        pass

    def select_action(self, batch, **_):
        raise NotImplementedError
''',
    "processor_linear.py": """
from lerobot.processor import make_default_policy_processor_steps, make_policy_processor_pipelines


def make_linear_pre_post_processors(config, dataset_stats=None):
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations, steps.add_batch_dim, steps.to_device, steps.normalize
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
""",
}
"""What somebody has who made a LeRobot policy of his own."""


@contextlib.contextmanager
def saved_linear_policy(package):
    """Write the package into a folder, and return where a policy of its type is saved.

    LeRobot knows the type until the context ends.
    """
    import torch
    from lerobot.configs import PreTrainedConfig

    from robo_razor.policies.load import create_policy

    for name, text in LEROBOT_POLICY.items():
        (package / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        __import__("configuration_linear")
        torch.manual_seed(0)
        policy = create_policy(
            [0.0] * 7, [1.0] * 7, policy_type="linear", camera_names=("front",), image_size=16
        )
        policy.save(package / "policy")
        try:
            yield package / "policy"
        finally:  # only this type: others may have been registered meanwhile
            PreTrainedConfig._choice_registry.pop("linear", None)
            for name in LEROBOT_POLICY:
                sys.modules.pop(name.removesuffix(".py"), None)
