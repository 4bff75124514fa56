"""Word-level tokenizer for instructions."""

import json
import logging
import re
from collections.abc import Sequence
from importlib.resources import files

logger = logging.getLogger(__name__)

PAD = "<pad>"
UNKNOWN = "<unk>"
_WORD = re.compile(r"[^\W_]+")


def load_vocabulary() -> list[str]:
    """Read the vocabulary that ships with the package; a word's id is its place in the list."""
    text = files("lerobot_policy_razor").joinpath("vocab.json").read_text(encoding="utf-8")
    return list(json.loads(text))


def split_words(text: str) -> list[str]:
    """Lower-case `text`, drop punctuation and return its words."""
    return _WORD.findall(text.lower())


def unknown_words(text: str) -> list[str]:
    """Return the words of `text` that the shipped vocabulary does not hold, in order."""
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
                f"A vocabulary starts with {PAD!r}, {UNKNOWN!r} and holds each word once, got "
                f"{self.vocabulary[:2]} first."
            )
        self.max_length = max_length
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}
        self._warned: set[str] = set()

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

    def encode(self, text: str) -> tuple[list[int], list[bool]]:
        """Return token ids and attention mask (True means a word), each `max_length` long.

        An unknown word becomes `<unk>`; each one is logged once.
        """
        new = [word for word in self.unknown_words(text) if word not in self._warned]
        if new:
            self._warned.update(new)
            logger.warning(
                "The instruction %r has words that the policy never learnt: %s. It sees %s in "
                "their place.",
                text,
                ", ".join(new),
                UNKNOWN,
            )
        ids = [self._ids.get(word, 1) for word in split_words(text)][: self.max_length]
        padding = self.max_length - len(ids)
        return ids + [0] * padding, [True] * len(ids) + [False] * padding
