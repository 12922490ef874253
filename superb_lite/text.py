"""From phones, letters and slots to numbers and back: the vocabularies of PR, ASR and SF, and what CTC writes.

The first three symbols of PR and SF are always ``<pad>`` (0, also CTC's blank), ``<eos>`` (1) and ``<unk>`` (2).

Source: SUPERB ``downstream/ctc/vocab/phoneme.txt`` (shape and order of the specials), ``downstream/asr``.
Taught in notebook 02 (freeze, weigh, probe).
"""

from __future__ import annotations

import itertools
import re
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


# -------------------------------------------------------------------------- vocabularies of ASR and SF

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def letter_classes(letters: Iterable[str] = (*LETTERS, "'")) -> tuple[str, ...]:
    """The classes of speech recognition: ``<s>`` (0, CTC's blank), three more specials, ``|`` (end of word), `letters`.

    Source: superb/protocol.md section 3.2. Differs: letters in alphabetical order, there by frequency.
    Taught in notebook 05 (speech recognition).
    """
    return ("<s>", "<pad>", "</s>", "<unk>", "|", *letters)


def slot_classes(slots: Iterable[str]) -> tuple[str, ...]:
    """The classes of slot filling: the three specials, space, ``'``, A-Z, then ``B-slot`` and ``E-slot`` of each slot.

    Source: superb/protocol.md section 3.9. Differs: slots in alphabetical order, there by frequency.
    Taught in notebook 11 (slot filling).
    """
    return (*SPECIALS, " ", "'", *LETTERS, *(f"{side}-{slot}" for slot in sorted(set(slots)) for side in "BE"))


def _numbers(ids: Iterable[int] | Tensor) -> list[int]:
    return ids.tolist() if isinstance(ids, Tensor) else [int(number) for number in ids]


def _refuse_string(phones: Sequence[str]) -> None:
    if isinstance(phones, str):
        raise TypeError(f"phones are {phones!r}, a string; expected a list of phones. Did you forget .split()?")


# --------------------------------------------------------------- sentences and slots to symbols and back

BEGIN, END, WORD_END = "<s>", "</s>", "|"  # ``<s>`` is CTC's blank in ASR
_SPACES = re.compile(" +")
_SLOT = re.compile(r"B-(\S+) (.+?) E-\1")
_MARK = re.compile(r"(?:B-\S+ | E-\S+)")


def letter_tokens(text: str) -> list[str]:
    """A sentence as ASR's targets: upper-case letters, ``|`` after every word, ``</s>`` at the end.

    Source: superb/protocol.md section 3.2.

    >>> " ".join(letter_tokens("go on"))
    'G O | O N | </s>'
    """
    return [letter for word in text.upper().split() for letter in (*word, WORD_END)] + [END]


def letters_text(tokens: Iterable[str]) -> str:
    """The sentence that these symbols spell, in lower case; the reverse of `letter_tokens`.

    Blank and ``</s>`` say nothing; ``<pad>`` and ``<unk>`` stay, and count as errors.
    """
    joined = "".join(token for token in tokens if token not in (BEGIN, END))
    return " ".join(joined.replace(WORD_END, " ").lower().split())


def slot_tokens(text: str, tags: Sequence[str]) -> list[str]:
    """A sentence with one tag per word ("O" or a slot's name) as SF's targets: letters, slot marks, ``<eos>``.

    ``B-name`` stands before the first and ``E-name`` behind the last word of a run of equal tags, one space
    between words; so two slots of one name next to each other become one.
    Raises ValueError if there is not one tag for each word.
    Source: superb/protocol.md section 3.9.

    >>> slot_markup(slot_tokens("fly to new york", ["O", "O", "city", "city"]))
    'FLY TO B-city NEW YORK E-city'
    """
    words = text.upper().split()
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words but {len(tags)} tags; expected one tag for each word of {text!r}")
    tokens: list[str] = []
    for name, run in itertools.groupby(zip(words, tags, strict=True), key=lambda pair: pair[1]):
        spelled = [*" ".join(word for word, _ in run)]
        tokens += [*(" " if tokens else ""), *(spelled if name == "O" else [f"B-{name}", *spelled, f"E-{name}"])]
    return [*tokens, EOS]


def slot_markup(tokens: Iterable[str]) -> str:
    """What these symbols say, written as SUPERB does: ``PLAY B-artist ADELE E-artist NOW``. Any tokens will do."""
    text = ""
    for token in tokens:
        if token.startswith("B-"):
            text += f"{token} "
        elif token.startswith("E-"):
            text += f" {token}"
        elif token not in (PAD, EOS):
            text += token
    return text


def read_slots(markup: str, *, strip: bool = False) -> list[tuple[str, str]]:
    """The slots in a marked-up sentence, [(name, value), ...], left to right; what is malformed is no slot.

    A slot is ``B-name``, the shortest text that is not empty, ``E-name``. With `strip`, marks inside a value are
    taken out of it (SUPERB does that for hypotheses only).

    >>> read_slots("FLY TO B-city NEW YORK E-city B-day NOW")
    [('city', 'NEW YORK')]
    """
    found = _SLOT.findall(_SPACES.sub(" ", markup))
    if strip:
        found = [(name, _SPACES.sub(" ", _MARK.sub("", value)).strip()) for name, value in found]
    return found
