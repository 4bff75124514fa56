"""Pre- and postprocessor of the `razor` policy's batches."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import (
    ObservationProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from lerobot_policy_razor.configuration_razor import RazorConfig
from lerobot_policy_razor.tokenizer import WordTokenizer


@ProcessorStepRegistry.register(name="razor_tokenizer")
@dataclass
class RazorTokenizerStep(ObservationProcessorStep):
    """Turn the instruction under `task` into token ids and a mask.

    The saved processor holds the vocabulary, so that a checkpoint keeps its meaning when a later
    version of this package ships another vocabulary.
    """

    max_length: int = 12
    task_key: str = "task"
    vocabulary: list[str] | None = None
    tokenizer: WordTokenizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Build the tokenizer."""
        self.tokenizer = WordTokenizer(self.vocabulary, self.max_length)
        self.vocabulary = self.tokenizer.vocabulary

    def encode(self, instructions: list[str]) -> tuple[Tensor, Tensor]:
        """Return token ids int64 [B, L] and mask bool [B, L] of `instructions`."""
        encoded = [self.tokenizer.encode(text) for text in instructions]
        return (
            torch.tensor([ids for ids, _ in encoded], dtype=torch.int64),
            torch.tensor([mask for _, mask in encoded], dtype=torch.bool),
        )

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Add token ids and mask to `observation`.

        Raises:
            ValueError: The transition has no instruction.
        """
        data = self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        task = data.get(self.task_key)
        if task is None:
            raise ValueError(
                f"The razor policy needs an instruction under {self.task_key!r} in the batch."
            )
        tokens, mask = self.encode([task] if isinstance(task, str) else list(task))
        device = next((v.device for v in observation.values() if isinstance(v, Tensor)), None)
        observation[OBS_LANGUAGE_TOKENS] = tokens.to(device)
        observation[OBS_LANGUAGE_ATTENTION_MASK] = mask.to(device)
        return observation

    def get_config(self) -> dict[str, Any]:
        """Return the settings that are saved with the pipeline."""
        return {
            "max_length": self.max_length,
            "task_key": self.task_key,
            "vocabulary": self.vocabulary,
        }

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Declare the two language inputs."""
        for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK):
            features[PipelineFeatureType.OBSERVATION][key] = PolicyFeature(
                type=FeatureType.LANGUAGE, shape=(self.max_length,)
            )
        return features


def make_razor_pre_post_processors(
    config: RazorConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[Tensor, Tensor],
]:
    """Build the pre- and the postprocessor.

    Args:
        config: Configuration of the policy, with its features filled in.
        dataset_stats: `{"observation.state": {"mean": [S], "std": [S]}, ...}`; images and actions
            are not normalised here.

    Returns:
        The pipeline from a host batch to a policy batch, and the one from the policy's actions to
        the environment's.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            RazorTokenizerStep(max_length=config.max_instruction_tokens),
            steps.to_device,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
