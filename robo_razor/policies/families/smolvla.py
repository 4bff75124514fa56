"""SmolVLA (Shukor et al. 2025): a small vision-language model with an action expert."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.families import MeanOver
from robo_razor.policies.flow.adapter import (
    TOKEN_MASK,
    TOKENS,
    FlowAdapter,
    Prefix,
    PrefixAdapter,
    holds,
)
from robo_razor.policies.flow.family import FlowFamily
from robo_razor.policies.policy import LeRobotModule


@FAMILIES.register("smolvla")
class SmolVLA(FlowFamily):
    """LeRobot's `smolvla`."""

    def adapter(self, module: LeRobotModule) -> FlowAdapter:
        """Return the sampler's view of the policy."""
        return SmolVLAAdapter(module)

    def loss_mean_over(self, config: Any) -> MeanOver:
        """Return "actions": padding is left out of the loss."""
        return "actions"

    def match_backbone(self, module: LeRobotModule) -> None:
        """Give the backbone bfloat16, as LeRobot does when it loads the backbone's weights."""
        if getattr(module.config, "load_vlm_weights", False):
            module.model.vlm_with_expert.vlm.to(torch.bfloat16)


class SmolVLAAdapter(PrefixAdapter):
    """SmolVLA (Shukor et al. 2025): the state is the prefix' last token."""

    float32_expert = True

    def __init__(self, module: LeRobotModule) -> None:
        text = module.model.vlm_with_expert.config.text_config
        super().__init__(module, module.config.num_steps, text.hidden_size)

    def encode(self, batch: dict[str, Tensor]) -> Prefix:
        """Encode prepared observations; see `FlowAdapter`."""
        from lerobot.policies.common.vla_utils import make_att_2d_masks

        images, masks = self.module.prepare_images(batch)
        embedded, pad, attention = self.model.embed_prefix(
            images, masks, batch[TOKENS], batch[TOKEN_MASK], state=self.module.prepare_state(batch)
        )
        (output, _), cache = self.model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad, attention),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        return self._prefix(batch, pad, cache, output)

    def velocity(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity; see `FlowAdapter`."""
        velocity: Tensor = self.model.denoise_step(
            prefix_pad_masks=prefix.pad_masks, past_key_values=prefix.cache(), x_t=x, timestep=t
        )
        return velocity.float()

    def vision(self) -> nn.Module:
        """Return the image encoder."""
        encoder: nn.Module = self.model.vlm_with_expert.get_vlm_model().vision_model
        return encoder

    def prefix_modules(self) -> list[nn.Module]:
        """Return the modules of `encode`."""
        return [self.model.vlm_with_expert.vlm, self.model.state_proj]

    def expert_modules(self) -> list[nn.Module]:
        """Return all other modules."""
        names = ("action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")
        return [self.model.vlm_with_expert.lm_expert, *(getattr(self.model, n) for n in names)]

    def to_float32(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make parts with these parameters float32; LeRobot casts between the parts."""
        ids = {id(p) for p in parameters}
        for part in (*self.prefix_modules(), *self.expert_modules()):
            if holds(part, ids):
                part.float()
