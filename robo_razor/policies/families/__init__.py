"""What is particular to LeRobot's policy types: one class for each, in one file.

The file `act.py` registers the family of LeRobot's type `act`. A type that nobody registered gets
`PolicyFamily` itself. A family of another package is registered by a module given to `--plugins`,
or by an entry point in the group `robo_razor.families` called as the type:

    @FAMILIES.register("my_type")
    class MyFamily(PolicyFamily):
        def image_encoder(self, module):
            return module.backbone

As read in LeRobot 0.6.1.
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
"""What a LeRobot policy with action tokens has, see `tokens.TokenModule`."""


class PolicyFamily:
    """What is particular to a LeRobot policy type; this one knows nothing in particular.

    Args:
        type: LeRobot's name of the type.
    """

    masks_cameras: bool = False
    """Whether LeRobot masks whatever camera is missing, so that any can be left out."""
    normalises_as_configured: bool = False
    """Whether nothing but LeRobot's normalising steps normalises, by `normalization_mapping`.

    Then a policy without a density is checked for it too; one with a density always is.
    """
    samples_itself: bool = True
    """Whether LeRobot's own sampler is used, and so may be compiled (`compile_model`)."""
    builds_without_memory: bool = True
    """Whether the module can be built on torch's `meta` device, to see that its sizes are sane."""
    refuses: Mapping[str, str] = {
        "use_relative_actions": "it predicts actions relative to the state, and its processors "
        "would have to turn demonstrations and densities into those",
        "adapt_to_pi_aloha": "its own code turns joints and grippers of ALOHA into others, inside "
        "the policy",
    }
    """Settings under which a policy changes actions by itself, and how: it is not fine-tuned."""

    def __init__(self, type: str) -> None:
        self.type = type

    def wrap(self, loaded: Loaded) -> Policy:
        """Return the policy, of the kind that does what the module offers."""
        has_tokens = all(hasattr(loaded.module, part) for part in TOKEN_PARTS)
        return TokenPolicy(loaded) if has_tokens else Policy(loaded)

    def image_encoder(self, module: LeRobotModule) -> nn.Module | None:
        """Return the part that `freeze_vision` stops training, None where it is not known."""
        return None

    def loss_mean_over(self, config: Any) -> MeanOver:
        """Return what the cloning loss is a mean of: several ranks weigh their parts by it.

        "actions" where padding is left out and all other actions of a batch weigh alike,
        "decisions" where the loss averages over padding too, or over each decision's actions first.

        Args:
            config: The policy's LeRobot configuration.
        """
        return "actions" if getattr(config, "do_mask_loss_for_padding", False) else "decisions"

    def refused(self, config: Any) -> tuple[str, str] | None:
        """Return the first of `refuses` that a configuration has, with its reason."""
        settings = (setting for setting in self.refuses if getattr(config, setting, False))
        setting = next(settings, None)
        return None if setting is None else (setting, self.refuses[setting])

    def backbone(self, config: Any) -> str | None:
        """Return the folder or hub id of the backbone whose settings and tokenizer are read."""
        name: str | None = getattr(config, "vlm_model_name", None)
        return name

    def match_backbone(self, module: LeRobotModule) -> None:
        """Give a backbone that was built from the policy's own folder LeRobot's precision."""


def family_of(type: str) -> PolicyFamily:
    """Return the family of a LeRobot policy type; `PolicyFamily` where there is no other.

    Raises:
        RegistryError: An installed package that offers families cannot be imported.
    """
    make: Callable[[str], PolicyFamily] = FAMILIES.get(type) if type in FAMILIES else PolicyFamily
    return make(type)
