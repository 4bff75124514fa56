import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from lerobot_policy_razor.modeling_razor import RazorPolicy
from lerobot_policy_razor.processor_razor import make_razor_pre_post_processors

STATS = {
    "observation.state": {"mean": np.full(7, 2.0, np.float32), "std": np.full(7, 0.5, np.float32)},
    "action": {"mean": np.zeros(5, np.float32), "std": np.full(5, 9.0, np.float32)},
}


def raw_batch(size: int = 2) -> dict:
    return {
        "observation.images.front": torch.rand(size, 3, 64, 64),
        "observation.images.wrist": torch.rand(size, 3, 64, 64),
        "observation.state": torch.full((size, 7), 3.0),
        "task": ["pick up the red can"] * size,
        "action": torch.full((size, 4, 5), 0.5),
    }


def test_lerobot_finds_everything_by_name(make_policy):
    config = make_policy().config
    assert config.type == "razor"
    assert get_policy_class("razor") is RazorPolicy
    assert PreTrainedConfig.get_choice_class("razor") is type(config)
    pre, post = make_pre_post_processors(config, dataset_stats=STATS)
    assert len(pre.steps) == 5
    assert len(post.steps) == 2


def test_state_is_normalised_and_the_rest_is_not(make_policy):
    pre, post = make_razor_pre_post_processors(make_policy().config, STATS)
    raw = raw_batch()
    batch = pre(raw)
    torch.testing.assert_close(batch["observation.state"], torch.full((2, 7), 2.0))
    assert torch.equal(batch["observation.images.front"], raw["observation.images.front"])
    assert torch.equal(batch["action"], raw["action"])
    assert batch["observation.language.tokens"].shape == (2, 12)
    assert batch["observation.language.attention_mask"].sum() == 10
    assert torch.equal(post(raw["action"]), raw["action"])


def test_a_single_observation_gets_a_batch_axis(make_policy):
    policy = make_policy()
    pre, _ = make_razor_pre_post_processors(policy.config, STATS)
    single = {k: v[0] for k, v in raw_batch(1).items() if k != "action"}
    assert policy.select_action(pre(single)).shape == (1, 5)


def test_missing_instruction_is_an_error(make_policy):
    pre, _ = make_razor_pre_post_processors(make_policy().config, STATS)
    raw = raw_batch()
    del raw["task"]
    with pytest.raises(ValueError, match="needs an instruction"):
        pre(raw)


def test_saved_processors_load_with_the_overrides_of_lerobot(make_policy, tmp_path):
    policy = make_policy()
    config = policy.config
    pre, post = make_razor_pre_post_processors(config, STATS)
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    features = {**config.input_features, **config.output_features}
    new = {"observation.state": {"mean": torch.zeros(7), "std": torch.ones(7)}}
    loaded, loaded_post = make_pre_post_processors(
        config,
        pretrained_path=str(tmp_path),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {
                "rename_map": {"observation.agent": "observation.state"}
            },
            "normalizer_processor": {
                "features": features,
                "norm_map": config.normalization_mapping,
                "stats": new,
            },
        },
        postprocessor_overrides={
            "unnormalizer_processor": {
                "features": config.output_features,
                "norm_map": config.normalization_mapping,
                "stats": new,
            }
        },
    )
    raw = raw_batch()
    raw["observation.agent"] = raw.pop("observation.state")
    torch.testing.assert_close(loaded(raw)["observation.state"], torch.full((2, 7), 3.0))
    assert torch.equal(loaded_post(raw["action"]), raw["action"])


def test_saved_processors_keep_their_statistics_and_vocabulary(make_policy, tmp_path, monkeypatch):
    config = make_policy().config
    pre, _ = make_razor_pre_post_processors(config, STATS)
    pre.save_pretrained(tmp_path)
    expected = pre(raw_batch())
    monkeypatch.setattr(
        "lerobot_policy_razor.tokenizer.load_vocabulary", lambda: ["<pad>", "<unk>", "x"]
    )
    post_dir = make_razor_pre_post_processors(config, STATS)[1]
    post_dir.save_pretrained(tmp_path)
    loaded, _ = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    got = loaded(raw_batch())
    for key in ("observation.state", "observation.language.tokens"):
        assert torch.equal(got[key], expected[key])


def test_columns_that_are_not_read_are_not_normalised(make_policy):
    config = make_policy().config
    config.input_features["observation.landmarks"] = PolicyFeature(FeatureType.STATE, (3, 3))
    config.validate_features()
    assert "observation.landmarks" not in config.input_features
