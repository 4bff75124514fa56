"""What a policy cannot do, by itself or as it is asked: checked before any work."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robo_razor.core.errors import PolicyError, shown
from robo_razor.policies.flow.families import OWN_ACTIONS

logger = logging.getLogger(__name__)

MAX_WARNINGS = 20
"""Instructions per policy that are warned about; a data set may have thousands."""
WORD = re.compile(r"\S+")


def check_instruction(policy: Any, instruction: str) -> None:
    """Check that an instruction of the user's own says anything to a policy.

    Raises:
        PolicyError: If it has no word that the policy knows, among those that it reads.
    """
    readers = [t.read_words for t in _word_tokenizers(policy)]
    if not instruction.strip() or any(not read(instruction) for read in readers):
        raise PolicyError(
            f"The policy {policy.name!r} knows no word of the instruction {instruction!r}.",
            allowed="words as in the tasks' own instructions (robo-razor list)",
            remedy='Say it in other words, such as "pick up the red can".',
        )


def _word_tokenizers(policy: Any) -> list[Any]:
    """Return the tokenizers of a policy's own that can tell which words they know."""
    tokenizers = [getattr(step, "tokenizer", None) for step in policy.preprocessor.steps]
    return [tokenizer for tokenizer in tokenizers if hasattr(tokenizer, "read_words")]


def warn_of_unread_words(policy: Any, instructions: Iterable[str], warned: set[str]) -> None:
    """Warn, once per instruction, of the words that a policy does not read.

    Those that its tokenizer does not know, and those that its longest instruction cuts off.

    Args:
        policy: `Policy`.
        instructions: What it is told to do now.
        warned: The instructions that were looked at before; those of now are added.
    """
    for text in dict.fromkeys(instructions):
        if text in warned or len(warned) >= 100 * MAX_WARNINGS:
            continue
        warned.add(text)
        unknown, cut = unread_words(policy, text)
        if not unknown and not cut:
            continue
        policy.warnings_given += 1
        if policy.warnings_given > MAX_WARNINGS:
            continue
        parts = [f"it never learnt: {', '.join(unknown)}"] * bool(unknown)
        parts += [f"it cuts off, as they are too many: {', '.join(cut)}"] * bool(cut)
        logger.warning(
            "The policy %s does not read all words of the instruction %s. Words that %s.%s",
            policy.name,
            shown(text),
            "; words that ".join(parts),
            " Further instructions are not told." * (policy.warnings_given == MAX_WARNINGS),
        )


def unread_words(policy: Any, instruction: str) -> tuple[list[str], list[str]]:
    """Return the words of an instruction that a policy does not know, and those that it cuts off.

    Only of policies with a tokenizer of transformers; one of words, as razor has it, warns itself.
    """
    unknown: list[str] = []
    cut: list[str] = []
    for step in policy.preprocessor.steps:
        if getattr(step, "input_tokenizer", None) is not None:
            length = int(getattr(step, "max_length", 0) or 0)
            more_unknown, more_cut = _unread_pieces(step.input_tokenizer, instruction, length)
            unknown, cut = unknown + more_unknown, cut + more_cut
    return [word for word in unknown if word not in cut], cut


def _unread_pieces(tokenizer: Any, text: str, length: int) -> tuple[list[str], list[str]]:
    """Return the same of a tokenizer of transformers that reads `length` pieces of words."""
    if not getattr(tokenizer, "is_fast", False):  # others do not tell where a piece stands
        return [], []
    found = tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
    pieces = list(zip(found["input_ids"], found["offset_mapping"], strict=True))
    pieces = [(piece, span) for piece, span in pieces if span[0] < span[1]]
    special = len(found["input_ids"]) - len(pieces)
    read = max(0, length - special)
    end = pieces[read - 1][1][1] if 0 < read < len(pieces) else (0 if read == 0 else len(text))
    words = list(WORD.finditer(text))
    cut = [word.group() for word in words if word.end() > end]
    lost = [s for piece, s in pieces if piece == tokenizer.unk_token_id]
    unknown = [w.group() for w in words if any(a < w.end() and b > w.start() for a, b in lost)]
    return list(dict.fromkeys(unknown)), cut


