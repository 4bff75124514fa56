"""pi0 (Black et al. 2024): PaliGemma with an action expert that reads the state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.flow.adapter import (
    TOKEN_MASK,
    TOKENS,
    FlowAdapter,
    Prefix,
    PrefixAdapter,
    holds,
)
from robo_razor.policies.flow.family import FlowFamily
from robo_razor.policies.flow.precision import has_low_precision
from robo_razor.policies.policy import LeRobotModule

PALIGEMMA = "google/paligemma-3b-pt-224"
"""LeRobot's pi0 and pi0.5 read its tokenizer; their configurations do not name it."""


@FAMILIES.register("pi0")
class Pi0(FlowFamily):
    """LeRobot's `pi0`."""

    def adapter(self, module: LeRobotModule) -> FlowAdapter:
        """Return the sampler's view of the policy."""
        return Pi0Adapter(module)

    def backbone(self, config: Any) -> str:
        """Return the hub id of PaliGemma."""
        return PALIGEMMA


class Pi0Adapter(PrefixAdapter):
    """pi0 (Black et al. 2024): the action expert reads the state at every step."""

    reads_state = True
    projections: tuple[str, ...] = (
        *("action_in_proj", "action_out_proj", "state_proj"),
        *("action_time_mlp_in", "action_time_mlp_out"),
    )

    def __init__(self, module: LeRobotModule) -> None:
        text = module.model.paligemma_with_expert.paligemma.config.text_config
        super().__init__(module, module.config.num_inference_steps, text.hidden_size)

    def encode(self, batch: dict[str, Tensor]) -> Prefix:
        """Encode prepared observations; see `FlowAdapter`."""
        from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

        network = self.model.paligemma_with_expert
        images, masks = self.module._preprocess_images(batch)
        embedded, pad, attention = self.model.embed_prefix(
            images, masks, batch[TOKENS], batch[TOKEN_MASK]
        )
        # As LeRobot's sampler does: other attention code does not take these masks.
        network.paligemma.model.language_model.config._attn_implementation = "eager"
        (output, _), cache = network.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad, attention)),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        state = self.module.prepare_state(batch) if self.reads_state else None
        return self._prefix(batch, pad, cache, output, state=state)

    def velocity(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity; see `FlowAdapter`."""
        state = {"state": prefix.state} if self.reads_state else {}
        velocity: Tensor = self.model.denoise_step(
            prefix_pad_masks=prefix.pad_masks,
            past_key_values=prefix.cache(),
            x_t=x,
            timestep=t,
            **state,
        )
        return velocity.float()

    def vision(self) -> nn.Module:
        """Return the image encoder."""
        encoder: nn.Module = self.model.paligemma_with_expert.paligemma.model.vision_tower
        return encoder

    def prefix_modules(self) -> list[nn.Module]:
        """Return the modules of `encode`."""
        return [self.model.paligemma_with_expert.paligemma]

    def expert_modules(self) -> list[nn.Module]:
        """Return all other modules."""
        projections = [getattr(self.model, name) for name in self.projections]
        return [self.model.paligemma_with_expert.gemma_expert, *projections]

    def to_float32(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make parts with these parameters float32; the language model takes the expert with it."""
        ids = {id(p) for p in parameters}
        network = self.model.paligemma_with_expert
        if holds(network.paligemma, ids):  # both get inputs in the language model's precision
            network.float()
        elif holds(network.gemma_expert, ids) and has_low_precision(network.gemma_expert):
            network.gemma_expert.float()
            first = network.gemma_expert.model.layers[0].input_layernorm
            first.register_forward_pre_hook(_float_input)


def _float_input(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert the input of a module to float32: LeRobot's cloning loss has rounded it."""
    return arguments[0].float(), *arguments[1:]
