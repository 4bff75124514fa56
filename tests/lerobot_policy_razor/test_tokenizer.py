import logging

import pytest

from lerobot_policy_razor.tokenizer import WordTokenizer, load_vocabulary, unknown_words


def test_case_and_punctuation_do_not_matter():
    tokenizer = WordTokenizer()
    assert tokenizer.encode("Pick up, the RED can!") == tokenizer.encode("pick up the red can")


def test_padding_and_cutting():
    tokenizer = WordTokenizer(max_length=4)
    ids, mask = tokenizer.encode("open the")
    assert mask == [True, True, False, False]
    assert ids[2:] == [0, 0]
    ids, mask = tokenizer.encode("put the red cube into the bin")
    assert len(ids) == 4
    assert all(mask)


def test_unknown_words_become_unk_and_are_logged_once(caplog):
    tokenizer = WordTokenizer()
    with caplog.at_level(logging.WARNING):
        ids, _ = tokenizer.encode("defenestrate the can")
        tokenizer.encode("defenestrate the can")
    assert ids[0] == 1
    assert ids[1] > 1
    assert len(caplog.records) == 1
    assert "defenestrate" in caplog.text
    assert unknown_words("please defenestrate the can, please") == ["please", "defenestrate"]


def test_vocabulary_has_spare_ids_and_no_repeats():
    vocabulary = load_vocabulary()
    assert len(set(vocabulary)) == len(vocabulary)
    assert sum(word.startswith("<spare") for word in vocabulary) >= 64


def test_a_vocabulary_without_padding_is_refused():
    with pytest.raises(ValueError, match="<pad>"):
        WordTokenizer(["open", "close"])
