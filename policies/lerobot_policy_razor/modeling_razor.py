"""The `razor` policy: a compact vision-language-action model with categorical action tokens.

Axis letters: B batch, H chunk, A action dimensions, K bins, L landmark slots, S state, N tokens,
D model width, C keypoints per camera.

Every camera has a small convolutional stem that ends in a spatial softmax. Its keypoints, the
state and the instruction become tokens. So do the positions of the landmarks (objects and
fixtures), which a read-out predicts from the keypoints and the simulator labels for free. In a
pre-norm transformer H action queries read these tokens. Each query predicts one categorical
distribution per action dimension, so that log-probabilities and KL divergences are exact. The value
head attends to the transformer's tokens through its own layer. By default no gradient passes from
it to them: a value loss must not change the policy.
"""

from collections import deque
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import (
    ACTION,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from torch import Tensor, nn

from lerobot_policy_razor.configuration_razor import (
    KEYPOINTS,
    LANDMARKS,
    LANDMARKS_PRESENT,
    RazorConfig,
)
from lerobot_policy_razor.sublayers import Affine, feed_forward, self_attention

INITIAL_MAP_SCALE = 0.3
"""Factor on the first weights of the feature maps whose peaks become keypoints."""


class RazorOutput(NamedTuple):
    """The policy's predictions for one batch."""

    logits: Tensor  # [B, H, A, K], unnormalised log-probabilities of the bins.
    value: Tensor  # [B], expected return.
    landmarks: Tensor  # [B, L, 3], metres in the base frame.
    landmark_logits: Tensor  # [B, L], > 0 where a landmark is probably present.


def mu_law_centers(num_bins: int, mu: float) -> Tensor:
    """Return symmetric bin centres [K] in [-1, 1], exact zero in the middle, finest around it."""
    steps = torch.arange(num_bins, dtype=torch.float64) - num_bins // 2
    u = steps / (num_bins // 2)
    return (torch.sign(u) * ((1 + mu) ** u.abs() - 1) / mu).float()


class SpatialStem(nn.Module):
    """Image [B, 3, W, W] to keypoints: position and height of the peak of each of C feature maps.

    Args:
        channels: Widths of the three convolutions; the last is C.
        image_size: W, pixels.
        temperature: Factor on the logits of the softmax over image positions.
    """

    grid: Tensor

    def __init__(self, channels: tuple[int, int, int], image_size: int, temperature: float) -> None:
        super().__init__()
        first, second, last = channels
        self.convs = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.maps = nn.Conv2d(second, last, 3, stride=1, padding=1)
        self.temperature = temperature
        side = torch.linspace(-1.0, 1.0, image_size // 4)
        y, x = torch.meshgrid(side, side, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], -1).reshape(-1, 2), persistent=False)
        self.out_features = 3 * last

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, 3C]: expected x, expected y (both in [-1, 1]) and peak of each feature map."""
        hidden = self.convs(images)
        # The temperature scales the weights, which is cheaper than scaling the maps.
        weight, bias = self.maps.weight * self.temperature, self.maps.bias * self.temperature
        logits = rearrange(
            F.conv2d(hidden, weight, bias, padding=1), "b c h w -> b c (h w)"
        ).float()
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 rounds to half pixels
            position = rearrange(torch.softmax(logits, dim=-1) @ self.grid, "b c xy -> b (c xy)")
        return torch.cat([position, logits.amax(-1) / self.temperature], dim=-1)


class LandmarkReadout(nn.Module):
    """Keypoints and state to landmark positions (in read-out units) and presence logits."""

    def __init__(self, in_features: int, hidden: int, num_landmarks: int) -> None:
        super().__init__()
        self.num_landmarks = num_landmarks
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, num_landmarks * 4),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions [B, L, 3] and presence logits [B, L]."""
        out = rearrange(self.mlp(features), "b (l f) -> b l f", l=self.num_landmarks).float()
        return out[..., :3], out[..., 3]


PLAIN = (nn.Linear, nn.LayerNorm)
"""The types of the layers of a block; one with an adapter is of another type."""


