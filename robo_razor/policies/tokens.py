"""A policy with categorical action tokens, whose densities and KL divergences are exact.

Axis letters: N environments, B batch, W width of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from robo_razor.policies.blocks import in_blocks
from robo_razor.policies.checks import check_finite_output, check_token_actions, try_out
from robo_razor.policies.distributions import TokenChunkDistribution
from robo_razor.policies.inputs import check_unit_actions
from robo_razor.policies.policy import Policy
from robo_razor.policies.preparation import prepare_bytes


class TokenPolicy(Policy):
    """A policy with categorical action tokens: exact densities and KL divergences."""

    has_density = True

    def __init__(
        self, module: Any, preprocessor: Any, postprocessor: Any, name: str, device: str = "cpu"
    ) -> None:
        super().__init__(module, preprocessor, postprocessor, name, device)
        check_token_actions(self)

    def check_env(
        self,
        single_observation_space: spaces.Space[Any],
        single_action_space: spaces.Space[Any],
        also: Collection[str] = (),
    ) -> None:
        """Check as every policy does, and that actions lie in [-1, 1], as tokens stand for.

        Raises:
            PolicyEnvMismatchError: If not.
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
        """Look once at an observation of zeros: what cannot work, or overflows, fails at once."""
        try_out(self)

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
        """Replace the images of prepared observations by what the image encoder makes of them.

        The result can be used in place of `batch` for as long as the encoder's weights do not
        change, and by every policy that shares them, such as a base and a copy of it that was tuned
        with `freeze_vision`. It halves the time of an update and shrinks a rollout buffer.
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
        """Check that outputs are finite, but for those of training: its loss is checked."""
        if not torch.is_grad_enabled():
            check_finite_output(self, what, *outputs, inputs=batch)

    def _infer[T: tuple[Tensor, ...]](
        self, batch: dict[str, Tensor], predict: Callable[[dict[str, Tensor]], T]
    ) -> T:
        """Run `predict` directly when training, and in blocks of one fixed size otherwise."""
        if torch.is_grad_enabled():
            return predict(batch)
        return in_blocks(predict, batch, self.inference_batch)
