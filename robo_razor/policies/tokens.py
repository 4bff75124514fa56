"""A policy with categorical action tokens, whose densities and KL divergences are exact.

Axis letters: N environments, B batch, H actions in the executed chunk, A action dimensions,
K action tokens, W width of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from robo_razor.core.errors import PolicyError, shown
from robo_razor.policies.distributions import TokenChunkDistribution
from robo_razor.policies.inputs import check_unit_actions, prepare_bytes
from robo_razor.policies.policy import LeRobotModule, Loaded, Policy
from robo_razor.policies.reproducible import in_blocks

GRADIENT_BATCH = 128
"""Rows of a gradient step that one CPU thread computes at once: their activations fit its cache."""


class TokenOutput(Protocol):
    """The predictions of a `TokenModule`."""

    logits: Tensor
    """float [B, at least H, A, K]."""
    value: Tensor
    """float [B]."""


class TokenModule(LeRobotModule):
    """The functions of a LeRobot policy with action tokens; for the type checker only."""

    bin_centers: Tensor
    """Actions [K] of the tokens, ascending."""

    def action_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits of the tokens, [B, at least H, A, K]."""
        raise NotImplementedError

    def predict(self, batch: dict[str, Tensor], *, value_detach: bool) -> TokenOutput:
        """Return logits and value."""
        raise NotImplementedError

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace the images of a batch by the outputs of the image encoder."""
        raise NotImplementedError

    def vision_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the image encoder."""
        raise NotImplementedError


class TokenPolicy(Policy):
    """A policy with categorical action tokens: exact densities and KL divergences."""

    has_density = True

    module: TokenModule

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.gradient_batch = GRADIENT_BATCH if self.device.type == "cpu" else None
        self._check_tokens()
        for tokenizer in self.word_tokenizers():
            self._check_vocabulary(tokenizer)

    @property
    def action_bins(self) -> Tensor:
        """Return the actions [K] of the tokens, ascending."""
        return self.module.bin_centers

    def _check_tokens(self) -> None:
        """Check the actions of the policy's tokens.

        Raises:
            PolicyError: They are normalised, or not ascending.
        """
        mapping = self.config.normalization_mapping
        mode = str(getattr(mapping.get("ACTION"), "value", "IDENTITY"))
        if mode != "IDENTITY":
            raise PolicyError(
                f"The policy {self.name!r} normalises its actions ({mode}), but action tokens "
                "stand for actions in [-1, 1].",
                allowed="normalization_mapping ACTION: IDENTITY",
            )
        centers = self.module.bin_centers
        if not bool(torch.isfinite(centers).all()) or not bool((centers.diff() > 0).all()):
            raise PolicyError(
                f"The action tokens of the policy {self.name!r} do not stand for ascending "
                f"actions: {shown(centers.tolist())}",
                remedy="The settings of its tokens are damaged (`bin_mu` of razor): take another "
                "checkpoint.",
            )

    def _check_vocabulary(self, tokenizer: Any) -> None:
        """Check that the network has room for the tokens of a tokenizer."""
        for setting, tokens in (
            ("vocab_size", tokenizer.vocab_size),
            ("max_instruction_tokens", tokenizer.max_length),
        ):
            limit = getattr(self.config, setting, None)
            if limit is not None and tokens > limit:
                raise PolicyError(
                    f"The tokenizer of the policy {self.name!r} gives it {tokens} tokens, but its "
                    f"network takes {limit} (`{setting}`).",
                    remedy="The two are of different policies: take another checkpoint.",
                )

    def check_env(
        self,
        single_observation_space: spaces.Space[Any],
        single_action_space: spaces.Space[Any],
        also: Collection[str] = (),
    ) -> None:
        """Check as every policy does, and that actions lie in [-1, 1], as those of tokens do.

        Raises:
            PolicyEnvMismatchError: Something does not fit.
        """
        super().check_env(single_observation_space, single_action_space, also)
        check_unit_actions(self.name, single_action_space)

    def prepare(
        self, observation: dict[str, Any], instructions: Sequence[str]
    ) -> dict[str, Tensor]:
        """Turn host observations into the policy's inputs; images stay uint8 [N, W, W, 3]."""
        self.warn_of_unread_words(instructions)
        return prepare_bytes(self, observation, instructions)

    def try_out(self) -> None:
        """Run the policy once on an observation of zeros, to find errors and overflows early.

        Raises:
            PolicyError: It fails, or its outputs are not finite.
        """
        height, width = self.image_shape
        images = np.zeros((1, height, width, 3), np.uint8)
        observation: dict[str, Any] = {"pixels": dict.fromkeys(self.camera_names, images)}
        observation[self.sources.state()] = np.zeros((1, self.state_dim), np.float32)
        batch = self.prepare(observation, [""])
        try:
            with torch.no_grad():
                self.distribution_and_value(batch)
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            text = (str(error).strip().splitlines() or ["no message"])[0][:300]
            raise PolicyError(
                f"The policy {self.name!r} fails on an observation: {type(error).__name__}: {text}",
                remedy="Its settings, processors and weights do not fit together: take another "
                "checkpoint.",
            ) from error

    def distribution(self, batch: dict[str, Tensor]) -> TokenChunkDistribution:
        """Return the distribution of the executed chunk."""
        (logits,) = self._infer(batch, lambda rows: (self.module.action_logits(rows),))
        self._check_output(batch, "logits of actions", logits)
        return self._token_distribution(logits)

    def distribution_and_value(
        self, batch: dict[str, Tensor], value_detach: bool = True
    ) -> tuple[TokenChunkDistribution, Tensor]:
        """Return the distribution of the executed chunk and the value [B].

        Args:
            batch: Prepared observations.
            value_detach: Let no gradient of the value reach what the actions depend on.
        """

        def predict(rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            output = self.module.predict(rows, value_detach=value_detach)
            return output.logits, output.value

        logits, value = self._infer(batch, predict)
        self._check_output(batch, "logits of actions and values", logits, value)
        return self._token_distribution(logits), value

    def freeze_vision(self) -> None:
        """Stop training the image encoder; then `encode` once per observation is enough."""
        for parameter in self.module.vision_parameters():
            parameter.requires_grad_(False)
        self.vision_frozen = True

    @torch.no_grad()
    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace the images of prepared observations by the outputs of the image encoder.

        The result can be used in place of `batch` while the encoder's weights do not change, by
        every policy that shares them, such as a base and a copy of it that was tuned with
        `freeze_vision`. It halves the time of an update and shrinks a rollout buffer.
        """
        names: list[str] = []

        def run(rows: dict[str, Tensor]) -> tuple[Tensor, ...]:
            encoded = self.module.encode(rows)
            names[:] = encoded
            return tuple(encoded.values())

        values = self._infer(batch, run)
        return dict(zip(names, values, strict=True))

    def _token_distribution(self, logits: Tensor) -> TokenChunkDistribution:
        executed = logits[:, : self.chunk_size]
        return TokenChunkDistribution(executed, self.module.bin_centers, self.temperature)

    def _check_output(self, batch: dict[str, Tensor], what: str, *outputs: Tensor) -> None:
        """Check that outputs are finite, except in training, where the loss is checked."""
        if not torch.is_grad_enabled():
            self.check_finite(what, *outputs, inputs=batch)

    def _infer[T: tuple[Tensor, ...]](
        self, batch: dict[str, Tensor], predict: Callable[[dict[str, Tensor]], T]
    ) -> T:
        """Run `predict` directly when training, and in blocks of one fixed size otherwise."""
        if torch.is_grad_enabled():
            return predict(batch)
        return in_blocks(predict, batch, self.inference_batch)
