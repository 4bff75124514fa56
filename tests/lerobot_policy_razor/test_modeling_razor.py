import pytest
import torch
from einops import rearrange

from lerobot_policy_razor.configuration_razor import KEYPOINTS, RazorConfig
from lerobot_policy_razor.modeling_razor import RazorPolicy, mu_law_centers

IMAGES = ("observation.images.front", "observation.images.wrist")


def test_shapes(make_policy, make_batch):
    output = make_policy().predict(make_batch(size=3))
    assert output.logits.shape == (3, 4, 5, 21)
    assert output.value.shape == (3,)
    assert output.landmarks.shape == (3, 3, 3)
    assert output.landmark_logits.shape == (3, 3)


def test_default_size_is_as_documented():
    from lerobot.configs import FeatureType, PolicyFeature

    features = {key: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for key in IMAGES}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (7,))
    config = RazorConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (5,))},
        device="cpu",
    )
    parameters = sum(p.numel() for p in RazorPolicy(config).parameters())
    assert 1_000_000 < parameters < 2_000_000


def test_bins_are_symmetric_and_finest_around_an_exact_zero():
    centers = mu_law_centers(21, 5.0)
    assert centers[10] == 0
    assert centers[0] == -1
    assert centers[-1] == 1
    torch.testing.assert_close(centers, -centers.flip(0))
    widths = centers.diff()[10:]
    assert bool((widths.diff() > 0).all())


def test_tokenize_finds_the_nearest_center(make_policy):
    policy = make_policy()
    assert torch.equal(policy.tokenize(policy.bin_centers), torch.arange(21))
    actions = torch.rand(7, 4, 5) * 2.4 - 1.2
    nearest = (actions[..., None] - policy.bin_centers).abs().argmin(-1)
    assert torch.equal(policy.tokenize(actions), nearest)