def is_updated(layer: nn.Module) -> bool:
    """Return whether a layer's weight has an update, which its `updated_weight` adds to it."""
    return hasattr(layer, "updated_weight")


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor, mask: Tensor, last: int | None = None) -> Tensor:
        """Update tokens [B, N, D]; mask bool [B, 1, 1, N] is True where a token may be read.

        With `last`, only that many tokens at the end are updated and returned.
        """
        first = 0 if last is None else tokens.shape[1] - last
        if self._is_plain(tokens):
            norm1, qkv, out, norm2, wide, narrow = self.affine()
            tokens = self_attention(tokens, mask, norm1, qkv, out, self.heads, first)
            return feed_forward(tokens, norm2, wide, narrow)
        q, k, v = rearrange(
            self.qkv(self.norm1(tokens)), "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        attended = _attend(q[:, :, first:], k, v, mask)
        tokens = tokens[:, first:] + self.out(rearrange(attended, "b h n d -> b n (h d)"))
        return tokens + self.mlp(self.norm2(tokens))

    def affine(self) -> list[Affine]:
        """Return weight and bias of the layers, in the order in which they are applied."""
        return [
            (layer.updated_weight() if is_updated(layer) else layer.weight, layer.bias)
            for layer in self._layers()
        ]

    def _layers(self) -> list[Any]:
        return [self.norm1, self.qkv, self.out, self.norm2, self.mlp[0], self.mlp[2]]

    def _is_plain(self, tokens: Tensor) -> bool:
        """Return whether the layers are what they seem: no adapter, no hook, one precision."""
        return (
            tokens.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and all(
                (type(layer) in PLAIN or is_updated(layer))
                and not layer._forward_hooks
                and not layer._forward_pre_hooks
                and layer.weight.dtype == tokens.dtype
                for layer in self._layers()
            )
        )


class ValueHead(nn.Module):
    """One learned query reads the trunk's tokens and predicts the expected return.

    As the query does not depend on the tokens, it meets the key layer's weights before the tokens
    do, and values are made of what was read: a twentieth of the work of keys and values for every
    token. The last layer is an element-wise product and a sum, because a linear layer with a single
    output rounds differently with another number of threads.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU())
        self.weight = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return values [B] from tokens [B, N, D] and mask bool [B, 1, 1, N]."""
        normal = self.norm(tokens)
        key, value = rearrange(
            self.key_value.weight, "(two h d) w -> two h d w", two=2, h=self.heads
        )
        key_bias, value_bias = rearrange(
            self.key_value.bias, "(two h d) -> two h d", two=2, h=self.heads
        )
        query = rearrange(self.query, "(h d) -> h d", h=self.heads) * key.shape[1] ** -0.5
        scores = F.linear(normal, (key * query[..., None]).sum(1), (key_bias * query).sum(1))
        scores = scores.float().masked_fill(~rearrange(mask, "b 1 1 n -> b n 1"), float("-inf"))
        weights = torch.softmax(scores, dim=1)
        read = torch.bmm(rearrange(weights, "b n h -> b h n"), normal)
        attended = (
            torch.bmm(rearrange(read, "b h w -> h b w"), rearrange(value, "h d w -> h w d"))
            + value_bias[:, None]
        )
        hidden = self.mlp(rearrange(attended, "h b d -> b (h d)")).float()
        return (hidden * self.weight).sum(-1) + self.bias


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend in single precision: torch's bfloat16 kernel for the CPU is 4 times slower."""
    dtype = q.dtype
    with torch.autocast(q.device.type, enabled=False):
        attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    return attended.to(dtype)


class _Trunk(NamedTuple):
    queries: Tensor  # [B, H, D], the action queries after the last layer.
    tokens: Tensor  # [B, N, D], all tokens before the last layer.
    mask: Tensor  # bool [B, 1, 1, N], True where a token may be read.
    positions: Tensor  # [B, L, 3], read-out units.
    landmark_logits: Tensor  # [B, L]


class RazorPolicy(PreTrainedPolicy):
    """Compact vision-language-action policy.

    Batch keys: `observation.images.<camera>` (float [B, 3, W, W] in [0, 1], or uint8 [B, W, W, 3]
    or [B, 3, W, W]), `observation.state` float [B, S] (normalised), `observation.language.tokens`
    int64 [B, 12] and `observation.language.attention_mask` bool [B, 12] (True means a word). For
    training also `action` float [B, H, A] in [-1, 1], and optionally `action_is_pad` bool [B, H],
    `observation.landmarks` float [B, L, 3] (metres, base frame) and
    `observation.landmarks_present` bool [B, L]. The result of `encode` can replace the images.
    """

    config_class = RazorConfig
    name = "razor"
    accepts_uint8_images = True
    config: RazorConfig
    bin_centers: Tensor
    bin_edges: Tensor
    image_mean: Tensor
    image_std: Tensor
    landmark_center: Tensor

    def __init__(self, config: RazorConfig, **kwargs: Any) -> None:
        super().__init__(config)
        config.validate_features()
        dim = config.dim_model
        self.stems = nn.ModuleList(
            SpatialStem(config.stem_channels, config.image_size, config.softmax_temperature)
            for _ in config.camera_keys
        )
        keypoints = 3 * config.stem_channels[-1]
        self.word_embedding = nn.Embedding(config.vocab_size, dim)
        self.word_position = nn.Parameter(torch.zeros(config.max_instruction_tokens, dim))
        self.camera_projections = nn.ModuleList(nn.Linear(keypoints, dim) for _ in self.stems)
        self.state_projection = nn.Linear(config.state_dim, dim)
        if config.num_landmarks:
            self.landmark_readout = LandmarkReadout(
                keypoints * len(self.stems) + config.state_dim,
                config.dim_head,
                config.num_landmarks,
            )
            self.slot_embedding = nn.Parameter(torch.zeros(config.num_landmarks, dim))
            self.slot_position = nn.Linear(4, dim)
            self.slot_state = nn.Linear(config.state_dim, dim)
            self.slot_out = nn.Linear(dim, dim)
        self.action_query = nn.Parameter(torch.zeros(config.chunk_size, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.n_heads, config.dim_feedforward) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.action_head = nn.Sequential(
            nn.Linear(dim, config.dim_head),
            nn.GELU(),
            nn.Linear(config.dim_head, config.action_dim * config.num_bins),
        )
        self.value_head = ValueHead(dim, config.n_heads, config.dim_head)
        self._register_constants()
        self._init_weights()
        self.reset()

    def _register_constants(self) -> None:
        """Register what follows from the configuration as buffers outside the weights file."""
        config = self.config
        centers = mu_law_centers(config.num_bins, config.bin_mu)
        constants = {
            "bin_centers": centers,
            "bin_edges": (centers[1:] + centers[:-1]) / 2,
            "image_mean": torch.tensor(config.image_mean).view(3, 1, 1),
            "image_std": torch.tensor(config.image_std).view(3, 1, 1),
            "landmark_center": torch.tensor(config.landmark_center),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for stem in self.stems:
            # A softmax that begins peaked passes hardly any gradient to the other positions.
            with torch.no_grad():
                stem.maps.weight *= INITIAL_MAP_SCALE
        for parameter in (self.word_embedding.weight, self.word_position, self.action_query):
            nn.init.normal_(parameter, std=0.02)
        if self.config.num_landmarks:
            nn.init.normal_(self.slot_embedding, std=0.02)
        nn.init.normal_(self.action_head[-1].weight, std=0.01)
        nn.init.zeros_(self.action_head[-1].bias)

    # Tokens ---------------------------------------------------------------------------------

    def _images(self, images: Tensor, augment: bool) -> Tensor:
        """Return images as float [B, 3, W, W] of about zero mean and unit variance."""
        if images.shape[-1] == 3 and images.shape[1] != 3:
            images = rearrange(images, "b h w c -> b c h w")
        # Float images are 8 bit images divided by 255. With that undone, and with one memory layout
        # (the fast one), both kinds give the same bits.
        images = images.float() if images.dtype == torch.uint8 else (images * 255.0).round()
        images = images.contiguous(memory_format=torch.channels_last)
        gain, bias = 1 / (255.0 * self.image_std), -self.image_mean / self.image_std
        if augment and self.config.image_shift_px:
            images = self._shift(images)
        if augment and self.config.image_jitter:
            gain, bias = self._jitter(len(images), gain, bias)
        return torch.addcmul(bias, images, gain)

    def _shift(self, images: Tensor) -> Tensor:
        """Move each image by a few random pixels; edges repeat."""
        shift, size, device = self.config.image_shift_px, images.shape[-1], images.device
        offset = torch.randint(-shift, shift + 1, (2, len(images), 1), device=device)
        rows, columns = (torch.arange(size, device=device) + offset).clamp(0, size - 1)
        index = torch.arange(len(images), device=device)[:, None, None]
        moved = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2)

    def _jitter(self, batch: int, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Change contrast, colour and brightness of each image: gain and bias [B, 3, 1, 1]."""
        jitter = self.config.image_jitter
        noise = torch.empty(3, batch, 3, 1, 1, device=gain.device).uniform_(-jitter, jitter)
        factor = 1.0 + noise[0, :, :1] + 0.5 * noise[1]
        return gain * factor, bias * factor + noise[2, :, :1] / self.image_std

    def _perceive(
        self, batch: dict[str, Tensor], augment: bool
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Return keypoints per camera, the state, landmark positions and presence logits."""
        state = batch[OBS_STATE]
        if augment and self.config.state_noise:
            state = state + self.config.state_noise * torch.randn_like(state)
        if KEYPOINTS in batch:
            keypoints = list(batch[KEYPOINTS].unbind(1))
        else:
            keypoints = [
                stem(self._images(batch[key], augment))
                for key, stem in zip(self.config.camera_keys, self.stems, strict=True)
            ]
        if self.config.num_landmarks:
            positions, presence = self.landmark_readout(torch.cat([*keypoints, state], dim=-1))
        else:
            positions, presence = state.new_zeros(len(state), 0, 3), state.new_zeros(len(state), 0)
        return keypoints, state, positions, presence

    def _trunk(self, batch: dict[str, Tensor], augment: bool = False) -> _Trunk:
        """Embed a batch and run the transformer."""
        keypoints, state, positions, presence = self._perceive(batch, augment)
        word_ids, readable = self._word_ids(batch)
        size, length = word_ids.shape
        tokens = [self.word_embedding(word_ids) + self.word_position[:length]]
        tokens += [
            projection(points)[:, None]
            for projection, points in zip(self.camera_projections, keypoints, strict=True)
        ]
        tokens.append(self.state_projection(state)[:, None])
        if self.config.num_landmarks:
            tokens.append(self._slots(positions, presence, state))
        tokens.append(repeat(self.action_query, "h d -> b h d", b=size))
        hidden = torch.cat(tokens, dim=1)
        mask = F.pad(readable, (0, hidden.shape[1] - length), value=True)[:, None, None]
        for block in self.blocks[:-1]:
            hidden = block(hidden, mask)
        queries = self.blocks[-1](hidden, mask, last=self.config.chunk_size)
        return _Trunk(queries, hidden, mask, positions, presence)

    def _word_ids(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return token ids and mask [B, N]; when training, no longer than the longest instruction.

        Shorter inputs are faster but round differently. That must not happen when acting, because
        an episode may not depend on the instructions of others.
        """
        word_ids, readable = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK].bool()
        if torch.is_grad_enabled():
            length = max(1, int(readable.any(0).sum()))
            word_ids, readable = word_ids[:, :length], readable[:, :length]
        return word_ids, readable

    def _slots(self, positions: Tensor, presence: Tensor, state: Tensor) -> Tensor:
        """Return one token [B, L, D] per landmark slot."""
        estimate = torch.cat([positions, torch.sigmoid(presence)[..., None]], dim=-1)
        if self.config.detach_landmarks:
            estimate = estimate.detach()
        hidden = self.slot_position(estimate) + self.slot_state(state)[:, None]
        return self.slot_out(F.gelu(hidden + self.slot_embedding)) + self.slot_embedding

    # Predictions ----------------------------------------------------------------------------

    def _action_logits(self, trunk: _Trunk) -> Tensor:
        logits = self.action_head(self.norm(trunk.queries)).float()
        return rearrange(logits, "b h (a k) -> b h a k", k=self.config.num_bins)

    def _landmarks(self, positions: Tensor) -> Tensor:
        return positions * self.config.landmark_scale + self.landmark_center

    def predict(self, batch: dict[str, Tensor], value_detach: bool = True) -> RazorOutput:
        """Predict action logits, value and landmarks.

        Args:
            batch: Preprocessed observations.
            value_detach: Stop the gradient of the value at the transformer's tokens.
        """
        trunk = self._trunk(batch)
        tokens = trunk.tokens.detach() if value_detach else trunk.tokens
        return RazorOutput(
            logits=self._action_logits(trunk),
            value=self.value_head(tokens, trunk.mask),
            landmarks=self._landmarks(trunk.positions),
            landmark_logits=trunk.landmark_logits,
        )

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace the images by `observation.keypoints` [B, cameras, 3C].

        The convolutions take half of the time. While they are frozen, once per image is enough.
        """
        keypoints, *_ = self._perceive(batch, augment=False)
        other_inputs = {
            key: value for key, value in batch.items() if key not in self.config.camera_keys
        }
        return {**other_inputs, KEYPOINTS: torch.stack(keypoints, dim=1)}

    def action_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return only the logits [B, H, A, K], for imitation and KL."""
        return self._action_logits(self._trunk(batch))

    def tokenize(self, actions: Tensor) -> Tensor:
        """Return the index int64 [...] of the bin whose centre is nearest to each action."""
        return torch.bucketize(actions.contiguous(), self.bin_edges)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        generator: torch.Generator | None = None,
        deterministic: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Return an action chunk [B, H, A] in [-1, 1].

        Args:
            batch: Preprocessed observations.
            generator: Source of randomness when not deterministic.
            deterministic: Take the likeliest bin of every dimension instead of a sample.
            **kwargs: Ignored; LeRobot passes options of other policies.
        """
        logits = self.action_logits(batch)
        if deterministic:
            return self.bin_centers[logits.argmax(-1)]
        probabilities = rearrange(torch.softmax(logits, -1), "b h a k -> (b h a) k")
        tokens = torch.multinomial(probabilities, 1, generator=generator)
        return self.bin_centers[tokens.view(logits.shape[:-1])]

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action [B, A]; predict a new chunk when the last one is used up."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.unbind(1))
        return self._queue.popleft()

    def reset(self) -> None:
        """Forget the actions that are still to be executed."""
        self._queue: deque[Tensor] = deque()

    # Losses ---------------------------------------------------------------------------------

    def forward(
        self, batch: dict[str, Tensor], reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the imitation loss and its parts.

        The loss is the cross-entropy per action token, plus `landmark_weight` times the smooth-L1
        error of the landmark positions and `presence_weight` times the cross-entropy of their
        presence, if the batch has landmarks. In training mode the images are augmented; the other
        predictions never augment.

        Args:
            batch: Preprocessed observations with `action`.
            reduction: "mean" for a scalar, "none" for [B].
        """
        trunk = self._trunk(batch, augment=self.training)
        logits = self._action_logits(trunk)
        targets = self.tokenize(batch[ACTION].float())
        action_loss = _masked_mean(self._cross_entropy(logits, targets), batch.get("action_is_pad"))
        loss = action_loss
        with torch.no_grad():
            hits = (logits.argmax(-1) == targets).float().mean(-1)
            accuracy = _masked_mean(hits, batch.get("action_is_pad")).mean()
        info = {"action_loss": action_loss.mean().item(), "token_accuracy": accuracy.item()}
        if LANDMARKS in batch and self.config.num_landmarks:
            auxiliary, landmark_info = self._landmark_loss(trunk, batch)
            loss = loss + auxiliary
            info |= landmark_info
        return (loss if reduction == "none" else loss.mean()), info

    def landmark_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return only the landmark loss, without running the transformer."""
        _, state, positions, presence = self._perceive(batch, augment=self.training)
        empty = state.new_zeros(0)
        trunk = _Trunk(empty, empty, empty, positions, presence)
        loss, info = self._landmark_loss(trunk, batch)
        return loss.mean(), info

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy [B, H], averaged over action dimensions."""
        sigma = self.config.label_smoothing_bins
        log_probs = torch.log_softmax(logits, -1)
        if sigma <= 0:
            return -log_probs.gather(-1, targets[..., None]).squeeze(-1).mean(-1)
        bins = torch.arange(self.config.num_bins, device=logits.device)
        distance = (bins - targets[..., None]).float()
        return -(torch.softmax(-0.5 * (distance / sigma) ** 2, -1) * log_probs).sum(-1).mean(-1)

    def _landmark_loss(
        self, trunk: _Trunk, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted landmark loss [B] and its parts."""
        config, target = self.config, batch[LANDMARKS].float()
        present = batch.get(LANDMARKS_PRESENT)
        present = torch.ones_like(target[..., 0]) if present is None else present.float()
        predicted = self._landmarks(trunk.positions)
        # Absent landmarks may be NaN, and zero times NaN is NaN.
        target = torch.where(present[..., None] > 0, target, predicted.detach())
        error = F.smooth_l1_loss(predicted, target, beta=config.landmark_beta, reduction="none")
        position_loss = _masked_mean(error.mean(-1), present == 0)
        presence_loss = F.binary_cross_entropy_with_logits(
            trunk.landmark_logits, present, reduction="none"
        ).mean(-1)
        with torch.no_grad():
            distance = (predicted - target).norm(dim=-1).sum() / present.sum().clamp(min=1)
        info = {
            "landmark_loss": position_loss.mean().item(),
            "presence_loss": presence_loss.mean().item(),
            "landmark_error_m": distance.item(),
        }
        return config.landmark_weight * position_loss + config.presence_weight * presence_loss, info

    # Parameters -----------------------------------------------------------------------------

    def value_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the value depends on."""
        return list(self.value_head.parameters())

    def vision_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `encode` depends on."""
        return list(self.stems.parameters())

    def lora_targets(self) -> list[nn.Linear]:
        """Return the layers that low-rank fine-tuning updates: transformer and action head."""
        parts = [*self.blocks, self.action_head]
        return [m for part in parts for m in part.modules() if isinstance(m, nn.Linear)]

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Return two parameter groups: matrices with weight decay, everything else without."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]


def _masked_mean(values: Tensor, masked_out: Tensor | None) -> Tensor:
    """Average values [B, X] over X, leaving out entries where the mask is True; returns [B]."""
    if masked_out is None:
        return values.mean(-1)
    weights = (~masked_out.bool()).to(values.dtype)
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1)
