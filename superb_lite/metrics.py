"""How good is it? Pure functions from references and hypotheses to a number in percent.

Error rates count edits over the whole set and divide once at the end: averaging one rate per utterance would let
a two-phone word weigh as much as a long sentence. A score that cannot be computed raises; it is never NaN.

Taught in notebook 02 (freeze, weigh, probe) and notebook 04 (keyword spotting).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class Edits:
    """What must be changed to turn a hypothesis into its reference; edits of several utterances add up.

    `reference` is the number of symbols in the reference.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def percent(self) -> float:
        """Edits per 100 reference symbols; above 100 if much is invented. Raises ValueError without references."""
        if self.reference == 0:
            raise ValueError("the references hold no symbol at all, so there is no error rate; are the labels empty?")
        return 100.0 * self.total / self.reference


def edits(ref: Sequence[str], hyp: Sequence[str]) -> Edits:
    """The fewest substitutions, deletions and insertions between two lists of symbols (Levenshtein).

    Taught in notebook 02.

    >>> edits("K AE T".split(), "K AH T S".split())
    Edits(substitutions=1, deletions=0, insertions=1, reference=3)
    """
    kinds = [operation.tag for operation in Levenshtein.editops(hyp, ref)]
    # editops turns hyp into ref: what it must insert was deleted by the recogniser, and the reverse
    return Edits(kinds.count("replace"), kinds.count("insert"), kinds.count("delete"), len(ref))


def error_rate(refs: Sequence[Sequence[str]], hyps: Sequence[Sequence[str]]) -> float:
    """Edits in percent of the reference symbols, pooled over all utterances.

    refs, hyps: one list of symbols per utterance, in the same order. Raises ValueError if their numbers differ or
    there is no reference symbol, TypeError if an utterance is a string instead of a list.
    Source: SUPERB section PR and ASR (corpus level). Taught in notebook 02.

    >>> error_rate([["a", "b"], ["c", "d"]], [["a"], ["c", "d"]])
    25.0
    """
    _same_number(refs, hyps)
    for symbols in [*refs, *hyps]:
        if isinstance(symbols, str):
            raise TypeError(f"got the string {symbols!r}, expected a list of symbols; did you forget .split()?")
    return sum((edits(ref, hyp) for ref, hyp in zip(refs, hyps, strict=True)), Edits()).percent


def per(refs: Sequence[Sequence[str]], hyps: Sequence[Sequence[str]]) -> float:
    """Phone error rate in percent; refs and hyps are lists of phones. See `error_rate`. Taught in notebook 02."""
    return error_rate(refs, hyps)


def wer(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """Word error rate in percent; refs and hyps are sentences, split at white space.

    >>> wer(["turn the light off"], ["turn light of"])
    50.0
    """
    return error_rate([ref.split() for ref in refs], [hyp.split() for hyp in hyps])


def cer(refs: Sequence[str], hyps: Sequence[str]) -> float:
    """Character error rate in percent; spaces are characters.

    >>> cer(["seven"], ["sven"])
    20.0
    """
    return error_rate([list(ref) for ref in refs], [list(hyp) for hyp in hyps])


def accuracy(refs: Sequence[Any], hyps: Sequence[Any]) -> float:
    """Percentage of predictions that are exactly right. Raises ValueError if empty or of unequal length.

    Taught in notebook 04.

    >>> accuracy(["yes", "no", "up", "no"], ["yes", "no", "no", "no"])
    75.0
    """
    _same_number(refs, hyps)
    if len(refs) == 0:
        raise ValueError("there is nothing to score: no references and no predictions; is the split empty?")
    return 100.0 * sum(ref == hyp for ref, hyp in zip(refs, hyps, strict=True)) / len(refs)


def _same_number(refs: Sequence[Any], hyps: Sequence[Any]) -> None:
    if len(refs) != len(hyps):
        raise ValueError(f"{len(refs)} references but {len(hyps)} predictions; expected one prediction per reference")