def check_finite_output(policy: Any, what: str, *outputs: Tensor, inputs: Any = None) -> None:
    """Check that what a policy computed is finite: of NaN the largest is the first.

    Args:
        policy: `Policy`.
        what: What was computed, in the plural.
        *outputs: What was computed.
        inputs: Prepared observations that it was computed from, where they are at hand.

    Raises:
        PolicyError: A number is NaN or infinite.
    """
    if all(bool(torch.isfinite(output).all()) for output in outputs):
        return
    for key, value in (inputs or {}).items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise PolicyError(
                f"The policy {policy.name!r} was given NaN or infinity as {key!r}, and makes "
                f"{what} of it that are not finite either.",
                remedy="The observation is not finite, or far from what the policy normalises: "
                "look at the environment or the data set.",
            )
    count = sum(int((~torch.isfinite(output)).sum()) for output in outputs)
    raise PolicyError(
        f"The policy {policy.name!r} computed {what} of which {count:,} of "
        f"{sum(output.numel() for output in outputs):,} are NaN or infinite: its weights "
        "or its statistics are far too large.",
        remedy="Training diverged, or its file is damaged: take an earlier checkpoint of the run.",
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
        PolicyError: If they are normalised, or the actions of the tokens are no ascending numbers.
    """
    mapping = policy.config.normalization_mapping
    mode = str(getattr(mapping.get("ACTION"), "value", "IDENTITY"))
    if mode != "IDENTITY":
        raise PolicyError(
            f"The policy {policy.name!r} normalises its actions ({mode}), but action tokens stand "
            "for actions in [-1, 1].",
            allowed="normalization_mapping ACTION: IDENTITY",
        )
    centers = policy.module.bin_centers
    if not bool(torch.isfinite(centers).all()) or not bool((centers.diff() > 0).all()):
        raise PolicyError(
            f"The action tokens of the policy {policy.name!r} do not stand for ascending actions: "
            f"{shown(centers.tolist())}",
            remedy="The settings of its tokens are damaged (`bin_mu` of razor): take another "
            "checkpoint.",
        )
    for tokenizer in _word_tokenizers(policy):
        _check_vocabulary(policy, tokenizer)


def _check_vocabulary(policy: Any, tokenizer: Any) -> None:
    """Check that a policy's network knows as many words as its tokenizer gives it."""
    for setting, given in (
        ("vocab_size", tokenizer.vocab_size),
        ("max_instruction_tokens", tokenizer.max_length),
    ):
        most = getattr(policy.config, setting, None)
        if most is not None and given > most:
            raise PolicyError(
                f"The tokenizer of the policy {policy.name!r} gives it {given} tokens, but its "
                f"network takes {most} (`{setting}`).",
                remedy="The two are of different policies: take another checkpoint.",
            )


def try_out(policy: Any) -> None:
    """Let a policy look once at an observation of zeros: what cannot work fails at once.

    Args:
        policy: `Policy` with a density over tokens, for which that takes milliseconds.

    Raises:
        PolicyError: If it cannot compute anything finite of it.
    """
    height, width = policy.image_shape
    images = np.zeros((1, height, width, 3), np.uint8)
    observation: dict[str, Any] = {"pixels": dict.fromkeys(policy.camera_names, images)}
    observation[policy.sources.state()] = np.zeros((1, policy.state_dim), np.float32)
    batch = policy.prepare(observation, [""])
    try:
        with torch.no_grad():
            policy.distribution_and_value(batch)
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        text = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise PolicyError(
            f"The policy {policy.name!r} cannot look at an observation: {type(error).__name__}: "
            f"{text}",
            remedy="Its settings, processors and weights do not fit together: take another "
            "checkpoint.",
        ) from error


def no_density(policy: Any) -> PolicyError:
    """Return the error of asking a policy for densities that it does not have."""
    return PolicyError(
        f"The policy {policy.name!r} (type {policy.config.type!r}) has no action density, so it "
        "has no log-probability, no KL divergence and no PPO.",
        allowed="policies with categorical action tokens, such as razor-base, and "
        "flow-matching ones (smolvla, pi0, pi05)",
        remedy="Fine-tune it with --method bc, or choose another --policy.",
    )
