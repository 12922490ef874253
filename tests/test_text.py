"""Phones to numbers and back, and what a CTC path says."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch

from superb_lite import heads, lm, metrics, text
from superb_lite.text import DIGIT_PHONES, PhoneVocab, collapse

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("module", [text, lm, metrics, heads], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried > 0


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ([], []),
        ([0, 0], []),
        ([5], [5]),
        ([5, 5, 5], [5]),
        ([5, 0, 5], [5, 5]),  # a blank between keeps both
        ([0, 5, 5, 6, 0, 6, 5], [5, 6, 6, 5]),
    ],
)
def test_collapse(path, said):
    assert collapse(path) == said
    assert collapse(torch.tensor(path, dtype=torch.int64)) == said


def test_collapse_with_another_blank():
    assert collapse([3, 0, 0, 3, 1], blank=3) == [0, 1]


def test_greedy_decoding_agrees_with_the_official_toolkit():
    stored = json.loads((FIXTURES / "ctc_greedy.json").read_text())
    vocab = PhoneVocab(tuple(stored["vocab"]))
    said = ["".join(vocab.phones(collapse(case["argmax_ids"]))) for case in stored["cases"]]
    assert said == [case["text"] for case in stored["cases"]]
    assert len(said) == 30


def test_specials_come_first_and_phones_are_sorted():
    vocab = PhoneVocab.of(["B", "AA", "B", "<pad>"])
    assert vocab.symbols == ("<pad>", "<eos>", "<unk>", "AA", "B")
    assert len(vocab) == 5


def test_ids_end_with_eos_and_unknown_phones_become_unk():
    vocab = PhoneVocab.of(["AA", "B"])
    assert vocab.ids(["B", "ZZ", "AA"]) == [4, 2, 3, 1]
    assert vocab.ids([]) == [1]


def test_phones_drop_pad_and_eos_but_keep_unk():
    vocab = PhoneVocab.of(["AA", "B"])
    assert vocab.phones([0, 4, 2, 1, 3]) == ["B", "<unk>", "AA"]
    assert vocab.phones(torch.tensor([4, 1])) == ["B"]


def test_every_digit_survives_the_round_trip():
    vocab = PhoneVocab.of(phone for phones in DIGIT_PHONES.values() for phone in phones)
    for phones in DIGIT_PHONES.values():
        assert tuple(vocab.phones(vocab.ids(phones))) == phones


def test_digit_lexicon_is_ten_words_of_stressless_arpabet():
    assert list(DIGIT_PHONES) == "zero one two three four five six seven eight nine".split()
    for phones in DIGIT_PHONES.values():
        assert all(phone.isalpha() and phone.isupper() for phone in phones)


def test_wrong_vocabularies_and_strings_are_refused():
    with pytest.raises(ValueError, match="begins with .'AA',"):
        PhoneVocab(("AA",))
    with pytest.raises(ValueError, match=r"\['AA'\] more than once"):
        PhoneVocab(("<pad>", "<eos>", "<unk>", "AA", "AA"))
    with pytest.raises(TypeError, match="did you forget|Did you forget"):
        PhoneVocab.of(["AA"]).ids("AA")
