"""Word-level tokenizer for instructions."""

import json
import logging
import re
from collections.abc import Sequence
from importlib.resources import files

logger = logging.getLogger(__name__)

PAD = "<pad>"
UNKNOWN = "<unk>"
MAX_LENGTH = 1024
MAX_CHECKED = 1000
"""Instructions that are checked for words that the policy does not read."""
_WORD = re.compile(r"[^\W_]+")


def load_vocabulary() -> list[str]:
    """Read the vocabulary of the package; a word's id is its index in the list."""
    text = files("lerobot_policy_razor").joinpath("vocab.json").read_text(encoding="utf-8")
    return list(json.loads(text))


def split_words(text: str) -> list[str]:
    """Lower-case `text`, drop punctuation and return its words."""
    return _WORD.findall(text.lower())


def unknown_words(text: str) -> list[str]:
    """Return the words of `text` outside the shipped vocabulary, in order."""
    return WordTokenizer().unknown_words(text)


class WordTokenizer:
    """Map instructions to token ids, one per word.

    Args:
        vocabulary: Words in id order, with `<pad>` first and `<unk>` second; the shipped
            vocabulary when None.
        max_length: Tokens per instruction; shorter ones are padded, longer ones cut.
    """

    def __init__(self, vocabulary: Sequence[str] | None = None, max_length: int = 12) -> None:
        self.vocabulary = list(load_vocabulary() if vocabulary is None else vocabulary)
        if self.vocabulary[:2] != [PAD, UNKNOWN] or len(set(self.vocabulary)) != len(
            self.vocabulary
        ):
            raise ValueError(
                f"A vocabulary must start with {PAD!r}, {UNKNOWN!r} and hold each word once; this "
                f"one starts with {self.vocabulary[:2]}."
            )
        if type(max_length) is not int or not 1 <= max_length <= MAX_LENGTH:
            raise ValueError(
                f"max_length is {max_length!r}: give a whole number from 1 to {MAX_LENGTH}."
            )
        self.max_length = max_length
        self.owner = ""
        """Name of its policy, for warnings; empty if it is not known."""
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self._warned: set[str] = set()  # unknown words
        self._checked: set[str] = set()  # instructions

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return len(self.vocabulary)

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of `text` outside the vocabulary, in order and without repeats."""
        return list(dict.fromkeys(word for word in split_words(text) if word not in self._ids))

    def known_words(self, text: str) -> list[str]:
        """Return the words of `text` in the vocabulary, in order and without repeats."""
        return list(dict.fromkeys(word for word in split_words(text) if word in self._ids))

    def read_words(self, text: str) -> list[str]:
        """Return the words of `text` that the policy reads: the known of the first `max_length`."""
        words = split_words(text)[: self.max_length]
        return list(dict.fromkeys(word for word in words if word in self._ids))

    def cut_words(self, text: str) -> list[str]:
        """Return the words of `text` after the first `max_length`, in order."""
        return split_words(text)[self.max_length :]

    def encode(self, text: str) -> tuple[list[int], list[bool]]:
        """Return token ids and attention mask (True means a word), each `max_length` long.

        An unknown word becomes `<unk>`; each one is logged once. Words after the first `max_length`
        are cut; that is logged once per instruction.
        """
        if text not in self._checked and len(self._checked) < MAX_CHECKED:
            self._checked.add(text)
            self._warn_of_unread(text)
        ids = [self._ids.get(word, 1) for word in split_words(text)][: self.max_length]
        padding = self.max_length - len(ids)
        return ids + [0] * padding, [True] * len(ids) + [False] * padding

    def _warn_of_unread(self, text: str) -> None:
        cut = self.cut_words(text)
        read_part = " ".join(split_words(text)[: self.max_length])
        policy = f"the policy {self.owner}".strip()
        new = [word for word in self.unknown_words(read_part) if word not in self._warned]
        if new:
            self._warned.update(new)
            logger.warning(
                "The instruction %.200r has words that %.200s never learnt: %s. It reads %s in "
                "their place.",
                text,
                policy,
                ", ".join(new)[:500],
                UNKNOWN,
            )
        if cut:
            logger.warning(
                "The instruction %.200r is longer than the %d words that %.200s reads. It does "
                "not read the rest: %s.",
                text,
                self.max_length,
                policy,
                " ".join(cut)[:500],
            )
