"""The particularities of LeRobot's policy types: one class for each, in one file.

The file `act.py` registers the family of LeRobot's type `act`. A type without a family gets
`PolicyFamily` itself. Another package registers a family in a module that `--plugins` names, or by
an entry point in the group `robo_razor.families` with the name of the type:

    @FAMILIES.register("my_type")
    class MyFamily(PolicyFamily):
        def image_encoder(self, module):
            return module.backbone

They describe LeRobot 0.6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from robo_razor.core.plugins import FAMILIES
from robo_razor.policies.policy import LeRobotModule, Loaded, Policy
from robo_razor.policies.tokens import TokenPolicy

MeanOver = Literal["actions", "decisions"]

TOKEN_PARTS = ("action_logits", "predict", "bin_centers")
"""Attributes of a LeRobot policy with action tokens, see `tokens.TokenModule`."""


class PolicyFamily:
    """The particularities of a LeRobot policy type; this class is the default of all types.

    Args:
        type: LeRobot's name of the type.
    """

    masks_cameras: bool = False
    """Whether LeRobot masks a missing camera, so that any camera can be left out."""
    normalises_as_configured: bool = False
    """Whether only LeRobot's normalising steps normalise, as `normalization_mapping` says.

    Then loading checks a policy without a density for it too; one with a density is always checked.
    """
    samples_itself: bool = True
    """Whether LeRobot's sampler is used, and so may be compiled (`compile_model`)."""
    builds_without_memory: bool = True
    """Whether the module can be built on torch's `meta` device, to check its sizes."""
    refuses: Mapping[str, str] = {
        "use_relative_actions": "it predicts actions relative to the state, and its processors "
        "would have to turn demonstrations and densities into those",
        "adapt_to_pi_aloha": "its own code turns joints and grippers of ALOHA into others, inside "
        "the policy",
    }
    """Settings -> how they transform actions inside the policy, so that fine-tuning is refused."""

    def __init__(self, type: str) -> None:
        self.type = type

    def wrap(self, loaded: Loaded) -> Policy:
        """Return the policy, of a class that fits the module."""
        has_tokens = all(hasattr(loaded.module, part) for part in TOKEN_PARTS)
        return TokenPolicy(loaded) if has_tokens else Policy(loaded)

    def image_encoder(self, module: LeRobotModule) -> nn.Module | None:
        """Return the part that `freeze_vision` stops training; None: unknown."""
        return None

    def loss_mean_over(self, config: Any) -> MeanOver:
        """Return whether the cloning loss is a mean over actions or decisions, to weigh ranks.

        "actions" where the loss leaves padding out and weighs all other actions of a batch equally,
        "decisions" where it averages over padding too, or over each decision's actions first.

        Args:
            config: The policy's LeRobot configuration.
        """
        return "actions" if getattr(config, "do_mask_loss_for_padding", False) else "decisions"

    def refused(self, config: Any) -> tuple[str, str] | None:
        """Return the first setting of `refuses` that is set, with its reason."""
        settings = (setting for setting in self.refuses if getattr(config, setting, False))
        setting = next(settings, None)
        return None if setting is None else (setting, self.refuses[setting])

    def backbone(self, config: Any) -> str | None:
        """Return the folder or hub id from which a backbone's settings and tokenizer are read."""
        name: str | None = getattr(config, "vlm_model_name", None)
        return name

    def match_backbone(self, module: LeRobotModule) -> None:
        """Give a backbone that was built from the policy's folder the precision of LeRobot."""


def family_of(type: str) -> PolicyFamily:
    """Return the family of a LeRobot policy type; `PolicyFamily` for a type without one.

    Raises:
        RegistryError: An installed package with families cannot be imported.
    """
    make: Callable[[str], PolicyFamily] = FAMILIES.get(type) if type in FAMILIES else PolicyFamily
    return make(type)
