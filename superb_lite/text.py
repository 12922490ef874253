"""From phones to numbers and back: the vocabulary of SUPERB's phoneme recognition, and what CTC writes.

The first three symbols are always ``<pad>`` (0, also CTC's blank), ``<eos>`` (1) and ``<unk>`` (2).

Source: SUPERB ``downstream/ctc/vocab/phoneme.txt`` (shape and order of the specials).
Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
SPECIALS = (PAD, EOS, UNK)
BLANK = 0  # the index of <pad>

# The 39 phones of English in ARPAbet, without stress digits.
ARPABET = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)

# ARPAbet without stress digits, first pronunciation of the CMU dictionary.
DIGIT_PHONES: dict[str, tuple[str, ...]] = {
    "zero": ("Z", "IH", "R", "OW"),
    "one": ("W", "AH", "N"),
    "two": ("T", "UW"),
    "three": ("TH", "R", "IY"),
    "four": ("F", "AO", "R"),
    "five": ("F", "AY", "V"),
    "six": ("S", "IH", "K", "S"),
    "seven": ("S", "EH", "V", "AH", "N"),
    "eight": ("EY", "T"),
    "nine": ("N", "AY", "N"),
}


@dataclass(frozen=True)
class PhoneVocab:
    """The symbols of a phone recogniser, specials first: ``PhoneVocab(split.classes)``.

    Raises ValueError if the specials are not first or a symbol is there twice.

    >>> vocab = PhoneVocab.of(["N", "AY", "V", "F"])
    >>> vocab.ids(["F", "AY", "V"])
    [4, 3, 6, 1]
    >>> vocab.phones(collapse([0, 4, 4, 0, 3, 3, 6, 0, 1]))
    ['F', 'AY', 'V']
    """

    symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        if tuple(self.symbols[:3]) != SPECIALS:
            raise ValueError(f"the vocabulary begins with {self.symbols[:3]}, expected {SPECIALS}; use PhoneVocab.of")
        if len(set(self.symbols)) != len(self.symbols):
            twice = sorted({s for s in self.symbols if self.symbols.count(s) > 1})
            raise ValueError(f"the vocabulary has {twice} more than once; use PhoneVocab.of")

    @classmethod
    def of(cls, phones: Iterable[str]) -> PhoneVocab:
        """The vocabulary of all the `phones`, in alphabetical order after the specials."""
        return cls(SPECIALS + tuple(sorted(set(phones) - set(SPECIALS))))

    def __len__(self) -> int:
        return len(self.symbols)

    def ids(self, phones: Sequence[str]) -> list[int]:
        """Phones to indices, with ``<eos>`` at the end; a phone that is not in the vocabulary is ``<unk>``.

        Source: SUPERB appends ``<eos>`` to every target and trains CTC to say it.
        """
        _refuse_string(phones)
        index = {symbol: number for number, symbol in enumerate(self.symbols)}
        return [index.get(phone, 2) for phone in phones] + [1]

    def phones(self, ids: Iterable[int] | Tensor) -> list[str]:
        """Indices to phones, without ``<pad>`` and ``<eos>``; ``<unk>`` stays, and counts as an error."""
        return [self.symbols[number] for number in _numbers(ids) if number > 1]


def collapse(ids: Iterable[int] | Tensor, blank: int = BLANK) -> list[int]:
    """What a CTC path says: merge neighbours that are equal, then drop the blanks.

    ids: one index per frame. The order matters: a blank between two equal symbols keeps both.

    Differs: SUPERB's published PR numbers dropped blanks *first*, so that ``T blank T`` became one ``T``.
    Taught in notebook 02.

    >>> collapse([0, 7, 7, 0, 7, 5])
    [7, 7, 5]
    """
    return [number for number, _ in itertools.groupby(_numbers(ids)) if number != blank]


def _numbers(ids: Iterable[int] | Tensor) -> list[int]:
    return ids.tolist() if isinstance(ids, Tensor) else [int(number) for number in ids]


def _refuse_string(phones: Sequence[str]) -> None:
    if isinstance(phones, str):
        raise TypeError(f"phones are {phones!r}, a string; expected a list of phones. Did you forget .split()?")
