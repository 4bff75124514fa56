"""Tiny flow-matching policies of LeRobot, built from nothing and without a network."""

from __future__ import annotations

from pathlib import Path

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


def write_vlm(directory: Path) -> Path:
    """Write the folder of a vision-language model without weights: settings and tokenizer."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    words = tokenizer()
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    text = {
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
        vision_config=vision,
        text_config=text,
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


def save_tiny_smolvla(directory: Path, seed: int = 0, **settings) -> str:
    """Write the folder of a new tiny SmolVLA and return its path."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    vlm = write_vlm(Path(directory).with_name(f"{Path(directory).name}-vlm"))
    sizes = {
        "chunk_size": CHUNK,
        "n_action_steps": CHUNK,
        "max_state_dim": 8,
        "max_action_dim": 8,
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
        **features(),
        **(sizes | settings),
    )
    torch.manual_seed(seed)
    policy = SmolVLAPolicy(config)
    policy.save_pretrained(directory)
    for pipeline in make_pre_post_processors(config, dataset_stats=statistics()):
        pipeline.save_pretrained(directory)
    return str(directory)