def test_all_image_formats_give_the_same_bits(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    expected = policy.action_logits(batch)
    for convert in (
        lambda x: rearrange(x, "b h w c -> b c h w").contiguous(),
        lambda x: rearrange(x, "b h w c -> b c h w").float() / 255,
        lambda x: rearrange(x, "b h w c -> b c h w").contiguous().float() / 255,
    ):
        other = {k: convert(v) if k in IMAGES else v for k, v in batch.items()}
        assert torch.equal(policy.action_logits(other), expected)


def test_what_is_masked_out_is_not_read(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    mask = batch["observation.language.attention_mask"]
    other = torch.where(mask, batch["observation.language.tokens"], 77)
    changed = {**batch, "observation.language.tokens": other}
    with torch.no_grad():
        expected, got = policy.predict(batch), policy.predict(changed)
    assert torch.equal(expected.logits, got.logits)
    assert torch.equal(expected.value, got.value)


@pytest.mark.parametrize("key", [*IMAGES, "observation.state", "observation.language.tokens"])
def test_every_input_matters(make_policy, make_batch, key):
    policy, batch = make_policy(), make_batch()
    other = {**batch, key: make_batch(seed=1)[key]}
    expected, got = policy.predict(batch), policy.predict(other)
    assert (expected.logits - got.logits).abs().max() > 1e-3
    assert (expected.value - got.value).abs().max() > 1e-3


def test_training_reads_instructions_without_their_padding(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    with torch.no_grad():
        padded = policy.action_logits(batch)
    torch.testing.assert_close(policy.action_logits(batch), padded, rtol=1e-4, atol=1e-5)


def test_value_loss_moves_the_value_head_only(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    policy.predict(batch).value.sum().backward()
    value = {id(p) for p in policy.value_parameters()}
    moved = {id(p) for p in policy.parameters() if p.grad is not None}
    assert moved == value


def test_attached_value_reaches_the_trunk_and_actions_never_reach_the_value(
    make_policy, make_batch
):
    policy, batch = make_policy(), make_batch()
    policy.predict(batch, value_detach=False).value.sum().backward()
    assert policy.word_embedding.weight.grad is not None
    policy.zero_grad(set_to_none=True)
    policy.predict(batch).logits.square().sum().backward()
    assert all(p.grad is None for p in policy.value_parameters())


def test_landmark_gradient_of_the_actions_is_a_setting(make_policy, make_batch):
    for detach in (True, False):
        policy = make_policy(detach_landmarks=detach)
        policy.action_logits(make_batch()).square().sum().backward()
        assert (policy.landmark_readout.mlp[-1].weight.grad is None) == detach


def test_augmentation_is_for_training_forward_only(make_policy, make_batch):
    policy = make_policy(image_shift_px=2, state_noise=0.1)
    batch = make_batch()
    plain = policy.action_logits(batch)
    loss = policy.forward(batch)[0]
    policy.train()
    assert torch.equal(policy.action_logits(batch), plain)
    assert policy.forward(batch)[0] != loss
    assert torch.equal(policy.eval().forward(batch)[0], loss)


def test_shift_moves_whole_images(make_policy):
    policy = make_policy(image_shift_px=2)
    side = torch.arange(64.0)
    picture = (side[:, None] * 64 + side)[None, None].expand(50, 3, 64, 64)
    moved = policy._shift(picture)
    step = moved[:, :, 4:-4, 4:-4] - picture[:, :, 4:-4, 4:-4]
    assert torch.equal(step, step[:, :1, :1, :1].expand_as(step))
    assert len(step[:, 0, 0, 0].unique()) > 10


def test_padded_actions_do_not_count(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    batch["action_is_pad"] = torch.zeros(4, 4, dtype=torch.bool)
    batch["action_is_pad"][:, 2:] = True
    loss, _ = policy.forward(batch)
    batch["action"][:, 2:] = 1.0
    assert policy.forward(batch)[0] == loss


def test_losses_per_sample_average_to_the_loss(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    loss, info = policy.forward(batch)
    each, _ = policy.forward(batch, reduction="none")
    assert each.shape == (4,)
    torch.testing.assert_close(each.mean(), loss)
    parts = 20.0 * info["landmark_loss"] + 0.1 * info["presence_loss"] + info["action_loss"]
    assert loss.item() == pytest.approx(parts, rel=1e-5)
    torch.testing.assert_close(
        policy.landmark_loss(batch)[0], loss - info["action_loss"], rtol=1e-4, atol=1e-5
    )


def test_cross_entropy_is_that_of_the_target_bins(make_policy, make_batch):
    policy, batch = make_policy(num_landmarks=0), make_batch()
    logits = policy.action_logits(batch)
    targets = policy.tokenize(batch["action"])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
    torch.testing.assert_close(policy.forward(batch)[0], expected)


def test_label_smoothing_is_least_at_the_soft_labels(make_policy):
    policy = make_policy(label_smoothing_bins=1.0)
    targets = torch.tensor([[[0, 5, 10, 15, 20]]])
    distance = torch.arange(21) - targets[..., None]
    soft = torch.log_softmax(-0.5 * distance.float() ** 2, -1)
    least = policy._cross_entropy(soft, targets)
    torch.testing.assert_close(least, -(soft.exp() * soft).sum(-1).mean(-1))
    assert policy._cross_entropy(soft + torch.randn(21), targets) > least


def test_absent_landmarks_do_not_count(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    present = torch.tensor([True, False, True]).expand(4, 3)
    batch |= {"observation.landmarks_present": present}
    loss, _ = policy.forward(batch)
    batch["observation.landmarks"] = batch["observation.landmarks"].clone()
    batch["observation.landmarks"][:, 1] = float("nan")
    other, _ = policy.forward(batch)
    assert other == loss
    other.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_landmark_error_is_in_metres(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    landmarks = policy.predict(batch).landmarks.detach()
    batch["observation.landmarks"] = landmarks + torch.tensor([0.03, 0.0, 0.04])
    _, info = policy.forward(batch)
    assert info["landmark_error_m"] == pytest.approx(0.05, rel=1e-4)


def test_it_learns_what_the_picture_and_the_words_say(make_policy, make_batch):
    """The word tells whether to move along x or y, the brightness of the picture which way."""
    torch.manual_seed(0)
    policy = RazorPolicy(make_policy(image_jitter=0.0, num_landmarks=0).config)
    batch = make_batch(size=8)
    bright, along_y = torch.arange(8) % 2, torch.arange(8) // 2 % 2
    for key in IMAGES:
        batch[key] = torch.full((8, 64, 64, 3), 170, dtype=torch.uint8)
        batch[key][:, 20:40, 20:40] = (200 * bright).to(torch.uint8)[:, None, None, None]
    batch["observation.language.tokens"] = (10 + along_y)[:, None].repeat(1, 12)
    batch["observation.state"] = torch.zeros(8, 7)
    batch["action"] = torch.zeros(8, 4, 5)
    batch["action"][torch.arange(8), :, along_y] = (2.0 * bright - 1)[:, None]
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    policy.train()
    for _ in range(100):
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(policy.eval().predict_action_chunk(batch), batch["action"])


def test_encoded_images_stand_for_images(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    with torch.no_grad():
        encoded = policy.encode(batch)
        expected, got = policy.predict(batch), policy.predict(encoded)
    assert not set(IMAGES) & set(encoded)
    for left, right in zip(expected, got, strict=True):
        assert torch.equal(left, right)
    policy.predict(encoded).logits.square().sum().backward()
    assert all(p.grad is None for p in policy.vision_parameters())


def test_select_action_plays_the_chunk(make_policy, make_batch):
    policy, batch = make_policy(n_action_steps=3), make_batch()
    chunk = policy.predict_action_chunk(batch)
    for step in (0, 1, 2, 0):
        assert torch.equal(policy.select_action(batch), chunk[:, step])
    policy.reset()
    assert torch.equal(policy.select_action(batch), chunk[:, 0])


def test_sampled_chunks_follow_the_generator(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    draws = [
        policy.predict_action_chunk(
            batch, generator=torch.Generator().manual_seed(seed), deterministic=False
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_save_and_load_give_the_same_policy(make_policy, make_batch, tmp_path):
    policy, batch = (
        make_policy(landmark_names=["can", "bin", "shelf"], image_mean=(0.1, 0.2, 0.3)),
        make_batch(),
    )
    policy.save_pretrained(tmp_path)
    loaded = RazorPolicy.from_pretrained(tmp_path, strict=True)
    assert loaded.config == policy.config
    with torch.no_grad():
        for left, right in zip(policy.predict(batch), loaded.predict(batch), strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_action_steps": 5}, "chunk_size=4"),
        ({"num_bins": 20}, "odd"),
        ({"n_heads": 3}, "multiple of n_heads=3"),
        ({"landmark_names": ["can"]}, "num_landmarks=3"),
        ({"image_size": 66}, "multiple of 4"),
        ({"n_obs_steps": 2}, "must be 1"),
    ],
)
def test_settings_that_contradict_each_other(make_policy, settings, message):
    with pytest.raises(ValueError, match=message):
        make_policy(**settings)


def test_images_of_another_size_are_refused(make_policy):
    with pytest.raises(ValueError, match=r"\(3, 96, 96\)"):
        make_policy(image_size=96)


def test_keypoints_are_finer_than_bfloat16(make_policy, make_batch):
    """In bfloat16, places near the rim of an image would be half a pixel apart."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        keypoints = make_policy().encode(make_batch(size=3))[KEYPOINTS]
    places = keypoints[..., : 2 * keypoints.shape[-1] // 3]
    assert keypoints.dtype == torch.float32
    assert (places.bfloat16().float() != places).any()
