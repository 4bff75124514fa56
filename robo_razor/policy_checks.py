"""What a policy cannot do, by itself or as it is asked: checked before any work."""

from __future__ import annotations

from typing import Any

from robo_razor.errors import PolicyError
from robo_razor.flow.families import OWN_ACTIONS


def check_instruction(policy: Any, instruction: str) -> None:
    """Check that an instruction of the user's own says anything to a policy.

    Raises:
        PolicyError: If it has no word that the policy knows.
    """
    tokenizers: list[Any] = [getattr(step, "tokenizer", None) for step in policy.preprocessor.steps]
    readers = [t.known_words for t in tokenizers if hasattr(t, "known_words")]
    if not instruction.strip() or any(not read(instruction) for read in readers):
        raise PolicyError(
            f"The policy {policy.name!r} knows no word of the instruction {instruction!r}.",
            allowed="words as in the tasks' own instructions (robo-razor list)",
            remedy='Say it in other words, such as "pick up the red can".',
        )


def check_own_actions(policy: Any) -> None:
    """Check that a policy to train does not change actions by itself, unknown to training here.

    Raises:
        PolicyError: If it does.
    """
    for setting, reason in OWN_ACTIONS.items():
        if getattr(policy.config, setting, False):
            raise PolicyError(
                f"The policy {policy.name!r} (type {policy.config.type!r}) cannot be fine-tuned "
                f"here with its `{setting}: true`: {reason}",
                allowed=f"`{setting}: false`; evaluation takes both",
                remedy="Fine-tune a checkpoint that was trained without it, or this one with "
                "`lerobot-train`; `robo-razor evaluate` measures the result.",
            )


def check_token_actions(policy: Any) -> None:
    """Check that the actions of a policy with action tokens are what tokens stand for.

    Raises:
        PolicyError: If they are normalised.
    """
    mapping = policy.config.normalization_mapping
    mode = str(getattr(mapping.get("ACTION"), "value", "IDENTITY"))
    if mode != "IDENTITY":
        raise PolicyError(
            f"The policy {policy.name!r} normalises its actions ({mode}), but action tokens stand "
            "for actions in [-1, 1].",
            allowed="normalization_mapping ACTION: IDENTITY",
        )


def no_density(policy: Any) -> PolicyError:
    """Return the error of asking a policy for densities that it does not have."""
    return PolicyError(
        f"The policy {policy.name!r} (type {policy.config.type!r}) has no action density, so it "
        "has no log-probability, no KL divergence and no PPO.",
        allowed="policies with categorical action tokens, such as razor-base, and "
        "flow-matching ones (smolvla, pi0, pi05)",
        remedy="Fine-tune it with --method bc, or choose another --policy.",
    )
