"""The path of lerobot-train through its own functions, on a data set in its own format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors

LANDMARKS = 3


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two short episodes, with landmarks as the demonstrations have them."""
    root = tmp_path_factory.mktemp("data") / "demonstrations"
    image = {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.front": image,
        "observation.images.wrist": dict(image),
        "observation.state": {"dtype": "float32", "shape": (7,), "names": None},
        "observation.landmarks": {"dtype": "float32", "shape": (LANDMARKS, 3), "names": None},
        "observation.landmarks_present": {"dtype": "bool", "shape": (LANDMARKS,), "names": None},
        "action": {"dtype": "float32", "shape": (5,), "names": None},
    }
    dataset = LeRobotDataset.create("local/d", 10, features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for instruction in ("pick up the red can", "open the drawer"):
        for _ in range(5):
            frame = {
                key: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                for key in ("observation.images.front", "observation.images.wrist")
            }
            frame["observation.state"] = rng.normal(2.0, 0.5, 7).astype(np.float32)
            frame["observation.landmarks"] = rng.normal(size=(LANDMARKS, 3)).astype(np.float32)
            frame["observation.landmarks_present"] = rng.random(LANDMARKS) > 0.5
            frame["action"] = rng.uniform(-1, 1, 5).astype(np.float32)
            dataset.add_frame({**frame, "task": instruction})
        dataset.save_episode()
    dataset.finalize()
    return root


def test_training_saving_and_fine_tuning(dataset_root, tmp_path):
    meta = LeRobotDatasetMetadata("local/d", root=dataset_root)
    config = make_policy_config(
        "razor", device="cpu", dim_model=32, n_layers=1, num_landmarks=LANDMARKS, push_to_hub=False
    )
    policy = make_policy(config, ds_meta=meta)
    assert set(config.input_features) == {
        "observation.images.front",
        "observation.images.wrist",
        "observation.state",
    }
    steps = [index / meta.fps for index in config.action_delta_indices]
    dataset = LeRobotDataset("local/d", root=dataset_root, delta_timestamps={"action": steps})
    loader = torch.utils.data.DataLoader(dataset, batch_size=10)
    pre, post = make_pre_post_processors(config, dataset_stats=meta.stats)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    scheduler = config.get_scheduler_preset().build(optimizer, 10)

    raw = next(iter(loader))
    policy.train()
    losses = []
    for _ in range(4):
        batch = pre(dict(raw))
        loss, info = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(isinstance(value, float) for value in info.values())
    assert batch["action_is_pad"].any()
    state = batch["observation.state"]
    torch.testing.assert_close(state.mean(0), torch.zeros(7), rtol=0, atol=1e-4)
    torch.testing.assert_close(batch["observation.landmarks"], raw["observation.landmarks"])

    for part in (policy, pre, post):
        part.save_pretrained(tmp_path)
    again = PreTrainedConfig.from_pretrained(tmp_path)
    again.pretrained_path = tmp_path
    tuned = make_policy(again, ds_meta=meta)
    loaded, _ = make_pre_post_processors(
        again,
        pretrained_path=str(tmp_path),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {}},
            "normalizer_processor": {
                "features": {**tuned.config.input_features, **tuned.config.output_features},
                "norm_map": tuned.config.normalization_mapping,
                "stats": meta.stats,
            },
        },
    )
    policy.eval()
    with torch.no_grad():
        expected = policy.action_logits(pre(dict(raw)))
        assert torch.equal(tuned.action_logits(loaded(dict(raw))), expected)
