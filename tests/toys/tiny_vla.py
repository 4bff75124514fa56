"""Tiny flow-matching policies of LeRobot, built from nothing and without a network."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from unittest import mock

import torch

A, CHUNK, STATE = 5, 4, 7
CORPUS = [
    f"lift the {colour} block\n Task: , State: 0 1 2 3 4 5 6 7 8 9;\nAction: "
    for colour in ("red", "green", "blue")
]


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>"]
    special += ["<fake_token_around_image>", "<image>", "<global-img>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<|endoftext|>",
        eos_token="<end_of_utterance>",
        bos_token="<|im_start|>",
        unk_token="<|endoftext|>",
        padding_side="right",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )


def write_vlm(directory: Path, vision: dict | None = None, text: dict | None = None) -> Path:
    """Write the folder of a vision-language model without weights: settings and tokenizer.

    Args:
        directory: Where.
        vision: Settings of the image encoder other than the tiny ones.
        text: Likewise of the language model.
    """
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    words = tokenizer()
    seeing = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    reading = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": len(words),
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    config = SmolVLMConfig(
        vision_config=seeing | (vision or {}),
        text_config=reading | (text or {}),
        scale_factor=2,
        image_token_id=words.image_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )
    config.save_pretrained(directory)
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=words,
        video_processor=SmolVLMVideoProcessor(),
        image_seq_len=1,
        chat_template="{{ messages[0]['content'] }}",
    ).save_pretrained(directory)
    return directory


def features(size: int = 16):
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, size, size))
        for name in ("front", "wrist")
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE,))
    return {
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (A,))},
    }


def statistics():
    return {
        "observation.state": {"mean": torch.zeros(STATE), "std": torch.full((STATE,), 0.7)},
        "action": {"mean": torch.full((A,), 0.1), "std": torch.full((A,), 0.8)},
    }


SIZES = {"chunk_size": CHUNK, "n_action_steps": CHUNK, "max_state_dim": 8, "max_action_dim": 8}
"""What all families have in common."""


def save_tiny_smolvla(
    directory: Path,
    seed: int = 0,
    vision: dict | None = None,
    text: dict | None = None,
    image_size: int = 16,
    dataset_stats: dict | None = None,
    **settings,
) -> str:
    """Write the folder of a new tiny SmolVLA and return its path; for `vision`, see `write_vlm`."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    vlm = write_vlm(Path(directory).with_name(f"{Path(directory).name}-vlm"), vision, text)
    sizes = {
        "resize_imgs_with_padding": (32, 32),
        "tokenizer_max_length": 16,
        "num_vlm_layers": 2,
        "num_steps": 4,
    }
    config = SmolVLAConfig(
        device="cpu",
        push_to_hub=False,
        vlm_model_name=str(vlm),
        load_vlm_weights=False,
        **features(image_size),
        **(SIZES | sizes | settings),
    )
    torch.manual_seed(seed)
    policy = SmolVLAPolicy(config)
    policy.save_pretrained(directory)
    for pipeline in make_pre_post_processors(config, dataset_stats=dataset_stats or statistics()):
        pipeline.save_pretrained(directory)
    return str(directory)


VOCABULARY = 320


@contextlib.contextmanager
def small_pi(kind: str):
    """Let LeRobot build a pi0 or pi0.5 of thousands of parameters; its sizes are constants there.

    Args:
        kind: "pi0" or "pi05".
    """
    module = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    whole = module.PaliGemmaForConditionalGenerationWithPiGemma
    mapping = module.CONFIG_MAPPING

    def sizes(variant):
        width = 32 if variant == "gemma_2b" else 24
        return module.GemmaConfig(
            width=width, depth=2, mlp_dim=32, num_heads=8, num_kv_heads=1, head_dim=8
        )

    def build(config):
        config.text_config.vocab_size = VOCABULARY
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size, vision.patch_size = 16, 32, 16
        vision.num_hidden_layers, vision.num_attention_heads = 1, 2
        vision.projection_dim = config.text_config.hidden_size
        return whole(config=config)

    small = {
        "paligemma": mapping["paligemma"],
        "gemma": lambda **given: mapping["gemma"](**(given | {"vocab_size": VOCABULARY})),
    }
    with (
        mock.patch.object(module, "get_gemma_config", sizes),
        mock.patch.object(module, "CONFIG_MAPPING", small),
        mock.patch.object(module, "PaliGemmaForConditionalGenerationWithPiGemma", build),
    ):
        yield module


def save_tiny_pi(directory: Path, kind: str, seed: int = 0, **settings) -> str:
    """Write the folder of a new tiny pi0 or pi0.5 and return its path; call within `small_pi`."""
    from lerobot.policies.factory import get_policy_class, make_policy_config

    words = Path(directory).with_name(f"{Path(directory).name}-words")
    tokenizer().save_pretrained(words)
    sizes = {
        "image_resolution": (32, 32),
        "tokenizer_max_length": 48,
        "num_inference_steps": 4,
    }
    config = make_policy_config(
        kind, device="cpu", push_to_hub=False, **features(), **(SIZES | sizes | settings)
    )
    torch.manual_seed(seed)
    policy = get_policy_class(kind)(config)
    policy.save_pretrained(directory)
    processors = importlib.import_module(f"lerobot.policies.{kind}.processor_{kind}")
    step = processors.TokenizerProcessorStep

    def local(**given):
        return step(**(given | {"tokenizer_name": str(words)}))

    given = statistics()
    for values in given.values():  # pi0.5 normalises by quantiles
        values |= {"q01": values["mean"] - values["std"], "q99": values["mean"] + values["std"]}
    with mock.patch.object(processors, "TokenizerProcessorStep", local):
        make = getattr(processors, f"make_{kind}_pre_post_processors")
        for pipeline in make(config, dataset_stats=given):
            pipeline.save_pretrained(directory)
    return str(directory)


KINDS = ("smolvla", "pi0", "pi05")


@contextlib.contextmanager
def saved(kind: str, directory: Path, **settings):
    """Yield the folder of a new tiny policy of any family; inside, LeRobot can load it."""
    if kind == "smolvla":
        yield save_tiny_smolvla(directory, **settings)
        return
    with small_pi(kind):
        yield save_tiny_pi(directory, kind, **settings)


def save_tiny_other(
    directory: Path, kind: str, seed: int = 0, image_size: int = 32, **settings
) -> str:
    """Write the folder of a new tiny policy without a density, and return its path."""
    from lerobot.policies.factory import (
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    sizes = {
        "act": {
            "chunk_size": CHUNK,
            "n_action_steps": CHUNK,
            "dim_model": 32,
            "n_heads": 2,
            "dim_feedforward": 32,
            "n_encoder_layers": 1,
            "n_vae_encoder_layers": 1,
            "latent_dim": 4,
        },
        "diffusion": {
            "n_obs_steps": 1,
            "horizon": 2 * CHUNK,
            "n_action_steps": CHUNK,
            "crop_shape": None,
            "use_group_norm": True,
            "down_dims": (16, 32),
            "n_groups": 4,
            "diffusion_step_embed_dim": 16,
            "spatial_softmax_num_keypoints": 4,
            "num_inference_steps": 3,
        },
    }[kind]
    common = {"device": "cpu", "push_to_hub": False, "pretrained_backbone_weights": None}
    config = make_policy_config(kind, **common, **features(image_size), **(sizes | settings))
    given = statistics()
    for key in config.image_features:
        given[key] = {"mean": torch.full((3, 1, 1), 0.2), "std": torch.full((3, 1, 1), 0.3)}
    for values in given.values():
        values |= {"min": values["mean"] - values["std"], "max": values["mean"] + values["std"]}
    torch.manual_seed(seed)
    get_policy_class(kind)(config).save_pretrained(directory)
    for pipeline in make_pre_post_processors(config, dataset_stats=given):
        pipeline.save_pretrained(directory)
    return str(directory)
